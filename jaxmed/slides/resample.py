"""From a level's pixels to pixels of another size, with antialiasing.

Far reductions average whole blocks first; what is left to do is a bicubic
filter as wide as an output pixel needs. Blocks lie on a fixed grid of the
level, so that neighbouring regions fit together without a seam.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

GAP = 2  # What averaging leaves to the filter is a reduction of at least that.
SUPPORT = 2  # Of the bicubic filter, in output pixels.
BAND_BYTES = 64 << 20  # Of the level that are in memory at a time.

Read = Callable[[int, int, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Axis:
  """Output pixels along x or y, over those of a level.

  begin: of the first output pixel, in the level's pixels.
  step: of an output pixel, in the level's pixels.
  count: of output pixels.
  length: of the level.
  """

  begin: float
  step: float
  count: int
  length: int

  @property
  def exact(self) -> bool:
    """Whether output pixels are pixels of the level."""
    return self.step == 1 and self.begin == round(self.begin)

  @property
  def centres(self) -> np.ndarray:
    return self.begin + (np.arange(self.count) + 0.5) * self.step

  @property
  def valid(self) -> np.ndarray:
    """Which output pixels have their centre on the level."""
    return (self.centres >= 0) & (self.centres < self.length)

  @property
  def inner(self) -> slice:
    """The range of valid pixels."""
    where = np.flatnonzero(self.valid)
    return slice(where[0], where[-1] + 1) if len(where) else slice(0, 0)

  @property
  def block(self) -> int:
    """Pixels of the level that are averaged first."""
    return max(1, int(self.step / GAP))

  def blocks(self) -> tuple[int, int]:
    """First block that the filter of valid pixels sees, and after the last."""
    low, high = self.box
    margin = math.ceil(SUPPORT * max(1.0, self.step / self.block)) + 1
    return math.floor(low) - margin, math.ceil(high) + margin

  @property
  def box(self) -> tuple[float, float]:
    """Where valid pixels begin and end, in blocks."""
    inner, block = self.inner, self.block
    return (
      (self.begin + inner.start * self.step) / block,
      (self.begin + inner.stop * self.step) / block,
    )


def fine(step: float, count: int) -> bool:
  """Whether a level has enough pixels, short of half a one at the far end."""
  return step >= 1 - 0.5 / count


def snapped(*axes: Axis) -> tuple[Axis, ...]:
  """Moved onto the level's pixels, if these have the scale asked for."""
  if any(abs(axis.step - 1) > 0.5 / axis.count for axis in axes):
    return axes
  return tuple(
    dataclasses.replace(axis, begin=float(round(axis.begin)), step=1.0)
    for axis in axes
  )


def resample(
  read: Read, across: Axis, down: Axis
) -> UInt8[np.ndarray, 'height width 3']:
  """The valid pixels alone; `read(x, y, width, height)` gives the level's."""
  if across.exact and down.exact:
    (left, right), (top, bottom) = across.box, down.box
    return read(int(left), int(top), int(right - left), int(bottom - top))
  x0, x1 = across.blocks()
  y0, y1 = down.blocks()
  ends = (
    math.ceil(across.length / across.block),
    math.ceil(down.length / down.block),
  )
  left, right = max(x0, 0), min(x1, ends[0])
  top, bottom = max(y0, 0), min(y1, ends[1])
  source = _reduced(read, across, down, left, right, top, bottom)
  # Beyond the border the outermost pixels go on, for the filter's sake.
  source = np.pad(
    source, ((top - y0, y1 - bottom), (left - x0, x1 - right), (0, 0)), 'edge'
  )
  (u0, u1), (v0, v1) = across.box, down.box
  size = (
    across.inner.stop - across.inner.start,
    down.inner.stop - down.inner.start,
  )
  image = Image.fromarray(source).resize(
    size, Image.BICUBIC, box=(u0 - x0, v0 - y0, u1 - x0, v1 - y0)
  )
  return np.asarray(image)


def _reduced(read, across, down, left, right, top, bottom) -> np.ndarray:
  """Averages of the blocks, read in bands."""
  x, end = left * across.block, min(right * across.block, across.length)
  width, step = end - x, down.block
  rows = max(1, BAND_BYTES // (width * 3) // step)
  bands = []
  for row in range(top, bottom, rows):
    y = row * step
    height = min(min(row + rows, bottom) * step, down.length) - y
    band = Image.fromarray(read(x, y, width, height))
    bands.append(np.asarray(band.reduce((across.block, step))))
  return np.concatenate(bands)
