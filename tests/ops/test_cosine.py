import jax
import numpy as np
import pytest

from jaxmed.ops import cosine

DICE = np.random.default_rng(0)
X, Y = DICE.standard_normal((2, 3, 4, 5, 6)).astype(np.float32)


def test_cosines_are_pytorchs():
  torch = pytest.importorskip('torch')
  x, y = torch.tensor(X), torch.tensor(Y)
  similar = torch.nn.functional.cosine_similarity
  images = similar(x.flatten(1), y.flatten(1))
  np.testing.assert_allclose(cosine.of_images(X, Y), images, atol=1e-6)
  pixels = similar(x, y, dim=-1)
  np.testing.assert_allclose(cosine.of_pixels(X, Y), pixels, atol=1e-6)


def test_scale_does_not_count_and_nothing_has_a_cosine_of_zero():
  np.testing.assert_allclose(cosine.of_images(X, 100 * X), 1, rtol=1e-6)
  np.testing.assert_allclose(cosine.of_pixels(X, -X), -1, rtol=1e-6)
  nothing = np.zeros_like(X)
  assert not np.any(cosine.of_pixels(X, nothing))
  slope = jax.grad(lambda y: cosine.of_pixels(X, y).sum())(nothing)
  assert np.isfinite(slope).all()


def test_half_precision_is_summed_in_single():
  half = X.astype(jax.numpy.bfloat16)
  assert cosine.of_images(half, half).dtype == np.float32
