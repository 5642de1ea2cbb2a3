import json

import numpy as np
import pytest

from jaxmed.slides import annotations, geojson
from jaxmed.slides.annotations import Polygon

RING = [[1, 2], [9, 2], [9, 8.5], [1, 8.5], [1, 2]]
HOLE = [[3, 4], [5, 4], [5, 6], [3, 4]]


def _read(tmp_path, found):
  path = tmp_path / 'a.geojson'
  path.write_text(json.dumps(found))
  return geojson.read_geojson(path)


def _feature(kind, coordinates, **properties):
  geometry = {'type': kind, 'coordinates': coordinates}
  return {'type': 'Feature', 'geometry': geometry, 'properties': properties}


def test_there_and_back_is_exact(tmp_path):
  rng = np.random.default_rng(0)
  polygons = [
    Polygon(
      rng.uniform(-10, 1e5, (7, 2)),
      group,
      name,
      (rng.normal(size=(3, 2)), rng.normal(size=(5, 2))),
      colour,
    )
    for group, name, colour in (
      ('Tumor', '', None),
      ('_2', 'a "quoted" näme', (1, 2, 255)),
      ('Tumor: Positive', 'b', (0, 0, 0)),
    )
  ]
  path = tmp_path / 'a.geojson'
  geojson.write_geojson(path, polygons)
  for one, other in zip(polygons, geojson.read_geojson(path), strict=True):
    assert (one.group, one.name, one.colour) == (
      other.group,
      other.name,
      other.colour,
    )
    for ring, again in zip(one.rings, other.rings, strict=True):
      np.testing.assert_array_equal(ring, again)
  assert [p.name for p in tmp_path.iterdir()] == ['a.geojson']
  geojson.write_geojson(path, [])
  assert geojson.read_geojson(path) == []


def test_what_qupath_opens(tmp_path):
  path = tmp_path / 'a.geojson'
  polygons = [
    Polygon(np.array(RING[:-1]), 'Tumor', colour=(200, 0, 0)),
    Polygon(np.array(HOLE[:-1])),
  ]
  numbers = [{'score': 0.25, 'area µm^2': np.float32(3)}, {'score': np.nan}]
  geojson.write_geojson(path, polygons, numbers)
  found = json.loads(path.read_text())
  assert found['type'] == 'FeatureCollection'
  one, two = found['features']
  assert one == {
    'type': 'Feature',
    'geometry': {'type': 'Polygon', 'coordinates': [RING]},
    'properties': {
      'objectType': 'annotation',
      'classification': {'name': 'Tumor', 'color': [200, 0, 0]},
      'measurements': {'score': 0.25, 'area µm^2': 3.0},
    },
  }
  assert two['properties']['measurements'] == {}


def test_a_failed_write_leaves_what_was_there(tmp_path):
  path = tmp_path / 'a.geojson'
  geojson.write_geojson(path, [])
  before = path.read_bytes()
  with pytest.raises(ValueError):
    geojson.write_geojson(path, [Polygon(np.array(RING))], [{'a': np.inf}])
  with pytest.raises(ValueError):
    geojson.write_geojson(path, [Polygon(np.array(RING))], [])
  assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_each_way_to_wrap_a_geometry(tmp_path):
  feature = _feature('Polygon', [RING])
  for found in (
    feature,
    feature['geometry'],
    [feature],
    {'type': 'FeatureCollection', 'features': [feature]},
    {'type': 'GeometryCollection', 'geometries': [feature['geometry']]},
    _feature('MultiPolygon', [[RING]]),
  ):
    (polygon,) = _read(tmp_path, found)
    np.testing.assert_array_equal(polygon.points, RING[:-1])
    assert polygon.group == 'Tumor' and not polygon.holes


def test_parts_and_holes_and_what_has_no_area(tmp_path):
  found = {
    'type': 'GeometryCollection',
    'geometries': [
      {'type': 'Point', 'coordinates': [1, 2]},
      {'type': 'LineString', 'coordinates': RING},
      {'type': 'MultiPolygon', 'coordinates': [[RING, HOLE], [HOLE]]},
    ],
  }
  one, two = _read(tmp_path, found)
  np.testing.assert_array_equal(one.holes, [HOLE[:-1]])
  np.testing.assert_array_equal(two.points, HOLE[:-1])
  # The second part fills the hole of the first.
  assert annotations.rasterise([one], 10, 10).sum() < 8 * 6
  filled = annotations.rasterise([one, two], 10, 10)
  whole = annotations.rasterise([Polygon(one.points)], 10, 10)
  np.testing.assert_array_equal(filled, whole)
  assert _read(tmp_path, {'type': 'Feature', 'geometry': None}) == []


@pytest.mark.parametrize(
  'properties, group, colour',
  [
    ({}, 'Tumor', None),
    ({'classification': None}, 'Tumor', None),
    ({'classification': {'name': '_2'}}, '_2', None),
    (
      {'classification': {'name': 'Stroma', 'color': [0, 128, 255]}},
      'Stroma',
      (0, 128, 255),
    ),
    (
      # As QuPath 0.2 and 0.3 write: alpha, red, green and blue in 32 bits.
      {'classification': {'name': 'Tumor', 'colorRGB': -3670016}},
      'Tumor',
      (200, 0, 0),
    ),
    (
      {'classification': {'names': ['Tumor', 'Positive']}},
      'Tumor: Positive',
      None,
    ),
    ({'color': [1, 2, 3]}, 'Tumor', (1, 2, 3)),
    ({'classification': {'name': 'a', 'color': 'red'}}, 'a', None),
    ({'classification': {'name': 'a', 'color': [1, 2, 999]}}, 'a', None),
    ({'classification': 'Necrosis'}, 'Necrosis', None),
  ],
)
def test_classes_and_their_colours(tmp_path, properties, group, colour):
  (polygon,) = _read(tmp_path, _feature('Polygon', [RING], **properties))
  assert (polygon.group, polygon.colour) == (group, colour)


def test_a_third_coordinate_and_an_open_ring(tmp_path):
  ring = [[x, y, 0] for x, y in RING[:-1]]
  (polygon,) = _read(tmp_path, _feature('Polygon', [ring], name='n'))
  np.testing.assert_array_equal(polygon.points, RING[:-1])
  assert polygon.name == 'n'


def test_a_mark_of_byte_order_is_passed_over(tmp_path):
  path = tmp_path / 'a.geojson'
  path.write_text(json.dumps(_feature('Polygon', [RING])), 'utf-8-sig')
  assert len(geojson.read_geojson(path)) == 1
