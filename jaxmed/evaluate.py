"""Scores to results: every metric with its interval, in results.json.

Decisions use thresholds from validation normals. Anything tuned on the test
itself is under a name that begins with oracle_. Each score stands beside the
trivial baselines, which went through the same functions.
"""

import collections
import pathlib

import numpy as np
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from jaxmed import errors, evaluate_lesions, workdir
from jaxmed.metrics import images, pixels
from jaxmed.metrics.bootstrap import Number
from jaxmed.progress import progress

FEW_GROUPS = 5
MANY_DROPPED = 0.1
FEW_STEPS = 256  # Of a map's values; pixel metrics need many cuts.


def evaluate(
  folder: pathlib.Path,
  config: ConfigDict,
  slides: pathlib.Path | None = None,
) -> dict:
  """Reads what scoring wrote, writes results.json whole, and returns it.

  `slides` is a folder of slides scored later, in place of the run's own.
  """
  folder = pathlib.Path(folder)
  slides = pathlib.Path(slides or folder)
  table = _scores(folder)
  names = _names(table, 'score.')
  primary = config.eval.primary or names[0]
  if primary not in names:
    raise errors.unknown('score', primary, names)
  beforehand = _beforehand(folder, names) or primary
  names.sort(key=lambda name: name != primary)
  warnings = _Warnings()
  if beforehand != primary:
    warnings.add(
      f'{primary} was put first when the run was evaluated again; the score '
      f'that was named before the test is {beforehand}.'
    )
  columns = [f'score.{name}' for name in names]
  columns += [f'trivial.{name}' for name in _names(table, 'trivial.')]
  found = {
    column: _column(table, column, config, warnings)
    for column in progress(columns, len(columns), 'evaluate', 'scores')
  }
  scores = {name: found[f'score.{name}'] for name in names}
  results = {
    'primary': primary,
    'beforehand': beforehand,
    'orientation': 'higher is more anomalous',
    'image': {name: part['metrics'] for name, part in scores.items()},
    'trivial': {
      name: _either_way(found[f'trivial.{name}']['metrics'])
      for name in _names(table, 'trivial.')
    },
    'pixel': _pixel(folder, table, config, warnings),
    'slide': _slides(slides, config, primary, warnings),
    'slide_rule': config.eval.slide_rule,
    'slides_folder': _elsewhere(slides, folder),
    'thresholds': {name: part['threshold'] for name, part in scores.items()},
    'curves': {
      name: part['curves'] for name, part in scores.items() if part['curves']
    },
    'counts': _counts(table),
  }
  if config.eval.get('protocol'):
    results['froc'] = evaluate_lesions.evaluate_lesions(
      slides, config, primary, warnings.add
    )
  _judge(results, table, config, warnings)
  results['warnings'] = list(warnings.texts)
  plain = _plain(results)
  workdir.write_json(folder / 'results.json', plain)
  return plain


def _elsewhere(slides: pathlib.Path, folder: pathlib.Path) -> str:
  """Where the slides lie, as seen from the run; '' for its own."""
  slides, folder = slides.resolve(), folder.resolve()
  if slides == folder:
    return ''
  inside = slides.is_relative_to(folder)
  return str(slides.relative_to(folder) if inside else slides)


def _beforehand(folder: pathlib.Path, names: list[str]) -> str:
  """The score that the run itself names first; '' where it does not say."""
  if not (folder / 'config.json').exists():
    return ''
  named = workdir.load_config(folder).get('eval', {}).get('primary')
  return named or names[0]


class _Warnings:
  """Sentences, each once, in the order in which they came up."""

  def __init__(self):
    self.texts = {}

  def add(self, text: str) -> None:
    self.texts[text] = None


def _scores(folder: pathlib.Path) -> dict[str, np.ndarray]:
  path = folder / 'scores.parquet'
  if not path.exists():
    raise errors.UserError(
      f'There is no scores.parquet in {folder}: launch the run again, so that '
      'it scores its images first.'
    )
  table = pq.read_table(path)
  found = {
    name: table[name].to_numpy(zero_copy_only=False)
    for name in table.column_names
  }
  if not _names(found, 'score.'):
    raise errors.UserError(
      f'{path} has no column score.<name>: score the run again.'
    )
  return found


def _names(table: dict, prefix: str) -> list[str]:
  return [k.removeprefix(prefix) for k in table if k.startswith(prefix)]


def _sample(table: dict, rows: np.ndarray, config: ConfigDict):
  return images.sample(
    table['label'][rows] == 1,
    table['group'][rows],
    config.eval.resamples,
    config.eval.seed,
  )


