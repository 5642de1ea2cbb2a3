"""What can be laid over a slide's thumbnail, each by itself.

A page shows and hides them one by one: the scores as a small picture that is
clear where there are none, and outlines as rings of a few points.
"""

from collections.abc import Iterable

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxmed.slides.annotations import Polygon
from jaxmed.slides.regions import find_regions

FAINTEST = 0.25  # Opacity of the lowest score.
Ring = str  # 'x,y x,y ...' in pixels of level 0, as SVG has it.


def coloured(
  values: Float[np.ndarray, 'height width'],
  limits: tuple[float, float],
  colours: str = 'inferno',
) -> UInt8[np.ndarray, 'height width 4']:
  """Scores as colours between the limits; clear where there is none.

  What is low lets the tissue be seen through it.
  """
  low, high = limits
  share = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
  pixels = matplotlib.colormaps[colours](share, bytes=True)
  opaque = np.where(np.isfinite(values), FAINTEST + (1 - FAINTEST) * share, 0)
  pixels[..., 3] = np.round(255 * opaque)
  return pixels


def edges(
  marked: Bool[np.ndarray, 'rows columns'], downsample: float, step: float
) -> list[Ring]:
  """Rings along the borders of the marked squares; see `rings`."""
  regions = find_regions(marked.astype(np.float32), 0.5, downsample, (1, 1))
  return _rings(((r.ring, *r.holes) for r in regions), step)


def corners(ring: Ring) -> Float[np.ndarray, 'n 2']:
  """The points of a ring."""
  return np.array([point.split(',') for point in ring.split()], np.float64)


def rings(polygons: Iterable[Polygon], step: float) -> list[Ring]:
  """Outer and inner rings of polygons.

  Points less than `step` from the one before are left out; a ring that is too
  small to be seen keeps three.
  """
  return _rings((polygon.rings for polygon in polygons), step)


def _rings(several: Iterable[Iterable[np.ndarray]], step: float) -> list[Ring]:
  return [
    ' '.join(f'{x:.0f},{y:.0f}' for x, y in _thinned(ring, step))
    for one in several
    for ring in one
  ]


def _thinned(
  ring: Float[np.ndarray, 'n 2'], step: float
) -> Float[np.ndarray, 'm 2']:
  """Points by the length of the way to them, one for every `step` of it."""
  way = np.hypot(*np.diff(ring, axis=0, prepend=ring[:1]).T).cumsum()
  kept = np.diff(way // step, prepend=-1) > 0
  if kept.sum() < 3:
    kept[np.linspace(0, len(ring) - 1, 3).round().astype(int)] = True
  return ring[kept]
