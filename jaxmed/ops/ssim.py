"""Structural similarity of images (Wang et al. 2004), and its parts.

    ssim = (2 mx my + C1) (2 cov + C2) / (mx^2 + my^2 + C1) (vx + vy + C2)
    structure = (cov + C2 / 2) / (sx sy + C2 / 2),   C = (K data_range)^2

over a Gaussian window (sigma 1.5: 11 x 11). Means, variances and covariance
are the biased ones. A mean leaves out the border where the window does not
fit, like scikit-image with gaussian_weights and use_sample_covariance=False;
colour is the mean of the channels. Everything is batched NHWC in float32.

E[x^2] - E[x]^2 loses in float32 just what matters in flat regions, so the
maps take every moment about the window's own middle pixel. The mean of a whole
image, which training and scoring call, takes them about the image's mean in
strips that stay in the cache (docs/log.md has the variants and their times).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmed import errors

SIGMA = 1.5
CONSTANTS = (0.01, 0.03)  # K1 and K2 of the paper.
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003.
STRIP = 32  # Rows: the strips of 16 images of 512 px fit the caches.

Image = Float[Array, 'b h w c']
Rows = Float[Array, 'b h wc']


class Moments(NamedTuple):
  """Of the windows of two images."""

  mean_x: Array
  mean_y: Array
  variance_x: Array
  variance_y: Array
  covariance: Array


def ssim(
  x: Image,
  y: Image,
  data_range: float = 1.0,
  sigma: float = SIGMA,
  sample_covariance: bool = False,
  constants: tuple[float, float] = CONSTANTS,
) -> Float[Array, 'b']:
  """The mean of the map where the whole window fits, of each image."""
  _check(x, y, sigma)
  height, width, channels = x.shape[1:]
  window = _window(sigma)
  border = len(window) - 1
  centre_x, centre_y = _centre(x), _centre(y)
  x, y = _rows(x), _rows(y)
  rows = min(STRIP, -(-(height - border) // 2))
  strips = -(-(height - border) // rows)

  def add(total, index):
    # The last strip begins early enough to be whole; what it shares with the
    # one before has no weight.
    start = jnp.minimum(index * rows, height - border - rows)
    new = start + jnp.arange(rows) >= index * rows
    part_x, part_y = _kept(
      jax.lax.dynamic_slice_in_dim(image, start, rows + border, axis=1) - centre
      for image, centre in ((x, centre_x), (y, centre_y))
    )
    mean_x, mean_y, power, product = _filtered(part_x, part_y, window, channels)
    values = _ssim(
      mean_x + centre_x[:, :, : mean_x.shape[2]],
      mean_y + centre_y[:, :, : mean_y.shape[2]],
      jnp.maximum(power - mean_x**2 - mean_y**2, 0),
      product - mean_x * mean_y,
      data_range,
      _correction(window, sample_covariance),
      constants,
    )
    # A product with ones, because XLA would fuse a sum with all of the above
    # into one loop that it does not vectorise.
    weight = jnp.repeat(new.astype(values.dtype), values.shape[2])
    return total + values.reshape(len(values), -1) @ weight, None

  total = jnp.zeros(len(x), x.dtype)
  total, _ = jax.lax.scan(add, total, jnp.arange(strips))
  return total / ((height - border) * (width - border) * channels)


def ssim_map(
  x: Image,
  y: Image,
  data_range: float = 1.0,
  sigma: float = SIGMA,
  border: str = 'valid',
  sample_covariance: bool = False,
  constants: tuple[float, float] = CONSTANTS,
) -> Image:
  """SSIM of every window and channel.

  `border` is 'valid' (only whole windows: a smaller map), 'symmetric' (the
  edge pixel repeated, scikit-image) or 'reflect' (not repeated, torchmetrics).
  """
  moments = _moments(*_padded(x, y, sigma, border), _window(sigma))
  return _ssim(
    moments.mean_x,
    moments.mean_y,
    moments.variance_x + moments.variance_y,
    moments.covariance,
    data_range,
    _correction(_window(sigma), sample_covariance),
    constants,
  ).reshape(len(x), -1, _inner(x, sigma, border), x.shape[3])


def structure_map(
  x: Image,
  y: Image,
  data_range: float = 1.0,
  sigma: float = SIGMA,
  border: str = 'valid',
) -> Image:
  """The structure term: correlation of the windows, 1 where both are flat."""
  moments = _moments(*_padded(x, y, sigma, border), _window(sigma))
  half = (CONSTANTS[1] * data_range) ** 2 / 2
  deviations = _root(moments.variance_x * moments.variance_y)
  values = (moments.covariance + half) / (deviations + half)
  return values.reshape(len(x), -1, _inner(x, sigma, border), x.shape[3])


def structure(
  x: Image, y: Image, data_range: float = 1.0, sigma: float = SIGMA
) -> Float[Array, 'b']:
  """The mean of the structure term where the whole window fits."""
  return structure_map(x, y, data_range, sigma).mean(axis=(1, 2, 3))


def ms_ssim(
  x: Image,
  y: Image,
  data_range: float = 1.0,
  betas: Sequence[float] = BETAS,
  normalize: str | None = 'relu',
  sigma: float = SIGMA,
  constants: tuple[float, float] = CONSTANTS,
) -> Float[Array, 'b']:
  """Multi-scale SSIM (Wang et al. 2003), as torchmetrics computes it.

  Contrast and structure at every scale but the last, where SSIM itself is
  taken, over the whole map with a reflected border. Negative terms become 0
  ('relu'), all are moved to [0, 1] ('simple'), or are left (None: a negative
  one to a fractional power is NaN).
  """
  if normalize not in ('relu', 'simple', None):
    raise errors.unknown('normalisation', str(normalize), ('relu', 'simple'))
  terms = []
  for scale in range(len(betas)):
    if scale < len(betas) - 1:
      terms.append(_contrast(x, y, data_range, sigma, constants))
      x, y = _pooled(x), _pooled(y)
    else:
      values = ssim_map(x, y, data_range, sigma, 'reflect', False, constants)
      terms.append(values.mean(axis=(1, 2, 3)))
  result = jnp.ones_like(terms[0])
  for term, beta in zip(terms, betas, strict=True):
    if normalize == 'simple':
      term = (term + 1) / 2
    if normalize == 'relu':  # The slope of a root at 0 is infinite: left out.
      positive = term > 0
      power = jnp.where(positive, term, 1.0) ** beta
      result = result * jnp.where(positive, power, 0.0)
    else:
      result = result * term**beta
  return result


def window_fits(height: int, width: int, sigma: float = SIGMA) -> bool:
  return min(height, width) >= len(_window(sigma))


def _window(sigma: float) -> list[float]:
  """The 1-D Gaussian, cut at 3.5 sigma as scikit-image does."""
  radius = int(3.5 * sigma + 0.5)
  at = np.arange(-radius, radius + 1)
  window = np.exp(-0.5 * (at / sigma) ** 2)
  return [float(weight) for weight in window / window.sum()]


def _check(x: Image, y: Image, sigma: float) -> None:
  if x.ndim != 4 or x.shape != y.shape:
    raise errors.UserError(
      f'SSIM compares two batches [b, h, w, c] of one shape, but got '
      f'{list(x.shape)} and {list(y.shape)}.'
    )
  if not window_fits(*x.shape[1:3], sigma):
    size = len(_window(sigma))
    raise errors.UserError(
      f'SSIM looks through a window of {size} x {size} px, but the images '
      f'have {x.shape[1]} x {x.shape[2]}: use larger images or another score.'
    )


def _ssim(
  mean_x, mean_y, variances, covariance, data_range, correction, constants
):
  c1, c2 = ((k * data_range) ** 2 for k in constants)
  return ((2 * mean_x * mean_y + c1) * (2 * correction * covariance + c2)) / (
    (mean_x**2 + mean_y**2 + c1) * (correction * variances + c2)
  )


def _correction(window: Sequence[float], sample_covariance: bool) -> float:
  count = len(window) ** 2
  return count / (count - 1) if sample_covariance else 1.0


def _contrast(x, y, data_range, sigma, constants) -> Float[Array, 'b']:
  moments = _moments(*_padded(x, y, sigma, 'valid'), _window(sigma))
  c2 = (constants[1] * data_range) ** 2
  variances = moments.variance_x + moments.variance_y
  values = (2 * moments.covariance + c2) / (variances + c2)
  return values.mean(axis=(1, 2))


def _pooled(x: Image) -> Image:
  """2 x 2 means; an odd last row or column is left out."""
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def _root(x: Array) -> Array:
  """A square root whose gradient at 0 is 0 instead of infinite."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _padded(x: Image, y: Image, sigma: float, border: str):
  _check(x, y, sigma)
  if border not in ('valid', 'symmetric', 'reflect'):
    raise errors.unknown('border', border, ('valid', 'symmetric', 'reflect'))
  if border == 'valid':
    return x, y
  radius = len(_window(sigma)) // 2
  pad = ((0, 0), (radius, radius), (radius, radius), (0, 0))
  return jnp.pad(x, pad, mode=border), jnp.pad(y, pad, mode=border)


