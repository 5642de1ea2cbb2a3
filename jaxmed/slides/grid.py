"""Where a slide's tiles lie, and how much of each a mask covers.

Coverage comes from the summed area of a mask at a coarse resolution: four
look-ups a tile, however many tiles there are, and none of them is read.
sampling.py draws tiles at random.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from jaxmed import errors


@dataclasses.dataclass(frozen=True)
class Mask:
  """Marked pixels of a whole slide, at a coarser resolution.

  pixels: what is marked.
  size: (width, height) of level 0 that the pixels span.
  """

  pixels: Bool[np.ndarray, 'height width']
  size: tuple[int, int]

  @property
  def downsample(self) -> tuple[float, float]:
    """Pixels of level 0 per pixel of the mask, in x and y."""
    height, width = self.pixels.shape
    return self.size[0] / width, self.size[1] / height

  @functools.cached_property
  def summed(self) -> Int[np.ndarray, 'rows columns']:
    """How much is marked above and left of each corner of pixels."""
    kind = np.int32 if self.pixels.size < 1 << 31 else np.int64
    summed = np.zeros(np.add(self.pixels.shape, 1), kind)
    np.cumsum(self.pixels, axis=1, dtype=kind, out=summed[1:, 1:])
    for row in range(1, len(summed)):  # Ten times as fast as along columns.
      summed[row] += summed[row - 1]
    return summed


@dataclasses.dataclass(frozen=True)
class Grid:
  """Square tiles in rows and columns; all lengths in pixels of level 0."""

  tile: int
  stride: int
  columns: int
  rows: int

  @property
  def x(self) -> Int32[np.ndarray, ' columns']:
    return np.arange(self.columns, dtype=np.int32) * self.stride

  @property
  def y(self) -> Int32[np.ndarray, ' rows']:
    return np.arange(self.rows, dtype=np.int32) * self.stride


def tile_grid(size: tuple[int, int], tile: int, stride: int = 0) -> Grid:
  """All whole tiles of a slide of this (width, height).

  A stride of 0 sets tile by tile; a smaller one than `tile` overlaps.
  """
  stride = stride or tile
  if tile < 1 or stride < 1:
    raise errors.UserError(
      f'A grid needs tile and stride of at least 1 px, got {tile} and {stride}.'
    )
  columns, rows = (max(0, (side - tile) // stride + 1) for side in size)
  return Grid(tile, stride, columns, rows)


def coverage(mask: Mask, grid: Grid) -> Float32[np.ndarray, 'rows columns']:
  """The marked fraction of each tile's area."""
  return coverage_at(mask, grid.x[None, :], grid.y[:, None], grid.tile)


def coverage_at(
  mask: Mask,
  x: Int32[np.ndarray, '*places'],
  y: Int32[np.ndarray, '*places'],
  tile: int,
) -> Float32[np.ndarray, '*places']:
  """The marked fraction of tiles whose upper left corners are x and y.

  Nothing beyond the slide's border is marked. x and y broadcast.
  """
  across, down = mask.downsample
  left, right = _cut(mask, 1, x / across), _cut(mask, 1, (x + tile) / across)
  top, bottom = _cut(mask, 0, y / down), _cut(mask, 0, (y + tile) / down)
  marked = (
    _summed(mask.summed, bottom, right)
    - _summed(mask.summed, bottom, left)
    - _summed(mask.summed, top, right)
    + _summed(mask.summed, top, left)
  )
  whole = tile**2 / (across * down)
  return np.clip(marked / whole, 0, 1).astype(np.float32)


def _cut(mask: Mask, axis: int, place: np.ndarray):
  """The pixel that a line cuts, and the share of it that lies before."""
  side = mask.pixels.shape[axis]
  place = np.clip(place, 0, side)
  pixel = np.minimum(place.astype(np.int64), side - 1)
  return pixel, place - pixel


def _summed(area: np.ndarray, y: tuple, x: tuple) -> np.ndarray:
  """The area above and left of each (y, x), which may cut through pixels.

  Between whole pixels the summed area is linear in x and in y.
  """
  (row, v), (column, u) = y, x
  upper = area[row, column] * (1 - u) + area[row, column + 1] * u
  lower = area[row + 1, column] * (1 - u) + area[row + 1, column + 1] * u
  return upper * (1 - v) + lower * v
