"""Outlines drawn by a pathologist: ASAP's XML in and out, and their masks.

In ASAP's files (Camelyon16 among them) an annotation is one closed ring, and
its group says what it is: `_0`, `_1` or Tumor mark a lesion; `_2`, Exclusion
or None a hole in one.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from xml.etree import ElementTree

import contourpy
import defusedxml.ElementTree
import numpy as np
from jaxtyping import Bool, Float, Float64

from jaxmed import errors
from jaxmed.slides import grid

EXCLUSIONS = ('_2', 'exclusion', 'none')
CHUNK = 1 << 20  # Crossings of outline and pixel rows held at once.


class AnnotationError(errors.UserError):
  """A file of annotations that can't be understood."""


@dataclasses.dataclass(frozen=True)
class Polygon:
  """A closed ring of (x, y) in pixels of level 0, without its last point."""

  points: Float64[np.ndarray, 'points 2']
  group: str = 'Tumor'
  name: str = ''

  @property
  def hole(self) -> bool:
    """Whether it takes away from the others."""
    return self.group.lower() in EXCLUSIONS


def read_xml(path: str | os.PathLike) -> list[Polygon]:
  """Polygons of ASAP's XML; other things drawn there have no area."""
  path = pathlib.Path(path)
  try:
    root = defusedxml.ElementTree.parse(path).getroot()
  except FileNotFoundError as error:
    raise AnnotationError(f'There is no annotation at {path}.') from error
  except (ElementTree.ParseError, defusedxml.DefusedXmlException) as error:
    raise AnnotationError(
      f"{path} is no annotation in ASAP's XML ({error})."
    ) from error
  if root.tag != 'ASAP_Annotations':
    raise AnnotationError(
      f'{path} begins with <{root.tag}>, expected <ASAP_Annotations>.'
    )
  found = [_polygon(path, element) for element in root.iter('Annotation')]
  return [polygon for polygon in found if len(polygon.points) >= 3]


def _polygon(path: pathlib.Path, element: ElementTree.Element) -> Polygon:
  name = element.get('Name', '')
  try:
    corners = sorted(
      element.iter('Coordinate'), key=lambda c: float(c.get('Order') or 0)
    )
    points = np.array(
      [(float(c.attrib['X']), float(c.attrib['Y'])) for c in corners]
    ).reshape(-1, 2)
  except (KeyError, ValueError) as error:
    raise AnnotationError(
      f'{path}: annotation {name!r} has a coordinate without a number.'
    ) from error
  if not np.isfinite(points).all():
    raise AnnotationError(
      f'{path}: annotation {name!r} has a coordinate that is not finite.'
    )
  return Polygon(points, element.get('PartOfGroup', 'Tumor'), name)


def write_xml(path: str | os.PathLike, polygons: Sequence[Polygon]) -> None:
  """Writes ASAP's XML; the file appears whole or not at all."""
  root = ElementTree.Element('ASAP_Annotations')
  annotations = ElementTree.SubElement(root, 'Annotations')
  for i, polygon in enumerate(polygons):
    element = ElementTree.SubElement(
      annotations,
      'Annotation',
      Name=polygon.name or f'Annotation {i}',
      Type='Polygon',
      PartOfGroup=polygon.group,
      Color='#64FE2E' if polygon.hole else '#F4FA58',
    )
    ring = ElementTree.SubElement(element, 'Coordinates')
    for order, (x, y) in enumerate(polygon.points):
      ElementTree.SubElement(
        ring, 'Coordinate', Order=str(order), X=f'{x:.2f}', Y=f'{y:.2f}'
      )
  groups = ElementTree.SubElement(root, 'AnnotationGroups')
  for name in sorted({polygon.group for polygon in polygons}):
    ElementTree.SubElement(
      groups, 'Group', Name=name, PartOfGroup='None', Color='#64FE2E'
    )
  ElementTree.indent(root)
  temporary = pathlib.Path(f'{path}.tmp')
  ElementTree.ElementTree(root).write(
    temporary, encoding='utf-8', xml_declaration=True
  )
  os.replace(temporary, path)


