"""Where a slide's tiles lie, and how much of each a mask covers.

Coverage comes from the summed area of a mask at a coarse resolution: four
look-ups a tile, however many tiles there are, and none of them is read.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int32

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


@dataclasses.dataclass(frozen=True)
class Grid:
  """Square tiles in rows and columns; all lengths in pixels of level 0."""

  tile: int
  stride: int
  columns: int
  rows: int

  @property
  def x(self) -> Int32[np.ndarray, 'columns']:
    return np.arange(self.columns, dtype=np.int32) * self.stride

  @property
  def y(self) -> Int32[np.ndarray, 'rows']:
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
  area = np.zeros(np.add(mask.pixels.shape, 1), np.int64)
  np.cumsum(mask.pixels, axis=0, dtype=np.int64, out=area[1:, 1:])
  np.cumsum(area, axis=1, out=area)
  across, down = mask.downsample
  left, right = grid.x / across, (grid.x + grid.tile) / across
  top, bottom = grid.y / down, (grid.y + grid.tile) / down
  marked = (
    _summed(area, bottom, right)
    - _summed(area, bottom, left)
    - _summed(area, top, right)
    + _summed(area, top, left)
  )
  whole = grid.tile**2 / (across * down)
  return np.clip(marked / whole, 0, 1).astype(np.float32)


def _summed(area: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """The area above and left of each (y, x), which may cut through pixels.

  Between whole pixels the summed area is linear in x and in y.
  """
  row = np.minimum(y.astype(np.int64), area.shape[0] - 2)
  column = np.minimum(x.astype(np.int64), area.shape[1] - 2)
  v, u = (y - row)[:, None], (x - column)[None, :]
  upper, lower = area[row], area[row + 1]
  first = upper[:, column] * (1 - v) + lower[:, column] * v
  second = upper[:, column + 1] * (1 - v) + lower[:, column + 1] * v
  return first * (1 - u) + second * u
