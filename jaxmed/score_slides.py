"""Scores whole slides: every tile with tissue, straight from the file.

Nothing holds a whole slide: tiles are read by a few threads, ahead of the
scoring, and what stays is one number a tile.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8
from PIL import Image

from jaxmed import workdir
from jaxmed.datasets.records import Records
from jaxmed.errors import UserError
from jaxmed.progress import Progress
from jaxmed.score import Run
from jaxmed.slides import heatmap
from jaxmed.slides.annotations import Polygon, read_xml
from jaxmed.slides.grid import Grid, coverage, tile_grid
from jaxmed.slides.reader import Slide, TileError, open_slide
from jaxmed.slides.tissue import tissue_mask
from jaxmed.training import distributed

THUMBNAIL = 900  # Pixels of its longer side.
AHEAD = 3  # Batches of tiles being read.
SCALE = 1.2  # Largest ratio of a slide's µm per pixel to training's.


@dataclasses.dataclass(frozen=True)
class SlideFound:
  """What a run says of a slide.

  Attributes:
    maps: by score, one value a tile; NaN where there is no tissue.
    scores: the largest value of each map, or NaN if `reason` says why not.
    tiles: how many tiles have tissue.
    failures: of tiles that could not be read: level, x, y and the error.
    reason: why the slide has no score, or ''.
    grid: where the tiles lie.
    size: (width, height) of level 0.
    mpp: micrometres per pixel of level 0.
    tiles_unnormalised: scored as they came, for `data.stain` found no stain.
  """

  maps: dict[str, Float[np.ndarray, 'rows columns']]
  scores: dict[str, float]
  tiles: int
  failures: list[dict]
  reason: str
  grid: Grid
  size: tuple[int, int]
  mpp: float
  tiles_unnormalised: int = 0


def score_slide(
  run: Run, slide: Slide, progress: Progress | None = None
) -> SlideFound:
  """Scores the tiles of an open slide that hold enough tissue.

  `progress` counts all tiles of `grid_of`, the empty ones at once.
  """
  _check_scale(run, slide)
  config = run.config
  grid = grid_of(run, slide.size)
  tissue = coverage(tissue_mask(slide), grid) >= config.score.tissue
  places = np.argwhere(tissue)
  maps = {
    k: np.full((grid.rows, grid.columns), np.nan, np.float32) for k in run.names
  }
  failures, unnormalised = [], 0
  if progress:
    progress.add(tissue.size - len(places))
  reading = _read_ahead(run, slide, grid, places, failures)
  for part in run.parts(reading):
    row, column = places[part.batch.row].T
    for name, values in part.image.items():
      maps[name][row, column] = values
    if 'normalised' in part.flags:
      unnormalised += int((~part.flags['normalised']).sum())
    if progress:
      progress.add(len(row))
  reason = _reason(len(places), len(failures), config.score.max_failed)
  scores = {
    name: float('nan') if reason else float(np.nanmax(values))
    for name, values in maps.items()
  }
  return SlideFound(
    maps,
    scores,
    len(places),
    failures,
    reason,
    grid,
    slide.size,
    slide.mpp,
    unnormalised,
  )


def _check_scale(run: Run, slide: Slide) -> None:
  """Nuclei of half the size are not what the run knows as healthy."""
  if run.mpp and abs(np.log(slide.mpp / run.mpp)) > np.log(SCALE):
    raise UserError(
      f'{slide.path} has {slide.mpp:.3g} µm per pixel, but the run was '
      f'trained at {run.mpp:.3g}; train on tiles of its scale, or give the '
      'right --mpp if the file is mistaken.'
    )


def score_slides(run: Run, records: Records) -> None:
  """Scores the test slides of a data set that has any; resumes by slide."""
  slides = _test_slides(records)
  mine = slides[jax.process_index() :: jax.process_count()]
  folder = run.folder / 'maps'
  folder.mkdir(exist_ok=True)
  left = [s for s in mine if not (folder / f'{s["group"]}.json').exists()]
  grids = [grid_of(run, (s['width'], s['height'])) for s in left]
  tiles = sum(grid.rows * grid.columns for grid in grids)
  bar = Progress(tiles, 'score slides', 'tiles')
  for facts in left:
    path = records.directory / facts['path']
    with open_slide(path, facts['mpp']) as slide:
      found = score_slide(run, slide, bar)
      picture = slide.thumbnail(THUMBNAIL)
    _save(folder, facts | {'path': str(path)}, found, picture)
  bar.close()
  distributed.only_first(lambda: _merge(run, records, slides), 'scored slides')


def _test_slides(records: Records) -> list[dict]:
  if records.slides is None:
    return []
  return [s for s in records.slides.to_pylist() if s['split'] == 'test']


def grid_of(run: Run, size: tuple[int, int]) -> Grid:
  """The tiles of a slide of this (width, height)."""
  return tile_grid(size, run.config.data.size, run.config.score.stride)


def _read_ahead(run, slide, grid, places, failures) -> Iterator:
  """Batches of tiles; a tile that can't be read is noted, never made up."""

  def read(i: int) -> UInt8[np.ndarray, 'h w 3'] | TileError:
    row, column = places[i]
    x, y = int(grid.x[column]), int(grid.y[row])
    try:
      return slide.read(x, y, grid.tile, grid.tile)
    except TileError as error:
      return error

  def gather(futures):
    tiles = [(i, future.result()) for i, future in futures]
    for _, tile in tiles:
      if isinstance(tile, TileError):
        failures.append(
          {'level': tile.level, 'x': tile.x, 'y': tile.y, 'error': str(tile)}
        )
    good = [(i, t) for i, t in tiles if not isinstance(t, TileError)]
    if not good:
      return None
    rows, images = zip(*good, strict=True)
    return run.place(_channels(np.stack(images), run), np.array(rows))

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    waiting = collections.deque()
    for start in range(0, len(places), run.batch):
      numbers = range(start, min(start + run.batch, len(places)))
      waiting.append([(i, pool.submit(read, i)) for i in numbers])
      if len(waiting) > AHEAD and (batch := gather(waiting.popleft())):
        yield batch
    while waiting:
      if batch := gather(waiting.popleft()):
        yield batch


