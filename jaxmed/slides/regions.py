"""Regions of a slide whose scores are high: their outlines, scores and area.

Outlines go along the borders of the map's squares, so that a region's area is
that of the squares in it.
"""

import dataclasses
from collections.abc import Iterator

import contourpy
import numpy as np
from jaxtyping import Bool, Float, Float64, Int
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
  for (row, column), (ring, *holes) in _outlines(above, scale):
    label = labels[row, column]
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
  above: Bool[np.ndarray, 'rows columns'], scale: Float64[np.ndarray, '2']
) -> Iterator[tuple[tuple[int, int], list[Float64[np.ndarray, 'corners 2']]]]:
  """Of each region, one of its squares, and the rings of it and its holes."""
  padded = np.pad(above, 1).astype(np.float64)
  generator = contourpy.contour_generator(
    z=padded, fill_type=contourpy.FillType.OuterOffset
  )
  lines, cuts = generator.filled(WITHIN, np.inf)
  points = np.concatenate(lines) - 1  # In squares, counted from 0.
  lengths = np.concatenate([np.diff(cut) for cut in cuts])
  squares = np.round(points).astype(int)[np.cumsum(lengths) - lengths]
  corners, counts = _corners(points, lengths)
  rings = np.split(corners * scale, np.cumsum(counts)[:-1])
  start = 0
  for cut in cuts:
    column, row = squares[start]
    yield (row, column), rings[start : start + len(cut) - 1]
    start += len(cut) - 1


def _corners(
  points: Float64[np.ndarray, 'points 2'], lengths: Int[np.ndarray, ' lines']
) -> tuple[Float64[np.ndarray, 'corners 2'], Int[np.ndarray, ' lines']]:
  """Where the borders that lines cross meet at right angles; how many of each.

  All lines in a row, each of which ends with its first point. A line crosses
  each border between in and out once, at right angles, so a point of it has
  one coordinate that is whole: x and y are those of squares' centres.
  """
  border = np.floor(points) + 1.0  # Of the coordinate that is not whole.
  upright = points[:, 0] != np.floor(points[:, 0])
  turns = upright[:-1] != upright[1:]
  stops = np.cumsum(lengths)
  turns[stops[:-1] - 1] = False  # From one line to the next.
  (turns,) = turns.nonzero()
  before, after = border[turns], border[turns + 1]
  first_upright = upright[turns]
  x = np.where(first_upright, before[:, 0], after[:, 0])
  y = np.where(first_upright, after[:, 1], before[:, 1])
  counts = np.diff(np.searchsorted(turns, stops), prepend=0)
  return np.stack([x, y], axis=1), counts
