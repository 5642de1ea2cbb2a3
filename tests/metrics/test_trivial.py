"""The baselines order images as their names say, whatever the bit depth."""

import numpy as np
import pytest
from scipy import ndimage

from jaxmed.metrics.trivial import trivial


def images(channels=3):
  rng = np.random.default_rng(0)
  sharp = 127.5 + 60 * rng.standard_normal((40, 36, channels))
  soft = ndimage.gaussian_filter(sharp, (2, 2, 0))
  stack = np.stack([sharp, soft, np.full_like(sharp, 200)])
  return np.clip(np.round(stack), 0, 255).astype(np.uint8)


def test_sharp_soft_and_flat_are_told_apart():
  found = trivial(images())
  for name in (
    'contrast',
    'gradient',
    'laplacian_energy',
    'blurred_ssim',
    'png_size',
  ):
    sharp, soft, flat = found[name]
    assert sharp > soft > flat, name
  assert found['jpeg_size'][0] > found['jpeg_size'][1]
  np.testing.assert_allclose(found['mean_intensity'][2], 200 / 255)
  assert all(v.dtype == np.float64 and v.shape == (3,) for v in found.values())


def test_blurred_ssim_is_skimages_ssim():
  metrics = pytest.importorskip('skimage.metrics')
  gray = images(1)[0, ..., 0] / 255
  value = metrics.structural_similarity(
    gray,
    ndimage.gaussian_filter(gray, 1.3),
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
    data_range=1,
  )
  np.testing.assert_allclose(trivial(images(1))['blurred_ssim'][0], 1 - value)


def test_sixteen_bits_mean_the_same():
  eight = images(1)
  found = trivial(eight.astype(np.uint16) * 257)
  for name, values in trivial(eight).items():
    if name != 'png_size':
      np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12)


def test_saturation():
  pixels = np.zeros((3, 4, 4, 3), np.uint8)
  pixels[1] = 90
  pixels[2, ..., 0] = 255
  np.testing.assert_allclose(trivial(pixels)['saturation'], [0, 0, 1])


@pytest.mark.parametrize('shape', [(2, 1, 1, 3), (2, 5, 7, 1), (1, 20, 20, 4)])
def test_odd_sizes_are_finite(shape):
  pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
  assert all(np.isfinite(v).all() for v in trivial(pixels).values())
