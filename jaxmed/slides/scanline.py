"""Fills rings pixel by pixel: row after row, in bands of bounded memory.

A pixel belongs to a ring if its centre does, by the even-odd rule: a ray from
it to the left crosses the ring an odd number of times. A centre on an edge
belongs to what lies right of it or below it, so that neighbours that share an
edge share no pixel and leave no gap.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

CHUNK = 1 << 20  # Crossings of rings and rows, and cells / 4, held at once.
Ring = Float64[np.ndarray, 'points 2']


def fill(
  shapes: Sequence[Sequence[Ring]],
  width: int,
  height: int,
  origin: tuple[float, float] = (0.0, 0.0),
  scale: float | tuple[float, float] = 1.0,
) -> Bool[np.ndarray, 'height width']:
  """Which pixels are in any of the shapes.

  A shape is a ring, without its last point, and holes in it. The picture
  begins at `origin`; its pixels are `scale` wide and high.
  """
  inside = np.zeros((height, width), bool)
  edges = _edges(shapes, height, np.asarray(origin), scale) if shapes else None
  if edges is None or not len(edges.ring):
    return inside
  starts, ends = (
    np.bincount(rows, minlength=height + 1)
    for rows in (edges.first, edges.last)
  )
  crossings = np.cumsum(starts - ends)[:height]
  # Only the box around the edges is worked on.
  used = np.flatnonzero(crossings)
  top, bottom = int(used[0]), int(used[-1]) + 1
  least, most = np.minimum(edges.run, 0), np.maximum(edges.run, 0)
  sides = np.floor((edges.x + least).min()), np.ceil((edges.x + most).max())
  left, right = np.clip(sides, 0, width).astype(int).tolist()
  for first, last in _bands(crossings[top:bottom] + (right - left) // 4 + 1):
    first, last = first + top, last + top
    part = _fill_band(edges, (first, last), (left, right))
    inside[first:last, left:right] = part
  return inside


@dataclasses.dataclass(frozen=True)
class _Edges:
  """Edges from their upper end down, of those that pass a row's centre.

  first, last: they pass the centres of the rows in [first, last).
  ring: the ring of each; shape, sign: of each ring, its shape and 1 or -1.
  """

  x: Float64[np.ndarray, ' edges']
  y: Float64[np.ndarray, ' edges']
  run: Float64[np.ndarray, ' edges']
  rise: Float64[np.ndarray, ' edges']
  first: Int64[np.ndarray, ' edges']
  last: Int64[np.ndarray, ' edges']
  ring: Int64[np.ndarray, ' edges']
  shape: Int64[np.ndarray, ' rings']
  sign: Int64[np.ndarray, ' rings']


def _edges(
  shapes: Sequence[Sequence[Ring]],
  height: int,
  origin: np.ndarray,
  scale: float | tuple[float, float],
) -> _Edges:
  rings = [ring for shape in shapes for ring in shape]
  count = np.array([len(shape) for shape in shapes])
  sign = np.full(len(rings), -1)
  sign[np.cumsum(count) - count] = 1
  lengths = np.array([len(ring) for ring in rings])
  begins = (np.cumsum(lengths) - lengths)[lengths > 0]
  ends = np.cumsum(lengths)[lengths > 0] - 1
  points = (np.concatenate(rings) - origin) / scale
  following = np.arange(1, len(points) + 1)
  following[ends] = begins
  upper, lower = points, points[following]
  # Always computed from the upper end, an edge that two shapes share crosses
  # each row at exactly the same place for both.
  turned = (lower[:, 1] < upper[:, 1])[:, None]
  upper, lower = np.where(turned, lower, upper), np.where(turned, upper, lower)
  first, last = (
    np.clip(np.ceil(end[:, 1] - 0.5), 0, height).astype(np.int64)
    for end in (upper, lower)
  )
  passes = first < last
  (x, y), (run, rise) = upper[passes].T, (lower - upper)[passes].T
  ring = np.repeat(np.arange(len(rings)), lengths)[passes]
  shape = np.repeat(np.arange(len(shapes)), count)
  return _Edges(x, y, run, rise, first[passes], last[passes], ring, shape, sign)


def _bands(cost: np.ndarray) -> list[tuple[int, int]]:
  """Ranges of rows of about CHUNK in sum; a row alone may have more."""
  cuts = np.flatnonzero(np.diff(np.cumsum(cost) // CHUNK)) + 1
  edges = [0, *cuts.tolist(), len(cost)]
  return list(zip(edges, edges[1:], strict=False))


def _fill_band(
  edges: _Edges, between: tuple[int, int], sides: tuple[int, int]
) -> Bool[np.ndarray, 'rows columns']:
  """A part of the picture: rows and columns from the first to before the last.

  No edge crosses its rows left of it, and none of interest right of it.
  """
  rows, cells = between[1] - between[0], sides[1] - sides[0] + 1
  ring, row, column = _crossings(edges, *between)
  row -= between[0]
  column = np.clip(column, *sides).astype(np.int64) - sides[0]
  # Sorted by ring, row and column, crossings are in turn a way in and out.
  key = np.sort((ring * rows + row) * cells + column)
  rest, column = np.divmod(key, cells)
  ring, row = np.divmod(rest, rows)
  step = np.where(np.arange(len(key)) % 2, -1, 1) * edges.sign[ring]
  # Along a row the steps of a shape sum to 1 where its ring alone is; where a
  # hole is, to 0 or less.
  place = (edges.shape[ring] * rows + row) * cells + column
  order = np.argsort(place, kind='stable')
  within = np.cumsum(step[order]) == 1
  change = np.diff(within.astype(np.int32), prepend=0)
  count = np.zeros(rows * cells, np.int32)
  np.add.at(count, (row * cells + column)[order], change)
  count = count.reshape(rows, cells)
  return np.cumsum(count, axis=1, out=count)[:, :-1] > 0


def _crossings(
  edges: _Edges, top: int, bottom: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Ring and row of each crossing, and the first pixel right of it."""
  (here,) = np.nonzero((edges.first < bottom) & (edges.last > top))
  first = np.maximum(edges.first[here], top)
  count = np.minimum(edges.last[here], bottom) - first
  edge = np.repeat(here, count)
  row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
  row += np.repeat(first, count)
  down = row + 0.5 - edges.y[edge]
  crossing = edges.x[edge] + down * edges.run[edge] / edges.rise[edge]
  return edges.ring[edge], row, np.ceil(crossing - 0.5)