def _inner(x: Image, sigma: float, border: str) -> int:
  """The width of a map."""
  return x.shape[2] - (len(_window(sigma)) - 1) * (border == 'valid')


def _rows(x: Image) -> Rows:
  """Channels inside the rows, so that a shift is a contiguous slice."""
  return x.reshape(*x.shape[:2], -1)


def _centre(x: Image) -> Float[Array, 'b 1 wc']:
  """The mean of each channel, laid out as a row."""
  mean = jax.lax.stop_gradient(x.mean(axis=(1, 2)))
  return jnp.tile(mean, x.shape[2])[:, None]


def _kept(parts: Iterable[Rows]) -> list[Rows]:
  """Makes XLA compute the parts once, before anything that uses them.

  Else it fuses a first pass into each of the eleven taps of the second. On
  CPU the barrier alone does not hold, nor does the concatenation alone.
  """
  parts = list(parts)
  whole = jax.lax.optimization_barrier(jnp.concatenate(parts))
  return jnp.split(whole, len(parts))


def _filtered(x: Rows, y: Rows, window, channels: int) -> list[Rows]:
  """Windowed x, y, x^2 + y^2 and x y: all that SSIM needs.

  Shifted slices along contiguous rows vectorise; the concatenation makes XLA
  keep the first pass instead of computing it again for each tap of the second.
  """
  width = x.shape[2] - (len(window) - 1) * channels
  height = x.shape[1] - len(window) + 1
  planes = (x, y, x * x + y * y, x * y)
  across = jnp.concatenate(
    [
      _sum(window, lambda k, p=p: _tap(p, k, 2, channels, width))
      for p in planes
    ]
  )
  return jnp.split(_sum(window, lambda k: _tap(across, k, 1, 1, height)), 4)


