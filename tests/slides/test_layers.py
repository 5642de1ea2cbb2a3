import matplotlib
import numpy as np

from jaxmed.slides import annotations, layers


def _points(ring: str) -> np.ndarray:
  return np.array([pair.split(',') for pair in ring.split()], float)


def test_colours_span_the_limits_and_nothing_is_clear():
  values = np.array([[0.0, 1.0, 2.0], [3.0, 9.0, np.nan]], np.float32)
  found = layers.coloured(values, (1.0, 3.0))
  shares = np.array([0, 0, 0.5, 1, 1])
  expected = matplotlib.colormaps['inferno'](shares, bytes=True)
  np.testing.assert_array_equal(found.reshape(-1, 4)[:5, :3], expected[:, :3])
  alpha = found[..., 3].ravel()
  assert (np.diff(alpha[1:4].astype(int)) > 0).all() and alpha[3] == 255
  assert alpha[0] == alpha[1] > 0 and alpha[5] == 0


def test_edges_run_along_the_squares():
  marked = np.zeros((4, 5), bool)
  marked[1:3, 1:4] = True
  (ring,) = layers.edges(marked, 10, 1)
  corners = {tuple(point) for point in _points(ring)}
  assert corners == {(10, 10), (40, 10), (40, 30), (10, 30)}
  assert layers.edges(np.zeros((2, 2), bool), 10, 1) == []
  marked[1, 2] = marked[2, 2] = False
  assert len(layers.edges(marked, 10, 1)) == 2


def test_rings_keep_their_shape_and_lose_points():
  turn = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
  circle = 1000 + 500 * np.stack([np.cos(turn), np.sin(turn)], 1)
  hole = 1000 + 100 * np.stack([np.cos(turn), np.sin(turn)], 1)
  polygon = annotations.Polygon(circle, holes=(hole,))
  outer, inner = layers.rings([polygon], 20)
  assert 120 < len(_points(outer)) < 170 and 20 < len(_points(inner)) < 40
  radius = np.hypot(*(_points(outer) - 1000).T)
  np.testing.assert_allclose(radius, 500, atol=1)
  gaps = np.hypot(*np.diff(_points(outer), axis=0).T)
  assert gaps.max() < 41
  # Too small to be seen, but still there.
  (ring,) = layers.rings([annotations.Polygon(circle)], 1e9)
  assert len(_points(ring)) >= 3
