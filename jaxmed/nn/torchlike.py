"""Layers that count their pixels as PyTorch does.

Padding is said in numbers, because 'SAME' pads another side at even sizes;
pools may round up, and an average may be taken to a size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

# As ResNet and VGG are initialised: variances are kept on the way back.
HE = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# PyTorch's of a layer that nobody initialises. Of transposed convolutions the
# fan is that of torch's order of axes, which is ours.
LEFT_ALONE = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class NothingLeft(Exception):
  """A window that does not fit even once."""


def convolution(
  features: int,
  window: int,
  stride: int = 1,
  pad: int | None = None,
  *,
  bias: bool = False,
  **more,
) -> nn.Conv:
  """A square convolution; it keeps the size unless told otherwise."""
  pad = window // 2 if pad is None else pad
  if (window, pad) == (1, 0):
    more = {'conv_general_dilated': _pointwise} | more
  return nn.Conv(
    features,
    (window, window),
    strides=stride,
    padding=((pad, pad), (pad, pad)),
    use_bias=bias,
    **{'kernel_init': HE} | more,
  )


def _pointwise(
  x, kernel, strides, padding, *, precision, preferred_element_type=None, **rest
):
  """A convolution of 1 x 1 as what it is, a matrix product.

  The numbers are the same; on CPUs its gradients take a quarter of the time.
  """
  del padding, rest  # There is none; the layout is always NHWC.
  x = x[:, :: strides[0], :: strides[1]]
  rows = x.reshape(-1, x.shape[-1])
  product = jax.lax.dot(
    rows,
    kernel[0, 0],
    precision=precision,
    preferred_element_type=preferred_element_type,
  )
  return product.reshape(*x.shape[:-1], -1)


def demand(x: Float[Array, 'b h w c'], window: int, pad: int = 0) -> None:
  """Raises NothingLeft where a window does not fit once."""
  if min(x.shape[1:3]) + 2 * pad < window:
    raise NothingLeft


def left(
  size: int, window: int, stride: int, pad: int = 0, up: bool = False
) -> int:
  """How many windows fit into `size`; with `up`, the last may stand over."""
  steps = size + 2 * pad - window
  steps = -(-steps // stride) if up else steps // stride
  # PyTorch drops a window that would begin beyond all there is.
  return steps if up and steps * stride >= size + pad else steps + 1


def max_pool(
  x: Float[Array, 'b h w c'],
  window: int,
  stride: int,
  pad: int = 0,
  up: bool = False,
) -> Float[Array, 'b y x c']:
  """The largest of every window; `up` is PyTorch's ceil_mode."""
  sizes = [left(size, window, stride, pad, up) for size in x.shape[1:3]]
  if min(sizes) < 1:
    raise NothingLeft
  ends = [
    max(0, (count - 1) * stride + window - size - pad)
    for count, size in zip(sizes, x.shape[1:3], strict=True)
  ]
  borders = tuple((pad, end) for end in ends)
  return nn.max_pool(x, (window, window), (stride, stride), borders)


def average_to(
  x: Float[Array, 'b h w c'], size: int
) -> Float[Array, 'b size size c']:
  """Means of size x size bins, which overlap or repeat where they must.

  Bin i of n pixels is [floor(i n / size), ceil((i + 1) n / size)).
  """
  exact = jax.lax.Precision.HIGHEST
  rows, columns = (_bins(n, size).astype(x.dtype) for n in x.shape[1:3])
  x = jnp.einsum('bhwc,hy->bywc', x, rows, precision=exact)
  return jnp.einsum('bywc,wx->byxc', x, columns, precision=exact)


def _bins(n: int, size: int) -> np.ndarray:
  bins = np.zeros((n, size), np.float32)
  for i in range(size):
    first, last = i * n // size, -(-(i + 1) * n // size)
    bins[first:last, i] = 1 / (last - first)
  return bins
