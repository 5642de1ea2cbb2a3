import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.ops.transposed import (
  as_convolution,
  as_product,
  same_pads,
  transposed,
)

# Height, width, window, stride, PyTorch's padding.
CASES = [
  (1, 1, 4, 1, 0),
  (4, 3, 4, 2, 1),
  (5, 4, 5, 2, 2),
  (3, 6, 3, 3, 0),
  (3, 5, 3, 2, 0),
]


@pytest.mark.parametrize('way', [as_product, as_convolution])
@pytest.mark.parametrize('case', CASES, ids=str)
def test_values_and_gradients_are_pytorchs(case, way):
  torch = pytest.importorskip('torch')
  height, width, window, stride, pad = case
  dice = np.random.default_rng(0)
  x = dice.standard_normal((2, height, width, 3)).astype(np.float32)
  kernel = dice.standard_normal((window, window, 4, 3)).astype(np.float32)
  theirs = [
    torch.tensor(a, requires_grad=True)
    for a in (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1))
  ]
  made = torch.nn.functional.conv_transpose2d(
    *theirs, stride=stride, padding=pad
  )
  weights = dice.standard_normal(made.shape).astype(np.float32)
  (made * torch.tensor(weights)).sum().backward()
  weights = weights.transpose(0, 2, 3, 1)

  def total(x, kernel):
    y = way(x, kernel, stride, ((pad, pad), (pad, pad)))
    return (y * weights).sum(), y

  run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
  (dx, dk), y = run(x, kernel)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  close(y.transpose(0, 3, 1, 2), made.detach())
  close(dx.transpose(0, 3, 1, 2), theirs[0].grad)
  close(dk.transpose(3, 2, 0, 1), theirs[1].grad)


@pytest.mark.parametrize('size', [(45, 45), (32, 23), (6, 7)])
@pytest.mark.parametrize('window', [4, 5])
def test_it_is_the_transpose_of_a_convolution_that_pads_same(size, window):
  """<conv(y), x> = <y, transposed(x)>, of the size that y has."""
  dice = np.random.default_rng(0)
  kernel = dice.standard_normal((window, window, 2, 3)).astype(np.float32)
  y = dice.standard_normal((1, *size, 2)).astype(np.float32)
  small = jax.lax.conv_general_dilated(
    y, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  x = dice.standard_normal(small.shape).astype(np.float32)
  back = transposed(x, kernel, 2, same_pads(size, window, 2))
  assert back.shape == y.shape
  np.testing.assert_allclose((small * x).sum(), (y * back).sum(), rtol=1e-3)


def test_bfloat16_stays_what_it_is():
  x, kernel = jnp.ones((1, 2, 2, 3)), jnp.ones((4, 4, 2, 3))
  x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
  total = lambda kernel: transposed(x, kernel, 2, ((1, 1), (1, 1))).sum()
  assert jax.grad(total)(kernel).dtype == jnp.bfloat16


def test_elsewhere_than_on_cpus_it_is_left_to_xla(monkeypatch):
  x, kernel = jnp.ones((1, 2, 2, 3)), jnp.ones((4, 4, 2, 3))
  traced = lambda: str(jax.make_jaxpr(lambda x: transposed(x, kernel))(x))
  assert 'conv_general' not in traced()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert 'conv_general' in traced()
