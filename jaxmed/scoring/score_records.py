"""Scores the validation normals and the test records of a run's data."""

import pathlib
import shutil
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import logging
from ml_collections import ConfigDict

from jaxmed import workdir
from jaxmed.datasets.records import Records
from jaxmed.errors import UserError
from jaxmed.metrics.trivial import trivial
from jaxmed.progress import progress
from jaxmed.scoring.score import Part, Run
from jaxmed.training import distributed

KEPT = (
  'row',
  'key',
  'group',
  'split',
  'label',
  'x',
  'y',
  'level',
  'mpp',
  'tissue',
  'lesion',
  'domain',
  'kind',
)
MAP_BYTES = 2**30  # Of all the maps kept for pixel metrics.
SHOWN = 32  # Test images of a class whose maps are kept to be looked at.
SAMPLED = 1024  # Pixels of a normal's map, for the threshold of slides' maps.


def score_records(run: Run, records: Records) -> dict[str, float | bool]:
  """Writes scores.parquet, calibration.json and maps/.

  maps/pixel.npz is for pixel metrics; where no image has a mask, maps/shown.npz
  has some images' maps, the same images' for every method, to look at.

  Each host scores its share; the first puts them together.

  Returns how fast it was, for the provenance.
  """
  rows = chosen(run.config, records)
  mapped = _mapped(run, records, rows)
  mine = rows[jax.process_index() :: jax.process_count()]
  parts = run.folder / 'scores'
  parts.mkdir(exist_ok=True)
  speed = _Speed()
  table, maps, normal = _score(run, records, mine, mapped, speed)
  rate = speed.read()
  number = jax.process_index()
  np.save(parts / f'normal-{number}.npy', normal)
  pq.write_table(table, parts / f'part-{number}.parquet')
  own = parts / f'maps-{number}.npz'
  own.unlink(missing_ok=True)
  if maps:
    np.savez(own, **maps)
  distributed.only_first(lambda: _merge(run, parts), 'scored records')
  return rate


class _Speed:
  """Images a second, from the end of the first batch, which compiles."""

  def __init__(self):
    self._images = self._first = 0
    self._began = self._warm = time.monotonic()

  def add(self, images: int) -> None:
    if not self._images:
      self._first, self._warm = images, time.monotonic()
    self._images += images

  def read(self) -> dict[str, float | bool]:
    """Of all hosts; of one batch alone, its compiling is in the time."""
    images, began = self._images - self._first, self._warm
    compiling = images == 0
    if compiling:
      images, began = self._images, self._began
    rate = images / max(time.monotonic() - began, 1e-9)
    return {
      'images_per_s': rate * jax.process_count(),
      'with_compiling': compiling,
    }


def chosen(config: ConfigDict, records: Records) -> np.ndarray:
  """Rows of the validation normals and of the test, the latter drawn."""
  test = records.select(config.data.test)
  if not len(test):
    raise UserError(
      f'The test is empty: no record fits {config.data.test!r}; change '
      '--config.data.test or the data.'
    )
  _refuse_others(config, records, test, 'test')
  labels = records.index['label'].to_numpy()
  if limit := config.data.test_per_class:
    # Runs that differ by their seed are tested on the same images.
    dice = np.random.default_rng(config.eval.seed)
    test = np.concatenate(
      [
        dice.permutation(test[labels[test] == label])[:limit]
        for label in np.unique(labels[test])
      ]
    )
  validation = records.normals(config.data.validation)
  if not len(validation):
    raise UserError(
      'There are no validation normals, so no threshold: no normal record '
      f'fits {config.data.validation!r}; change --config.data.validation.'
    )
  _refuse_others(config, records, validation, 'validation')
  return np.union1d(validation, test).astype(np.int32)


def _refuse_others(
  config: ConfigDict, records: Records, rows: np.ndarray, split: str
) -> None:
  """Rows of another split would be scored, and then be in no number."""
  found = np.array(records.index['split'].take(rows).to_pylist())
  if others := sorted(set(found[found != split].tolist())):
    raise UserError(
      f'--config.data.{split} is {config.data[split]!r}, which takes '
      f'{(found != split).sum()} images of the split {", ".join(others)}; add '
      f"split == '{split}' to it."
    )


def _mapped(run: Run, records: Records, rows: np.ndarray) -> frozenset[int]:
  """Test rows whose maps are kept: with masks, as many as fit; else some."""
  if not run.map_names:
    return frozenset()
  split = np.array(records.index['split'].take(rows).to_pylist())
  test = rows[split == 'test']
  if not records.has_masks:
    order = np.random.default_rng(0).permutation(test)
    label = records.index['label'].to_numpy()[order]
    classes = (order[label == one][:SHOWN] for one in np.unique(label))
    return frozenset(row for some in classes for row in some.tolist())
  height, width, _ = run.info.image
  most = MAP_BYTES // (height * width * (2 * len(run.map_names) + 1))
  if len(test) > most:
    logging.info(
      'Maps of %d of %d test images are kept for pixel metrics.',
      most,
      len(test),
    )
    test = np.sort(np.random.default_rng(0).permutation(test)[:most])
  return frozenset(test.tolist())


