"""Resampling by a finite impulse response: put zeros in, filter, thin out.

    y = every `down`-th of (kernel * (x, `up` - 1 zeros after each, padded))

where * is a true convolution, which turns the kernel round. Negative pads
crop. So StyleGAN2 resamples, with the kernel [1, 3, 3, 1] along both axes:

                     pads     of
  upsample           (2, 1)   images
  blur, gain 4       (1, 1)   what a transposed convolution of 3 x 3 gave
  blur               (2, 2)   what a convolution of 3 x 3 will halve
  downsample         (1, 1)   what a convolution of 1 x 1 will look at

Kernels are known when a function is traced. A kernel is a sum of products of
a column and a row, of one if it is an outer product, and an axis is filtered
by adding shifted copies; no zero is multiplied. On CPUs XLA's convolution of
single channels is thirty times slower. There, too, a barrier keeps it from
working the filter out anew in each of nine windows of a convolution.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

SMOOTH = (1, 3, 3, 1)  # StyleGAN2's.
Map = Float[Array, 'b h w c']
Pads = tuple[int, int]  # Before and after.


def outer(taps: tuple[float, ...] = SMOOTH) -> np.ndarray:
  """The square kernel of these taps, whose sum is one."""
  kernel = np.outer(taps, taps).astype(np.float64)
  return kernel / kernel.sum()


def upfirdn(
  x: Map,
  kernel: np.ndarray,
  up: tuple[int, int] = (1, 1),
  down: tuple[int, int] = (1, 1),
  pads: tuple[Pads, Pads] = ((0, 0), (0, 0)),
) -> Float[Array, 'b y x c']:
  """Height comes first in the kernel and in all pairs."""
  kernel = np.asarray(kernel, np.float64)

  @jax.custom_vjp
  def filtered(x):
    return _filtered(x, kernel, up, down, pads)

  def backward(_, gradient):
    # The transpose is of the same kind, and so is quick as well.
    sizes = zip(x.shape[1:3], gradient.shape[1:3], strict=True)
    pads_back = tuple(
      (taps - 1 - pad[0], size * u - left * d + pad[0] - u + 1)
      for taps, pad, (size, left), u, d in zip(
        kernel.shape, pads, sizes, up, down, strict=True
      )
    )
    turned = kernel[::-1, ::-1]
    return (upfirdn(gradient, turned, down, up, pads_back),)

  filtered.defvjp(lambda x: (filtered(x), None), backward)
  return filtered(x)


def blur(x: Map, pad: Pads, gain: float = 1.0) -> Float[Array, 'b y x c']:
  return upfirdn(x, gain * outer(), pads=(pad, pad))


def upsample(x: Map) -> Float[Array, 'b 2*h 2*w c']:
  return upfirdn(x, 4 * outer(), up=(2, 2), pads=((2, 1), (2, 1)))


def downsample(x: Map) -> Float[Array, 'b h/2 w/2 c']:
  return upfirdn(x, outer(), down=(2, 2), pads=((1, 1), (1, 1)))


def _filtered(x, kernel, up, down, pads):
  total = None
  for column, row in _products(kernel):
    part = _along(_apart(x), column, 1, up[0], down[0], pads[0])
    part = _along(_apart(part), row, 2, up[1], down[1], pads[1])
    total = part if total is None else total + part
  return _apart(total)


def _apart(x):
  return lax.optimization_barrier(x) if jax.default_backend() == 'cpu' else x


def _products(kernel: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
  """Columns and rows, the sum of whose outer products is the kernel."""
  columns, sizes, rows = np.linalg.svd(kernel)
  parts = max(1, int((sizes > 1e-12 * sizes[0]).sum()))
  roots = np.sqrt(sizes)
  return [(roots[i] * columns[:, i], roots[i] * rows[i]) for i in range(parts)]


def _along(x, taps: np.ndarray, axis: int, up: int, down: int, pad: Pads):
  """The same along one axis."""
  size = x.shape[axis]
  full = size * up + sum(pad) - len(taps) + 1  # Before it is thinned out.
  if full < 1:
    raise ValueError(
      f'A filter of {len(taps)} taps does not fit into {size} pixels, {up} '
      f'times as many, padded by {pad}.'
    )
  count = -(-full // down)
  if up == 1:
    x = _padded(x, axis, *pad)
    cut = lambda t: lax.slice_in_dim(
      x, t, t + (count - 1) * down + 1, down, axis
    )
    return _weighted(cut, enumerate(taps[::-1]))
  each = -(-full // up)
  phases = []
  for phase in range(up):
    # Tap t of output `phase + up m` falls on pixel m + at, if on any.
    places = [
      ((phase + t - pad[0]) // up, tap)
      for t, tap in enumerate(taps[::-1])
      if (phase + t - pad[0]) % up == 0
    ]
    if not places:
      zeros = list(x.shape)
      zeros[axis] = each
      phases.append(jnp.zeros(zeros, x.dtype))
      continue
    first = min(at for at, _ in places)
    last = max(at for at, _ in places) + each
    wide = _padded(x, axis, -first, last - size)
    cut = lambda at, wide=wide, first=first: lax.slice_in_dim(
      wide, at - first, at - first + each, axis=axis
    )
    phases.append(_weighted(cut, places))
  shape = list(x.shape)
  shape[axis] = up * each
  woven = jnp.stack(phases, axis + 1).reshape(shape)
  return lax.slice_in_dim(woven, 0, full, down, axis)


def _weighted(cut, places):
  """The sum of shifted copies, each times its tap."""
  return sum(float(tap) * cut(at) for at, tap in places)


def _padded(x, axis: int, before: int, after: int):
  """With zeros at both ends, or without pixels there."""
  config = [(0, 0, 0)] * x.ndim
  config[axis] = before, after, 0
  return lax.pad(x, jnp.zeros((), x.dtype), config)
