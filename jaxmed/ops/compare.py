"""An image and its reconstruction, turned into named anomaly scores.

Images are in [0, 1]. Every score is higher where the two differ more. Gray is
the ITU-R 601 luma: the published MUNIT detector measured SSIM on gray images.

    l1, l2           mean |x - y|, mean (x - y)^2
    residual         mean |x - y| over channels, a map; its mean as a score
    ssim             1 - SSIM of the gray images
    ssim_rgb         1 - mean SSIM of the channels
    structure        1 - structure term of SSIM, gray
    ..._half         the same after 2 x 2 means, at twice the pixel size
    ms_ssim          1 - multi-scale SSIM, gray
"""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmed import errors
from jaxmed.ops import resize, ssim

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601.

Image = Float[Array, 'b h w c']


def gray(x: Image) -> Float[Array, 'b h w 1']:
  """Luma of three channels; the mean of any other number."""
  if x.shape[3] == 3:
    return (x @ LUMA)[..., None]
  return x.mean(axis=3, keepdims=True)


def compare(
  x: Image, y: Image, names: Iterable[str]
) -> dict[str, Float[Array, ' b']]:
  """The named scores of every image; only those are computed."""
  return {name: _find(SCORES, 'score', name)(x, y) for name in names}


def compare_maps(
  x: Image, y: Image, names: Iterable[str]
) -> dict[str, Float[Array, 'b h w']]:
  """The named maps, as large as the image."""
  return {name: _find(MAPS, 'map', name)(x, y) for name in names}


def _find(table, kind: str, name: str):
  if name not in table:
    raise errors.unknown(f'reconstruction {kind}', name, table)
  return table[name]


def _l1(x, y):
  return jnp.abs(x - y).mean(axis=(1, 2, 3))


def _l2(x, y):
  return jnp.square(x - y).mean(axis=(1, 2, 3))


def _ssim_rgb(x, y):
  return 1 - ssim.ssim(x, y)


def _ssim(x, y):
  return _ssim_rgb(gray(x), gray(y))


def _structure_rgb(x, y):
  return 1 - ssim.structure(x, y)


def _structure(x, y):
  return _structure_rgb(gray(x), gray(y))


def _ms_ssim(x, y):
  return 1 - ssim.ms_ssim(gray(x), gray(y))


def _half(score):
  return lambda x, y: score(resize.halve(x), resize.halve(y))


def _residual_map(x, y):
  return jnp.abs(x - y).mean(axis=3)


def _squared_map(x, y):
  return jnp.square(x - y).mean(axis=3)


def _ssim_map(x, y):
  return 1 - ssim.ssim_map(gray(x), gray(y), border='symmetric')[..., 0]


def _structure_map(x, y):
  return 1 - ssim.structure_map(gray(x), gray(y), border='symmetric')[..., 0]


def _half_map(score):
  def enlarged(x, y):
    values = score(resize.halve(x), resize.halve(y))[..., None]
    return resize.bilinear(values, x.shape[1:3])[..., 0]

  return enlarged


SCORES = {
  'l1': _l1,
  'l2': _l2,
  'residual': _l1,
  'ssim': _ssim,
  'ssim_rgb': _ssim_rgb,
  'ssim_half': _half(_ssim),
  'structure': _structure,
  'structure_rgb': _structure_rgb,
  'structure_half': _half(_structure),
  'ms_ssim': _ms_ssim,
}
MAPS = {
  'residual': _residual_map,
  'squared': _squared_map,
  'ssim': _ssim_map,
  'ssim_half': _half_map(_ssim_map),
  'structure': _structure_map,
  'structure_half': _half_map(_structure_map),
}
