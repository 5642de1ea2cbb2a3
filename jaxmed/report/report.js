'use strict';
// Sorting of tables, heat maps and their layers, and all details on paper.

const text = new Intl.Collator('en', { numeric: true, sensitivity: 'base' });

function key(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.key;
  if (value === undefined) return cell.textContent.trim();
  return value === '' ? null : Number(value);
}

function compare(a, b) {
  return typeof a === 'number' && typeof b === 'number'
    ? a - b
    : text.compare(a, b);
}

function sort(table, column, sign) {
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => row.className !== 'group');
    const keyed = rows.map((row) => [key(row, column), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * compare(a, b);  // What has no value comes last.
    });
    body.append(...keyed.map(([, row]) => row));
  }
}

for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.classList.contains('plain')) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const first = head.classList.contains('number')
        ? 'descending' : 'ascending';
      const other = first === 'ascending' ? 'descending' : 'ascending';
      const order = head.getAttribute('aria-sort') === first ? other : first;
      heads.forEach((each) => each.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', order);
      sort(table, column, order === 'ascending' ? 1 : -1);
    });
  });
}

const page = document.documentElement;
const slider = document.getElementById('opacity');
if (slider) {
  const fade = () => page.style.setProperty('--overlay', slider.value / 100);
  slider.addEventListener('input', fade);
  fade();
}

for (const box of document.querySelectorAll('.switch')) {
  const show = () => page.classList.toggle(`hide-${box.value}`, !box.checked);
  box.addEventListener('change', show);
  show();
}

addEventListener('beforeprint', () => {
  for (const details of document.querySelectorAll('details:not(.screen)')) {
    details.open = true;
  }
});
