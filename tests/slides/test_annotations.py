import numpy as np
import pytest
from scipy import ndimage
from skimage import draw

from jaxmed.slides import annotations, scanline
from jaxmed.slides.annotations import Polygon


def _ring(*points, group='Tumor'):
  return Polygon(np.array(points, float), group)


SQUARE = _ring((10, 10), (50, 10), (50, 40), (10, 40))


def test_a_square_has_its_area():
  mask = annotations.rasterise([SQUARE], 60, 50)
  assert mask[10:40, 10:50].all() and mask.sum() == 30 * 40


def test_any_ring_equals_a_reference():
  rng = np.random.default_rng(0)
  for _ in range(20):
    ring = Polygon(rng.uniform(-20, 120, (9, 2)))  # Crosses itself.
    mask = annotations.rasterise([ring], 100, 90)
    grid = np.stack(np.mgrid[0:90, 0:100], -1).reshape(-1, 2) + 0.5
    expected = _even_odd(ring.points, grid).reshape(90, 100)
    assert (mask == expected).all()
    x, y = ring.points.T
    assert (
      mask != draw.polygon2mask((90, 100), np.stack([y, x], 1) - 0.5)
    ).mean() < 0.02


def _even_odd(points, places):
  """One ray at a time, as the rule is told."""
  y, x = places.T
  inside = np.zeros(len(places), bool)
  for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
    crosses = (y0 <= y) != (y1 <= y)
    inside ^= crosses & (x >= x0 + (y - y0) * (x1 - x0) / (y1 - y0))
  return inside


def test_rings_unite_and_holes_take_away_whatever_their_order():
  hole = _ring((20, 20), (30, 20), (30, 30), (20, 30), group='Exclusion')
  again = _ring((15, 15), (45, 15), (45, 35), (15, 35), group='_0')
  mask = annotations.rasterise([hole, SQUARE, again], 60, 50)
  assert mask.sum() == 30 * 40 - 100
  assert not mask[20:30, 20:30].any()


def test_windows_and_levels():
  whole = annotations.rasterise([SQUARE], 64, 64)
  part = annotations.rasterise([SQUARE], 20, 16, x=40, y=30)
  assert (part == whole[30:46, 40:60]).all()
  half = annotations.rasterise([SQUARE], 32, 32, downsample=2)
  assert half.sum() == 15 * 20
  mask = annotations.lesion_mask([SQUARE], (61, 51), 4)
  assert mask.pixels.shape == (13, 16) and mask.size == (61, 51)
  assert not annotations.rasterise([SQUARE], 9, 9, x=1000).any()


def test_chunks_change_nothing(monkeypatch):
  rng = np.random.default_rng(1)
  ring = Polygon(rng.uniform(0, 200, (300, 2)))
  once = annotations.rasterise([ring], 200, 200)
  monkeypatch.setattr(scanline, 'CHUNK', 64)
  assert (annotations.rasterise([ring], 200, 200) == once).all()


def test_xml_there_and_back(tmp_path):
  path = tmp_path / 'a.xml'
  hole = _ring((20, 20), (30.25, 20), (25, 30.5), group='_2')
  annotations.write_xml(path, [SQUARE, hole])
  one, two = annotations.read_xml(path)
  np.testing.assert_array_equal(one.points, SQUARE.points)
  np.testing.assert_array_equal(two.points, hole.points)
  assert two.hole and not one.hole
  assert [p.name for p in tmp_path.iterdir()] == ['a.xml']


@pytest.mark.parametrize(
  'text, said',
  [
    ('', 'no annotation in ASAP'),
    ('<Other/>', 'begins with <Other>'),
    ('<ASAP_Annotations><Annotation', 'no annotation in ASAP'),
    (
      '<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations>&b;</ASAP_Annotations>',
      'no annotation in ASAP',
    ),
    (
      '<ASAP_Annotations><Annotation Name="n"><Coordinate Order="0" X="1"/>'
      '</Annotation></ASAP_Annotations>',
      'without a number',
    ),
    (
      '<ASAP_Annotations><Annotation Name="n"><Coordinate Order="z" X="1" '
      'Y="2"/></Annotation></ASAP_Annotations>',
      'without a number',
    ),
    (
      '<ASAP_Annotations><Annotation Name="n"><Coordinate Order="0" X="1" '
      'Y="nan"/></Annotation></ASAP_Annotations>',
      'not finite',
    ),
  ],
)
def test_xml_that_cannot_be_understood(tmp_path, text, said):
  path = tmp_path / 'a.xml'
  path.write_text(text)
  with pytest.raises(annotations.AnnotationError, match=said):
    annotations.read_xml(path)


def test_no_xml(tmp_path):
  with pytest.raises(annotations.AnnotationError, match='no annotation at'):
    annotations.read_xml(tmp_path / 'absent.xml')


