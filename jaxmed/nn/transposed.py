"""The transposed convolution that doubles a map: 4 x 4, stride 2, padding 1."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Kernel = Float[Array, '4 4 o i']  # As transposed kernels are stored.


class Doubling(nn.Module):
  """PyTorch's ConvTranspose2d(in, features, 4, 2, 1), without a bias."""

  features: int
  dtype: jnp.dtype | None = None
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w i']) -> Float[Array, 'b 2*h 2*w o']:
    shape = (4, 4, self.features, x.shape[-1])
    kernel = self.param('kernel', self.kernel_init, shape)
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return double(x, kernel)


def double(
  x: Float[Array, 'b h w i'], kernel: Kernel
) -> Float[Array, 'b 2*h 2*w o']:
  """On CPUs as a product: their convolutions are slow where an input is dilated
  or a gradient is one (benchmarks/transposed.py).
  """
  if jax.default_backend() == 'cpu':
    return as_product(x, kernel)
  return as_convolution(x, kernel)


def as_convolution(
  x: Float[Array, 'b h w i'], kernel: Kernel
) -> Float[Array, 'b 2*h 2*w o']:
  """The definition, which accelerators have a kernel for."""
  return jax.lax.conv_transpose(
    x,
    kernel,
    (2, 2),
    ((2, 2), (2, 2)),  # The padding of 1, counted from outside.
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    transpose_kernel=True,
  )


def as_product(
  x: Float[Array, 'b h w i'], kernel: Kernel
) -> Float[Array, 'b 2*h 2*w o']:
  """What each pixel gives to the 4 x 4 around it, added up."""
  batch, height, width, channels = x.shape
  flat = kernel.transpose(3, 0, 1, 2).reshape(channels, -1)
  given = (x.reshape(-1, channels) @ flat).reshape(
    batch, height, width, 4, 4, -1
  )
  rows = jnp.stack(_meet(given, along=1, taps=3), axis=2)
  rows = rows.reshape(batch, 2 * height, width, 4, -1)
  both = jnp.stack(_meet(rows, along=2, taps=3), axis=3)
  return both.reshape(batch, 2 * height, 2 * width, -1)


def _meet(given: Array, along: int, taps: int) -> tuple[Array, Array]:
  """Along one axis, the outputs at even places and those at odd ones.

  An even one is met by its own pixel and the one before, an odd one by its
  own and the next.
  """
  tap = lambda i: jax.lax.index_in_dim(given, i, taps, keepdims=False)
  return tap(1) + _moved(tap(3), along, 1), tap(2) + _moved(tap(0), along, -1)


def _moved(x: Array, axis: int, by: int) -> Array:
  """Shifted by one; zeros come in from outside."""
  length = x.shape[axis]
  pads = [(0, 0)] * x.ndim
  pads[axis] = (1, 0) if by > 0 else (0, 1)
  start = 0 if by > 0 else 1
  padded = jnp.pad(x, pads)
  return jax.lax.slice_in_dim(padded, start, start + length, axis=axis)