def _moments(x: Image, y: Image, window: Sequence[float]) -> Moments:
  """The moments, every one about the middle pixel of its own window."""
  middle, channels = len(window) // 2, x.shape[3]
  x, y = _rows(x), _rows(y)
  height = x.shape[1] - len(window) + 1
  width = x.shape[2] - (len(window) - 1) * channels

  def across(image, k):  # Less the middle column.
    column = _tap(image, middle, 2, channels, width)
    return _tap(image, k, 2, channels, width) - column

  def down(image, k):
    return _tap(image, k, 1, 1, height)

  def offset(image, k):  # Of the middle column, less the middle row.
    return down(image, k) - down(image, middle)

  first_x, first_y, second_x, second_y, second_xy = _kept(
    _sum(window, term)
    for term in (
      lambda k: across(x, k),
      lambda k: across(y, k),
      lambda k: across(x, k) ** 2,
      lambda k: across(y, k) ** 2,
      lambda k: across(x, k) * across(y, k),
    )
  )
  middle_x = _tap(x, middle, 2, channels, width)
  middle_y = _tap(y, middle, 2, channels, width)
  shift_x = _sum(window, lambda k: down(first_x, k) + offset(middle_x, k))
  shift_y = _sum(window, lambda k: down(first_y, k) + offset(middle_y, k))

  def variance(image, first, second, shift):
    about = _sum(
      window,
      lambda k: (
        down(second, k)
        + offset(image, k) * (2 * down(first, k) + offset(image, k))
      ),
    )
    return jnp.maximum(about - shift**2, 0)

  covariance = _sum(
    window,
    lambda k: (
      down(second_xy, k)
      + offset(middle_x, k) * down(first_y, k)
      + offset(middle_y, k) * down(first_x, k)
      + offset(middle_x, k) * offset(middle_y, k)
    ),
  )
  return Moments(
    down(middle_x, middle) + shift_x,
    down(middle_y, middle) + shift_y,
    variance(middle_x, first_x, second_x, shift_x),
    variance(middle_y, first_y, second_y, shift_y),
    covariance - shift_x * shift_y,
  )


def _tap(x: Rows, k: int, axis: int, step: int, length: int) -> Rows:
  return jax.lax.slice_in_dim(x, k * step, k * step + length, axis=axis)


def _sum(window: Sequence[float], term) -> Array:
  """Of the window's weights times the terms; Python's sum adds an integer."""
  total = window[0] * term(0)
  for k, weight in enumerate(window[1:], 1):
    total = total + weight * term(k)
  return total
