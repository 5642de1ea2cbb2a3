"""Norms of single examples against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmed.nn import norms


def images():
  x = np.random.default_rng(0).standard_normal((2, 5, 7, 3)) * 2 + 1
  return x.astype(np.float32)


def test_instance_norm_is_of_each_channel_of_each_image():
  x = images()
  space = dict(axis=(1, 2), keepdims=True)
  expected = (x - x.mean(**space)) / np.sqrt(x.var(**space) + 1e-5)
  np.testing.assert_allclose(norms.instance_norm(x), expected, atol=1e-5)


def test_adaptive_norm_takes_the_scale_as_it_is():
  x, shift, scale = images(), np.ones((2, 3)), np.full((2, 3), 3.0)
  y = norms.adaptive_instance_norm(x, jnp.array(shift), jnp.array(scale))
  np.testing.assert_allclose(y, 3 * norms.instance_norm(x) + 1, atol=1e-5)


def test_sample_norm_adds_epsilon_to_the_unbiased_deviation():
  x, layer = images(), norms.SampleNorm(epsilon=0.5)
  y = layer.apply(layer.init(jax.random.key(0), x), x)
  whole = dict(axis=(1, 2, 3), keepdims=True)
  expected = (x - x.mean(**whole)) / (x.std(ddof=1, **whole) + 0.5)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_statistics_of_bfloat16_are_in_float32():
  x = jnp.asarray(images() + 200, jnp.bfloat16)
  y = norms.instance_norm(x)
  assert y.dtype == jnp.bfloat16
  exact = norms.instance_norm(x.astype(jnp.float32))
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.02)


def test_a_flat_image_has_a_finite_gradient():
  layer, x = norms.SampleNorm(), jnp.ones((1, 4, 4, 2))
  variables = layer.init(jax.random.key(0), x)
  gradient = jax.grad(lambda x: layer.apply(variables, x).sum())(x)
  assert np.isfinite(gradient).all()
