"""Pools and averages against PyTorch's, at all sizes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmed.nn import torchlike

WINDOWS = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), (1, 3, 0)]


def image(height, width, channels=2):
  rng = np.random.default_rng(height * 100 + width)
  return rng.standard_normal((2, height, width, channels)).astype(np.float32)


def theirs(function, x, *args, **kwargs):
  """A function of torch, on channels first, and back."""
  torch = pytest.importorskip('torch')
  y = function(
    torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), *args, **kwargs
  )
  return y.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize('up', [False, True])
@pytest.mark.parametrize('sizes', WINDOWS)
def test_max_pool(sizes, up):
  torch = pytest.importorskip('torch')
  pool = torch.nn.functional.max_pool2d
  fits = 0
  for height, width in itertools.product((1, 2, 3, 4, 7, 8), (2, 5)):
    x = image(height, width) - 5  # A zero at the border would win.
    try:
      expected = theirs(pool, x, *sizes, ceil_mode=up)
    except RuntimeError:
      with pytest.raises(torchlike.NothingLeft):
        torchlike.max_pool(x, *sizes, up=up)
      continue
    np.testing.assert_array_equal(
      torchlike.max_pool(x, *sizes, up=up), expected
    )
    fits += 1
  assert fits >= 4


@pytest.mark.parametrize('size', [1, 6, 7])
def test_average_to_a_size(size):
  torch = pytest.importorskip('torch')
  for height, width in ((1, 2), (3, 5), (7, 7), (13, 8), (14, 12)):
    x = image(height, width)
    expected = theirs(torch.nn.functional.adaptive_avg_pool2d, x, size)
    np.testing.assert_allclose(
      torchlike.average_to(jnp.asarray(x), size), expected, atol=1e-6
    )


@pytest.mark.parametrize(
  'window,stride,pad', [(11, 4, 2), (3, 2, 0), (7, 2, 3)]
)
def test_a_window_fits_where_torch_says_so(window, stride, pad):
  torch = pytest.importorskip('torch')
  kernel = torch.zeros((1, 1, window, window))
  for size in range(1, 16):
    x = torch.zeros((1, 1, size, size))
    try:
      out = torch.nn.functional.conv2d(x, kernel, stride=stride, padding=pad)
    except RuntimeError:
      with pytest.raises(torchlike.NothingLeft):
        torchlike.demand(jnp.zeros((1, size, 20, 1)), window, pad)
      continue
    torchlike.demand(jnp.zeros((1, size, 20, 1)), window, pad)
    assert torchlike.left(size, window, stride, pad) == out.shape[-1]


@pytest.mark.parametrize('stride', [1, 2, 3])
def test_a_convolution_of_one_pixel_is_one(stride):
  """Its value and both gradients are those of XLA's convolution."""
  x = jnp.asarray(image(7, 8, channels=3))
  layer = torchlike.convolution(5, 1, stride, bias=True)
  plain = nn.Conv(5, (1, 1), strides=stride, padding='VALID')
  variables = layer.init(jax.random.key(0), x)

  def both(layer):
    def loss(variables, x):
      y = layer.apply(variables, x)
      return jnp.sin(y).sum(), y

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, x)

  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
    both(layer),
    both(plain),
  )


def test_a_convolution_of_one_pixel_may_be_padded():
  x = jnp.asarray(image(4, 4))
  layer = torchlike.convolution(5, 1, pad=1)
  y, _ = layer.init_with_output(jax.random.key(0), x)
  assert y.shape == (2, 6, 6, 5) and not y[:, 0].any()
