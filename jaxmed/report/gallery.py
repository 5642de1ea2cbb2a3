"""The pictures of a run: its slides with their maps, and single examples."""

import numpy as np

from jaxmed.report import slide_layers, words
from jaxmed.report.images import Pictures
from jaxmed.report.load import LABELS, Run

SLIDES = 24  # Shown as pictures: the highest and the lowest scored halves.
FEW = 10  # So many slides are shown large.
LARGE, SMALL, PANEL = 860, 560, 224  # px, of the longer side.
RANKS = {  # What an example of this rank teaches.
  'highest anomalous': 'Found: anomalous images with the highest scores.',
  'lowest anomalous': 'Missed: anomalous images with the lowest scores.',
  'highest normal': 'False alarms: normal images with the highest scores.',
  'lowest normal': 'Plainly normal: normal images with the lowest scores.',
}
FIRST, LAST = ('input',), ('map', 'mask')  # By the last word of a name.


def slide_rows(run: Run, pictures: Pictures) -> dict:
  """The slide table, highest score first, and the pictures of some slides."""
  if not run.slides:
    return {}
  names = [key[6:] for key in run.slides[0] if key.startswith('score.')]
  names = sorted(names, key=lambda name: name != run.primary)
  columns = [(f'score.{name}', f'{name}, max') for name in names]
  rules = {'mean.': 'mean', 'slide.mean_above.': 'mean above the threshold'}
  rules |= {'slide.top_k.': 'mean of the highest'}
  columns += [
    (f'{prefix}{name}', f'{name}, {title}')
    for prefix, title in rules.items()
    for name in names[:1]
    if f'{prefix}{name}' in run.slides[0]
  ]
  rows = [_slide(row, columns, i) for i, row in enumerate(run.slides)]
  for row in rows:
    row['files'] = slide_layers.files(run, row['group'])
  rows.sort(key=lambda row: -row['rank'])
  half = SLIDES // 2
  shown = rows if len(rows) <= SLIDES else rows[:half] + rows[-half:]
  for row in shown:
    side = LARGE if len(shown) <= FEW else SMALL
    row['pictures'] = slide_layers.layers(run, pictures, row['group'], side)
  drawn = [row['pictures'] for row in shown]
  return {
    'columns': [title for _, title in columns],
    'rows': rows,
    'shown': [row for row in shown if row['pictures']],
    'hidden': len(rows) - len(shown),
    'failed': any(row['failed'] for row in rows),
    'reasons': any(row['reason'] for row in rows),
    'files': any(row['files'] for row in rows),
    'layered': next((p for p in drawn if 'scale' in p), {}),
    'most': slide_layers.DETECTIONS,
  }


def _slide(row: dict, columns: list, number: int) -> dict:
  scores = [words.finite(row.get(key)) for key, _ in columns]
  first = scores[0] if scores else None
  return {
    'id': f'slide-{number}',
    'group': str(row.get('group', '')),
    'label': LABELS.get(row.get('label'), 'unknown'),
    'tiles': row.get('tiles'),
    'failed': row.get('tiles_failed') or 0,
    'reason': row.get('reason') or '',
    'scores': scores,
    'rank': -np.inf if first is None else first,
    'pictures': {},
  }


def example_ranks(run: Run, pictures: Pictures, most: int | None) -> list[dict]:
  """The examples by rank, in the file's order, with their panels."""
  by_rank = {}
  for example in run.examples:
    by_rank.setdefault(example.get('rank', 'examples'), []).append(example)
  return [
    {
      'name': str(rank).capitalize(),
      'says': RANKS.get(rank, ''),
      'examples': [_example(run, pictures, row) for row in rows[:most]],
    }
    for rank, rows in by_rank.items()
    if rows[:most]
  ]


def _example(run: Run, pictures: Pictures, row: dict) -> dict:
  panels = row.get('panels') or {}
  order = sorted(panels, key=_order)
  scores = row.get('scores') or {}
  value = words.finite(scores.get(run.primary))
  threshold = words.finite(
    run.results.get('thresholds', {}).get(run.primary, {}).get('value')
  )
  above = None
  if value is not None and threshold is not None:
    above = value > threshold
  label = LABELS.get(row.get('label'), 'unknown')
  return {
    'key': str(row.get('key', '')),
    'group': str(row.get('group', '')),
    'label': label,
    'score': value,
    'above': above,
    'place': _place(run, value),
    'panels': [
      {
        'name': name,
        'alt': f'{name} of {row.get("key", "an image")} ({label})',
        **pictures.embed(run.file(str(panels[name])), PANEL),
      }
      for name in order
    ],
  }


def _order(panel: str) -> int:
  word = panel.rsplit(' ', 1)[-1]
  if panel in FIRST:
    return 0
  return 2 + LAST.index(word) if word in LAST else 1


def _place(run: Run, value: float | None) -> str:
  """Where a score stands among the validation normals."""
  grid = run.calibration.get(run.primary) or {}
  values = [words.finite(v) for v in grid.get('value') or []]
  if value is None or not values or None in values:
    return ''
  share = int(100 * float(np.interp(value, values, grid['quantile'])))
  if value > values[-1]:
    return 'above all validation normals'
  if value < values[0]:
    return 'below all validation normals'
  return f'above {share or "less than 1"} % of validation normals'
