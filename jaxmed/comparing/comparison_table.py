"""A comparison as CSV for other programs and as text for a terminal."""

import csv as csv_files
import io
from collections.abc import Sequence

from jaxmed.report import words
from jaxmed.report.load import Run

METRICS = (
  'auroc',
  'ap',
  'f1',
  'accuracy',
  'sensitivity',
  'specificity',
  'sensitivity_at_specificity',
  'slide_auroc',
  'pixel_auroc',
  'pixel_aupro_8',
  'froc',
)
PARTS = 'value', 'low', 'high', 'spread'
DIFFERENCE = 'value', 'low', 'high', 'p', 'p_holm'
COSTS = (
  'train_images_per_s',
  'score_images_per_s',
  'train_seconds',
  'seconds',
  'host_bytes',
  'device_bytes',
  'parameters',
  'pretrained',
  'bank',
)
HIGHEST = 'host_bytes', 'device_bytes'  # Of several runs; else their mean.


def costs(run: Run) -> dict[str, float | None]:
  """Speed, memory and size of a run; None where it did not note them."""
  record = run.provenance
  train, score = record.get('train') or {}, record.get('score') or {}
  memory, stages = record.get('memory') or {}, record.get('stages') or {}
  spent = [words.finite(seconds) for seconds in stages.values()]
  found = {
    'train_images_per_s': train.get('images_per_s'),
    'score_images_per_s': score.get('images_per_s'),
    'train_seconds': stages.get('train'),
    'seconds': sum(s for s in spent if s is not None) or None,
    'host_bytes': memory.get('host_bytes'),
    'device_bytes': memory.get('device_bytes'),
  }
  for kind in ('parameters', 'pretrained', 'bank'):
    sizes = train.get(kind)
    found[kind] = None if sizes is None else sum(sizes.values())
  return {name: words.finite(value) for name, value in found.items()}


def together(runs: Sequence[dict]) -> dict[str, float | None]:
  """Of the runs of a method: the most memory, the mean of all else."""
  found = {}
  for name in COSTS:
    values = [one[name] for one in runs]
    if None in values:
      found[name] = None
    elif name in HIGHEST:
      found[name] = max(values)
    else:
      found[name] = sum(values) / len(values)
  return found


def csv(comparison: dict) -> str:
  """A row a method, and below it its runs where it has several."""
  reference = comparison['methods'][comparison['reference']]['name']
  rows = []
  for method in comparison['methods']:
    about = {k: method[k] for k in ('name', 'method', 'preset', 'score')}
    runs = method['runs']
    rows.append(
      {'kind': 'method'}
      | about
      | _where(runs)
      | _numbers(method)
      | _differences(method, reference)
    )
    if len(runs) > 1:
      rows += [
        {'kind': 'run'} | about | _where([run]) | _numbers(run) for run in runs
      ]
  columns = dict.fromkeys(name for row in rows for name in row)
  stream = io.StringIO()
  writer = csv_files.DictWriter(stream, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return stream.getvalue()


def _where(runs: Sequence[dict]) -> dict:
  return {
    'runs': len(runs),
    'seeds': ' '.join(str(run['seed']) for run in runs),
    'folders': ' '.join(str(run['run'].workdir) for run in runs),
  }


def _numbers(row: dict) -> dict:
  """auroc, auroc_low, ..., and what the row cost."""
  found = {}
  for name in METRICS:
    if number := row['metrics'].get(name):
      for part in PARTS:
        column = name if part == 'value' else f'{name}_{part}'
        found[column] = number.get(part)
  return found | row['costs']


def _differences(method: dict, reference: str) -> dict:
  found = {'against': reference if method['differences'] else ''}
  for name, difference in method['differences'].items():
    for part in DIFFERENCE:
      column = f'{name}_difference'
      if part != 'value':
        column = f'{column}_{part}'
      found[column] = difference[part]
  return found


def text(comparison: dict) -> str:
  """Methods by their main metrics, and how they differ from the reference."""
  reference = comparison['methods'][comparison['reference']]
  heads = ['', 'AUROC [95 %]', 'AP [95 %]', 'F1', 'difference', 'p', 'Holm']
  rows = [heads]
  for method in comparison['methods']:
    metrics, runs = method['metrics'], len(method['runs'])
    name = method['name'] + (f' ({runs} seeds)' if runs > 1 else '')
    row = [name, *(_cell(metrics.get(m)) for m in ('auroc', 'ap'))]
    row.append(_cell(metrics.get('f1'), interval=False))
    rows.append(row + _against(method))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
  test = comparison['test']
  lines.append(
    f'{test["n"]} test images, {test["positives"]} anomalous, '
    f'{test["groups"]} groups, {test["resamples"]} resamples of groups, the '
    f'same for all. Differences of AUROC to {reference["name"]}; p by the '
    'paired bootstrap, and corrected for several comparisons by Holm.'
  )
  if any(len(method['runs']) > 1 for method in comparison['methods']):
    lines.append('± is the standard deviation of one seed.')
  lines += [f'Warning: {said}' for said in comparison['cautions']]
  return '\n'.join(lines)


def _cell(number: dict | None, interval: bool = True) -> str:
  value = words.finite((number or {}).get('value'))
  if value is None:
    return 'none'
  said = f'{value:.3f}'
  if (spread := words.finite(number.get('spread'))) is not None:
    said += f' ± {spread:.3f}'
  span = words.interval(number, 3, ', ') if interval else ''
  return f'{said} [{span}]' if span else said


def _against(method: dict) -> list[str]:
  found = method['differences'].get('auroc')
  if not found:
    return ['reference', '', '']
  value = words.finite(found['value'])
  if value is None:
    return ['none', '', '']
  return [
    f'{value:+.3f}',
    *(words.p_value(found[part]) for part in ('p', 'p_holm')),
  ]
