"""Detections on slides to results: were the lesions found, at what cost?

The protocol `camelyon16`: the lesions drawn on every tumour slide, seen at
1/32 of level 0, against detections/GROUP.csv, as a FROC. `strict` reproduces
the official script to its quirks (metrics/froc.py lists them); otherwise each
slide has its own micrometres per pixel and no threshold is lost. A slide that
can't count is named with its reason.
"""

import math
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.errors import UserError
from jaxmed.metrics import froc, images, lesions
from jaxmed.metrics.bootstrap import Number
from jaxmed.progress import progress
from jaxmed.slides.annotation_files import lesion_pixels
from jaxmed.slides.annotations import AnnotationError

PROTOCOLS = ('', 'camelyon16')
DOWNSAMPLE = 32  # Level 5, where the official script looks.
RESOLUTION = 0.243  # µm per pixel, which it takes every slide to have.
SCALE = 1.2  # Largest ratio of another scale to it without a warning.
# Of the challenge's test set, by its README.
DUPLICATES = {'test_049': 'a duplicate of another test slide'}
PARTLY = ('test_114',)
PARTLY_REASON = 'its lesions are not all annotated'


def check_protocol(config: ConfigDict) -> None:
  protocol = config.eval.get('protocol', '')
  if protocol not in PROTOCOLS:
    raise errors.unknown(
      'protocol (config.eval.protocol)', protocol, PROTOCOLS[1:]
    )


def evaluate_lesions(
  folder: pathlib.Path,
  config: ConfigDict,
  primary: str,
  warn: Callable[[str], None],
) -> dict:
  """The FROC of a run's slides and their AUROC, as results['froc'].

  Args:
    folder: of the run; slides.parquet and detections/ must be there.
    config: its `eval` says how many resamples, and if `strict`.
    primary: the score by which a slide counts as scored.
    warn: takes sentences for the reader of the results.
  """
  check_protocol(config)
  strict = bool(config.eval.get('strict', True))
  rows = _slides(folder)
  hits, counted, excluded = [], [], []
  for row in progress(rows, len(rows), 'find lesions', 'slides'):
    reason = _reason(row, primary, strict)
    if not reason:
      try:
        regions = _regions(row, folder, strict)
      except AnnotationError as error:
        reason = str(error)
    if reason:
      excluded.append({'group': row['group'], 'reason': reason})
      continue
    detections = read_detections(folder / f'detections/{row["group"]}.csv')
    hits.append(lesions.hits(detections, regions, DOWNSAMPLE, strict))
    counted.append(_facts(row, detections, regions, hits[-1]))
  _judge(folder, rows, counted, excluded, strict, warn)
  total = lambda key: sum(one[key] for one in counted)
  return {
    'protocol': config.eval.protocol,
    'strict': strict,
    **froc.froc(hits, config.eval.resamples, config.eval.seed, strict),
    'auroc': _auroc(rows, config, primary),
    'slides': len(counted),
    'tumour_slides': sum(one['label'] for one in counted),
    'lesions': total('lesions'),
    'itc': total('itc'),
    'detections': total('detections'),
    'excluded': excluded,
    'by_slide': counted,
  }


