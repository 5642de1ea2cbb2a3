"""Regions of a slide whose scores are high: their outlines, scores and area.

Outlines go along the borders of the map's squares, so that a region's area is
that of the squares in it.
"""

import dataclasses

import contourpy
import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy import ndimage

# Outlines are drawn nearer to what is in than to what is out, so that squares
# that touch at a corner only are two regions, as `ndimage.label` has it.
WITHIN = 0.75


@dataclasses.dataclass(frozen=True)
class Region:
  """Connected squares of a map above a threshold.

  Attributes:
    ring: corners (x, y) in pixels of level 0, without the first again.
    holes: the same of what it leaves out.
    highest, mean: of the scores in it.
    area: in square micrometres.
  """

  ring: Float64[np.ndarray, 'corners 2']
  holes: tuple[Float64[np.ndarray, 'corners 2'], ...]
  highest: float
  mean: float
  area: float


def find_regions(
  scores: Float[np.ndarray, 'rows columns'],
  threshold: float,
  downsample: float | tuple[float, float],
  mpp: tuple[float, float],
) -> list[Region]:
  """Regions of scores above `threshold`, the highest first.

  Args:
    scores: one a square of `downsample` pixels of level 0; NaN is in none.
    threshold: which a score has to exceed.
    downsample: of the squares, the same or one for x and one for y.
    mpp: micrometres per pixel of level 0, in x and in y.
  """
  above = np.where(np.isfinite(scores), scores, -np.inf) > threshold
  labels, count = ndimage.label(above)
  if not count:
    return []
  scale = np.broadcast_to(downsample, 2).astype(np.float64)
  inside = labels[above]
  size = np.bincount(inside)
  total = np.bincount(inside, scores[above].astype(np.float64))
  highest = np.full(count + 1, -np.inf)
  np.maximum.at(highest, inside, scores[above])
  square = float(np.prod(scale * mpp))
  regions = []
  for rings in _outlines(above):
    label = labels[_square_of(rings[0])]
    ring, *holes = (_corners(ring) * scale for ring in rings)
    regions.append(
      Region(
        ring,
        tuple(holes),
        float(highest[label]),
        float(total[label] / size[label]),
        float(size[label] * square),
      )
    )
  return sorted(regions, key=lambda region: -region.highest)


def _outlines(
  above: Bool[np.ndarray, 'rows columns'],
) -> list[list[Float64[np.ndarray, 'points 2']]]:
  """Of each region, the outer line and those around its holes.

  A line crosses each border between in and out once, at right angles, so a
  point of it has one coordinate that is whole: x and y are those of squares'
  centres, counted from 0.
  """
  padded = np.pad(above, 1).astype(np.float64)
  generator = contourpy.contour_generator(
    z=padded, fill_type=contourpy.FillType.OuterOffset
  )
  found = []
  for points, cuts in zip(*generator.filled(WITHIN, np.inf), strict=True):
    # The last point of a line repeats its first.
    lines = [
      points[a : b - 1] - 1 for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    found.append(lines)
  return found


def _square_of(line: Float64[np.ndarray, 'points 2']) -> tuple[int, int]:
  """(row, column) of the square inside of a line's first point."""
  column, row = np.round(line[0]).astype(int)
  return int(row), int(column)


def _corners(
  line: Float64[np.ndarray, 'points 2'],
) -> Float64[np.ndarray, 'corners 2']:
  """Where the borders that a line crosses meet at right angles."""
  border = np.floor(line) + 1.0  # Of the coordinate that is not whole.
  upright = line[:, 0] != np.floor(line[:, 0])
  following = np.roll(np.arange(len(line)), -1)
  turns = np.flatnonzero(upright != upright[following])
  after = following[turns]
  first_upright = upright[turns]
  x = np.where(first_upright, border[turns, 0], border[after, 0])
  y = np.where(first_upright, border[after, 1], border[turns, 1])
  return np.stack([x, y], axis=1)
