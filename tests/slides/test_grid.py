import numpy as np
import pytest

from jaxmed import errors
from jaxmed.slides import grid


def test_only_whole_tiles():
  tiles = grid.tile_grid((1000, 520), 256)
  assert (tiles.columns, tiles.rows) == (3, 2)
  assert tiles.x.tolist() == [0, 256, 512]
  overlapping = grid.tile_grid((1000, 520), 256, 128)
  assert (overlapping.columns, overlapping.rows) == (6, 3)
  assert overlapping.x[-1] + 256 <= 1000
  assert grid.tile_grid((100, 100), 256).rows == 0


def test_no_stride_below_one():
  with pytest.raises(errors.UserError, match='at least 1 px'):
    grid.tile_grid((100, 100), 64, -1)


@pytest.mark.parametrize('tile, stride', [(64, 64), (64, 24), (40, 40), (7, 5)])
def test_coverage_equals_counting_pixels(tile, stride):
  rng = np.random.default_rng(0)
  pixels = rng.random((30, 50)) < 0.4
  mask = grid.Mask(pixels, (400, 240))
  tiles = grid.tile_grid(mask.size, tile, stride)
  found = grid.coverage(mask, tiles)
  whole = pixels.repeat(8, 0).repeat(8, 1)
  for row, y in enumerate(tiles.y):
    for column, x in enumerate(tiles.x):
      part = whole[y : y + tile, x : x + tile]
      assert found[row, column] == pytest.approx(part.mean(), abs=1e-5)


def test_coverage_of_a_mask_that_does_not_divide_the_slide():
  mask = grid.Mask(np.ones((33, 21), bool), (1003, 1511))
  found = grid.coverage(mask, grid.tile_grid(mask.size, 100))
  np.testing.assert_allclose(found, 1, atol=1e-6)


def test_coverage_anywhere_equals_counting_and_beyond_the_border_is_nothing():
  rng = np.random.default_rng(1)
  pixels = rng.random((30, 50)) < 0.4
  mask = grid.Mask(pixels, (400, 240))
  x, y = rng.integers(-80, 420, 300), rng.integers(-80, 260, 300)
  found = grid.coverage_at(mask, x, y, 56)
  whole = np.pad(pixels.repeat(8, 0).repeat(8, 1), 100)
  for left, top, share in zip(x + 100, y + 100, found, strict=True):
    part = whole[top : top + 56, left : left + 56]
    assert share == pytest.approx(part.sum() / 56**2, abs=1e-5)
  assert (found == 0).any() and found.max() > 0.3


def test_the_summed_area_counts_what_is_marked():
  pixels = np.random.default_rng(2).random((13, 17)) < 0.5
  summed = grid.Mask(pixels, (17, 13)).summed
  for row in range(14):
    for column in range(18):
      assert summed[row, column] == pixels[:row, :column].sum()
