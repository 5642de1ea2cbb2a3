"""Frechet distance of two Gaussians: FID, of whatever features."""

import numpy as np
from jaxtyping import Float

from jaxmed.metrics.moments import Moments


def frechet(a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm d']) -> float:
  """The distance of Gaussians fitted to two sets of features (ddof 1)."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return frechet_of_moments(
    a.mean(axis=0),
    np.atleast_2d(np.cov(a, rowvar=False)),
    b.mean(axis=0),
    np.atleast_2d(np.cov(b, rowvar=False)),
  )


def frechet_of_streams(a: Moments, b: Moments) -> float:
  """The same of features that were seen once."""
  return frechet_of_moments(a.mean, a.covariance, b.mean, b.covariance)


def frechet_of_moments(
  mean_a: Float[np.ndarray, ' d'],
  covariance_a: Float[np.ndarray, 'd d'],
  mean_b: Float[np.ndarray, ' d'],
  covariance_b: Float[np.ndarray, 'd d'],
) -> float:
  """|ma - mb|^2 + tr(Ca + Cb - 2 (Ca Cb)^1/2).

  The trace of the root of Ca Cb is the sum of the singular values of
  Ca^1/2 Cb^1/2: unlike a general matrix root it never turns complex, and is
  exact for covariances without full rank (fewer examples than features).
  """
  product = _root(covariance_a) @ _root(covariance_b)
  overlap = np.linalg.svd(product, compute_uv=False).sum()
  distance = np.sum((mean_a - mean_b) ** 2)
  spread = np.trace(covariance_a) + np.trace(covariance_b)
  return float(distance + spread - 2 * overlap)


def _root(covariance: np.ndarray) -> np.ndarray:
  values, vectors = np.linalg.eigh(covariance)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
