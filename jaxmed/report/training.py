"""The curves of training: losses, gradient norms and speed of every phase."""

import numpy as np

from jaxmed.report import words
from jaxmed.report.figures import SERIES, Figure
from jaxmed.report.plot import Plot

POINTS = 240  # A longer log is drawn as the means of so many stretches.
SIZE = (380, 240)
KNOWN = {  # The last part of a scalar's name: title, axis.
  'loss': ('Losses', 'Loss'),
  'fid': ('FID', 'Fréchet distance'),
  'validation_loss': ('Validation normals', 'Mean score'),
  'gradient_norm': ('Gradient norms', 'Norm'),
  'parameter_norm': ('Parameter norms', 'Norm'),
  'images_per_s': ('Speed', 'Images per second'),
  'matrix_peak_percent': ('Use of the matrix units', '% of measured peak'),
  'data_wait_percent': ('Waiting for data', '% of the time'),
}
FIRST = ('loss', 'fid', 'validation_loss', 'gradient_norm', 'images_per_s')
SELECTING = ('fid', 'validation_loss')  # A state may be chosen by these.
SKIPPED = {'phase', 'step', 'event', 'seconds'}


def phases(
  log: list[dict], chosen: dict[str, int] | None = None, fid: str = ''
) -> list[dict]:
  """Every phase's figures: {name, steps, main, more}, in order of training.

  `chosen` is the step of each phase whose state was taken, and `fid` what is
  to be said of that curve.
  """
  named = {}
  for row in log:
    named.setdefault(str(row.get('phase', 'train')), []).append(row)
  result = []
  for name, rows in named.items():
    steps = [words.finite(row.get('step')) for row in rows]
    rows = [
      row for row, step in zip(rows, steps, strict=True) if step is not None
    ]
    groups = _groups(rows)
    step = (chosen or {}).get(name)
    main = [
      _figure(rows, key, groups[key], step, fid if key == 'fid' else '')
      for key in FIRST
      if key in groups
    ]
    more = [
      _figure(rows, key, names)
      for key, names in groups.items()
      if key not in FIRST
    ]
    result.append(
      {
        'name': name,
        'steps': max((int(row['step']) for row in rows), default=0),
        'main': [figure for figure in main if figure],
        'more': [figure for figure in more if figure],
      }
    )
  return result


def _groups(rows: list[dict]) -> dict[str, list[str]]:
  """The scalars by the last part of their name: one figure for each."""
  groups = {}
  for name in dict.fromkeys(key for row in rows for key in row):
    if name not in SKIPPED:
      groups.setdefault(name.rsplit('/', 1)[-1], []).append(name)
  return groups


def _figure(
  rows: list[dict],
  key: str,
  names: list[str],
  chosen: int | None = None,
  says: str = '',
) -> Figure | None:
  title, axis = KNOWN.get(key, (words.plain(key).capitalize(), 'Value'))
  logged = {name: _logged(rows, name) for name in names[:SERIES]}
  series = {name: _thinned(pairs) for name, pairs in logged.items() if pairs}
  if not series:
    return None
  every_y = np.concatenate([y for _, y in series.values()])
  every_x = np.concatenate([x for x, _ in series.values()])
  low, high = float(every_y.min()), float(every_y.max())
  rate = key.endswith(('_per_s', '_percent'))
  log = low > 0 and high / low > 50 and not rate
  if not log:
    low = min(low, 0.0) if low < 0.5 * high else low
    margin = 0.05 * (high - low)
    low, high = low - margin * (low != 0), high + margin
  span = float(every_x.min()), float(every_x.max())
  plot = Plot(span, (low, high), 'Step', axis, SIZE, log)
  legend = []
  for i, (name, (x, y)) in enumerate(series.items()):
    part = name.rsplit('/', 1)[0] if '/' in name else title.lower()
    if len(x) > 1:
      plot.line(x, y, f's{i}', part)
    else:
      plot.point(x[0], y[0], f's{i}', part)
    last = logged[name][-1][1]  # Not the mean of the last ones.
    legend.append((f's{i}', f'{part} (last {words.number(last)})'))
    if key in SELECTING and chosen in x:
      value = float(y[list(x).index(chosen)])
      said = f'chosen: step {chosen}, {words.number(value)}'
      plot.point(chosen, value, f's{i}', said)
      says = f'Dot: {said}. {says}'
  described = f'{title} over the steps: ' + ', '.join(n for _, n in legend)
  return Figure(
    plot.svg(described),
    title,
    f'{says} {_caption(rows, names, log)}'.strip(),
    tuple(legend),
  )


def _logged(rows: list[dict], name: str) -> list[tuple]:
  """Steps and values where the scalar was logged."""
  pairs = [(row['step'], words.finite(row.get(name))) for row in rows]
  return [(step, value) for step, value in pairs if value is not None]


def _thinned(pairs: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values, POINTS at most."""
  steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
  if len(steps) > POINTS:
    pieces = [np.array_split(a, POINTS) for a in (steps, values)]
    steps, values = ([p.mean() for p in piece] for piece in pieces)
  return np.asarray(steps), np.asarray(values)


def _caption(rows: list[dict], names: list[str], log: bool) -> str:
  said = []
  if log:
    said.append('Logarithmic axis.')
  most = max(sum(name in row for row in rows) for name in names)
  if most > POINTS:
    said.append(f'Each point is the mean of about {most // POINTS} logs.')
  if len(names) > SERIES:
    said.append(f'{len(names) - SERIES} further curves are in train.jsonl.')
  return ' '.join(said)
