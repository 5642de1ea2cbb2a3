import numpy as np
import pytest
from scipy import ndimage

from jaxmed.slides import annotations, regions


def _mask(region, shape, downsample):
  polygon = annotations.Polygon(region.ring, holes=region.holes)
  rows, columns = shape
  return annotations.rasterise([polygon], columns, rows, downsample=downsample)


@pytest.mark.parametrize('seed', range(40))
def test_regions_cover_what_is_above_and_nothing_else(seed):
  rng = np.random.default_rng(seed)
  scores = rng.random(rng.integers(1, 14, 2))
  scores[rng.random(scores.shape) < 0.1] = np.nan
  above = np.nan_to_num(scores, nan=-1) > 0.45
  found = regions.find_regions(scores, 0.45, (3, 2), (0.5, 0.25))
  seen = np.zeros(above.shape, int)
  for region in found:
    mask = _mask(region, above.shape, (3, 2))
    seen += mask
    assert region.area == mask.sum() * 3 * 2 * 0.5 * 0.25
    assert region.highest == scores[mask].max()
    assert region.mean == pytest.approx(scores[mask].mean())
    polygon = annotations.Polygon(region.ring, holes=region.holes)
    assert annotations.area(polygon) == pytest.approx(mask.sum() * 6)
  np.testing.assert_array_equal(seen, above)
  assert len(found) == ndimage.label(above)[1]
  assert sorted(found, key=lambda r: -r.highest) == found


def test_a_square_has_four_corners():
  scores = np.zeros((5, 6))
  scores[1:3, 2:5] = 1
  (region,) = regions.find_regions(scores, 0.5, 64, (0.25, 0.25))
  corners = {tuple(corner) for corner in region.ring.tolist()}
  assert corners == {(128, 64), (320, 64), (320, 192), (128, 192)}
  assert len(region.ring) == 4 and not region.holes
  assert region.area == 6 * 16**2


def test_nothing_above_is_no_region():
  assert not regions.find_regions(np.full((3, 3), np.nan), 0, 1, (1, 1))
  assert not regions.find_regions(np.ones((3, 3)), 1, 1, (1, 1))