def read_detections(path: pathlib.Path) -> Float[np.ndarray, 'n 3']:
  """Rows (confidence, x, y) of a CSV file without header, in level-0 pixels."""
  try:
    text = path.read_text('utf-8-sig')
  except FileNotFoundError:
    raise UserError(
      f'There is no {path.parent.name}/{path.name} in {path.parents[1]}: score '
      "the run's slides again, or write it; of a slide without detections the "
      'file is empty.'
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read ({error}).') from error
  rows = [
    (number, line)
    for number, line in enumerate(text.splitlines(), 1)
    if line.strip()
  ]
  found = []
  for number, line in rows:
    try:
      confidence, x, y = map(float, line.split(','))
    except ValueError:
      confidence = x = y = math.nan
    # Python would read 1_000 as a number.
    if '_' in line or not all(map(math.isfinite, (confidence, x, y))):
      raise UserError(
        f'{path}, line {number}: {line.strip()[:60]!r} is no detection; '
        'expected confidence,x,y with x and y in pixels of level 0.'
      )
    found.append((confidence, x, y))
  return np.array(found, np.float64).reshape(-1, 3)


def _slides(folder: pathlib.Path) -> list[dict]:
  path = folder / 'slides.parquet'
  if not path.exists():
    raise UserError(
      f'There is no slides.parquet in {folder}: the protocol camelyon16 is of '
      'whole slides, so score the slides first.'
    )
  table = pq.read_table(path)
  needed = ('group', 'label', 'annotation', 'width', 'height', 'mpp')
  if lacking := [name for name in needed if name not in table.column_names]:
    raise UserError(
      f'{path} has no column {lacking[0]}, which says where the lesions are: '
      'score the slides again.'
    )
  return table.to_pylist()


def _reason(row: dict, primary: str, strict: bool) -> str:
  """Why a slide does not count, or ''."""
  if row['group'] in DUPLICATES:
    return DUPLICATES[row['group']]
  exhaustive = row.get('exhaustive')
  if exhaustive is None:  # Nobody says; the challenge's README does.
    exhaustive = row['group'] not in PARTLY
  if not exhaustive:
    return PARTLY_REASON
  if row['label'] not in (0, 1):
    return 'it is not known whether it has a tumour'
  if not _is_number(row.get(f'score.{primary}')):
    return row.get('reason') or 'it has no score'
  if row['label'] == 1 and not row['annotation']:
    return 'it has a tumour, but no annotation says where'
  if row['label'] == 1 and not strict and not _is_number(row['mpp']):
    return 'its micrometres per pixel are not known'
  return ''


def _is_number(value) -> bool:
  return value is not None and math.isfinite(value)


def _regions(
  row: dict, folder: pathlib.Path, strict: bool
) -> lesions.Regions | None:
  """Lesions of a tumour slide; None of a normal one."""
  if row['label'] == 0:
    return None
  size = row['width'], row['height']
  mask = lesion_pixels(folder / row['annotation'], size, DOWNSAMPLE)
  mpp = RESOLUTION if strict else row['mpp']
  return lesions.regions(mask, mpp * DOWNSAMPLE)


def _facts(row: dict, detections, regions, hits: lesions.Hits) -> dict:
  """What the results say of a slide that counts."""
  return {
    'group': row['group'],
    'label': row['label'],
    'mpp': row['mpp'],
    'lesions': hits.lesions,
    'itc': 0 if regions is None else int(regions.itc.sum()),
    'found': int((hits.kept >= 0).sum()),
    'detections': len(detections),
    'false': len(hits.false),
  }


def _judge(folder, rows, counted, excluded, strict, warn) -> None:
  """What a careful reader would ask of the FROC."""
  known = (*DUPLICATES.values(), PARTLY_REASON)
  surprising = [one for one in excluded if one['reason'] not in known]
  if surprising:
    warn(
      f'{len(surprising)} of {len(rows)} slides are left out of the FROC, the '
      f'first {surprising[0]["group"]}: {surprising[0]["reason"]}.'
    )
  tumour = [one for one in counted if one['label'] == 1]
  empty = [one for one in tumour if not one['lesions'] and not one['itc']]
  if empty:
    warn(
      f'{len(empty)} of {len(tumour)} tumour slides have no lesion that is '
      f'seen at 1/{DOWNSAMPLE} of their size, the first {empty[0]["group"]}: '
      'all detections there count as false.'
    )
  other = [
    one
    for one in tumour
    if one['mpp'] and abs(math.log(one['mpp'] / RESOLUTION)) > math.log(SCALE)
  ]
  if strict and other:
    warn(
      f'The official script takes every slide to have {RESOLUTION} µm per '
      f'pixel, but {len(other)} of {len(tumour)} tumour slides have another '
      f'scale, the first {other[0]["group"]} with {other[0]["mpp"]:.3g}: with '
      '--no-strict lesions are measured at their own.'
    )
  known = {row['group'] for row in rows}
  files = {path.stem for path in (folder / 'detections').glob('*.csv')}
  if strange := sorted(files - known):
    warn(
      f'{len(strange)} files in detections/ belong to no slide of the run, '
      f'the first {strange[0]}.csv; they are not counted.'
    )


def _auroc(rows: list[dict], config: ConfigDict, primary: str) -> Number:
  """Of all slides with a score and a label, duplicates left out."""
  column = f'score.{primary}'
  kept = [
    row
    for row in rows
    if row['group'] not in DUPLICATES
    and row['label'] in (0, 1)
    and _is_number(row.get(column))
  ]
  test = images.sample(
    np.array([row['label'] for row in kept], bool),
    np.array([row['group'] for row in kept], str),
    config.eval.resamples,
    config.eval.seed,
  )
  scores = np.array([row[column] for row in kept], np.float64)
  return images.areas(test, scores, images.resampled(test, scores))['auroc']


def lines(results: dict) -> list[str]:
  """For a terminal; none without a FROC."""
  found = results.get('froc')
  if not found:
    return []
  at = ', '.join(
    f'{rate}: {_share(number)}'
    for rate, number in found['sensitivity_at'].items()
  )
  kind = 'official script' if found['strict'] else 'not strict'
  return [
    f'lesions ({kind}): FROC score {_with_interval(found["score"])}, slide '
    f'AUROC {_with_interval(found["auroc"])}; {found["lesions"]} lesions and '
    f'{found["itc"]} ITC on {found["slides"]} slides, '
    f'{len(found["excluded"])} left out',
    f'sensitivity at false positives per slide: {at}',
    *(f'left out: {x["group"]}, {x["reason"]}' for x in found['excluded']),
  ]


def _share(number: dict) -> str:
  return 'none' if number['value'] is None else f'{number["value"]:.3f}'


def _with_interval(number: dict) -> str:
  if number['value'] is None:
    return f'none ({number["reason"]})'
  if number['low'] is None:
    return _share(number)
  return f'{_share(number)} [{number["low"]:.3f}, {number["high"]:.3f}]'
