import numpy as np
import pytest

from jaxmed.slides import blend, grid


def _brute(size, tile, downsample, tiles):
  """All in float64, on level 0, at once."""
  width, height = size
  total, weight = np.zeros((2, height + tile, width + tile))
  ramp = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
  hann = np.outer(ramp, ramp)
  for x, y, values in tiles:
    for row, column in np.ndindex(values.shape):
      if 0 <= y + row < height and 0 <= x + column < width:
        total[y + row, x + column] += hann[row, column] * values[row, column]
        weight[y + row, x + column] += hann[row, column]
  rows, columns = -(-height // downsample), -(-width // downsample)

  def binned(level):
    level = level[: rows * downsample, : columns * downsample]
    return level.reshape(rows, downsample, columns, downsample).sum((1, 3))

  with np.errstate(invalid='ignore'):
    return binned(total) / binned(weight)


@pytest.mark.parametrize('downsample', [1, 3, 8, 40])
def test_it_is_the_weighted_mean_of_all_tiles(tmp_path, downsample):
  size, tile = (150, 110), 24
  rng = np.random.default_rng(0)
  tiles = [
    (x, y, rng.random((tile, tile)))
    for y in range(-7, 110, 10)
    for x in range(-5, 150, 10)
    if rng.random() < 0.5 and not 40 < y < 80
  ]
  whole = blend.Blend(tmp_path / 'map', size, tile, downsample)
  for one in tiles:
    whole.add(*one)
  expected = _brute(size, tile, downsample, tiles)
  assert np.isnan(expected).any() == (downsample < 40)
  np.testing.assert_allclose(whole.finish(), expected, rtol=1e-5)


def test_a_constant_stays_what_it_is(tmp_path):
  tiles = grid.tile_grid((99, 83), 32, 8)
  whole = blend.Blend(tmp_path / 'map', (99, 83), 32, 3)
  for y in tiles.y.tolist():
    for x in tiles.x.tolist():
      whole.add(x, y, np.full((32, 32), 0.7))
  found = whole.finish()
  assert np.isfinite(found[:26, :32]).all()
  np.testing.assert_allclose(found[np.isfinite(found)], 0.7, rtol=2e-6)


def test_a_step_between_two_tiles_is_a_ramp(tmp_path):
  whole = blend.Blend(tmp_path / 'map', (48, 32), 32, 1)
  whole.add(0, 0, np.zeros((32, 32)))
  whole.add(16, 0, np.ones((32, 32)))
  row = whole.finish()[7]
  assert (np.diff(row[15:33]) > 0).all()
  np.testing.assert_allclose(row[16:32] + row[16:32][::-1], 1, atol=1e-6)


def test_tiles_come_from_the_top(tmp_path):
  whole = blend.Blend(tmp_path / 'map', (64, 64), 16, 1)
  whole.add(0, 20, np.zeros((16, 16)))
  with pytest.raises(ValueError, match='row 4 after one in row 20'):
    whole.add(0, 4, np.zeros((16, 16)))


def test_without_any_tile_it_is_empty(tmp_path):
  found = blend.Blend(tmp_path / 'map', (70, 50), 16, 4).finish()
  assert found.shape == (13, 18) and np.isnan(found).all()
