"""Transposed convolutions, trained quickly on a CPU as well.

A convolution makes a large map small; this is its transpose, which makes a
small map large. It is told by the convolution that it transposes: kernel
(rows, columns, out, in), strides and pads are that one's.

XLA's own gradient of the kernel took 4 to 20 times as long on a CPU as the
rest of the step. There it is one matrix product of all windows instead.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]
LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def same_pads(
  size: tuple[int, int], window: int, stride: int
) -> tuple[tuple[int, int], ...]:
  """TensorFlow's SAME of a convolution of maps of that size."""
  pads = []
  for n in size:
    total = max((-(-n // stride) - 1) * stride + window - n, 0)
    pads.append((total // 2, total - total // 2))
  return tuple(pads)


def transposed(
  x: Float[Array, 'b h w i'],
  kernel: Float[Array, 'k k o i'],
  stride: int = 1,
  pads: Pads = ((0, 0), (0, 0)),
) -> Float[Array, 'b y x o']:
  """The transpose of a convolution of a map (y, x, o) to x's (h, w, i)."""
  if jax.default_backend() != 'cpu':
    return _plain(x, kernel, stride, pads)
  return _with_product(x, kernel, stride, pads)


def _plain(x, kernel, stride, pads):
  turned = [
    (side - 1 - low, side - 1 - high)
    for side, (low, high) in zip(kernel.shape, pads, strict=False)
  ]
  return jax.lax.conv_transpose(
    x,
    kernel,
    (stride, stride),
    turned,
    dimension_numbers=LAYOUT,
    transpose_kernel=True,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_product(x, kernel, stride, pads):
  return _plain(x, kernel, stride, pads)


def _forward(x, kernel, stride, pads):
  return _plain(x, kernel, stride, pads), (x, kernel)


def _backward(stride, pads, kept, gradient):
  x, kernel = kept
  back = jax.lax.conv_general_dilated(
    gradient, kernel, (stride, stride), pads, dimension_numbers=LAYOUT
  )
  windows = _windows(gradient, kernel.shape[:2], x.shape[1:3], stride, pads)
  of_kernel = windows.T @ x.reshape(-1, x.shape[-1])
  return back, of_kernel.reshape(kernel.shape)


_with_product.defvjp(_forward, _backward)


def _windows(y, sides, size, stride, pads):
  """One row for each place of the small map: what the window sees there."""
  y = jnp.pad(y, ((0, 0), *pads, (0, 0)))
  rows, columns = (stride * (n - 1) + 1 for n in size)
  seen = [
    y[:, i : i + rows : stride, j : j + columns : stride]
    for i in range(sides[0])
    for j in range(sides[1])
  ]
  return jnp.concatenate(seen, axis=-1).reshape(-1, len(seen) * y.shape[-1])
