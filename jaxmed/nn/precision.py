"""In what type networks compute: `train.precision`.

Parameters, the statistics of norms and losses stay in float32.
"""

import jax.numpy as jnp
from jaxtyping import Array

from jaxmed.errors import unknown

PRECISIONS = ('float32', 'bfloat16')


def dtype_of(precision: str) -> jnp.dtype | None:
  """For Linen's `dtype`; None: nothing is cast."""
  if precision not in PRECISIONS:
    raise unknown('train.precision', precision, PRECISIONS)
  return None if precision == 'float32' else jnp.dtype(precision)


def wide(x: Array) -> Array:
  """In float32 at least."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
