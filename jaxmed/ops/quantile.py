"""Quantiles of some of the values: shapes stay fixed, nothing is sorted.

The place of a value among others is found bit by bit, by counting. On a CPU
that takes a tenth of the time of XLA's sort, and it is exact: the values found
are those of the array.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

SIGN = np.uint32(1 << 31)


def quantile(
  x: Float[Array, '*b n'],
  where: Bool[Array, '*b n'],
  share: float | Float[Array, '*b'],
) -> Float[Array, '*b']:
  """Of the values where `where` is true, as numpy.quantile interpolates.

  Where none is, it is 0. `share` may differ from row to row.
  """
  x = x.astype(jnp.float32)
  count = where.sum(axis=-1)
  at = share * jnp.maximum(count - 1, 0).astype(jnp.float32)
  lower = jnp.floor(at).astype(jnp.int32)
  keys = jnp.where(where, _keys(x), ~jnp.uint32(0))
  low = _smallest(keys, lower)
  upto = (keys <= low[..., None]).sum(axis=-1)
  above = jnp.where(keys > low[..., None], keys, ~jnp.uint32(0)).min(axis=-1)
  more = (upto < lower + 2) & (lower + 1 < count)
  low, high = _values(low), _values(jnp.where(more, above, low))
  found = low + (high - low) * (at - lower)
  return jnp.where(count > 0, found, 0)


def _keys(x: Float[Array, '...']) -> UInt32[Array, '...']:
  """Whole numbers in the order of the floats."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(bits >= SIGN, ~bits, bits | SIGN)


def _values(keys: UInt32[Array, '...']) -> Float[Array, '...']:
  bits = jnp.where(keys >= SIGN, keys & ~SIGN, ~keys)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _smallest(
  keys: UInt32[Array, '*b n'], rank: Int[Array, '*b']
) -> UInt32[Array, '*b']:
  """The key that has `rank` others before it."""

  def bit(number, found):
    tried = found | (SIGN >> number.astype(jnp.uint32))
    before = (keys < tried[..., None]).sum(axis=-1)
    return jnp.where(before <= rank, tried, found)

  return jax.lax.fori_loop(0, 32, bit, jnp.zeros(rank.shape, jnp.uint32))
