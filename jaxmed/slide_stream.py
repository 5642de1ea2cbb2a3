"""Scores the tiles of whole slides, many slides as one stream of batches.

Slides are opened and tiles are read ahead, in threads, while others are
scored; what is left of a slide's tiles shares a batch with the next slide's
first, so one batch of a whole run is padded. A tile is known by its number
within its slide, so that a slide's scores do not depend on its neighbours.
Nothing holds a whole slide.
"""

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Float32, UInt8

from jaxmed.datasets.crew import cores
from jaxmed.method import Batch
from jaxmed.progress import Progress
from jaxmed.score import Part, Run
from jaxmed.slides.blend import Blend
from jaxmed.slides.grid import Grid, coverage, tile_grid
from jaxmed.slides.heatmap import ScoreMap
from jaxmed.slides.reader import Slide, SlideError, TileError, open_slide
from jaxmed.slides.tissue import tissue_mask

THUMBNAIL = 900  # Pixels of its longer side.
AHEAD = 3  # Batches of tiles being read.
SLIDES_AHEAD = 2  # Whose tissue is being found.
SCALE = 1.2  # Largest ratio of a slide's µm per pixel to training's.
NCRF_STRIDE = 64  # A pixel of level 6.
SCHEMES = ('tiles', 'ncrf')
TISSUE = {'tiles': 'stain', 'ncrf': 'otsu'}  # How it is found by default.


@dataclasses.dataclass(frozen=True)
class Job:
  """A slide to score.

  tiles: what progress counts for it.
  dense: where its pixel map goes, if there is to be one.
  """

  path: pathlib.Path
  mpp: float | None = None
  tiles: int = 0
  dense: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class SlideFound:
  """What a run says of a slide.

  Attributes:
    maps: by score, one value a tile; NaN where there is no tissue.
    scores: the largest value of each map, or NaN if `reason` says why not.
    tiles: how many tiles have tissue.
    failures: of tiles that could not be read: level, x, y and the error.
    reason: why the slide has no score, or ''.
    grid: where the tiles lie; of the NCRF scheme, the squares at whose
      centres they lie.
    size: (width, height) of level 0.
    mpp: micrometres per pixel of level 0; mpp_xy: the same in x and in y.
    thumbnail: the whole slide, small.
    tiles_unnormalised: scored as they came, for `data.stain` found no stain.
    dense: the pixel map, on the disk, if one was wanted.
    downsample: pixels of level 0 per pixel of `dense`.
  """

  maps: dict[str, Float[np.ndarray, 'rows columns']]
  scores: dict[str, float]
  tiles: int
  failures: list[dict]
  reason: str
  grid: Grid
  size: tuple[int, int]
  mpp: float
  mpp_xy: tuple[float, float]
  thumbnail: UInt8[np.ndarray, 'height width 3']
  tiles_unnormalised: int = 0
  dense: Float32[np.ndarray, 'height width'] | None = None
  downsample: int = 1

  def over(self, name: str) -> ScoreMap:
    """The map of a score, with the places of its tiles."""
    return ScoreMap(self.maps[name], self.grid, self.size)


def grid_of(run: Run, size: tuple[int, int]) -> Grid:
  """The tiles of a slide of this (width, height), or their squares."""
  score = run.config.score
  if score.scheme == 'ncrf':
    stride = score.stride or NCRF_STRIDE
    return tile_grid(size, stride)
  return tile_grid(size, run.config.data.size, score.stride)


def score_slide(
  run: Run, slide: Slide, progress: Progress | None = None
) -> SlideFound:
  """Scores the tiles of an open slide that hold enough tissue.

  `progress` counts all tiles of `grid_of`, the empty ones at once.
  """
  (work,) = _flow(run, [_Work(run, slide)], (), progress)
  return work.found()


def score_each(
  run: Run, jobs: Sequence[Job], progress: Progress | None = None
) -> Iterator[tuple[Job, SlideFound | SlideError]]:
  """Scores slides in their order; an error in place of one not opened."""
  dense = any(job.dense for job in jobs)
  maps = (run.config.score.dense,) if dense else ()
  with contextlib.closing(_opened(run, jobs)) as opened:
    works = _flow(run, opened, maps, progress)
    for job, work in zip(jobs, works, strict=True):
      yield job, work.found() if isinstance(work, _Work) else work.error


