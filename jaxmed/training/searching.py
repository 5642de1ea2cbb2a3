"""Finding what a method must find for a batch before it is scored."""

import jax
import jax.numpy as jnp

from jaxmed.method import Batch, PyTree, RandomKey, Search, State
from jaxmed.training import sharding


class Searching:
  """A search, stepped from the host, so that its step is compiled once."""

  def __init__(self, search: Search):
    self._search, self._compiled = search, None

  def __call__(self, key: RandomKey, state: State, batch: Batch) -> PyTree:
    if self._compiled is None:
      self._compiled = self._compile(key, state, batch)
    init, step = self._compiled
    found = init(key, state, batch)
    for number in range(self._search.steps):
      found = step(key, state, batch, found, jnp.int32(number))
    return found

  def _compile(self, *inputs):
    """What has an entry for each image stays where the image is."""
    rows, size = inputs[-1].row.sharding, inputs[-1].row.shape
    whole = sharding.replicated(rows.mesh)
    places = jax.tree.map(
      lambda leaf: rows if leaf.shape[:1] == size else whole,
      jax.eval_shape(self._search.init, *inputs),
    )
    return (
      jax.jit(self._search.init, out_shardings=places),
      jax.jit(self._search.step, donate_argnums=3, out_shardings=places),
    )
