"""Two batches as one, for a network that sees both.

Their examples lie in turns, so that every device keeps those it has.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def pair(
  x: Float[Array, 'b ...'], y: Float[Array, 'b ...']
) -> Float[Array, '2*b ...']:
  return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])


def unpair(
  pairs: Float[Array, '2*b ...'],
) -> tuple[Float[Array, 'b ...'], Float[Array, 'b ...']]:
  split = pairs.reshape(-1, 2, *pairs.shape[1:])
  return split[:, 0], split[:, 1]
