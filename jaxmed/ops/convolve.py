"""Square convolutions with PyTorch's padding, quick on a CPU as well.

XLA's own are quick there as long as maps are large: on maps of 2 x 2 a
convolution of 1,024 channels took fifty times as long as the matrix product
that it is, and gradients of a strided one up to eighty times. So on a CPU
small maps are convolved as one product of all windows with the kernel; for
its gradient the windows are laid out anew, and not kept. Elsewhere XLA is
left to itself.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGE = 256  # Pixels of a map, above which XLA's own are the quicker ones.
Map = Float[Array, 'b h w c']
Kernel = Float[Array, 'k k c f']


def convolve(
  x: Map, kernel: Kernel, stride: int = 1
) -> Float[Array, 'b y x f']:
  """The windows of odd side lie on every `stride`-th pixel; zeros around."""
  if kernel.shape[0] == 1:
    return x[:, ::stride, ::stride] @ kernel[0, 0]
  rows, columns = (-(-side // stride) for side in x.shape[1:3])
  if jax.default_backend() == 'cpu' and rows * columns <= LARGE:
    return _as_product(x, kernel, stride)
  pad = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((pad, pad), (pad, pad)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _product(x, kernel, stride: int):
  side = kernel.shape[0]
  pad = side // 2
  rows, columns = (-(-n // stride) for n in x.shape[1:3])
  padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  down, across = (stride * (n - 1) + 1 for n in (rows, columns))
  windows = [
    padded[:, i : i + down : stride, j : j + across : stride]
    for i in range(side)
    for j in range(side)
  ]
  flat = kernel.reshape(-1, kernel.shape[-1])
  return jnp.concatenate(windows, axis=-1) @ flat


_as_product = jax.custom_vjp(_product, nondiff_argnums=(2,))


def _forward(x, kernel, stride: int):
  return _as_product(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept, gradient):
  product = functools.partial(_product, stride=stride)
  return jax.vjp(product, *kept)[1](gradient)


_as_product.defvjp(_forward, _backward)
