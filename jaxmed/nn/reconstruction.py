"""The scores of every method that reconstructs an image, by their names.

Those of jaxmed.ops.compare are plain functions of an image and its
reconstruction. `lpips` needs a network too, which the method then names in
`Method.needs` and gets in `State.frozen`; `model.lpips` says which one.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxmed.errors import unknown
from jaxmed.method import Images, Info, PyTree
from jaxmed.nn import lpips
from jaxmed.ops.compare import MAPS, SCORES, compare, compare_maps

Named = dict[str, Array]
PART = 'lpips'  # The name of the score, the map, and the pretrained part.


class Comparison:
  """What `score.names` and `score.maps` of a config ask for.

  Attributes:
    needs: for Method.needs.
  """

  def __init__(
    self,
    config: ConfigDict,
    info: Info,
    dtype: jnp.dtype | None = None,
    own: Iterable[str] = (),
    own_maps: Iterable[str] = (),
  ):
    """`own` and `own_maps` are what the method makes itself."""
    method, own, own_maps = config.method, tuple(own), tuple(own_maps)
    self._names = tuple(n for n in config.score.names if n not in own)
    self._maps = tuple(n for n in config.score.maps if n not in own_maps)
    for kind, asked, known in (
      ('score', self._names, (*own, *SCORES)),
      ('map', self._maps, (*own_maps, *MAPS)),
    ):
      for name in asked:
        if name not in (*known, PART):
          raise unknown(f'{kind} of {method}', name, (*known, PART))
    self.needs: tuple[str, ...] = ()
    if PART in (*self._names, *self._maps):
      self.needs = (PART,)
      self._network = lpips.Lpips(config.model.lpips, dtype)
      image = jax.ShapeDtypeStruct((1, *info.image), jnp.float32)
      lpips.check(config.model.lpips, image, image)

  def __call__(
    self, frozen: Mapping[str, PyTree], x: Images, y: Images
  ) -> tuple[dict[str, Float[Array, ' b']], dict[str, Float[Array, 'b h w']]]:
    """Scores and maps of images in [0, 1] and their reconstructions."""
    plain = lambda names: [name for name in names if name != PART]
    scores = compare(x, y, plain(self._names))
    maps = compare_maps(x, y, plain(self._maps))
    if self.needs:
      layers = self._network.apply(frozen[PART], x, y, method='layers')
      scores[PART] = lpips.total(layers)
      maps[PART] = lpips.spatial(layers, x.shape[1:3])
    return (
      {name: scores[name] for name in self._names},
      {name: maps[name] for name in self._maps},
    )
