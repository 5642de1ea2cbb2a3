"""Outlines drawn by a pathologist: ASAP's XML in and out, and their masks.

In ASAP's files (Camelyon16 among them) an annotation is one closed ring, and
its group says what it is: `_0`, `_1` or Tumor mark a lesion; `_2`, Exclusion
or None take away from all lesions. A polygon may also have holes of its own,
which take away from nothing else: an island in a hole stays.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
from array import array
from collections.abc import Iterator, Sequence
from xml import sax
from xml.etree import ElementTree

import contourpy
import defusedxml.expatreader
import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from jaxmed import errors
from jaxmed.slides import grid, scanline
from jaxmed.slides.scanline import Ring

EXCLUSIONS = ('_2', 'exclusion', 'none', 'ignore*')  # The last is QuPath's.
WITHOUT_AREA = ('Dot', 'PointSet', 'Measurement')
FURTHEST = 1e9  # Pixels from a slide's corner; the widest slides have 1e6.
Colour = tuple[int, int, int]


class AnnotationError(errors.UserError):
  """A file of annotations that can't be understood."""


@dataclasses.dataclass(frozen=True)
class Polygon:
  """A closed ring of (x, y) in pixels of level 0, without its last point.

  holes: rings in it that are not part of it.
  colour: red, green and blue up to 255, where the file gives it.
  """

  points: Ring
  group: str = 'Tumor'
  name: str = ''
  holes: tuple[Ring, ...] = ()
  colour: Colour | None = None

  @property
  def hole(self) -> bool:
    """Whether it takes away from the others."""
    return self.group.lower() in EXCLUSIONS

  @property
  def rings(self) -> tuple[Ring, ...]:
    """The outer ring, then the holes."""
    return (self.points, *self.holes)

  @functools.cached_property
  def bounds(self) -> tuple[float, float, float, float]:
    """Left, top, right and bottom."""
    if not len(self.points):
      return math.inf, math.inf, -math.inf, -math.inf
    return *self.points.min(0).tolist(), *self.points.max(0).tolist()


def area(polygon: Polygon) -> float:
  """In squared pixels of level 0, holes not counted.

  It is that of rings that don't cross themselves, with the holes inside and
  apart from each other, as drawing programs and `outlines` make them.
  """
  outer, *holes = (_ring_area(ring) for ring in polygon.rings)
  return outer - sum(holes)


def _ring_area(ring: np.ndarray) -> float:
  x, y = (ring - ring[:1]).T  # Near 0, where products lose nothing.
  return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def read_xml(path: str | os.PathLike) -> list[Polygon]:
  """Polygons of ASAP's XML.

  Dots and lines have no area and are passed over; so is a polygon of fewer
  than three points, which a stray click leaves, but with a warning.
  """
  path = pathlib.Path(path)
  reader = _Reader(path)
  try:
    with path.open('rb') as file:
      parser = _Parser()
      parser.setContentHandler(reader)
      parser.parse(file)
  except FileNotFoundError as error:
    raise AnnotationError(f'There is no annotation at {path}.') from error
  except OSError as error:
    raise AnnotationError(
      f"{path} can't be read ({error.strerror})."
    ) from error
  except (sax.SAXException, defusedxml.DefusedXmlException) as error:
    raise AnnotationError(
      f"{path} is no annotation in ASAP's XML ({error})."
    ) from error
  if not reader.understood:
    raise AnnotationError(
      f'{path} has no <Annotations>; expected what ASAP saves.'
    )
  return reader.polygons


class _Parser(defusedxml.expatreader.DefusedExpatParser):
  """Calls the handler with what expat gives; sax would wrap it first."""

  def reset(self):
    super().reset()
    handler = self.getContentHandler()
    self._parser.StartElementHandler = handler.startElement
    self._parser.EndElementHandler = handler.endElement


