"""Square convolutions with PyTorch's padding, quick on a CPU as well.

XLA's own are quick there going forward on large maps. On maps of 2 x 2 a
convolution of 1,024 channels took fifty times as long as the matrix product
that it is, and a kernel's gradient takes two to four times as long as need be.
So on a CPU small maps, and steps of more than a pixel, are one product of all
windows with the kernel, and of the others the kernel's gradient is one product
too. Elsewhere XLA is left to itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGE = 64  # Pixels of a map, above which XLA's forward is the quicker one.
Map = Float[Array, 'b h w c']
Kernel = Float[Array, 'k k c f']


def convolve(
  x: Map, kernel: Kernel, stride: int = 1, pad: int | None = None
) -> Float[Array, 'b y x f']:
  """The windows, of odd side, lie `stride` pixels apart.

  `pad` zeros are around the map; by default windows lie on its pixels.
  """
  same = kernel.shape[0] // 2
  pad = same if pad is None else pad
  if kernel.shape[0] == 1 and not pad:
    return x[:, ::stride, ::stride] @ kernel[0, 0]
  if jax.default_backend() != 'cpu':
    return _plain(x, kernel, stride, pad)
  if stride > 1 or pad != same or x.shape[1] * x.shape[2] <= LARGE:
    return _as_product(x, kernel, stride, pad)
  return _large(x, kernel)


def _plain(x, kernel, stride: int = 1, pad: int | None = None):
  pad = kernel.shape[0] // 2 if pad is None else pad
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((pad, pad), (pad, pad)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _as_product(x, kernel, stride: int, pad: int):
  side = kernel.shape[0]
  padded = _padded(x, pad)
  height, width = (
    (n + 2 * pad - side) // stride * stride + 1 for n in x.shape[1:3]
  )
  windows = [
    padded[:, i : i + height : stride, j : j + width : stride]
    for i in range(side)
    for j in range(side)
  ]
  flat = kernel.reshape(-1, kernel.shape[-1])
  return jnp.concatenate(windows, axis=-1) @ flat


def _padded(x, pad: int):
  return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


@jax.custom_vjp
def _large(x, kernel):
  return _plain(x, kernel)


def _forward(x, kernel):
  return _plain(x, kernel), (x, kernel)


def _backward(kept, gradient):
  """The kernel's: what the image lacks in shifts by rows, the gradient has."""
  x, kernel = kept
  side, _, inputs, outputs = kernel.shape
  across = _padded(x, side // 2)
  across = jnp.concatenate(
    [across[:, :, j : j + x.shape[2]] for j in range(side)], axis=-1
  )
  down = jnp.concatenate(
    [
      jnp.pad(gradient, ((0, 0), (i, side - 1 - i), (0, 0), (0, 0)))
      for i in range(side)
    ],
    axis=-1,
  )
  product = jnp.einsum('bhwf,bhwc->fc', down, across)
  product = product.reshape(side, outputs, side, inputs)
  _, back = jax.vjp(lambda x: _plain(x, kernel), x)
  return *back(gradient), product.transpose(0, 2, 3, 1)


_large.defvjp(_forward, _backward)
