"""Compares what our networks give with what the originals gave.

A case is a folder with `manifest.json` and `outputs.npz`. The module of its
name beside this one has `compute(manifest, directory)`, which gives arrays by
the names of the outputs. It may also have

  LOOSE: an expression for names that are compared as gradients are, in place
    of the one here;
  tolerance(name, manifest): of one output, relative to its largest value, or
    None where the rule below should decide; of whole numbers and truth values
    the share that may differ.

An output that the manifest describes as an INPUT is not compared.

An output's tolerance is the larger of 1e-4 of its largest absolute value
(1e-3 where LOOSE finds its name) and ten times what float32 itself lost
there; whole numbers and truth values must be equal. Parameters hardly move in
a step or two, so of parameters after a step the changes are compared; and as
rounding alone may turn the step of a parameter whose true gradient is zero,
these changes must also agree on the average, which an untrained network's
would not.
"""

import dataclasses
import importlib
import pathlib
import re

import numpy as np

from tests.golden import filling

CLOSE = 1e-4
LOOSELY = 1e-3
LOOSE = r'grad|after|moving|delta|change|(round|step|iter)([2-9]|1\d)'
ROUNDING = 10.0  # Times what float32 lost in the original.
CHANGE = 0.25  # Mean error of parameters' changes, of the mean change.


class NoCase(Exception):
  """A case that this project does not have."""


class NoData(Exception):
  """A file that a case is computed from is not here."""


@dataclasses.dataclass(frozen=True)
class Line:
  """One output: its largest error, of its largest value."""

  name: str
  error: float
  tolerance: float
  note: str = ''

  @property
  def passed(self) -> bool:
    return self.error <= self.tolerance  # A NaN is no pass.

  def __str__(self) -> str:
    mark = 'ok' if self.passed else 'FAILED'
    text = f'error {self.error:.1e}  tolerance {self.tolerance:.1e}  {mark}'
    return f'{self.name:44} {text}' + (f' ({self.note})' if self.note else '')


def module_of(case: str):
  """The module that rebuilds a case."""
  try:
    module = importlib.import_module(f'tests.golden.{case}')
  except ModuleNotFoundError as error:
    if error.name != f'tests.golden.{case}':
      raise
    module = None
  if not hasattr(module, 'compute'):
    here = pathlib.Path(__file__).parent
    known = sorted(
      path.stem
      for path in here.glob('*.py')
      if re.search(r'^def compute\(', path.read_text(), re.MULTILINE)
    )
    raise NoCase(f'No golden case {case!r}. Known: {", ".join(known)}.')
  return module


def check(directory: pathlib.Path) -> list[Line]:
  """A line for every array of a case's outputs.npz."""
  manifest = filling.read(directory)
  module = module_of(manifest['case'])
  with np.load(directory / 'outputs.npz') as outputs:
    theirs = dict(outputs)
  return compare(manifest, module, module.compute(manifest, directory), theirs)


def compare(manifest: dict, module, ours: dict, theirs: dict) -> list[Line]:
  """A line for every one of their arrays."""
  lines = []
  for name in theirs:
    if str(manifest.get('outputs', {}).get(name)).startswith('INPUT'):
      continue
    if name not in ours:
      lines.append(Line(name, np.inf, 0.0, 'not computed'))
      continue
    one, other = np.asarray(ours[name]), theirs[name]
    if one.shape != other.shape:
      note = f'shape {one.shape}, theirs {other.shape}'
      lines.append(Line(name, np.inf, 0.0, note))
    elif other.dtype.kind not in 'fc':
      differing = float(np.mean(one != other)) if other.size else 0.0
      allowed = _given(name, manifest, module) or 0.0
      note = 'share that differs' if allowed else 'exact'
      lines.append(Line(name, differing, allowed, note))
    else:
      lines.append(_line(name, manifest, module, one, theirs))
  return lines


