"""How like real images generated ones are: FID, through a trunk of choice.

Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium, NeurIPS 2017. Numbers compare with those of others only if
trunk, weights and the count of images are theirs too.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxmed import pretrained
from jaxmed.errors import UserError
from jaxmed.method import Batch, Images, Info
from jaxmed.metrics.frechet import frechet_of_streams
from jaxmed.metrics.moments import Moments
from jaxmed.nn.embedding import embed
from jaxmed.nn.trunk import NETWORKS, trunk
from jaxmed.pipeline import Cohort
from jaxmed.training import sharding
from jaxmed.weights import read, store

RANDOM, UNTRAINED = 'random', 'small'  # The network of the former.
FLAG = '--config.train.watch.trunk'


class Fid:
  """The Frechet distance of images to those that `open_real` gives.

  Attributes:
    facts: of the trunk, for provenance.
  """

  def __init__(
    self,
    name: str,
    open_real: Callable[[], Cohort],
    normalise: Callable[[Images], Images],
    mesh: Mesh,
    image: tuple[int, int, int],
  ):
    """`normalise` is of the real images, each in [0, 1]; `image`: its shape."""
    self._open, network = open_real, _network_of(name)
    weights = RANDOM if name == RANDOM else name
    weights = 'imagenet' if name == network else weights
    model = {'trunk': network, 'weights': weights, 'weights_seed': 0}
    side = pretrained.SIDE
    variables, facts = pretrained.load(
      'trunk', ConfigDict(model), Info((side, side, 3), 1, {}), FLAG
    )
    self.facts = {'part': 'train.watch.trunk'} | facts
    everywhere = sharding.replicated(mesh)
    self._variables = jax.device_put(variables, everywhere)

    def rows(variables, images):
      return embed(trunk(network), variables, images)

    def real_rows(variables, batch: Batch):
      return rows(variables, normalise(batch.unit)), batch.row

    shape = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    jax.eval_shape(rows, variables, shape)  # Too small: better now.
    self._rows = jax.jit(rows, out_shardings=everywhere)
    self._real_rows = jax.jit(real_rows, out_shardings=everywhere)

  def __call__(self, chunks: Iterable[Images], count: int) -> float:
    """Of the first `count` images in [0, 1] of all chunks."""
    made = Moments()
    for images in chunks:
      rows = np.asarray(self._rows(self._variables, images))
      made.add(rows[: count - made.count])
    return frechet_of_streams(made, self._real)

  @functools.cached_property
  def _real(self) -> Moments:
    found = Moments()
    with contextlib.closing(self._open()) as cohort:
      for batch in cohort:
        rows, numbers = self._real_rows(self._variables, batch)
        found.add(np.asarray(rows)[np.asarray(numbers) >= 0])
    return found


def _network_of(name: str) -> str:
  """The network that a trunk is, or that weights are of."""
  if name == RANDOM:
    return UNTRAINED
  if name in NETWORKS:
    return name
  path = pathlib.Path(name).expanduser()
  if store.has(name):
    arrays, facts = store.load(name)
    if facts.network:
      return facts.network
  elif path.is_file():
    arrays = read.read(path)
  else:
    raise UserError(
      f'{FLAG}={name} is no trunk ({", ".join(NETWORKS)}, random), there are '
      f'no stored weights of that name, and there is no file '
      f'{path.absolute()}; give one of these.'
    )
  found = pretrained.fitting(arrays)
  if len(found) != 1:
    raise UserError(
      f'The weights {name} fit {" and ".join(found) or "no network"}, so they '
      f'cannot be {FLAG}; give those of one of {", ".join(NETWORKS)}.'
    )
  return found[0]
