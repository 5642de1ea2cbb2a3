from fractions import Fraction

import numpy as np
import pytest

from jaxmed.slides import annotations, scanline
from jaxmed.slides.annotations import Polygon


def _inside(polygon: Polygon, x: Fraction, y: Fraction) -> bool:
  """In the ring and in no hole, in exact arithmetic."""
  outer, *holes = (_odd(ring, x, y) for ring in polygon.rings)
  return outer and not any(holes)


def _odd(ring, x, y) -> bool:
  crossings = 0
  corners = [tuple(map(Fraction, corner)) for corner in ring.tolist()]
  for (x0, y0), (x1, y1) in zip(
    corners, corners[1:] + corners[:1], strict=True
  ):
    if (y0 <= y) != (y1 <= y):
      crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
  return crossings % 2 == 1


def _brute_force(polygons, width, height):
  mask = np.zeros((height, width), bool)
  half = Fraction(1, 2)
  for row, column in np.ndindex(height, width):
    at = column + half, row + half
    found = [p.hole for p in polygons if _inside(p, *at)]
    mask[row, column] = found and not any(found)
  return mask


def _ring(rng, kind: str) -> np.ndarray:
  """Corners around a picture of 17 x 13, some of them outside."""
  count = rng.integers(3, 9)
  if kind == 'centres':  # Corners lie exactly on centres of pixels.
    return rng.integers(-4, 20, (count, 2)) + 0.5
  if kind == 'corners':
    return rng.integers(-4, 20, (count, 2)).astype(float)
  if kind == 'small':
    return rng.uniform(0, 16, 2) + rng.uniform(-1, 1, (count, 2))
  if kind == 'outside':
    return rng.uniform(18, 40, (count, 2))
  if kind == 'around':
    return np.array([(-9.0, -9.0), (40, -9), (40, 40), (-9, 40)])
  return rng.uniform(-5, 22, (count, 2))


KINDS = ('centres', 'corners', 'small', 'outside', 'around', 'crossing')


@pytest.mark.parametrize('kind', KINDS)
def test_one_polygon_equals_exact_arithmetic(kind):
  rng = np.random.default_rng(KINDS.index(kind))
  for _ in range(12):
    polygon = Polygon(_ring(rng, kind))
    mask = annotations.rasterise([polygon], 17, 13)
    np.testing.assert_array_equal(mask, _brute_force([polygon], 17, 13))
    assert not mask.any() or kind != 'outside'
    assert mask.all() or kind != 'around'


def test_polygons_with_holes_and_exclusions_equal_exact_arithmetic():
  rng = np.random.default_rng(7)
  covered = 0.0
  for _ in range(25):
    polygons = [
      Polygon(
        _ring(rng, rng.choice(KINDS)),
        rng.choice(['Tumor', '_0', '_1', 'Exclusion', '_2', 'None']),
        holes=tuple(
          _ring(rng, rng.choice(KINDS)) for _ in range(rng.integers(3))
        ),
      )
      for _ in range(rng.integers(1, 6))
    ]
    mask = annotations.rasterise(polygons, 17, 13)
    np.testing.assert_array_equal(mask, _brute_force(polygons, 17, 13))
    covered += mask.mean() / 25
  assert 0.1 < covered < 0.9


@pytest.mark.parametrize('chunk', (1, 64, 1000))
def test_bands_change_nothing(monkeypatch, chunk):
  rng = np.random.default_rng(1)
  shapes = [
    [rng.uniform(-20, 220, (30, 2)), rng.uniform(0, 200, (30, 2))]
    for _ in range(5)
  ]
  once = scanline.fill(shapes, 190, 210)
  monkeypatch.setattr(scanline, 'CHUNK', chunk)
  np.testing.assert_array_equal(scanline.fill(shapes, 190, 210), once)


def test_neighbours_share_no_pixel_and_leave_no_gap():
  """Pieces of a plane, each edge of two of them in opposite directions."""
  rng = np.random.default_rng(2)
  corners = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1) * 20
  corners[1:-1, 1:-1] += rng.uniform(-6, 6, (4, 4, 2))
  count = np.zeros((100, 100), int)
  for i, j in np.ndindex(5, 5):
    ring = corners[[i, i, i + 1, i + 1], [j, j + 1, j + 1, j]]
    ring = ring[:: 1 if (i + j) % 2 else -1]
    count += annotations.rasterise([Polygon(ring)], 100, 100)
  assert (count == 1).all()


def test_nothing_fills_nothing():
  assert scanline.fill([], 5, 4).shape == (4, 5)
  empty = [np.zeros((0, 2))]
  line = [np.array([(0.0, 0.0), (5, 5)])]
  assert not scanline.fill([empty, line, empty], 5, 4).any()
  assert scanline.fill([line], 0, 0).shape == (0, 0)
