"""How different images look, in one line: for notebooks.

Networks are loaded and compiled once and kept for the next call.
"""

import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from jaxmed import pretrained
from jaxmed.errors import UserError
from jaxmed.method import Info
from jaxmed.nn import lpips as networks
from jaxmed.pipeline.frame import read_image

AT_ONCE = 2**20  # Pixels of each side that are compared in one go.
SLACK = 1e-3  # Of the range: what resampling may overshoot.

Image = np.ndarray | str | os.PathLike


def lpips(
  x: Image | Sequence[Image],
  y: Image | Sequence[Image],
  network: str = 'squeeze',
  range: tuple[float, float] | None = None,
  weights: str | os.PathLike = 'imagenet',
  spatial: bool = False,
) -> Float[np.ndarray, '...']:
  """LPIPS of images; see `jaxmed.lpips`."""
  one, other = (_stack(images, range) for images in (x, y))
  networks.check(network, one, other)
  height, width = one.shape[1:3]
  compare = _compiled(network, os.fspath(weights), spatial)
  step = max(1, min(len(one), AT_ONCE // (height * width)))
  found = [
    np.asarray(compare(*(_padded(z[i : i + step], step) for z in (one, other))))
    for i in np.arange(0, len(one), step)
  ]
  whole = np.concatenate(found)[: len(one)]
  return whole[0] if _is_one(x) else whole


@functools.lru_cache(maxsize=8)
def _compiled(network: str, weights: str, spatial: bool) -> Callable:
  variables = _variables(network, weights)
  how = 'spatial' if spatial else '__call__'
  apply = functools.partial(networks.Lpips(network).apply, method=how)
  run = jax.jit(apply)
  return lambda x, y: run(variables, x, y)


@functools.lru_cache(maxsize=4)
def _variables(network: str, weights: str):
  model = ConfigDict(
    {'lpips': network, 'lpips_weights': weights, 'weights_seed': 0}
  )
  side = networks.network(network).least
  info = Info((side, side, 3), 1, {})
  return jax.device_put(pretrained.load('lpips', model, info)[0])


def _is_one(images) -> bool:
  """Whether a single image is given, not several."""
  if isinstance(images, str | os.PathLike):
    return True
  if isinstance(images, np.ndarray | jax.Array):
    return images.ndim < 4
  return False


def _stack(images, range) -> np.ndarray:
  """A batch [b, h, w, c] in [0, 1], of one image or of several."""
  if images is None:
    raise UserError('An image is missing: None was given in its place.')
  several = [images] if _is_one(images) else list(images)
  arrays = [
    read_image(image)
    if isinstance(image, str | os.PathLike)
    else np.asarray(image)
    for image in several
  ]
  arrays = [x[..., None] if x.ndim == 2 else x for x in arrays]
  shapes = {x.shape for x in arrays}
  if len(shapes) != 1 or len(shape := next(iter(shapes))) != 3 or 0 in shape:
    found = ', '.join(str(list(shape)) for shape in sorted(shapes)) or 'none'
    raise UserError(
      'Images are arrays [h, w] or [h, w, c] of one shape, or files of such; '
      f'got {found}.'
    )
  # Each by its own type: 8 bits and 16 have other ranges.
  return np.stack([_unit(x, range) for x in arrays])


def _unit(images: np.ndarray, range) -> np.ndarray:
  """Images in [0, 1], of what they are said to be in."""
  kind = images.dtype.kind
  if kind not in 'uf':
    raise UserError(
      f'Images are unsigned integers or floats, not {images.dtype}; convert '
      'them.'
    )
  if range is None:
    range = (0, np.iinfo(images.dtype).max if kind == 'u' else 1)
  try:
    low, high = map(float, range)
  except (TypeError, ValueError) as error:
    raise UserError(
      f'range={range!r} is no pair of numbers; give (low, high).'
    ) from error
  if not low < high:
    raise UserError(f'range=({low:g}, {high:g}) is empty; give (low, high).')
  found = float(images.min()), float(images.max())
  if not np.isfinite(found).all():
    raise UserError('An image holds NaN or infinite values; mend it first.')
  slack = SLACK * (high - low)
  if found[0] < low - slack or found[1] > high + slack:
    raise UserError(
      f'Images are said to be in [{low:g}, {high:g}] but hold values from '
      f'{found[0]:g} to {found[1]:g}; give their range, e.g. range=(-1, 1), '
      'or clip them.'
    )
  return (images.astype(np.float32) - low) / np.float32(high - low)


def _padded(images: np.ndarray, count: int) -> jax.Array:
  """As many as were compiled for; the last again where there are less."""
  short = (0, count - len(images))
  return jnp.asarray(np.pad(images, (short, *[(0, 0)] * 3), mode='edge'))
