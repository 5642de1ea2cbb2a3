"""Triangular matrices: half the memory, and inverse roots of covariances.

The lower triangle of an n x n matrix has the numbers of a rectangle of n + 1
rows and n / 2 columns: its left columns, moved down by one, and above them
the triangle that they leave over, turned over (LAPACK's rectangular full
packed format). An odd n has a row and a column of zeros added.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Rows of a matrix that is not halved further: above about 30, the library that
# XLA calls on a CPU works with threads that wait for one another by spinning.
LEAF = 20
_EXACT = jax.lax.Precision.HIGHEST

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
  down, rest = _parts(packed)
  rest = _pad(_turn(rest), before=packed.shape[-1])
  return jnp.concatenate([down, rest], axis=-1)[..., :n, :n]


def times(packed: Packed, x: Float[Array, '*b m n']) -> Float[Array, '*b m n']:
  """Each triangle times m vectors; it is never unpacked."""
  n, half = x.shape[-1], packed.shape[-1]
  down, rest = _parts(packed)
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 2 * half - n)])
  one = jnp.einsum('...ij,...mj->...mi', down, x[..., :half], precision=_EXACT)
  two = jnp.einsum('...ji,...mj->...mi', rest, x[..., half:], precision=_EXACT)
  low = one[..., half:] + two
  return jnp.concatenate([one[..., :half], low], axis=-1)[..., :n]


def inverse_root(matrix: Float[Array, 'b n n']) -> Float[Array, 'b n n']:
  """L^-1 of matrix = L L^T, whose lower triangle alone is looked at.

  By halves: S = [A ., B D] has L^-1 = [a 0, -d (B a^T) a  d] with a that of A
  and d that of D - (B a^T)(B a^T)^T, so that products do nearly all the work.
  NaN on the diagonal where the matrix is not positive definite.
  """
  n = matrix.shape[-1]
  if n <= LEAF:
    root = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    eye = jnp.broadcast_to(jnp.eye(n)[None], matrix.shape)
    return jax.lax.linalg.triangular_solve(
      root, eye, left_side=True, lower=True
    )
  half = n // 2
  a = inverse_root(matrix[:, :half, :half])
  below = _product(matrix[:, half:, :half], _turn(a))
  d = inverse_root(matrix[:, half:, half:] - _product(below, _turn(below)))
  below = -_product(d, _product(below, a))
  above = jnp.zeros((len(matrix), half, n - half), matrix.dtype)
  return jnp.block([[a, above], [below, d]])


def _product(a, b):
  return jnp.einsum('bij,bjk->bik', a, b, precision=_EXACT)


def _parts(packed):
  """The left columns, and what they leave over, turned over; zeros around."""
  rows, half = packed.shape[-2:]
  left = _left(rows, half)
  down = jnp.where(left, packed, 0)[..., 1:, :]
  return down, jnp.where(left, 0, packed)[..., :half, :]


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
