"""Region overlap and distances against loops that follow the definition."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from jaxmed.metrics import overlap


def data():
  rng = np.random.default_rng(0)
  masks = rng.random((4, 12, 10)) < 0.15
  masks[0] = False
  maps = np.round(rng.standard_normal(masks.shape) + masks, 1)
  return masks, maps


@pytest.mark.parametrize('connectivity', [4, 8])
@pytest.mark.parametrize('limit', [0.05, 0.3, 1.0])
def test_aupro_by_the_definition(connectivity, limit):
  masks, maps = data()
  structure = None if connectivity == 4 else np.ones((3, 3))
  labelled = [ndimage.label(m, structure) for m in masks]
  rates, overlaps = [0.0], [0.0]
  for cut in np.unique(maps)[::-1]:
    called = maps >= cut
    rates.append(called[~masks].mean())
    overlaps.append(
      np.mean(
        [
          called[i][regions == r].mean()
          for i, (regions, n) in enumerate(labelled)
          for r in range(1, n + 1)
        ]
      )
    )
  area = 0.0
  for x0, x1, y0, y1 in zip(
    rates[:-1], rates[1:], overlaps[:-1], overlaps[1:], strict=True
  ):
    if x0 >= limit or x0 == x1:
      continue
    end = min(x1, limit)
    height = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
    area += (end - x0) * (y0 + height) / 2
  found = overlap.aupro(masks, maps, connectivity, limit)
  np.testing.assert_allclose(found, area / limit)
  _, regions = overlap.pro_curve(masks, maps, connectivity)
  assert regions == sum(n for _, n in labelled)


def test_aupro_without_regions_is_not_defined():
  masks, maps = data()
  assert np.isnan(overlap.aupro(masks[:1], maps[:1]))
  with pytest.raises(ValueError, match='not 6'):
    overlap.aupro(masks, maps, 6)


def surface(mask):
  padded = np.pad(mask, 1)
  inner = padded.copy()
  for axis in (0, 1):
    for step in (1, -1):
      inner &= np.roll(padded, step, axis)
  return np.argwhere((padded & ~inner)[1:-1, 1:-1])


def test_distances_are_those_of_all_pairs():
  masks, maps = data()
  a, b = ndimage.binary_dilation(masks[1]), maps[1] > 0.5
  pairs = cdist(surface(a), surface(b))
  one, other = pairs.min(axis=1), pairs.min(axis=0)
  np.testing.assert_allclose(
    overlap.hausdorff(a, b), max(one.max(), other.max())
  )
  np.testing.assert_allclose(
    overlap.hausdorff_95(a, b),
    np.percentile(np.concatenate([one, other]), 95),
  )
  np.testing.assert_allclose(
    overlap.hausdorff_95(a, b, pooled=False),
    max(np.percentile(one, 95), np.percentile(other, 95)),
  )
  np.testing.assert_allclose(
    overlap.dice(a, b), 2 * (a & b).sum() / (a.sum() + b.sum())
  )


def test_empty_masks():
  empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
  assert overlap.dice(empty, empty) == 1 and overlap.dice(empty, full) == 0
  for pair in ((empty, full), (full, empty), (empty, empty)):
    assert np.isnan(overlap.hausdorff(*pair))
    assert np.isnan(overlap.hausdorff_95(*pair))
