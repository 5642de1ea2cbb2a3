"""Two batches through one call of a network."""

import jax.numpy as jnp
from jaxtyping import Array


def pair(x: Array, y: Array) -> Array:
  """Both, in turns: so every device keeps the examples it has."""
  return jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])


def unpair(pairs: Array) -> tuple[Array, Array]:
  split = pairs.reshape(-1, 2, *pairs.shape[1:])
  return split[:, 0], split[:, 1]
