"""Norms against their definitions in NumPy, and against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def batch_norm(x, steps=1, valid=None):
  """Outputs of `steps` training steps, then of the running statistics."""
  layer, given = norms.BatchNorm(), []
  variables = layer.init(jax.random.key(0), x)
  params = {'scale': jnp.array([1.0, 2.0, 0.5]), 'bias': jnp.arange(3.0)}
  variables = variables | {'params': params}
  for step in range(steps):
    y, new = layer.apply(
      variables, x * (step + 1), True, valid, mutable='batch_stats'
    )
    variables = variables | new
    given.append(y)
  return [*given, layer.apply(variables, x)], variables['batch_stats']


def test_batch_norm_is_torchs_in_training_and_after():
  torch = pytest.importorskip('torch')
  x, layer = images(), torch.nn.BatchNorm2d(3)
  layer.weight.data = torch.tensor([1.0, 2.0, 0.5])
  layer.bias.data = torch.arange(3.0)
  channels_first = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
  theirs = [layer(channels_first * (step + 1)) for step in range(3)]
  theirs.append(layer.eval()(channels_first))
  ours, statistics = batch_norm(x, steps=3)
  for one, other in zip(ours, theirs, strict=True):
    other = other.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(one, other, atol=1e-5)
  np.testing.assert_allclose(
    statistics['var'], layer.running_var.numpy(), rtol=1e-5
  )


def test_batch_norm_looks_at_valid_images_alone():
  x = images()
  padded = np.concatenate([x, np.full_like(x[:1], np.nan)])
  valid = jnp.array([True, True, False])
  (alone, _), expected = batch_norm(x)
  (beside, _), statistics = batch_norm(padded, valid=valid)
  np.testing.assert_allclose(beside[:2], alone, atol=1e-6)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
    statistics,
    expected,
  )


def test_batch_norm_of_one_value_and_in_bfloat16():
  one = jnp.ones((1, 1, 1, 3))
  _, statistics = batch_norm(one)
  assert np.isfinite(statistics['var']).all()
  x = jnp.asarray(images() + 200, jnp.bfloat16)
  (y, _), statistics = batch_norm(x)
  assert y.dtype == jnp.bfloat16 and statistics['mean'].dtype == jnp.float32
  (exact, _), _ = batch_norm(x.astype(jnp.float32))
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)


def _tracked(x, state, **given):
  return norms.InstanceNorm().apply(state, x, mutable=['batch_stats'], **given)


def test_instance_norm_keeps_pytorchs_statistics_and_can_use_them():
  torch = pytest.importorskip('torch')
  theirs = torch.nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
  with torch.no_grad():
    theirs.weight[:] = torch.tensor([0.5, 2.0, -1.0])
    theirs.bias[:] = torch.tensor([1.0, 0.0, 3.0])
  state = {
    'params': {
      'scale': theirs.weight.detach().numpy(),
      'bias': theirs.bias.detach().numpy(),
    },
    'batch_stats': {'mean': np.zeros(3), 'var': np.ones(3)},
  }
  nchw = lambda x: torch.tensor(x.transpose(0, 3, 1, 2))
  nhwc = lambda x: x.detach().numpy().transpose(0, 2, 3, 1)
  for x in (images(), images()[::-1].copy() ** 2):
    y, after = _tracked(x, state)
    np.testing.assert_allclose(y, nhwc(theirs(nchw(x))), atol=1e-5)
    state |= after
  kept = state['batch_stats']
  np.testing.assert_allclose(kept['mean'], theirs.running_mean, rtol=1e-5)
  np.testing.assert_allclose(kept['var'], theirs.running_var, rtol=1e-5)
  fixed = norms.InstanceNorm().apply(state, x, running=True)
  np.testing.assert_allclose(fixed, nhwc(theirs.eval()(nchw(x))), atol=1e-4)


def test_statistics_leave_out_padding_and_take_turns():
  x = images()
  layer = norms.InstanceNorm()
  state = layer.init(jax.random.key(0), x)
  alone, first = _tracked(x[:1], state)
  y, padded = _tracked(x, state, valid=np.array([True, False]))
  np.testing.assert_allclose(y[:1], alone, atol=1e-6)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
  jax.tree.map(close, first, padded)
  _, second = _tracked(x[1:], state | first)
  _, turns = _tracked(x, state, valid=np.ones((1, 2), bool))
  jax.tree.map(close, second, turns)
  assert not np.allclose(
    turns['batch_stats']['mean'],
    _tracked(x, state)[1]['batch_stats']['mean'],
  )
