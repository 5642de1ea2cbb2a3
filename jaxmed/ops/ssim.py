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

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmed import errors
from jaxmed.ops import resize, windows

SIGMA = 1.5
CONSTANTS = (0.01, 0.03)  # K1 and K2 of the paper.
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003.
STRIP = 32  # Rows: the strips of 16 images of 512 px fit the caches.

Image = Float[Array, 'b h w c']


def ssim(
  x: Image,
  y: Image,
  data_range: float = 1.0,
  sigma: float = SIGMA,
  sample_covariance: bool = False,
  constants: tuple[float, float] = CONSTANTS,
) -> Float[Array, ' b']:
  """The mean of the map where the whole window fits, of each image."""
  x, y = _checked(x, y, sigma)
  height, width, channels = x.shape[1:]
  window = windows.gaussian(sigma)
  border = len(window) - 1
  centre_x, centre_y = _centre(x), _centre(y)
  x, y = windows.rows(x), windows.rows(y)
  rows = min(STRIP, -(-(height - border) // 2))
  strips = -(-(height - border) // rows)

  def add(total, index):
    # The last strip begins early enough to be whole; what it shares with the
    # one before has no weight.
    start = jnp.minimum(index * rows, height - border - rows)
    new = start + jnp.arange(rows) >= index * rows
    part_x, part_y = (
      jax.lax.dynamic_slice_in_dim(image, start, rows + border, axis=1) - centre
      for image, centre in ((x, centre_x), (y, centre_y))
    )
    planes = part_x, part_y, part_x**2 + part_y**2, part_x * part_y
    mean_x, mean_y, power, product = windows.filtered(planes, window, channels)
    values = _ssim(
      mean_x + centre_x,
      mean_y + centre_y,
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
  moments = _moments(x, y, sigma, border)
  return _ssim(
    moments.mean_x,
    moments.mean_y,
    moments.variance_x + moments.variance_y,
    moments.covariance,
    data_range,
    _correction(windows.gaussian(sigma), sample_covariance),
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
  moments = _moments(x, y, sigma, border)
  half = (CONSTANTS[1] * data_range) ** 2 / 2
  deviations = _root(moments.variance_x * moments.variance_y)
  values = (moments.covariance + half) / (deviations + half)
  return values.reshape(len(x), -1, _inner(x, sigma, border), x.shape[3])


def structure(
  x: Image, y: Image, data_range: float = 1.0, sigma: float = SIGMA
) -> Float[Array, ' b']:
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
) -> Float[Array, ' b']:
  """Multi-scale SSIM (Wang et al. 2003), as torchmetrics computes it.

  Contrast and structure at every scale but the last, where SSIM itself is
  taken, over the whole map with a reflected border. Negative terms become 0
  ('relu'), all are moved to [0, 1] ('simple'), or are left (None: a negative
  one to a fractional power is NaN).
  """
  x, y = _checked(x, y, sigma)
  if normalize not in ('relu', 'simple', None):
    raise errors.unknown('normalisation', str(normalize), ('relu', 'simple'))
  terms = []
  for scale in range(len(betas)):
    if scale < len(betas) - 1:
      terms.append(_contrast(x, y, data_range, sigma, constants))
      x, y = resize.halve(x), resize.halve(y)
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
  return min(height, width) >= len(windows.gaussian(sigma))


def _checked(x: Image, y: Image, sigma: float) -> tuple[Image, Image]:
  """In float32, whatever they are stored in: bfloat16 has 8 bits."""
  if x.ndim != 4 or x.shape != y.shape:
    raise errors.UserError(
      f'SSIM compares two batches [b, h, w, c] of one shape, but got '
      f'{list(x.shape)} and {list(y.shape)}.'
    )
  if not window_fits(*x.shape[1:3], sigma):
    size = len(windows.gaussian(sigma))
    raise errors.UserError(
      f'SSIM looks through a window of {size} x {size} px, but the images '
      f'have {x.shape[1]} x {x.shape[2]}: use larger images or another score.'
    )
  return x.astype(jnp.float32), y.astype(jnp.float32)


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


def _contrast(x, y, data_range, sigma, constants) -> Float[Array, ' b']:
  moments = _moments(x, y, sigma, 'valid')
  c2 = (constants[1] * data_range) ** 2
  variances = moments.variance_x + moments.variance_y
  values = (2 * moments.covariance + c2) / (variances + c2)
  return values.mean(axis=(1, 2))


def _root(x: Array) -> Array:
  """A square root whose gradient at 0 is 0 instead of infinite."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _moments(x: Image, y: Image, sigma: float, border: str):
  x, y = _checked(x, y, sigma)
  if border not in ('valid', 'symmetric', 'reflect'):
    raise errors.unknown('border', border, ('valid', 'symmetric', 'reflect'))
  window = windows.gaussian(sigma)
  if border != 'valid':
    radius = len(window) // 2
    pad = ((0, 0), (radius, radius), (radius, radius), (0, 0))
    x, y = (jnp.pad(image, pad, mode=border) for image in (x, y))
  return windows.moments(windows.rows(x), windows.rows(y), window, x.shape[3])


def _inner(x: Image, sigma: float, border: str) -> int:
  """The width of a map."""
  return x.shape[2] - (len(windows.gaussian(sigma)) - 1) * (border == 'valid')


def _centre(x: Image) -> Float[Array, 'b 1 1']:
  """About the mean of each image, from every eighth row.

  One number an image: a row of them, one a channel, takes twice the time.
  """
  mean = x[:, ::8].mean(axis=(1, 2, 3))
  return jax.lax.stop_gradient(mean)[:, None, None]
