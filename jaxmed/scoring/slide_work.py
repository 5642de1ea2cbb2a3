"""A slide while it is scored: where its tiles lie, and what was found of them.

A run knows images of one scale. A slide that is about as fine is read as it
is; of a finer one, pixels are reduced to what the run has been trained on; a
coarser one is refused.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from jaxmed.scoring.score import Part, Run
from jaxmed.slides.blend import Blend
from jaxmed.slides.grid import Grid, coverage, tile_grid
from jaxmed.slides.heatmap import ScoreMap
from jaxmed.slides.reader import Slide, SlideError, TileError
from jaxmed.slides.tissue import tissue_mask

THUMBNAIL = 900  # Pixels of its longer side.
SCALE = 1.2  # Largest ratio of two scales that count as one.
NCRF_STRIDE = 64  # A pixel of level 6.
SCHEMES = ('tiles', 'ncrf')
TISSUE = {'tiles': 'stain', 'ncrf': 'otsu'}  # How it is found by default.


@dataclasses.dataclass(frozen=True)
class SlideFound:
  """What a run says of a slide.

  Attributes:
    maps: by score, one value a tile; NaN where there is no tissue.
    scores: the largest value of each map, or NaN if `reason` says why not.
    tiles: how many tiles have tissue.
    failures: of tiles that could not be read: level, x, y and the error.
    failed: which tiles these are.
    reason: why the slide has no score, or ''.
    grid: where the tiles lie; of the NCRF scheme, or where they lie apart,
      the squares in whose middle they are.
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
  failed: Bool[np.ndarray, 'rows columns']
  reason: str
  grid: Grid
  size: tuple[int, int]
  mpp: float
  mpp_xy: tuple[float, float]
  thumbnail: UInt8[np.ndarray, 'height width 3']
  tiles_unnormalised: int = 0
  dense: Float32[np.ndarray, 'height width'] | None = None
  downsample: float = 1

  def over(self, name: str) -> ScoreMap:
    """The map of a score, with the places of its tiles."""
    return ScoreMap(self.maps[name], self.grid, self.size)

  def failed_squares(self) -> Bool[np.ndarray, 'height width']:
    """What `over(name).squares()` would show of the tiles that failed."""
    marked = np.where(self.failed, 1.0, np.nan)
    return np.isfinite(ScoreMap(marked, self.grid, self.size).squares())


def scale_of(run: Run, mpp: float, path: pathlib.Path | str = '') -> float:
  """Pixels of level 0 per pixel of the run's images; 1 if about that.

  Nuclei of half the size are not what a run knows as healthy.
  """
  ratio = run.mpp / mpp if run.mpp else 1.0
  if abs(math.log(ratio)) <= math.log(SCALE):
    return 1.0
  if ratio < 1:
    raise SlideError(
      f'{path} has {mpp:.3g} µm per pixel, coarser than the {run.mpp:.3g} that '
      'the run was trained at; train on tiles of its scale, or give the right '
      '--mpp if the file is mistaken.'
    )
  return ratio


def grid_of(run: Run, size: tuple[int, int], scale: float = 1.0) -> Grid:
  """The tiles of a slide of this (width, height), or their squares.

  Tiles that lie apart are each in the middle of a square, as are those of the
  NCRF scheme.
  """
  score, tile = run.config.score, run.config.data.size
  stride = score.stride or (NCRF_STRIDE if score.scheme == 'ncrf' else tile)
  square = max(tile, stride) if score.scheme == 'tiles' else stride
  return tile_grid(size, round(square * scale), round(stride * scale))


class Work:
  """A slide while it is being scored."""

  def __init__(
    self,
    run: Run,
    slide: Slide,
    close: Callable[[], None] = lambda: None,
    dense: pathlib.Path | None = None,
  ):
    score = run.config.score
    self._run, self.slide = run, slide
    self.close = close  # Called when all its tiles have been read.
    self._scale = scale_of(run, slide.mpp, slide.path)
    self.grid = grid_of(run, slide.size, self._scale)
    if not self.grid.rows * self.grid.columns:
      width, height = slide.size
      raise SlideError(
        f'{slide.path} of {width} x {height} px is smaller than a tile, which '
        f'takes {self.grid.tile} of them.'
      )
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
    self._failed = np.zeros(tissue.shape, bool)
    self._maps = {
      k: np.full(tissue.shape, np.nan, np.float32) for k in run.names
    }
    self._blend = None
    if dense:
      downsample = max(1, round(score.map_mpp / (slide.mpp * self._scale)))
      size = tuple(math.ceil(side / self._scale) for side in slide.size)
      self._blend = Blend(dense, size, self.tile, downsample)

  def read(self, number: int) -> UInt8[np.ndarray, 'h w 3']:
    return self.slide.scaled(*self._corner(number), self.tile, self._scale)

  def fail(self, number: int, error: Exception) -> None:
    """A tile that can't be read is noted, never made up."""
    x, y = self._corner(number)
    place = {'level': 0, 'x': x, 'y': y}
    if isinstance(error, TileError):
      place = {'level': error.level, 'x': error.x, 'y': error.y}
    self._failures.append(place | {'error': str(error)})
    self._failed[tuple(self.places[number])] = True
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
        x, y = (round(at / self._scale) for at in self._corner(number))
        self._blend.add(x, y, one)
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
      self._failed,
      reason,
      self.grid,
      self.slide.size,
      self.slide.mpp,
      tuple(self.slide.mpp_xy),
      self._thumbnail,
      self._unnormalised,
      self._blend.finish() if self._blend else None,
      self._blend.downsample * self._scale if self._blend else 1,
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
    shift = (self.grid.tile - round(self.tile * self._scale)) // 2
    return int(self.grid.x[column]) + shift, int(self.grid.y[row]) + shift


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