class _Reader(sax.ContentHandler):
  """Collects polygons while the file is read: no tree of it is held."""

  characters = None  # Text is passed over without a call.

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.polygons: list[Polygon] = []
    self.understood = False  # Whether there is a place for annotations.
    self._path = path
    self._root = ''
    self._open = None  # Attributes of the annotation that is being read.
    self._values = array('d')  # Order, x and y of each corner.

  def startElement(self, name, attrs):
    if name == 'Coordinate' and self._open:
      try:
        corner = attrs.get('Order') or 0, attrs['X'], attrs['Y']
        self._values.extend(map(float, corner))
      except (KeyError, ValueError) as error:
        raise self._wrong('has a coordinate without a number') from error
      return
    if not self._root:
      self._root = name
      if name != 'ASAP_Annotations':
        raise AnnotationError(
          f'{self._path} begins with <{name}>, expected <ASAP_Annotations>.'
        )
    if name == 'Annotation':
      self._open, self._values = attrs.copy(), array('d')
    self.understood |= name in ('Annotations', 'Annotation')

  def endElement(self, name):
    if name != 'Annotation' or not self._open:
      return
    corners = np.array(self._values).reshape(-1, 3)
    if not np.isfinite(corners).all():
      raise self._wrong('has a coordinate that is not finite')
    if (abs(corners[:, 1:]) > FURTHEST).any():
      raise self._wrong('has a coordinate that is on no slide')
    found, self._open = self._open, None
    if found.get('Type') in WITHOUT_AREA:
      return
    polygon = Polygon(
      corners[np.argsort(corners[:, 0], kind='stable'), 1:],
      found.get('PartOfGroup', 'Tumor'),
      found.get('Name', ''),
      colour=_colour(found.get('Color', '')),
    )
    if len(corners) >= 3:
      self.polygons.append(polygon)
      return
    logging.warning(
      '%s: annotation %r has %d points and no area; it is passed over.',
      *(self._path, polygon.name, len(corners)),
    )

  def _wrong(self, said: str) -> AnnotationError:
    name = self._open.get('Name', '')
    return AnnotationError(f'{self._path}: annotation {name!r} {said}.')


def _colour(text: str) -> Colour | None:
  """Of #RRGGBB; None if it is written in another way."""
  found = re.fullmatch('#([0-9a-fA-F]{6})', text)
  return tuple(bytes.fromhex(found[1])) if found else None


def write_xml(path: str | os.PathLike, polygons: Sequence[Polygon]) -> None:
  """Writes ASAP's XML; the file appears whole or not at all.

  ASAP knows no holes: they become rings of the group Exclusion or, where such
  a ring would take away from another polygon too, part of the outer ring.
  """
  root = ElementTree.Element('ASAP_Annotations')
  annotations = ElementTree.SubElement(root, 'Annotations')
  flat = list(_without_holes(polygons))
  for i, polygon in enumerate(flat):
    colour = polygon.colour or (
      (0x64, 0xFE, 0x2E) if polygon.hole else (0xF4, 0xFA, 0x58)
    )
    element = ElementTree.SubElement(
      annotations,
      'Annotation',
      Name=polygon.name or f'Annotation {i}',
      Type='Polygon',
      PartOfGroup=polygon.group,
      Color=f'#{bytes(colour).hex().upper()}',
    )
    ring = ElementTree.SubElement(element, 'Coordinates')
    for order, (x, y) in enumerate(polygon.points.tolist()):
      ElementTree.SubElement(
        ring, 'Coordinate', Order=str(order), X=str(x), Y=str(y)
      )
  groups = ElementTree.SubElement(root, 'AnnotationGroups')
  for name in sorted({polygon.group for polygon in flat}):
    ElementTree.SubElement(
      groups, 'Group', Name=name, PartOfGroup='None', Color='#64FE2E'
    )
  ElementTree.indent(root)
  temporary = pathlib.Path(f'{path}.tmp')
  ElementTree.ElementTree(root).write(
    temporary, encoding='utf-8', xml_declaration=True
  )
  os.replace(temporary, path)


