"""The named scores of a reconstruction."""

import jax
import numpy as np
import pytest

from jaxmed import errors
from jaxmed.ops import compare, resize, ssim

RNG = np.random.default_rng(0)
X = RNG.random((3, 44, 48, 3)).astype(np.float32)
SMALL = tuple(n for n in compare.SCORES if n != 'ms_ssim')  # Wants 176 px.


@pytest.fixture(scope='module')
def worse():
  """Reconstructions with less and with more noise."""
  noise = RNG.standard_normal(X.shape).astype(np.float32)
  return [np.clip(X + s * noise, 0, 1) for s in (0.05, 0.3)]


def test_every_score_is_zero_of_equals_and_grows_with_the_noise(worse):
  run = jax.jit(lambda x, y: compare.compare(x, y, SMALL))
  same, little, much = (run(X, y) for y in (X, *worse))
  for name in SMALL:
    np.testing.assert_allclose(same[name], 0, atol=1e-5)
    assert (little[name] > 1e-4).all(), name
    assert (much[name] > little[name]).all(), name


def test_every_map_has_the_images_size_and_grows_with_the_noise(worse):
  run = jax.jit(lambda x, y: compare.compare_maps(x, y, compare.MAPS))
  same, little, much = (run(X, y) for y in (X, *worse))
  for name in compare.MAPS:
    assert little[name].shape == X.shape[:3]
    np.testing.assert_allclose(same[name], 0, atol=1e-5)
    assert (much[name].mean((1, 2)) > little[name].mean((1, 2))).all(), name


def test_what_the_names_mean(worse):
  y = worse[1]
  found, expected = jax.jit(
    lambda x, y: (compare.compare(x, y, SMALL), _by_hand(x, y))
  )(X, y)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, atol=1e-5)
  maps = compare.compare_maps(X, y, ('residual',))
  np.testing.assert_allclose(maps['residual'], np.abs(X - y).mean(3), atol=1e-6)


def _by_hand(x, y):
  luma = np.array([0.299, 0.587, 0.114], np.float32)
  gray = (x @ luma)[..., None], (y @ luma)[..., None]
  half = [resize.halve(image) for image in gray]
  return {
    'l1': abs(x - y).mean((1, 2, 3)),
    'l2': ((x - y) ** 2).mean((1, 2, 3)),
    'ssim': 1 - ssim.ssim(*gray),
    'ssim_rgb': 1 - ssim.ssim(x, y),
    'ssim_half': 1 - ssim.ssim(*half),
    'structure_half': 1 - ssim.structure(*half),
  }


def test_only_what_is_asked_for_is_computed():
  small = X[:, :4, :4]
  assert set(compare.compare(small, small, ('l1', 'l2'))) == {'l1', 'l2'}
  with pytest.raises(errors.UserError, match='11 x 11 px'):
    compare.compare(small, small, ('ssim',))


def test_gray_images_and_misspelt_names():
  gray = X[..., :1]
  assert compare.gray(gray).shape == gray.shape
  np.testing.assert_array_equal(compare.gray(gray), gray)
  with pytest.raises(errors.UserError, match="Did you mean 'ssim_half'"):
    compare.compare(X, X, ('ssim_halve',))