def _line(name, manifest, module, one, theirs) -> Line:
  one, other = one.astype(np.float64), theirs[name].astype(np.float64)
  rows = _rows_kept(name, manifest, other)
  rounding = np.full(len(rows), _rounding(name, manifest))
  if f'float64/{name}' in theirs:  # Better known, row by row.
    lost = np.abs(other - theirs[f'float64/{name}']).reshape(len(rows), -1)
    rounding = lost.max(axis=1)
  note = '' if rows.all() else f'{(~rows).sum()} rows left to rounding'
  before = _before(name, manifest)
  if before is not None:
    one, other = one - before, other - before
    # In a sum most of the change cancels, its error does not.
    whole = theirs.get(f'{name.rpartition("/")[0]}/change_abs_sum')
    if whole is not None and not name.endswith('first8'):
      rounding = np.maximum(rounding, LOOSELY / ROUNDING * whole)
    note = ', '.join(['change', note] if note else ['change'])

  one, other = (x.reshape(len(rows), -1)[rows] for x in (one, other))
  infinite = ~np.isfinite(other)
  same = np.array_equal(one[infinite], other[infinite], equal_nan=True)
  difference = np.abs(np.where(infinite, 0, one) - np.where(infinite, 0, other))
  error = np.where(infinite, 0.0 if same else np.inf, difference)
  largest = np.abs(other[~infinite]).max(initial=0.0) or 1.0
  share = _share(name, manifest, module, other)
  allowed = np.maximum(share * largest, ROUNDING * rounding[rows])[:, None]
  # The row that comes nearest to its own tolerance, or goes farthest over it.
  over = np.where(np.isnan(error), np.inf, error / allowed)
  row = int(over.max(axis=1, initial=0.0).argmax()) if over.size else None
  if row is None:
    return Line(name, 0.0, share, 'empty')
  line = Line(
    name, _largest(error[row]) / largest, allowed[row, 0] / largest, note
  )
  if before is None or not line.passed:
    return line
  mean = np.abs(one - other).mean() / max(np.abs(other).mean(), 1e-30)
  return line if mean <= CHANGE else Line(name, mean, CHANGE, 'mean change')


def _share(name, manifest, module, other) -> float:
  """The tolerance relative to the largest value, rounding left aside."""
  share = _given(name, manifest, module)
  if share is not None:
    return share
  if not np.any(other):
    return 1e-6  # All zeros; the error is then not relative.
  loose = re.search(getattr(module, 'LOOSE', LOOSE), name)
  return LOOSELY if loose else CLOSE


def _given(name, manifest, module) -> float | None:
  """The tolerance that a case's module states."""
  if not hasattr(module, 'tolerance'):
    return None
  return module.tolerance(name, manifest)


def _rounding(name: str, manifest: dict) -> float:
  """What float32 lost in the original, as far as the manifest says.

  Where rows are left out it was lost there, and elsewhere less than that.
  """
  left = manifest.get('rounding_decides', {}).get(name) or {'': np.inf}
  for key in ('float32_minus_float64_max_abs', 'rounding_max_abs'):
    if name in manifest.get(key, {}):
      return min(float(manifest[key][name]), *left.values())
  text = str(manifest.get('outputs', {}).get(name, ''))
  found = re.search(r'float64 run: max abs diff ([\d.e+-]+\d)', text)
  return float(found[1]) if found else 0.0


def _rows_kept(name: str, manifest: dict, other: np.ndarray) -> np.ndarray:
  """Which rows of an array are compared; of most arrays, the whole as one."""
  names = _names(name, manifest)
  if names is None:
    return np.ones(1, bool)
  left = manifest.get('rounding_decides', {}).get(name, {})
  assert len(names) == len(other), name
  return np.array([parameter not in left for parameter in names])


def _names(name: str, manifest: dict) -> list[str] | None:
  """The parameters that an array's rows stand for, if it has such rows."""
  prefix, _, what = name.removeprefix('float64/').rpartition('/')
  if what not in ('sum', 'abs_sum', 'first8', 'change_abs_sum'):
    return None
  return manifest.get(f'{prefix}/names')


def _before(name: str, manifest: dict) -> np.ndarray | None:
  """The same summary of the parameters before the step, to subtract."""
  prefix, _, what = name.removeprefix('float64/').rpartition('/')
  moved = re.match('after|moving', prefix.rpartition('/')[2])
  names = _names(name, manifest)
  if not moved or names is None or what not in ('sum', 'abs_sum', 'first8'):
    return None
  weights = filling.state(manifest)
  return np.array([filling.summary(what, weights[n]) for n in names])


def _largest(error: np.ndarray) -> float:
  return float(error.max()) if not np.isnan(error).any() else float('nan')