def _without_holes(polygons: Sequence[Polygon]) -> Iterator[Polygon]:
  """The same regions, as rings of their own."""
  lesions = np.array([p.bounds for p in polygons if not p.hole]).reshape(-1, 4)
  for polygon in polygons:
    points, exclusions = polygon.points, []
    for hole in polygon.holes:
      ring = Polygon(hole, 'Exclusion', f'{polygon.name} hole'.strip())
      # Of the lesions that it meets one is the polygon itself.
      if polygon.hole or np.sum(_meet(ring.bounds, lesions.T)) > 1:
        # There and back on the same line, which then encloses nothing.
        corner = polygon.points[:1]
        points = np.concatenate([points, corner, hole, hole[:1]])
      else:
        exclusions.append(ring)
    yield dataclasses.replace(polygon, points=points, holes=())
    yield from exclusions


def _meet(box: Sequence[float], others: np.ndarray) -> np.ndarray:
  """Which others, of (left, top, right, bottom), share a point with a box."""
  left, top, right, bottom = others
  across = (box[0] <= right) & (left <= box[2])
  return across & (box[1] <= bottom) & (top <= box[3])


def rasterise(
  polygons: Sequence[Polygon],
  width: int,
  height: int,
  x: float = 0.0,
  y: float = 0.0,
  downsample: float | tuple[float, float] = 1.0,
) -> Bool[np.ndarray, 'height width']:
  """Which pixels have their centre in a lesion and in no exclusion.

  The mask begins at x and y of level 0; its pixels are `downsample` wide and
  high. A ring that crosses itself is filled by the even-odd rule.
  """
  across, down = np.broadcast_to(downsample, 2).tolist()
  frame = x, y, x + across * width, y + down * height
  bounds = np.array([p.bounds for p in polygons]).reshape(-1, 4)
  near = [polygons[i] for i in np.flatnonzero(_meet(frame, bounds.T))]
  inside, outside = (
    scanline.fill(
      [polygon.rings for polygon in near if polygon.hole == hole],
      *(width, height, (x, y), (across, down)),
    )
    for hole in (False, True)
  )
  return np.greater(inside, outside, out=inside)


def lesion_mask(
  polygons: Sequence[Polygon], size: tuple[int, int], downsample: float
) -> grid.Mask:
  """The polygons over a whole slide of this (width, height)."""
  width, height = (math.ceil(side / downsample) for side in size)
  exact = size[0] / width, size[1] / height
  pixels = rasterise(polygons, width, height, downsample=exact)
  return grid.Mask(pixels, tuple(size))


def outlines(
  level: Float[np.ndarray, 'height width'],
  downsample: float | tuple[float, float] = 1.0,
  group: str = 'Tumor',
) -> list[Polygon]:
  """Polygons around where `level`, sampled at pixel centres, is above 0.

  NaN is not above 0. What lies in a hole is a polygon of its own.
  """
  # A border below 0 closes rings that would leave the picture.
  lowest = float(np.fmin.reduce(level, axis=None))
  below = -1.0 if math.isnan(lowest) else min(-abs(lowest), -1e-3)
  level = np.pad(level.astype(np.float64), 1, constant_values=below)
  level[np.isnan(level)] = below
  generator = contourpy.contour_generator(
    z=level, fill_type=contourpy.FillType.OuterOffset
  )
  points, offsets = generator.filled(0, np.inf)
  scale = np.broadcast_to(downsample, 2)
  polygons = []
  for ring, offset in zip(points, offsets, strict=True):
    # The last point of each repeats its first.
    rings = [
      (ring[a : b - 1] - 0.5) * scale
      for a, b in zip(offset, offset[1:], strict=False)
    ]
    polygons.append(Polygon(rings[0], group, holes=tuple(rings[1:])))
  return polygons
