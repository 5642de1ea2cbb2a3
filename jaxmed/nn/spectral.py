"""Spectral norm: kernels divided by their largest singular value.

Miyato et al., Spectral Normalization for Generative Adversarial Networks,
ICLR 2018. It is done to a tree of parameters before a network is applied, so
networks need not know of it, and a network applied several times in a step is
normalised once. With W the kernel as a matrix (all else, out) and u a row
that is kept from step to step, one power iteration is

  v = u W^T / |u W^T|,  u' = v W / |v W|,  sigma = v W u'^T

A layer is normalised if it has a `u` in the collection of its state, say
`batch_stats`, at the path where its `kernel` is in `params`:

  stats = spectral.start(key, params, stats, lambda path: 'head' not in path)
  normal, after = spectral.normalise(params, stats)
  network.apply({'params': normal, 'batch_stats': after}, x)

Both go through optimisers, checkpoints and `State.batch_stats` like any other
array. Keep `after` where a step is taken, `stats` where images are scored.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from jaxmed.method import PyTree, RandomKey

SMALL = 1e-12  # Added to lengths.
Row = Float[Array, '1 out']


def start(
  key: RandomKey,
  params: PyTree,
  stats: PyTree,
  chosen: Callable[[str], bool] = lambda path: True,
) -> PyTree:
  """`stats` and a first u of each chosen layer that has a kernel.

  `chosen` is asked for the paths of layers, such as 'encoder/conv_1'.
  """
  found = _flat(stats)
  for number, (path, leaf) in enumerate(sorted(flatten_dict(params).items())):
    layer = path[:-1]
    if path[-1] == 'kernel' and chosen('/'.join(layer)):
      row = jax.random.truncated_normal(
        jax.random.fold_in(key, number), -2, 2, (1, leaf.shape[-1])
      )
      found[(*layer, 'u')] = row
  return unflatten_dict(found)


def normalise(
  params: PyTree, stats: PyTree, detach: bool = False
) -> tuple[PyTree, PyTree]:
  """The parameters with normalised kernels, and the rows u after it.

  Gradients flow through u' and v, too; with `detach` they are constants, as
  in the paper and in PyTorch.
  """
  found, after = _flat(params), _flat(stats)
  for path, row in after.items():
    if path[-1] == 'u':
      kernel = (*path[:-1], 'kernel')
      sigma, after[path] = largest(found[kernel], row, detach)
      found[kernel] = found[kernel] / sigma
  return unflatten_dict(found), unflatten_dict(after)


def largest(
  kernel: Float[Array, '... out'], row: Row, detach: bool = False
) -> tuple[Float[Array, ''], Row]:
  """The largest singular value after one power iteration, and the new u."""
  matrix = kernel.reshape(-1, kernel.shape[-1])
  column = _unit(row @ matrix.T)
  after = _unit(column @ matrix)
  if detach:
    column, after = jax.lax.stop_gradient((column, after))
  sigma = (column @ matrix @ after.T)[0, 0]
  return sigma, jax.lax.stop_gradient(after)


def _flat(tree: PyTree) -> dict:
  return flatten_dict(tree, keep_empty_nodes=True)


def _unit(x: Array) -> Array:
  return x / (jnp.sqrt(jnp.square(x).sum()) + SMALL)
