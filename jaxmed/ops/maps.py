"""From a method's coarse anomaly map to one of the image's size."""

import functools
import operator
from collections.abc import Sequence

from jaxtyping import Array, Float

from jaxmed import errors
from jaxmed.ops import gaussian, resize

MODES = {'add': operator.add, 'multiply': operator.mul}


def anomaly_map(
  scores: Float[Array, 'b h w'],
  size: tuple[int, int],
  sigma: float = 4.0,
  align_corners: bool = False,
) -> Float[Array, 'b y x']:
  """Enlarges bilinearly, then smooths: the one way every method does it.

  `sigma` is in pixels of the result, 0 leaves it as it is; 4 is PatchCore's
  and PaDiM's. `align_corners` is True in the reverse distillation papers.
  """
  scores = scores[..., None]
  if scores.shape[1:3] != tuple(size):
    scores = resize.bilinear(scores, size, align_corners)
  return gaussian.smooth(scores, sigma)[..., 0]


def combined_map(
  levels: Sequence[Float[Array, 'b _h _w']],
  size: tuple[int, int],
  mode: str = 'add',
  sigma: float = 4.0,
  align_corners: bool = True,
) -> Float[Array, 'b y x']:
  """Maps of several levels: each is enlarged, and what they make smoothed.

  That is the sum of all of them or, with the mode `multiply`, their product.
  """
  if mode not in MODES:
    raise errors.unknown('mode of maps', mode, MODES)
  enlarged = (anomaly_map(x, size, 0.0, align_corners) for x in levels)
  whole = functools.reduce(MODES[mode], enlarged)
  return gaussian.smooth(whole[..., None], sigma)[..., 0]