def _channels(images: np.ndarray, run: Run) -> np.ndarray:
  if run.info.image[2] == 3:
    return images
  weights = np.array([0.299, 0.587, 0.114], np.float32)
  return np.round(images @ weights).astype(np.uint8)[..., None]


def _reason(tiles: int, failed: int, most: float) -> str:
  if not tiles:
    return 'no tile has enough tissue'
  if failed > most * tiles:
    return f'{failed} of {tiles} tiles could not be read'
  return ''


def overlay(
  run: Run,
  found: SlideFound,
  thumbnail: np.ndarray,
  polygons: Sequence[Polygon] = (),
  highest: float | None = None,
) -> Image.Image:
  """The primary score's map over a slide, from the median normal up."""
  name = run.primary
  known = run.calibration[name]
  low = known['value'][len(known['value']) // 2]
  if highest is None:
    highest = float(np.nanmax(found.maps[name], initial=low))
  return heatmap.draw_overlay(
    thumbnail,
    heatmap.ScoreMap(found.maps[name], found.grid, found.size),
    label=name,
    polygons=polygons,
    tissue=np.isfinite(found.maps[name]),
    threshold=known['threshold'],
    limits=(low, max(highest, low + 1e-6)),
    mpp=found.mpp,
  )


def _save(folder, facts: dict, found: SlideFound, picture: np.ndarray) -> None:
  """The map, the thumbnail, and last the facts, which say it is done."""
  group = facts['group']
  np.savez_compressed(
    folder / f'{group}.npz',
    **found.maps,
    stride=found.grid.stride,
    tile=found.grid.tile,
    size=found.size,
    mpp=found.mpp,
  )
  heatmap.save_overlay(
    folder / f'{group}_thumbnail.png', Image.fromarray(picture)
  )
  scores, means = {}, {}
  for name, values in found.maps.items():
    scores[name] = None if found.reason else found.scores[name]
    means[name] = None if found.reason else float(np.nanmean(values))
  kept = {k: facts[k] for k in ('group', 'path', 'label', 'annotation')}
  about = {
    'tiles': found.tiles,
    'tiles_unnormalised': found.tiles_unnormalised,
    'failures': found.failures,
    'reason': found.reason,
    'scores': scores,
    'means': means,
  }
  workdir.write_json(folder / f'{group}.json', kept | about)


def _merge(run: Run, records: Records, slides: list[dict]) -> None:
  """slides.parquet, failures.jsonl, and an overlay of each slide."""
  if not slides:
    return
  folder = run.folder / 'maps'
  done = [workdir.read_json(folder / f'{s["group"]}.json') for s in slides]
  columns = collections.defaultdict(list)
  for one in done:
    for name in ('group', 'path', 'label', 'tiles', 'reason'):
      columns[name].append(one[name])
    columns['tiles_unnormalised'].append(one.get('tiles_unnormalised', 0))
    columns['tiles_failed'].append(len(one['failures']))
    for name in run.names:
      columns[f'score.{name}'].append(one['scores'][name])
      columns[f'mean.{name}'].append(one['means'][name])
  lost = [
    {'stage': 'score slides', 'item': one['path']} | failure
    for one in done
    for failure in one['failures']
  ]
  workdir.note_failures(run.folder, 'score slides', lost)
  _draw(run, records, done)
  workdir.write_table(run.folder / 'slides.parquet', pa.table(dict(columns)))


def _draw(run: Run, records: Records, done: list[dict]) -> None:
  """Overlays of the primary score, all in the same colours."""
  folder = run.folder / 'maps'
  maps = {one['group']: _load(run, folder, one) for one in done}
  values = [m.maps[run.primary] for m in maps.values()]
  known = [v[np.isfinite(v)] for v in values]
  if not sum(map(len, known)):
    return
  highest = float(np.quantile(np.concatenate(known), 0.995))
  for one in done:
    group, polygons = one['group'], []
    if one['annotation']:
      polygons = read_xml(records.directory / one['annotation'])
    with Image.open(folder / f'{group}_thumbnail.png') as image:
      thumbnail = np.asarray(image)
    drawn = overlay(run, maps[group], thumbnail, polygons, highest)
    heatmap.save_overlay(folder / f'{group}_overlay.png', drawn)


def _load(run: Run, folder: pathlib.Path, facts: dict) -> SlideFound:
  """What `_save` has saved."""
  with np.load(folder / f'{facts["group"]}.npz') as saved:
    maps = {name: saved[name] for name in run.names}
    tile, stride, mpp = int(saved['tile']), int(saved['stride']), saved['mpp']
    size = tuple(saved['size'].tolist())
  return SlideFound(
    maps,
    facts['scores'],
    facts['tiles'],
    facts['failures'],
    facts['reason'],
    tile_grid(size, tile, stride),
    size,
    float(mpp),
  )
