"""Smoothing, resizing and anomaly maps against SciPy and PyTorch."""

import numpy as np
import pytest
from scipy import ndimage

from jaxmed import errors
from jaxmed.ops import gaussian, maps, resize

X = np.random.default_rng(0).standard_normal((2, 9, 13, 3)).astype(np.float32)


@pytest.mark.parametrize('sigma', [0.6, 1.3, 4.0])
def test_smoothing_is_scipys(sigma):
  """At 4 the window of 33 px is mirrored more than once."""
  expected = ndimage.gaussian_filter(X.astype(np.float64), (0, sigma, sigma, 0))
  np.testing.assert_allclose(gaussian.smooth(X, sigma), expected, atol=1e-5)


def test_no_smoothing_is_nothing():
  assert gaussian.smooth(X, 0) is X


@pytest.mark.parametrize('size', [(9, 13), (20, 31), (5, 4), (1, 1), (18, 6)])
@pytest.mark.parametrize(
  'name, options',
  [
    ('bilinear', {'align_corners': True}),
    ('bilinear', {'align_corners': False}),
    ('bilinear', {'align_corners': False, 'antialias': True}),
    ('nearest', {}),
    ('area', {}),
  ],
)
def test_resizing_is_pytorchs(size, name, options):
  torch = pytest.importorskip('torch')
  expected = torch.nn.functional.interpolate(
    torch.tensor(X).permute(0, 3, 1, 2), size=size, mode=name, **options
  )
  found = getattr(resize, name)(X, size, **options)
  expected = expected.permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_halving_leaves_out_odd_edges():
  expected = X[:, :8, :12].reshape(2, 4, 2, 6, 2, 3).mean(axis=(2, 4))
  np.testing.assert_allclose(resize.halve(X), expected, atol=1e-6)


def test_impossible_sizes_are_errors():
  with pytest.raises(errors.UserError, match=r'\[0, 4\]'):
    resize.bilinear(X, (0, 4))
  with pytest.raises(errors.UserError, match='antialias'):
    resize.bilinear(X, (4, 4), align_corners=True, antialias=True)


@pytest.mark.parametrize('align_corners', [False, True])
def test_maps_are_enlarged_and_then_smoothed(align_corners):
  scores = X[..., 0]
  large = resize.bilinear(X[..., :1], (40, 50), align_corners)[..., 0]
  expected = ndimage.gaussian_filter(np.asarray(large), (0, 4, 4))
  found = maps.anomaly_map(scores, (40, 50), align_corners=align_corners)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  same = maps.anomaly_map(scores, (9, 13), sigma=0)
  np.testing.assert_array_equal(same, scores)