class _Work:
  """A slide while it is being scored."""

  def __init__(
    self,
    run: Run,
    slide: Slide,
    close: Callable[[], None] = lambda: None,
    dense: pathlib.Path | None = None,
  ):
    check_scale(run, slide)
    score = run.config.score
    self._run, self.slide = run, slide
    self.close = close  # Called when all its tiles have been read.
    self.grid = grid_of(run, slide.size)
    self.tile = run.config.data.size
    try:
      mask = tissue_mask(slide, score.tissue_method or TISSUE[score.scheme])
      tissue = coverage(mask, self.grid) >= score.tissue
      self._thumbnail = _thumbnail(slide)
    except TileError as error:
      raise SlideError(
        f'{slide.path} cannot be looked at as a whole ({error.reason} at '
        f'level {error.level}, x {error.x}, y {error.y}), so its tissue '
        'cannot be found; copy or scan it again.'
      ) from error
    self.places = np.argwhere(tissue)
    self.empty = tissue.size - len(self.places)
    self.left = len(self.places)
    self._failures, self._unnormalised = [], 0
    self._maps = {
      k: np.full(tissue.shape, np.nan, np.float32) for k in run.names
    }
    self._blend = None
    if dense:
      downsample = max(1, round(score.map_mpp / slide.mpp))
      self._blend = Blend(dense, slide.size, self.tile, downsample)

  def read(self, number: int) -> UInt8[np.ndarray, 'h w 3']:
    return self.slide.read(*self._corner(number), self.tile, self.tile)

  def fail(self, number: int, error: Exception) -> None:
    """A tile that can't be read is noted, never made up."""
    x, y = self._corner(number)
    place = {'level': 0, 'x': x, 'y': y}
    if isinstance(error, TileError):
      place = {'level': error.level, 'x': error.x, 'y': error.y}
    self._failures.append(place | {'error': str(error)})
    self.left -= 1

  def take(self, part: Part, cut: slice) -> None:
    """The scores of some of the tiles, in their order, out of a batch."""
    numbers = part.batch.row[cut]
    row, column = self.places[numbers].T
    for name, values in part.image.items():
      self._maps[name][row, column] = values[cut]
    if 'normalised' in part.flags:
      self._unnormalised += int((~part.flags['normalised'][cut]).sum())
    if self._blend:
      values = part.pixel[self._run.config.score.dense][cut]
      for number, one in zip(numbers, values, strict=True):
        self._blend.add(*self._corner(number), one)
    self.left -= len(numbers)

  def found(self) -> SlideFound:
    scores = {name: _highest(values) for name, values in self._maps.items()}
    reason = self._reason(scores)
    if reason:
      scores = dict.fromkeys(scores, float('nan'))
    return SlideFound(
      self._maps,
      scores,
      len(self.places),
      self._failures,
      reason,
      self.grid,
      self.slide.size,
      self.slide.mpp,
      tuple(self.slide.mpp_xy),
      self._thumbnail,
      self._unnormalised,
      self._blend.finish() if self._blend else None,
      self._blend.downsample if self._blend else 1,
    )

  def _reason(self, scores: dict[str, float]) -> str:
    tiles, failed = len(self.places), len(self._failures)
    if not tiles:
      return 'no tile has enough tissue'
    if failed > self._run.config.score.max_failed * tiles:
      return f'{failed} of {tiles} tiles could not be read'
    if np.isnan(scores[self._run.primary]):
      return f'{self._run.primary} is not finite on any tile'
    return ''

  def _corner(self, number: int) -> tuple[int, int]:
    """x and y of a tile; of the NCRF scheme, it may lie beyond the border."""
    row, column = self.places[number]
    shift = 0
    if self._run.config.score.scheme == 'ncrf':
      shift = (self.grid.tile - self.tile) // 2
    return int(self.grid.x[column]) + shift, int(self.grid.y[row]) + shift


@dataclasses.dataclass
class _Unopened:
  """In the place of a slide that could not be opened."""

  error: SlideError
  empty: int
  places: tuple = ()
  left: int = 0

  def close(self) -> None:
    pass


def check_scale(run: Run, slide: Slide) -> None:
  """Nuclei of half the size are not what the run knows as healthy."""
  if run.mpp and abs(np.log(slide.mpp / run.mpp)) > np.log(SCALE):
    raise SlideError(
      f'{slide.path} has {slide.mpp:.3g} µm per pixel, but the run was '
      f'trained at {run.mpp:.3g}; train on tiles of its scale, or give the '
      'right --mpp if the file is mistaken.'
    )


