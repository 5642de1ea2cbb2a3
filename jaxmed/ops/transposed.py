"""Transposed convolutions, trained quickly on a CPU as well.

A convolution makes a large map small; this is its transpose, which makes a
small map large. It is told by the convolution that it transposes: kernel
(rows, columns, out, in), strides and pads are that one's.

On a CPU it is one product of every pixel with the whole kernel, whose results
are added up where they meet: XLA's own are slow there wherever an input is
dilated or a kernel's gradient is taken (benchmarks/transposed.py). Elsewhere
XLA is left to itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]
Map = Float[Array, 'b h w i']
Kernel = Float[Array, 'k k o i']
NONE = ((0, 0), (0, 0))


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
  x: Map, kernel: Kernel, stride: int = 1, pads: Pads = NONE
) -> Float[Array, 'b y x o']:
  """The transpose of a convolution of a map (y, x, o) to x's (h, w, i)."""
  way = as_product if jax.default_backend() == 'cpu' else as_convolution
  return way(x, kernel, stride, pads)


def as_convolution(
  x: Map, kernel: Kernel, stride: int = 1, pads: Pads = NONE
) -> Float[Array, 'b y x o']:
  """The definition, which accelerators have a kernel for."""
  turned = [
    (side - 1 - low, side - 1 - high)
    for side, (low, high) in zip(kernel.shape, pads, strict=False)
  ]
  return jax.lax.conv_transpose(
    x,
    kernel,
    (stride, stride),
    turned,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    transpose_kernel=True,
  )


def as_product(
  x: Map, kernel: Kernel, stride: int = 1, pads: Pads = NONE
) -> Float[Array, 'b y x o']:
  """y[stride * i + a - low] is the sum of all x[i] kernel[a]."""
  flat = jnp.moveaxis(kernel, 3, 0).reshape(x.shape[-1], -1)
  given = (x @ flat).reshape(*x.shape[:3], *kernel.shape[:3])
  # Columns first: the map's axis is 2 and the taps' is 4; then rows.
  given = _added(given, 2, 4, stride, pads[1])
  return _added(given, 1, 3, stride, pads[0])


def _added(given, axis: int, tap: int, stride: int, pads: tuple[int, int]):
  """What each place gives to the taps from it on, added along one axis.

  The taps are cut into runs of `stride`; the run that comes j-th is of the
  places j further on.
  """
  taps, size = given.shape[tap], given.shape[axis]
  runs = -(-taps // stride)
  given = jnp.moveaxis(given, tap, 0)
  lacking = [(0, runs * stride - taps)] + [(0, 0)] * (given.ndim - 1)
  given = jnp.pad(given, lacking)
  total = 0
  for j in range(runs):
    run = jnp.moveaxis(given[j * stride : (j + 1) * stride], 0, axis + 1)
    ends = [(0, 0)] * run.ndim
    ends[axis] = (j, runs - 1 - j)
    total += jnp.pad(run, ends)
  shape = total.shape
  whole = shape[:axis] + ((size + runs - 1) * stride,) + shape[axis + 2 :]
  low, high = pads
  end = (size - 1) * stride + taps - high
  return jax.lax.slice_in_dim(total.reshape(whole), low, end, axis=axis)
