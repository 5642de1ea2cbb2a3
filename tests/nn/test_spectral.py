"""Spectral norm against NumPy's singular values, and against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmed.nn import spectral

DICE = np.random.default_rng(0)
KERNEL = DICE.standard_normal((3, 3, 4, 6)).astype(np.float32)


def test_it_converges_to_the_largest_singular_value():
  row = jnp.ones((1, 6))
  largest = jax.jit(spectral.largest)
  for _ in range(200):
    sigma, row = largest(KERNEL, row)
  expected = np.linalg.svd(KERNEL.reshape(-1, 6), compute_uv=False)[0]
  np.testing.assert_allclose(sigma, expected, rtol=1e-4)
  np.testing.assert_allclose(jnp.linalg.norm(row), 1, rtol=1e-5)


def test_one_iteration_and_its_gradient_are_pytorchs():
  torch = pytest.importorskip('torch')
  from torch.nn.utils import spectral_norm

  row, weights = (
    DICE.standard_normal(shape).astype(np.float32) for shape in ((1, 6), (5, 6))
  )
  x = DICE.standard_normal((5, 36)).astype(np.float32)
  flat = KERNEL.reshape(36, 6)
  layer = torch.nn.Linear(36, 6, bias=False)
  layer.weight.data = torch.tensor(flat.T)
  layer = spectral_norm(layer)
  layer.weight_u = torch.tensor(row[0])
  made = layer(torch.tensor(x))
  (made * torch.tensor(weights)).sum().backward()

  def total(kernel):
    trees = {'kernel': kernel}, {'u': row}
    normal, after = spectral.normalise(*trees, detach=True)
    y = x @ normal['kernel']
    return (y * weights).sum(), (y, after['u'])

  gradient, (y, after) = jax.grad(total, has_aux=True)(jnp.asarray(flat))
  np.testing.assert_allclose(y, made.detach(), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(after[0], layer.weight_u, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    gradient.T, layer.weight_orig.grad, rtol=1e-4, atol=1e-5
  )


def test_gradients_go_through_the_iteration_unless_detached():
  row, step = jnp.ones((1, 6)), 1e-2
  way = DICE.standard_normal(KERNEL.shape).astype(np.float32)
  sigma = lambda kernel: spectral.largest(kernel, row)[0]
  rise = sigma(KERNEL + step * way) - sigma(KERNEL - step * way)
  along = lambda gradient: float((gradient * way).sum())
  whole = along(jax.grad(sigma)(KERNEL))
  cut = along(jax.grad(lambda k: spectral.largest(k, row, True)[0])(KERNEL))
  np.testing.assert_allclose(whole, rise / (2 * step), rtol=1e-2)
  assert abs(cut - whole) > 0.05 * abs(whole)


def test_only_chosen_layers_with_a_kernel_are_normalised():
  class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(3, (3, 3), name='conv')(x)
      x = nn.BatchNorm(use_running_average=True, name='norm')(x)
      return nn.Dense(2, name='head')(x.reshape(len(x), -1))

  x = jnp.ones((1, 4, 4, 2))
  made = Network().init(jax.random.key(0), x)
  params, stats = made['params'], made['batch_stats']
  rows = spectral.start(
    jax.random.key(1), params, stats, lambda path: path != 'head'
  )
  assert set(rows) == {'conv', 'norm'}
  assert rows['conv']['u'].shape == (1, 3)
  assert rows['norm'] == stats['norm']
  normal, after = spectral.normalise(params, rows)
  for layer in params:
    for name, leaf in params[layer].items():
      same = np.array_equal(leaf, normal[layer][name])
      assert same == ((layer, name) != ('conv', 'kernel'))
  assert not np.array_equal(after['conv']['u'], rows['conv']['u'])
  # The rows travel with the statistics that a network is applied with.
  _, moved = Network().apply(
    {'params': normal, 'batch_stats': after}, x, mutable=['batch_stats']
  )
  jax.tree.map(np.testing.assert_array_equal, moved['batch_stats'], after)


def test_nothing_happens_where_there_are_no_rows():
  params = {'a': {'kernel': KERNEL}, 'b': {}}
  normal, after = spectral.normalise(params, {'a': {}, 'b': {}})
  np.testing.assert_array_equal(normal['a']['kernel'], KERNEL)
  assert after == {'a': {}, 'b': {}}
