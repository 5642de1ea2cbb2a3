"""Annotations as QuPath exports and opens them: GeoJSON.

Coordinates are pixels of level 0. A class is the polygon's group, and its
colour the polygon's; points and lines have no area and are passed over.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmed.slides.annotations import (
  FURTHEST,
  AnnotationError,
  Colour,
  Polygon,
)
from jaxmed.slides.scanline import Ring

WITHOUT_AREA = ('Point', 'MultiPoint', 'LineString', 'MultiLineString')


def read_geojson(path: str | os.PathLike) -> list[Polygon]:
  """The polygons of a file; a MultiPolygon is as many as it has parts.

  The file holds a FeatureCollection, a Feature, a geometry, or a list of
  features. What has no class is of the group Tumor.
  """
  path = pathlib.Path(path)
  try:
    return [p for feature in _features(_load(path)) for p in _polygons(feature)]
  except _Malformed as error:
    raise AnnotationError(f'{path} {error}.') from error
  except RecursionError as error:
    raise AnnotationError(f'{path} is nested too deeply.') from error
  except FileNotFoundError as error:
    raise AnnotationError(f'There is no annotation at {path}.') from error
  except OSError as error:
    raise AnnotationError(
      f"{path} can't be read ({error.strerror})."
    ) from error


class _Malformed(Exception):
  """What is wrong with a file, to follow its name in a sentence."""


def _load(path: pathlib.Path) -> Any:
  def constant(name: str):
    raise _Malformed(f'has {name}, which is no number of JSON')

  with path.open('rb') as file:
    start = file.read(64).removeprefix(b'\xef\xbb\xbf').lstrip()
    if start and start[:1] not in b'[{':  # However large the rest is.
      raise _Malformed(f'is not GeoJSON: it begins with {start[:12]!r}')
    file.seek(0)
    text = file.read()
  try:
    return json.loads(text, parse_constant=constant)
  except ValueError as error:  # Of JSON, its encoding, or too long a number.
    raise _Malformed(f'is not JSON ({error})') from error


def _features(found: Any) -> Iterator[dict]:
  """Each feature; a geometry alone becomes one without properties."""
  if isinstance(found, list):
    for one in found:
      yield from _features(one)
    return
  kind = _kind(found)
  if kind == 'FeatureCollection':
    yield from _features(_list(found, 'features'))
  elif kind == 'Feature':
    yield found
  else:
    yield {'type': 'Feature', 'geometry': found}


def _kind(found: Any) -> str:
  if not isinstance(found, dict) or not isinstance(found.get('type'), str):
    raise _Malformed(
      f'has {_short(found)} where an object of GeoJSON with a type is expected'
    )
  return found['type']


def _list(found: dict, name: str) -> list:
  if not isinstance(found.get(name), list):
    raise _Malformed(f'has a {_kind(found)} without a list of {name}')
  return found[name]


def _short(found: Any) -> str:
  text = type(found).__name__ if isinstance(found, dict | list) else repr(found)
  return text if len(text) < 40 else f'{text[:40]}...'


def _polygons(feature: dict) -> Iterator[Polygon]:
  properties = feature.get('properties') or {}
  if not isinstance(properties, dict):
    raise _Malformed(f'has {_short(properties)} as properties of a feature')
  group, colour = _class(properties)
  name = properties.get('name')
  name = name if isinstance(name, str) else ''
  if 'geometry' not in feature:
    raise _Malformed(f'has a feature {name!r} without a geometry')
  for outer, *holes in _parts(feature['geometry']):
    yield Polygon(outer, group, name, tuple(holes), colour)


def _class(properties: dict) -> tuple[str, Colour | None]:
  """The name of QuPath's class, and its colour or the object's own."""
  found = properties.get('classification')
  found = {'name': found} if isinstance(found, str) else found
  if not isinstance(found, dict):
    return 'Tumor', _colour(properties)
  names = found.get('names')  # Of a class and those it was derived from.
  if isinstance(names, list) and all(isinstance(n, str) for n in names):
    found = {'name': ': '.join(names)} | found
  group = found.get('name')
  group = group if isinstance(group, str) and group else 'Tumor'
  return group, _colour(found) or _colour(properties)


def _colour(properties: dict) -> Colour | None:
  """[r, g, b], or a whole number of alpha, red, green and blue bytes."""
  packed = properties.get('colorRGB')
  if isinstance(packed, int):
    return tuple((packed & 0xFFFFFF).to_bytes(3, 'big'))
  match properties.get('color'):
    case [int(), int(), int(), *_] as found:
      colour = tuple(found[:3])
      return colour if all(0 <= c < 256 for c in colour) else None
    case int(packed):
      return tuple((packed & 0xFFFFFF).to_bytes(3, 'big'))
  return None


def _parts(geometry: Any) -> Iterator[list[Ring]]:
  """The rings of each polygon in a geometry, the outer one first."""
  if geometry is None:  # The standard's word for a feature without a place.
    return
  kind = _kind(geometry)
  if kind == 'Polygon':
    yield _rings(_list(geometry, 'coordinates'))
  elif kind == 'MultiPolygon':
    for rings in _list(geometry, 'coordinates'):
      yield _rings(rings)
  elif kind == 'GeometryCollection':
    for one in _list(geometry, 'geometries'):
      yield from _parts(one)
  elif kind not in WITHOUT_AREA:
    raise _Malformed(f'has a {kind!r}, which is no geometry of GeoJSON')


def _rings(rings: Any) -> list[Ring]:
  if not isinstance(rings, list) or not rings:
    raise _Malformed('has a polygon without coordinates')
  return [_ring(ring) for ring in rings]


def _ring(ring: Any) -> Ring:
  try:
    points = np.asarray(ring)
  except (ValueError, OverflowError) as error:  # Of lists of several lengths.
    raise _Malformed('has a polygon with broken coordinates') from error
  if points.dtype.kind not in 'iuf' or points.ndim != 2 or points.shape[1] < 2:
    raise _Malformed(
      'has a polygon whose coordinates are not lists of x and y as numbers'
    )
  points = np.ascontiguousarray(points[:, :2], np.float64)
  if not np.isfinite(points).all() or (abs(points) > FURTHEST).any():
    raise _Malformed('has a polygon with a coordinate that is on no slide')
  if (points[0] == points[-1]).all():
    points = points[:-1]
  if len(points) < 3:
    raise _Malformed(
      f'has a polygon with a ring of {len(points)} points; it needs 3'
    )
  return points


def write_geojson(
  path: str | os.PathLike,
  polygons: Sequence[Polygon],
  measurements: Sequence[Mapping[str, float]] | None = None,
) -> None:
  """Writes annotations for QuPath; the file appears whole or not at all.

  `measurements` are numbers by name for each polygon, which QuPath lists. It
  shows one that is missing as NaN, so NaN is left out.
  """
  if measurements is None:
    measurements = [{}] * len(polygons)
  features = (  # One at a time: as lists, they are many times as large.
    json.dumps(_feature(polygon, numbers), allow_nan=False)
    for polygon, numbers in zip(polygons, measurements, strict=True)
  )
  temporary = pathlib.Path(f'{path}.tmp')
  try:
    with temporary.open('w', encoding='utf-8') as file:
      file.write('{"type": "FeatureCollection", "features": [')
      for number, feature in enumerate(features):
        file.write(f', {feature}' if number else feature)
      file.write(']}')
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _feature(polygon: Polygon, numbers: Mapping[str, float]) -> dict:
  group = {'name': polygon.group}
  if polygon.colour:
    group['color'] = list(polygon.colour)
  properties = {'objectType': 'annotation', 'classification': group}
  if polygon.name:
    properties['name'] = polygon.name
  properties['measurements'] = {
    name: float(number)
    for name, number in numbers.items()
    if not math.isnan(number)
  }
  closed = [np.concatenate([r, r[:1]]).tolist() for r in polygon.rings]
  return {
    'type': 'Feature',
    'geometry': {'type': 'Polygon', 'coordinates': closed},
    'properties': properties,
  }