def _thumbnail(slide: Slide) -> UInt8[np.ndarray, 'height width 3']:
  """From a coarser level, so smaller, where the usual one has a broken tile."""
  usual = max(1.0, max(slide.size) / THUMBNAIL)
  downsamples = [level.downsample for level in slide.levels]
  *others, last = [usual, *(d for d in downsamples if d > usual)]
  for downsample in others:
    with contextlib.suppress(TileError):
      return slide.overview(downsample)
  return slide.overview(last)


def _highest(values: np.ndarray) -> float:
  finite = values[np.isfinite(values)]
  return float(finite.max()) if len(finite) else float('nan')


def _opened(run: Run, jobs: Sequence[Job]) -> Iterator[_Work | _Unopened]:
  """The slides in turn, a few opened ahead; each is closed once it is read."""

  def begin(job: Job) -> _Work | _Unopened:
    opened = contextlib.ExitStack()
    try:
      slide = opened.enter_context(open_slide(job.path, job.mpp))
      return _Work(run, slide, opened.close, job.dense)
    except SlideError as error:
      opened.close()
      return _Unopened(error, job.tiles)

  pool, waiting = ThreadPoolExecutor(SLIDES_AHEAD), collections.deque()
  try:
    for job in jobs:
      waiting.append(pool.submit(begin, job))
      if len(waiting) > SLIDES_AHEAD:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
    for future in waiting:  # Of a stream that was left before its end.
      if not future.cancelled() and not future.exception():
        future.result().close()


def _flow(
  run: Run, works: Iterable, maps: tuple, progress: Progress | None
) -> Iterator[_Work | _Unopened]:
  """The slides in their order, each once all its tiles are scored."""
  begun, batches = collections.deque(), collections.deque()
  count = progress.add if progress else lambda n: None

  def begin():
    for work in works:
      begun.append(work)
      count(work.empty)
      yield work

  def done():
    while begun and not begun[0].left:
      yield begun.popleft()

  with contextlib.closing(_batches(run, begin(), batches, count)) as reading:
    for part in run.parts(reading, maps):
      _share_out(batches.popleft(), part, count)
      yield from done()
    yield from done()


def _share_out(tiles: list, part: Part, count: Callable[[int], None]) -> None:
  """Gives each slide the scores of its tiles, which lie side by side."""
  start = 0
  while start < len(tiles):
    work = tiles[start][0]
    stop = start
    while stop < len(tiles) and tiles[stop][0] is work:
      stop += 1
    work.take(part, slice(start, stop))
    count(stop - start)
    start = stop


def _batches(
  run: Run, works: Iterable, batches: collections.deque, count
) -> Iterator[Batch]:
  """Full batches of readable tiles; `batches` gets whose each batch's are."""
  tiles, pixels = [], []

  def batch() -> Batch:
    rows = np.array([number for _, number in tiles])
    whole = run.place(_channels(np.stack(pixels), run), rows)
    batches.append(tiles.copy())
    tiles.clear()
    pixels.clear()
    return whole

  for work, number, result in _read_ahead(works, AHEAD * run.batch):
    if isinstance(result, Exception):
      work.fail(number, result)
      count(1)
      continue
    tiles.append((work, number))
    pixels.append(result)
    if len(tiles) == run.batch:
      yield batch()
  if tiles:
    yield batch()


def _read_ahead(works: Iterable, most: int) -> Iterator[tuple]:
  """(slide, number of the tile, its pixels or why not), in order."""

  def read(work: _Work, number: int) -> np.ndarray | Exception:
    try:
      return work.read(number)
    except (TileError, SlideError, OSError) as error:
      return error

  def collect():
    work, number, future = waiting.popleft()
    result = future.result()
    if number == len(work.places) - 1:
      work.close()
    return work, number, result

  waiting = collections.deque()
  pool = ThreadPoolExecutor(cores())
  try:
    for work in works:
      if not len(work.places):
        work.close()
      for number in range(len(work.places)):
        waiting.append((work, number, pool.submit(read, work, number)))
        if len(waiting) > most:
          yield collect()
    while waiting:
      yield collect()
  finally:
    pool.shutdown(cancel_futures=True)
    for work in {id(work): work for work, _, _ in waiting}.values():
      work.close()


def _channels(images: np.ndarray, run: Run) -> np.ndarray:
  if run.info.image[2] == 3:
    return images
  weights = np.array([0.299, 0.587, 0.114], np.float32)
  return np.round(images @ weights).astype(np.uint8)[..., None]
