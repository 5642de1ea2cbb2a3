"""Resampling by one matrix per axis, with PyTorch's conventions.

`jax.image.resize` knows the half-pixel convention alone; the maps of many
methods were made with the other one (align_corners=True), which moves every
pixel a little and so every published number.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmed import errors

Image = Float[Array, 'b h w c']


def bilinear(
  x: Image,
  size: tuple[int, int],
  align_corners: bool = False,
  antialias: bool = False,
) -> Image:
  """As torch.nn.functional.interpolate(mode='bilinear').

  `antialias` widens the triangle when the image shrinks (only without
  align_corners, as in PyTorch).
  """
  if antialias and align_corners:
    raise errors.UserError(
      'antialias was asked for together with align_corners; choose one.'
    )
  build = _antialiased if antialias else _linear
  if antialias:
    return _apply(x, *(build(n, m) for n, m in _sizes(x, size)))
  return _apply(x, *(build(n, m, align_corners) for n, m in _sizes(x, size)))


def nearest(x: Image, size: tuple[int, int]) -> Image:
  """As torch.nn.functional.interpolate(mode='nearest')."""
  rows, columns = (np.arange(m) * n // m for n, m in _sizes(x, size))
  return x[:, rows][:, :, columns]


def area(x: Image, size: tuple[int, int]) -> Image:
  """Means over boxes, as adaptive_avg_pool2d: at an integer factor, exact."""
  return _apply(x, *(_boxes(n, m) for n, m in _sizes(x, size)))


def halve(x: Image) -> Image:
  """2 x 2 means; an odd last row or column is left out."""
  h, w = x.shape[1] // 2, x.shape[2] // 2
  x = x[:, : 2 * h, : 2 * w]
  return x.reshape(len(x), h, 2, w, 2, -1).mean(axis=(2, 4))


def _sizes(x: Image, size: tuple[int, int]):
  if min(size) < 1:
    raise errors.UserError(f'An image cannot have the size {list(size)}.')
  return zip(x.shape[1:3], size, strict=True)


def _apply(x: Image, down: np.ndarray, across: np.ndarray) -> Image:
  x = jnp.einsum('ih,bhwc->biwc', down.astype(np.float32), x)
  return jnp.einsum('jw,bhwc->bhjc', across.astype(np.float32), x)


def _linear(n: int, m: int, align_corners: bool) -> np.ndarray:
  at = np.arange(m)
  if align_corners:
    place = at * ((n - 1) / max(m - 1, 1))
  else:
    place = np.maximum((at + 0.5) * (n / m) - 0.5, 0)
  low = np.minimum(np.floor(place).astype(int), n - 1)
  high = np.minimum(low + 1, n - 1)
  share = place - low
  matrix = np.zeros((m, n))
  np.add.at(matrix, (at, low), 1 - share)
  np.add.at(matrix, (at, high), share)
  return matrix


def _antialiased(n: int, m: int) -> np.ndarray:
  width = max(n / m, 1.0)
  centre = (np.arange(m)[:, None] + 0.5) * (n / m)
  distance = np.abs(np.arange(n) + 0.5 - centre) / width
  matrix = np.maximum(1 - distance, 0)
  return matrix / matrix.sum(axis=1, keepdims=True)


def _boxes(n: int, m: int) -> np.ndarray:
  matrix = np.zeros((m, n))
  for i in range(m):
    first, last = i * n // m, -(-(i + 1) * n // m)
    matrix[i, first:last] = 1 / (last - first)
  return matrix
