"""Triangles of matrices in half the memory: two of them make a rectangle.

The lower triangle of an n x n matrix has the numbers of a rectangle of n + 1
rows and n / 2 columns: its left columns, moved down by one, and above them
the triangle that they leave over, turned over (LAPACK's rectangular full
packed format). An odd n has a row and a column of zeros added.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Packed = Float[Array, '*b rows half']


def shape(n: int) -> tuple[int, int]:
  """Of the rectangle."""
  half = -(-n // 2)
  return 2 * half + 1, half


def pack(matrix: Float[Array, '*b n n']) -> Packed:
  """The lower triangles; what is above the diagonal is not looked at."""
  rows, half = shape(matrix.shape[-1])
  matrix = _widen(matrix, rows - 1 - matrix.shape[-1])
  down = _pad(matrix[..., :half], before=1)
  rest = _pad(_turn(matrix[..., half:, half:]), after=half + 1)
  return jnp.where(_left(rows, half), down, rest)


def unpack(packed: Packed, n: int) -> Float[Array, '*b n n']:
  """The lower triangles of n x n matrices, with zeros above the diagonal."""
  rows, half = packed.shape[-2:]
  left = _left(rows, half)
  down = jnp.where(left, packed, 0)[..., 1:, :]
  rest = _turn(jnp.where(left, 0, packed)[..., :half, :])
  matrix = jnp.concatenate([down, _pad(rest, before=half)], axis=-1)
  return matrix[..., :n, :n]


def _left(rows: int, half: int):
  """Which numbers of the rectangle are of the left columns."""
  return jnp.arange(rows)[:, None] > jnp.arange(half)[None]


def _turn(x):
  return jnp.swapaxes(x, -1, -2)


def _pad(x, before: int = 0, after: int = 0):
  widths = [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)]
  return jnp.pad(x, widths)


def _widen(x, more: int):
  return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more)] * 2)