def test_coordinates_are_taken_in_their_order(tmp_path):
  path = tmp_path / 'a.xml'
  corners = ''.join(
    f'<Coordinate Order="{order}" X="{x}" Y="0"/>'
    for order, x in ((10, 3), (2, 2), (1, 1))
  )
  path.write_text(
    '<ASAP_Annotations><Annotation PartOfGroup="Tumor">'
    f'<Coordinates>{corners}</Coordinates></Annotation></ASAP_Annotations>'
  )
  assert annotations.read_xml(path)[0].points[:, 0].tolist() == [1, 2, 3]


def test_outlines_enclose_what_they_were_drawn_around():
  y, x = np.mgrid[0:80, 0:100]
  level = 25.0 - np.hypot(y - 40, x - 30)
  level = np.where(np.hypot(y - 40, x - 30) < 8, -5.0, level)
  level = np.maximum(level, 30.0 - np.hypot(y - 30, x - 99))  # At the border.
  polygons = annotations.outlines(level, 2.0)
  assert sorted(len(polygon.holes) for polygon in polygons) == [0, 1]
  mask = annotations.rasterise(polygons, 100, 80, downsample=2)
  assert (mask != (level > 0)).mean() < 0.01


def test_nothing_is_known_where_a_map_has_no_number():
  level = np.full((6, 7), np.nan)
  assert annotations.outlines(level) == []
  level[2:4, 3:5] = 1
  (polygon,) = annotations.outlines(level)
  mask = annotations.rasterise([polygon], 7, 6)
  np.testing.assert_array_equal(mask, level == 1)


ISLAND = Polygon(np.array([(24.0, 24), (28, 24), (28, 28), (24, 28)]))
LAKE = Polygon(
  SQUARE.points, holes=(np.array([(20.0, 20), (20, 32), (32, 32), (32, 20)]),)
)


def test_a_hole_of_one_polygon_leaves_the_island_in_it():
  mask = annotations.rasterise([ISLAND, LAKE], 60, 50)
  assert mask.sum() == 30 * 40 - 12 * 12 + 4 * 4
  assert mask[24:28, 24:28].all()
  excluded = _ring((0, 0), (60, 0), (60, 26), (0, 26), group='None')
  mask = annotations.rasterise([ISLAND, LAKE, excluded], 60, 50)
  assert not mask[:26].any() and mask[26:28, 24:28].all()


def test_area():
  assert annotations.area(SQUARE) == 30 * 40
  assert annotations.area(LAKE) == 30 * 40 - 12 * 12
  turned = Polygon(SQUARE.points[::-1] + 1e6)
  assert annotations.area(turned) == pytest.approx(30 * 40)
  rng = np.random.default_rng(0)
  level = ndimage.gaussian_filter(rng.normal(size=(200, 300)), 12)
  polygons = annotations.outlines(level, (3.0, 2.0))
  assert any(polygon.holes for polygon in polygons)
  total = sum(map(annotations.area, polygons))
  assert total == pytest.approx(6 * (level > 0).sum(), rel=0.01)


def test_holes_are_written_as_asap_knows_them(tmp_path):
  path = tmp_path / 'a.xml'
  annotations.write_xml(path, [LAKE])
  outer, hole = annotations.read_xml(path)
  assert outer.group == 'Tumor' and hole.group == 'Exclusion'
  # With an island an exclusion would take it away.
  for polygons in ([LAKE, ISLAND], [ISLAND, LAKE]):
    annotations.write_xml(path, polygons)
    again = annotations.read_xml(path)
    assert not any(polygon.hole for polygon in again)
    np.testing.assert_array_equal(
      annotations.rasterise(again, 60, 50),
      annotations.rasterise(polygons, 60, 50),
    )
  excluded = Polygon(LAKE.points, '_2', holes=LAKE.holes)
  annotations.write_xml(path, [SQUARE, excluded])
  mask = annotations.rasterise(annotations.read_xml(path), 60, 50)
  assert mask.sum() == 12 * 12


def test_xml_keeps_every_digit_and_the_colour(tmp_path):
  path = tmp_path / 'a.xml'
  points = np.random.default_rng(0).uniform(0, 1e5, (50, 2))
  ring = Polygon(points, '_1', 'Annotation "ä" <1>', colour=(1, 171, 255))
  annotations.write_xml(path, [ring])
  (again,) = annotations.read_xml(path)
  np.testing.assert_array_equal(again.points, points)
  assert (again.name, again.group) == (ring.name, '_1')
  assert again.colour == (1, 171, 255)
  path.write_text(path.read_text().replace('#01ABFF', 'red'))
  assert annotations.read_xml(path)[0].colour is None


def test_dots_and_lines_have_no_area(tmp_path):
  path = tmp_path / 'a.xml'
  annotations.write_xml(path, [SQUARE])
  text = path.read_text()
  assert len(annotations.read_xml(path)) == 1
  for kind in ('Dot', 'PointSet', 'Measurement'):
    path.write_text(text.replace('Type="Polygon"', f'Type="{kind}"'))
    assert annotations.read_xml(path) == []
  path.write_text(text.replace('Type="Polygon"', 'Type="Spline"'))
  assert len(annotations.read_xml(path)) == 1