def rasterise(
  polygons: Sequence[Polygon],
  width: int,
  height: int,
  x: float = 0.0,
  y: float = 0.0,
  downsample: float | tuple[float, float] = 1.0,
) -> Bool[np.ndarray, 'height width']:
  """Which pixels have their centre in a polygon and in no hole.

  The mask begins at x and y of level 0; its pixels are `downsample` wide and
  high. A ring that crosses itself is filled by the even-odd rule.
  """
  origin, scale = np.array([x, y]), np.broadcast_to(downsample, 2)
  inside = np.zeros((height, width), bool)
  for polygon in sorted(polygons, key=lambda polygon: polygon.hole):
    points = (polygon.points - origin) / scale
    # Only the box around the ring is worked on.
    low = np.clip(np.floor(points.min(0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(points.max(0)), 0, (width, height)).astype(int)
    if (high <= low).any():
      continue
    part = inside[low[1] : high[1], low[0] : high[0]]
    ring = _fill(points - low, *(high - low))
    if polygon.hole:
      part &= ~ring
    else:
      part |= ring
  return inside


def lesion_mask(
  polygons: Sequence[Polygon], size: tuple[int, int], downsample: float
) -> grid.Mask:
  """The polygons over a whole slide of this (width, height)."""
  width, height = (math.ceil(side / downsample) for side in size)
  exact = size[0] / width, size[1] / height
  pixels = rasterise(polygons, width, height, downsample=exact)
  return grid.Mask(pixels, tuple(size))


def _fill(
  points: Float[np.ndarray, 'points 2'], width: int, height: int
) -> Bool[np.ndarray, 'height width']:
  """Even-odd scan conversion: each crossing flips the pixels right of it."""
  flips = np.zeros(height * (width + 1), np.uint8)
  start, stop = points, np.roll(points, -1, axis=0)
  first, last = np.minimum(start, stop)[:, 1], np.maximum(start, stop)[:, 1]
  # Rows whose centre, row + 1/2, lies in [first, last).
  first = np.clip(np.ceil(first - 0.5), 0, height).astype(np.int64)
  last = np.clip(np.ceil(last - 0.5), 0, height).astype(np.int64)
  for edges in _chunks(last - first):
    count = (last - first)[edges]
    edge = np.repeat(np.arange(len(points))[edges], count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    row += first[edge]
    run, rise = (stop - start)[edge].T
    crossing = start[edge, 0] + (row + 0.5 - start[edge, 1]) * run / rise
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    np.bitwise_xor.at(flips, row * (width + 1) + column, 1)
  flips = flips.reshape(height, width + 1)[:, :width]
  return np.bitwise_xor.accumulate(flips, axis=1).astype(bool)


def _chunks(counts: np.ndarray) -> list[slice]:
  """Slices of about CHUNK in sum; an edge alone may have more."""
  group = np.cumsum(counts) // CHUNK
  cuts = np.flatnonzero(np.diff(group)) + 1
  edges = [0, *cuts.tolist(), len(counts)]
  return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def outlines(
  level: Float[np.ndarray, 'height width'],
  downsample: float | tuple[float, float] = 1.0,
  group: str = 'Tumor',
) -> list[Polygon]:
  """Rings around where `level`, sampled at pixel centres, is above 0.

  Outer rings belong to `group`, the holes in them to `Exclusion`.
  """
  # A border below 0 closes rings that would leave the picture.
  below = min(-abs(float(level.min())), -1e-3)
  level = np.pad(level.astype(np.float64), 1, constant_values=below)
  generator = contourpy.contour_generator(
    z=level, fill_type=contourpy.FillType.OuterOffset
  )
  points, offsets = generator.filled(0, np.inf)
  scale = np.broadcast_to(downsample, 2)
  polygons = []
  for ring, offset in zip(points, offsets, strict=True):
    for i, (a, b) in enumerate(zip(offset, offset[1:], strict=False)):
      corners = (ring[a : b - 1] - 0.5) * scale  # The last repeats the first.
      polygons.append(Polygon(corners, 'Exclusion' if i else group))
  return polygons
