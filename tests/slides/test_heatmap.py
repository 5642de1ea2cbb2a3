import numpy as np
from PIL import Image

from jaxmed.slides import annotations, grid, heatmap


def _map(values, tile, stride, size):
  return heatmap.ScoreMap(values, grid.tile_grid(size, tile, stride), size)


def test_tiles_side_by_side_keep_their_scores():
  values = np.array([[1.0, 2.0], [3.0, np.nan]])
  picture = _map(values, 10, 10, (20, 20)).over(20, 20)
  assert (picture[:10, :10] == 1).all() and (picture[10:, :10] == 3).all()
  assert np.isnan(picture[10:, 10:]).all()


def test_overlapping_tiles_average_and_missing_ones_do_not_count():
  values = np.array([[1.0, 3.0, np.nan]])
  picture = _map(values, 20, 10, (40, 20)).over(40, 20)
  assert picture[0, [0, 10, 20]].tolist() == [1, 2, 3]
  assert np.isnan(picture[0, 30])


def test_glass_beyond_the_last_whole_tile_is_not_coloured():
  picture = _map(np.ones((1, 1)), 10, 10, (14, 14)).over(7, 7)
  assert np.isnan(picture[5:]).all() and np.isfinite(picture[:5, :5]).all()


def test_an_overlay_shows_scores_outlines_and_a_bar(tmp_path):
  values = np.full((4, 6), 0.1)
  values[1, 4] = 0.9
  values[3] = np.nan
  scores = _map(values, 100, 100, (600, 400))
  thumbnail = np.full((40, 60, 3), 230, np.uint8)
  ring = annotations.Polygon(np.array([(50, 50), (250, 50), (150, 150)]))
  plain = heatmap.draw_overlay(thumbnail, scores)
  full = heatmap.draw_overlay(
    thumbnail,
    scores,
    label='s',
    polygons=[ring],
    tissue=np.ones((4, 6), bool),
    threshold=0.5,
    mpp=0.5,
  )
  assert plain.size == full.size == (900 + 130, 600)
  pixels = np.asarray(plain).astype(int)
  hot, cold, none = pixels[225, 675], pixels[225, 225], pixels[525, 225]
  assert hot.sum() > cold.sum() + 150  # Inferno: bright is high.
  assert np.ptp(none) < 8  # Gray thumbnail, no colour.
  assert not np.array_equal(plain, full)
  heatmap.save_overlay(tmp_path / 'o.png', full)
  assert np.array_equal(Image.open(tmp_path / 'o.png'), full)
  assert len(list(tmp_path.iterdir())) == 1


def test_a_map_without_any_score_still_draws():
  scores = _map(np.full((2, 2), np.nan), 10, 10, (20, 20))
  overlay = heatmap.draw_overlay(np.zeros((9, 9, 3), np.uint8), scores)
  assert overlay.size == (1030, 900)


def test_squares_are_as_large_as_the_stride():
  values = np.array([[1.0, 3.0, np.nan]])
  assert _map(values, 20, 10, (40, 20)).squares().tolist()[1][:3] == [1, 2, 3]
  assert np.isnan(_map(values, 20, 10, (40, 20)).squares()[:, 3]).all()
  apart = _map(np.array([[1.0, 2.0]]), 4, 10, (20, 10)).squares()
  assert apart.tolist() == [[1, 2]]


def test_squares_are_what_the_picture_shows():
  rng = np.random.default_rng(0)
  for tile, stride, size in ((32, 8, (200, 136)), (30, 20, (200, 140))):
    columns, rows = ((side - tile) // stride + 1 for side in size)
    values = rng.random((rows, columns))
    values[rng.random(values.shape) < 0.3] = np.nan
    scores = _map(values, tile, stride, size)
    squares = scores.squares()
    picture = scores.over(size[0] // stride, size[1] // stride)
    np.testing.assert_allclose(
      squares, picture[: squares.shape[0], : squares.shape[1]], rtol=1e-6
    )