def _score(
  run, records, rows, mapped, speed
) -> tuple[pa.Table, dict, np.ndarray]:
  """The scores, the maps kept, and pixels of the normals' maps."""
  batches = run.open(records, rows)
  total = -(-len(rows) // run.batch)
  dense = run.config.score.dense
  names = run.map_names if mapped else (dense,) if dense else ()
  columns, maps, normal = [], [], [np.zeros(0, np.float32)]
  parts = run.parts(batches, names)
  for part in progress(parts, total, 'score images', 'batches'):
    speed.add(len(part.batch.row))
    values = {'row': part.batch.row}
    values |= {f'score.{k}': v for k, v in part.image.items()} | part.flags
    plain = trivial(part.batch.image)
    values |= {f'trivial.{k}': v for k, v in plain.items()}
    columns.append(values)
    if dense:
      normal += _normal_pixels(run, records, part)
    keep = np.array([row in mapped for row in part.batch.row.tolist()])
    if keep.any():
      half = {k: v[keep].astype(np.float16) for k, v in part.pixel.items()}
      own = {'row': part.batch.row[keep]}
      if part.batch.mask is not None:
        own['mask'] = part.batch.mask[keep]
      maps.append(own | half)
  batches.close()
  scored = _concatenated(columns)
  scored = {
    k: v.astype(np.float64) if v.dtype.kind == 'f' else v
    for k, v in scored.items()
  }
  about = records.index.select(KEPT).take(scored.pop('row'))
  for name, value in scored.items():
    about = about.append_column(name, pa.array(value))
  return about, _concatenated(maps), np.concatenate(normal)


def _normal_pixels(run: Run, records: Records, part: Part) -> list[np.ndarray]:
  """Some pixels of each validation normal's map, at the scale of slides'."""
  rows = part.batch.row
  split = np.array(records.index['split'].take(rows).to_pylist())
  normal = split == 'validation'  # `chosen` takes no others of it.
  reduction = 1
  if run.mpp:
    reduction = max(1, round(run.config.score.map_mpp / run.mpp))
  values = part.pixel[run.config.score.dense][normal]
  found = []
  for row, one in zip(rows[normal], values, strict=True):
    step = min(reduction, *one.shape)
    height, width = (side // step for side in one.shape)
    cut = one[: height * step, : width * step]
    pixels = cut.reshape(height, step, width, step).mean(axis=(1, 3)).ravel()
    dice = np.random.default_rng(int(row))
    found.append(dice.permutation(pixels)[:SAMPLED])
  return found


def _concatenated(named: list[dict]) -> dict[str, np.ndarray]:
  if not named:
    return {}
  return {k: np.concatenate([n[k] for n in named]) for k in named[0]}


def _merge(run: Run, parts: pathlib.Path) -> None:
  """Puts the hosts' parts together; others are of a launch that was killed."""

  def files(kind: str, suffix: str) -> list[pathlib.Path]:
    numbers = range(jax.process_count())
    return [parts / f'{kind}-{number}.{suffix}' for number in numbers]

  table = pa.concat_tables(
    [pq.read_table(p) for p in files('part', 'parquet')]
  ).sort_by('row')
  saved = [_loaded(p) for p in files('maps', 'npz') if p.exists()]
  if saved:
    (run.folder / 'maps').mkdir(exist_ok=True)
    name = 'pixel' if 'mask' in saved[0] else 'shown'
    np.savez_compressed(run.folder / f'maps/{name}.npz', **_concatenated(saved))
  normal = np.concatenate([np.load(path) for path in files('normal', 'npy')])
  workdir.write_json(
    run.folder / 'calibration.json', _calibration(run.config, table, normal)
  )
  workdir.write_table(run.folder / 'scores.parquet', table)
  shutil.rmtree(parts)


def _loaded(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path) as saved:
    return dict(saved)


def _calibration(
  config: ConfigDict, table: pa.Table, pixels: np.ndarray
) -> dict:
  """Quantiles of the validation normals, and the threshold, by score.

  Of the pixel map that is blended over slides, under map.NAME.
  """
  normal = table.filter(
    (pc.field('split') == 'validation') & (pc.field('label') == 0)
  )
  groups = len(normal['group'].unique())
  found = {}
  for column in normal.column_names:
    if column.startswith('score.'):
      values = normal[column].to_numpy()
      name = column.removeprefix('score.')
      found[name] = _quantiles(config, column, values, groups)
  if config.score.dense:
    name = f'map.{config.score.dense}'
    found[name] = _quantiles(config, name, pixels, groups)
  return found


def _quantiles(
  config: ConfigDict, name: str, values: np.ndarray, groups: int
) -> dict:
  grid = np.linspace(0, 1, 101)
  finite = values[np.isfinite(values)].astype(np.float64)
  if len(finite) < len(values):
    logging.warning(
      '%d of %d validation normals have no finite %s; they are left out '
      'of its threshold.',
      len(values) - len(finite),
      len(values),
      name,
    )
  if not len(finite):
    raise UserError(
      f'No validation normal has a finite {name}, so it has no '
      'threshold; look at train.jsonl for how training went.'
    )
  return {
    'quantile': grid.tolist(),
    'value': np.quantile(finite, grid).tolist(),
    'threshold': float(np.quantile(finite, config.eval.quantile)),
    'threshold_quantile': config.eval.quantile,
    'n': len(finite),
    'groups': groups,
  }