def _column(table: dict, column: str, config: ConfigDict, warnings) -> dict:
  """All metrics, the threshold and the curves of one score or baseline."""
  with_curves = column.startswith('score.')
  labelled = (table['split'] == 'test') & (table['label'] >= 0)
  test, scores = _sample(table, labelled, config), table[column][labelled]
  normals = table[column][
    (table['split'] == 'validation') & (table['label'] == 0)
  ]
  if left_out := int((~np.isfinite(scores)).sum()):
    warnings.add(
      f'{left_out} of {len(scores)} test images have no finite {column} and '
      'are left out of its metrics.'
    )
    kept = np.isfinite(scores)
    test, scores = test.where(kept), scores[kept]
  if left_out := int((~np.isfinite(normals)).sum()):
    warnings.add(
      f'{left_out} of {len(normals)} validation normals have no finite '
      f'{column} and are left out of its threshold.'
    )
  cut = images.threshold(normals, config.eval.quantile)
  at = images.threshold(normals, config.eval.specificity)
  many = images.resampled(test, scores, with_curves)
  metrics = images.areas(test, scores, many)
  metrics |= images.at_threshold(test, scores, cut)
  metrics['sensitivity_at_specificity'] = images.sensitivity_at(
    test, scores, at
  )
  metrics |= images.oracle(test, scores, many)
  return {
    'metrics': metrics,
    'threshold': {
      'value': cut,
      'quantile': config.eval.quantile,
      'n': int(np.isfinite(normals).sum()),
    },
    'curves': images.curves(test, scores, many) if with_curves else None,
  }


def _either_way(metrics: dict) -> dict:
  """A baseline has no direction of its own: its better one stands beside."""
  best = images.best_direction(metrics['auroc'])
  return metrics | {'auroc_best_direction': best}


def _pixel(folder: pathlib.Path, table: dict, config: ConfigDict, warnings):
  path = folder / 'maps/pixel.npz'
  if not path.exists():
    return {}
  with np.load(path) as saved:
    maps = dict(saved)
  place = {row: i for i, row in enumerate(table['row'].tolist())}
  rows = np.array([place.get(r, -1) for r in maps.pop('row').tolist()], int)
  masks = maps.pop('mask').astype(bool)
  known = rows >= 0
  label = np.where(known, table['label'][rows], -1)
  # Anomalous without a mask: nobody has said where.
  drawn = known & (label >= 0) & ((label == 0) | masks.any(axis=(1, 2)))
  if left_out := int((~drawn).sum()):
    warnings.add(
      f'{left_out} of {len(drawn)} maps are of images without a mask or label '
      'and are left out of the pixel metrics.'
    )
  found = {}
  for name, values in maps.items():
    finite = np.isfinite(values).all(axis=(1, 2))
    if left_out := int((drawn & ~finite).sum()):
      warnings.add(
        f'{left_out} maps {name} have values that are not finite (float16 '
        'holds up to 65504) and are left out of the pixel metrics.'
      )
    kept = drawn & finite
    test = _sample(table, rows[kept], config)
    half = values[kept].astype(np.float16)
    if (steps := pixels.steps(half)) < FEW_STEPS:
      warnings.add(
        f'The maps {name} lie within {steps} steps of float16, in which they '
        'are kept, so their pixel metrics are coarse.'
      )
    found[name] = pixels.pixel_metrics(test, masks[kept], half)
  return found


def _slides(
  folder: pathlib.Path, config: ConfigDict, primary: str, warnings
) -> dict:
  """Of test slides, by each rule; by the one named beforehand first.

  A score alone is that of the highest tile; of other rules RULE.SCORE.
  """
  path = folder / 'slides.parquet'
  if not path.exists():
    return {}
  table = pq.read_table(path)
  table = {
    name: table[name].to_numpy(zero_copy_only=False)
    for name in table.column_names
  }
  found = {}
  names = {f'score.{name}': name for name in _names(table, 'score.')}
  names |= {f'mean.{name}': f'mean.{name}' for name in _names(table, 'mean.')}
  names |= {f'slide.{name}': name for name in _names(table, 'slide.')}
  rule = config.eval.slide_rule
  first = primary if rule == 'max' else f'{rule}.{primary}'
  names = dict(sorted(names.items(), key=lambda item: item[1] != first))
  if unknown := int((table['label'] < 0).sum()):
    warnings.add(f'{unknown} slides have no label and are left out.')
  for column, name in names.items():
    finite = np.isfinite(table[column].astype(np.float64))
    kept = finite & (table['label'] >= 0)
    if left_out := int((~finite).sum()):
      warnings.add(
        f'{left_out} of {len(kept)} slides have no score {name}; '
        'slides.parquet says why.'
      )
    test = _sample(table, kept, config)
    scores = table[column][kept].astype(np.float64)
    many = images.resampled(test, scores)
    found[name] = images.areas(test, scores, many)
  return found


def _counts(table: dict) -> list[dict]:
  keys = zip(table['split'], table['group'], table['label'], strict=True)
  count = collections.Counter(
    (str(split), str(group), int(label)) for split, group, label in keys
  )
  return [
    {'split': split, 'group': group, 'label': label, 'n': n}
    for (split, group, label), n in sorted(count.items())
  ]


