"""The pictures of a run: its slides with their maps, and single examples."""

import numpy as np

from jaxmed.report import slide_layers, words
from jaxmed.report.images import Pictures
from jaxmed.report.load import LABELS, Run

SLIDES = 24  # Shown as pictures: the highest and the lowest scored halves.
FEW = 10  # So many slides are shown large.
LARGE, SMALL, PANEL = 860, 560, 224  # px, of the longer side.
RANKS = {  # Which images these are, and what one is above or below the cut.
  'highest anomalous': ('anomalous images with the highest', True, 'found'),
  'lowest anomalous': ('anomalous images with the lowest', False, 'missed'),
  'highest normal': ('normal images with the highest', True, 'false alarms'),
  'lowest normal': ('normal images with the lowest', False, 'called normal'),
}
RULES = {  # Columns of slides.parquet, and what they are called.
  'max': ('score.', 'max'),
  'mean': ('mean.', 'mean'),
  'mean_above': ('slide.mean_above.', 'mean above the threshold'),
  'top_k': ('slide.top_k.', 'mean of the highest'),
}
PICTURES = {  # Of a slide.
  'thumbnail': 'the slide',
  'heat': 'its heat map',
  'overlay': 'the map over it',
}
FIRST, LAST = ('input',), ('map', 'mask')  # By the last word of a name.


def slide_rows(run: Run, pictures: Pictures) -> dict:
  """The slide table, highest score first, and the pictures of some slides.

  What ranks is the rule that the evaluation named first.
  """
  if not run.slides:
    return {}
  columns = _columns(run)
  rows = [_slide(run, row, columns, i) for i, row in enumerate(run.slides)]
  rows.sort(key=lambda row: -row['rank'])
  half = SLIDES // 2
  hidden = rows[half:-half] if len(rows) > SLIDES else []
  shown = rows[:half] + rows[-half:] if hidden else rows
  for row in hidden:
    row['notes'].append(f'no picture: only {SLIDES} slides have one here')
  for row in shown:
    side = LARGE if len(shown) <= FEW else SMALL
    row['pictures'] = slide_layers.layers(
      run, pictures, row['group'], row['detections'], side, row['id']
    )
    row['notes'] += _missing(row)
  drawn = [row['pictures'] for row in shown]
  return {
    'columns': [title for _, title in columns],
    'rows': rows,
    'shown': [row for row in shown if row['pictures']],
    'hidden': len(hidden),
    'failed': any(p.get('failed') for p in drawn),
    'reasons': any(row['reason'] for row in rows),
    'notes': any(row['notes'] for row in rows),
    'files': any(row['files'] for row in rows),
    'layered': next((p for p in drawn if 'scale' in p), {}),
    'most': slide_layers.DETECTIONS,
    'folder': run.slides_folder,
  }


def _columns(run: Run) -> list[tuple[str, str]]:
  """(column, title) of the scores: the first ranks the slides."""
  present = run.slides[0]
  names = [key[6:] for key in present if key.startswith('score.')]
  names = sorted(names, key=lambda name: name != run.primary)
  by_rule = [
    (rule, f'{prefix}{name}', f'{name}, {title}')
    for rule, (prefix, title) in RULES.items()
    for name in (names if rule == 'max' else names[:1])
    if f'{prefix}{name}' in present
  ]
  first = run.results.get('slide_rule') or 'max'
  by_rule.sort(key=lambda column: column[0] != first)
  return [column[1:] for column in by_rule]


def _missing(row: dict) -> list[str]:
  """What of a slide's pictures is not in the page, and why."""
  if not row['pictures']:
    return [] if row['reason'] else ['no picture: its files are missing']
  return [
    f'no picture of {title}: {row["pictures"][kind]["missing"]}'
    for kind, title in PICTURES.items()
    if 'missing' in row['pictures'].get(kind, {})
  ]


def _slide(run: Run, row: dict, columns: list, number: int) -> dict:
  scores = [words.finite(row.get(key)) for key, _ in columns]
  first = scores[0] if scores else None
  group = str(row.get('group', ''))
  detections, strange = slide_layers.detections(run, group)
  notes = []
  if strange:
    said = words.several(strange, 'line')
    notes.append(f'{said} of detections/{group}.csv: no detection')
  return {
    'id': f'slide-{number}',
    'group': group,
    'label': LABELS.get(row.get('label'), 'unknown'),
    'tiles': row.get('tiles'),
    'failed': row.get('tiles_failed') or 0,
    'reason': row.get('reason') or '',
    'scores': scores,
    'rank': -np.inf if first is None else first,
    'detections': detections,
    'files': slide_layers.files(run, group),
    'notes': notes,
    'pictures': {},
  }


def example_ranks(run: Run, pictures: Pictures, most: int | None) -> list[dict]:
  """The examples by rank, in the file's order, with their panels."""
  by_rank = {}
  for example in run.examples:
    by_rank.setdefault(example.get('rank', 'examples'), []).append(example)
  shown = {
    rank: [_example(run, pictures, row) for row in rows[:most]]
    for rank, rows in by_rank.items()
  }
  return [
    {
      'name': str(rank).capitalize(),
      'says': _says(rank, examples),
      'examples': examples,
    }
    for rank, examples in shown.items()
    if examples
  ]


def _says(rank: str, examples: list[dict]) -> str:
  """What the examples of a rank teach: an extreme need not be a mistake."""
  if rank not in RANKS:
    return ''
  images, above, called = RANKS[rank]
  said = f'The {images} scores'
  calls = [one['above'] for one in examples]
  if None in calls:
    return f'{said}.'
  return f'{said}; {calls.count(above)} of these {len(calls)}: {called}.'


def _example(run: Run, pictures: Pictures, row: dict) -> dict:
  panels = row.get('panels') or {}
  order = sorted(panels, key=_order)
  scores = row.get('scores') or {}
  value = words.finite(scores.get(run.beforehand))
  threshold = words.finite(
    run.results.get('thresholds', {}).get(run.beforehand, {}).get('value')
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
    'place': place(run, run.beforehand, value),
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


def place(run: Run, name: str, value: float | None) -> str:
  """Where a score stands among the validation normals."""
  grid = run.calibration.get(name) or {}
  values = [words.finite(v) for v in grid.get('value') or []]
  if value is None or not values or None in values:
    return ''
  # Read backwards: of many equal ones, none lies below.
  back = -np.array(values[::-1]), -np.array(grid['quantile'][::-1])
  share = min(99, int(-100 * np.interp(-value, *back)))
  if value > values[-1]:
    return 'above all validation normals'
  if value < values[0]:
    return 'below all validation normals'
  return f'above {share or "less than 1"} % of validation normals'
