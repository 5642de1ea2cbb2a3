"""The doubling convolution against PyTorch's and against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.nn.transposed import (
  Doubling,
  as_convolution,
  as_product,
  double,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 5, 4)).astype(np.float32)
KERNEL = RNG.standard_normal((4, 4, 6, 4)).astype(np.float32)


def _by_hand(x, kernel):
  """Pixel (i, j) is added to rows 2 i - 1 to 2 i + 2, and columns alike."""
  batch, height, width, _ = x.shape
  out = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
  for i in range(height):
    for j in range(width):
      given = np.einsum('bc,hwfc->bhwf', x[:, i, j], kernel)
      out[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += given
  return out[:, 1:-1, 1:-1]


@pytest.mark.parametrize('way', [as_product, as_convolution])
def test_each_pixel_is_added_to_four_by_four(way):
  np.testing.assert_allclose(way(X, KERNEL), _by_hand(X, KERNEL), atol=1e-5)


def test_both_ways_have_the_same_gradients():
  weight = RNG.standard_normal((2, 6, 10, 6)).astype(np.float32)
  gradients = [
    jax.grad(lambda x, k, way=way: (way(x, k) * weight).sum(), (0, 1))(
      X, KERNEL
    )
    for way in (as_product, as_convolution)
  ]
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
  jax.tree.map(close, *gradients)


def test_it_is_pytorchs():
  torch = pytest.importorskip('torch')
  layer = torch.nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False)
  kernel = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
  theirs = layer(torch.tensor(X.transpose(0, 3, 1, 2))).detach().numpy()
  ours = Doubling(6).apply({'params': {'kernel': kernel}}, X)
  np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), atol=1e-5)


def test_elsewhere_than_on_cpus_it_is_left_to_xla(monkeypatch):
  traced = lambda: str(jax.make_jaxpr(lambda x: double(x, KERNEL))(X))
  assert 'conv_general' not in traced()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert 'conv_general' in traced()


def test_it_computes_in_the_type_it_is_told():
  made = Doubling(6, jnp.bfloat16).init_with_output(jax.random.key(0), X)
  assert made[0].dtype == jnp.bfloat16
  assert made[1]['params']['kernel'].dtype == jnp.float32
