"""Puts the pixel maps of a slide's overlapping tiles together, on disk.

Where tiles overlap, a pixel of the map is their mean, weighted by a Hann
window: what a network says near the border of a tile, where it has seen only
half of the neighbourhood, hardly counts. Tiles come row by row, so a strip as
high as a tile is all that is in memory; finished rows go to the disk.
"""

import functools
import math
import os
import pathlib

import numpy as np
from jaxtyping import Float, Float32


def window(tile: int) -> Float32[np.ndarray, 'tile']:
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
    self._bins = functools.cache(self._bins)
    self._path.write_bytes(b'')

  def add(self, x: int, y: int, values: Float[np.ndarray, 'tile tile']) -> None:
    """A tile's map at x and y of level 0; y never decreases."""
    top, left = y // self.downsample, x // self.downsample
    if max(top, 0) < self._top:
      raise ValueError(f'a tile at row {top} after one at row {self._top}')
    self._write(min(max(top, 0), self.shape[0]))
    across, down = (
      self._bins(start % self.downsample, min(self._tile, side - start))
      for start, side in zip((x, y), self._size, strict=True)
    )
    sums = np.stack(
      [
        down @ values.astype(np.float32) @ across.T,
        np.outer(down.sum(1), across.sum(1)),
      ]
    )
    # What lies beyond the slide's border is cut off.
    top -= self._top
    rows = slice(max(top, 0), min(top + len(down), self._sums.shape[1]))
    columns = slice(max(left, 0), min(left + len(across), self.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
      self._sums[:, rows, columns] += sums[
        :,
        rows.start - top : rows.stop - top,
        columns.start - left : columns.stop - left,
      ]

  def finish(self) -> Float32[np.ndarray, 'height width']:
    """The whole map, which stays on the disk."""
    self._write(self.shape[0])
    return np.memmap(self._path, np.float32, 'r', shape=self.shape)

  def _bins(
    self, phase: int, inside: int
  ) -> Float32[np.ndarray, 'pixels tile']:
    """The window's weights, by the pixel of the map where each falls.

    Only the first `inside` pixels of the tile are on the slide.
    """
    at = np.arange(self._tile)
    pixel = (phase + at) // self.downsample
    falls = pixel == np.arange(pixel[-1] + 1)[:, None]
    return np.where(falls & (at < inside), window(self._tile), np.float32(0))

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