def _judge(results: dict, table: dict, config: ConfigDict, warnings) -> None:
  """What a careful reader would ask, answered before the numbers."""
  test = table['split'] == 'test'
  primary = results['primary']
  number = results['image'][primary]['auroc']
  if unknown := int((test & (table['label'] < 0)).sum()):
    warnings.add(f'{unknown} test images have no label and are left out.')
  if number.reason and np.isnan(number.value):
    warnings.add(f'There is no AUROC: {number.reason}.')
  if 'normalised' in table and not table['normalised'].all():
    warnings.add(
      f'The stain of {int((~table["normalised"]).sum())} of '
      f'{len(table["normalised"])} images could not be normalised; they are '
      'scored as they came.'
    )
  groups = len(np.unique(table['group'][test]))
  if groups < FEW_GROUPS:
    warnings.add(
      f'The test has {groups} group{"s"[: groups != 1]} (slides, patients): '
      'intervals of so few are too narrow.'
    )
  healthy = (table['split'] == 'validation') & (table['label'] == 0)
  normal = np.unique(table['group'][healthy])
  if len(normal) == 1 and groups > 1:
    warnings.add('The validation normals, so the thresholds, are of one group.')
  if not len(normal):
    warnings.add('There are no validation normals, so there is no threshold.')
  dropped = number.dropped / config.eval.resamples
  if dropped > MANY_DROPPED:
    warnings.add(
      f'{dropped:.0%} of the resamples had one class only and were dropped.'
    )
  if number.high < 0.5:
    warnings.add(f'{primary} ranks anomalous images below normal ones.')
  _against_trivial(results, number, warnings)


def _against_trivial(results: dict, number: Number, warnings) -> None:
  better = {
    name: metrics['auroc_best_direction'].value
    for name, metrics in results['trivial'].items()
    if metrics['auroc_best_direction'].value >= number.value
  }
  if better:
    name = max(better, key=better.get)
    warnings.add(
      f'The trivial baseline {name} (AUROC {better[name]:.3f}) does as well as '
      f'{results["primary"]} ({number.value:.3f}): the method adds nothing '
      'that was shown.'
    )


def _plain(value):
  """For JSON: numbers as dicts, and null for what is not defined."""
  if isinstance(value, Number):
    return value.as_dict()
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_plain(v) for v in value]
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


COLUMNS = {
  'AUROC [95 %]': 'auroc',
  'AP [95 %]': 'ap',
  'F1': 'f1',
  'sens.': 'sensitivity',
  'spec.': 'specificity',
}


def table(results: dict) -> str:
  """The metrics as plain text: scores, then the trivial baselines."""
  rows = [['', *COLUMNS]]
  for name, metrics in results['image'].items():
    mark = ' *' if name == results['primary'] else ''
    rows.append([name + mark, *_cells(metrics)])
  baselines = sorted(
    results['trivial'].items(),
    key=lambda item: -(item[1]['auroc_best_direction']['value'] or 0),
  )
  for name, metrics in baselines:
    best = _cell(metrics['auroc_best_direction'], True)
    rows.append([f'trivial: {name}', best])
  widths = [max(map(len, column)) for column in _columns(rows)]
  lines = [
    '  '.join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip()
    for row in rows
  ]
  primary = results['primary']
  number = results['image'][primary]['auroc']
  is_before = results.get('beforehand', primary) == primary
  lines.append(
    f'* named first {"beforehand" if is_before else "afterwards"}. '
    f'{number["n"]} test images, {number["positives"]} anomalous, '
    f'{number["groups"]} groups; trivial baselines in their better direction.'
  )
  return '\n'.join(lines + _more(results))


def _more(results: dict) -> list[str]:
  """Pixels, slides, lesions and warnings."""
  kinds = (
    ('pixels', 'pixel', ('auroc', 'aupro_4', 'aupro_8')),
    ('slides', 'slide', ('auroc',)),
  )
  lines = [
    f'{title}, {name}: '
    + ', '.join(
      f'{m.upper().replace("_", "-")} {_cell(metrics[m], True)}' for m in names
    )
    for title, kind, names in kinds
    for name, metrics in results[kind].items()
  ]
  lines += evaluate_lesions.lines(results)
  return lines + [f'Warning: {text}' for text in results['warnings']]


def _cells(metrics: dict) -> list[str]:
  return [_cell(metrics[m], m in ('auroc', 'ap')) for m in COLUMNS.values()]


def _cell(number: dict, with_interval: bool) -> str:
  if number['value'] is None:
    return 'none'
  text = f'{number["value"]:.3f}'
  if with_interval and number['low'] is not None:
    text += f' [{number["low"]:.3f}, {number["high"]:.3f}]'
  return text


def _columns(rows: list[list[str]]):
  for i in range(len(rows[0])):
    yield [row[i] for row in rows if i < len(row)]
