"""Puts the pixel maps of a slide's overlapping tiles together, on disk.

Where tiles overlap, a pixel of the map is their mean, weighted by a Hann
window: what a network says near the border of a tile, where it has seen only
half of the neighbourhood, hardly counts. Tiles come row by row, so a strip as
high as a tile is all that is in memory; finished rows go to the disk.
"""

import math
import os
import pathlib

import numpy as np
from jaxtyping import Float, Float32, Int


def window(tile: int) -> Float32[np.ndarray, ' tile']:
  """Hann's, sampled at pixel centres, so that it is nowhere zero."""
  return np.sin(np.pi * (np.arange(tile) + 0.5) / tile).astype(np.float32) ** 2


class Blend:
  """A slide's pixel map as it grows; NaN where there was no tile.

  Each pixel of it is the weighted mean of the `downsample` x `downsample`
  level-0 pixels that it covers, in whatever tiles they lie.

  shape: (height, width) of the map.
  downsample: pixels of level 0 per pixel of it.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    size: tuple[int, int],
    tile: int,
    downsample: int,
  ):
    self._path, self._tile = pathlib.Path(path), tile
    self.downsample = downsample
    self._size = size
    width, height = (math.ceil(side / downsample) for side in size)
    self.shape = height, width
    rows = math.ceil(tile / downsample) + 1  # A tile may begin within a pixel.
    self._sums = np.zeros((2, rows, width), np.float32)  # Values and weights.
    self._top = 0  # Row of the map where the strip begins.
    self._window = window(tile)
    self._path.write_bytes(b'')

  def add(self, x: int, y: int, values: Float[np.ndarray, 'tile tile']) -> None:
    """A tile's map at x and y of level 0; y never decreases.

    What lies beyond the slide's border does not count.
    """
    top, left = max(y, 0), max(x, 0)
    bottom, right = (
      min(start + self._tile, side)
      for start, side in zip((y, x), self._size[::-1], strict=True)
    )
    if top // self.downsample < self._top:
      raise ValueError(
        f'a tile in row {top // self.downsample} after one in row {self._top}'
      )
    if top >= bottom or left >= right:
      return
    self._write(top // self.downsample)
    down = self._window[top - y : bottom - y]
    across = self._window[left - x : right - x]
    inside = values[top - y : bottom - y, left - x : right - x]
    rows, columns = self._firsts(top, bottom), self._firsts(left, right)
    weighted = inside * down[:, None] * across
    column = left // self.downsample
    sums = self._sums[:, : len(rows), column : column + len(columns)]
    # Not as products of matrices: BLAS would call threads for each.
    sums[0] += np.add.reduceat(
      np.add.reduceat(weighted, rows, axis=0), columns, axis=1
    )
    sums[1] += np.outer(
      np.add.reduceat(down, rows), np.add.reduceat(across, columns)
    )

  def finish(self) -> Float32[np.ndarray, 'height width']:
    """The whole map, which stays on the disk."""
    self._write(self.shape[0])
    return np.memmap(self._path, np.float32, 'r', shape=self.shape)

  def _firsts(self, start: int, stop: int) -> Int[np.ndarray, ' pixels']:
    """Where each pixel of the map begins in what lies from start to stop."""
    step = self.downsample
    first = np.arange(start // step, -(-stop // step)) * step
    return np.maximum(first, start) - start

  def _write(self, until: int) -> None:
    """Rows above `until` are finished."""
    strip = self._sums.shape[1]
    with self._path.open('ab') as file:
      while self._top < until:
        count = min(until - self._top, strip)
        total, weight = self._sums[:, :count]
        with np.errstate(invalid='ignore'):  # 0 / 0: no tile, so NaN.
          file.write((total / weight).tobytes())
        self._sums[:, : strip - count] = self._sums[:, count:].copy()
        self._sums[:, strip - count :] = 0
        self._top += count
