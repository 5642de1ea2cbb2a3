"""Gaussian smoothing equal to scipy.ndimage.gaussian_filter's defaults."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TRUNCATE = 4.0  # SciPy's: the window ends at four sigma.


def smooth(x: Float[Array, 'b h w c'], sigma: float) -> Float[Array, 'b h w c']:
  """Along height and width; the border is mirrored, its pixel repeated."""
  if sigma == 0:
    return x
  x = jnp.einsum('ih,bhwc->biwc', _matrix(x.shape[1], sigma), x)
  return jnp.einsum('jw,bhwc->bhjc', _matrix(x.shape[2], sigma), x)


def _matrix(size: int, sigma: float) -> np.ndarray:
  """The filter with its border as one matrix: fast where matmuls are.

  Built in NumPy at trace time, so any window is allowed, also one that is
  wider than the image and is mirrored several times.
  """
  radius = int(TRUNCATE * sigma + 0.5)
  at = np.arange(-radius, radius + 1)
  window = np.exp(-0.5 * (at / sigma) ** 2)
  window /= window.sum()
  folded = (np.arange(size)[:, None] + at) % (2 * size)
  folded = np.where(folded < size, folded, 2 * size - 1 - folded)
  matrix = np.zeros((size, size))
  np.add.at(matrix, (np.arange(size)[:, None], folded), window)
  return matrix.astype(np.float32)
