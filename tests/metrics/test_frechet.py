"""The Frechet distance where it is known, and against a matrix root."""

import numpy as np
from scipy import linalg

from jaxmed.metrics import frechet

RNG = np.random.default_rng(0)


def test_equals_the_matrix_root():
  a = RNG.standard_normal((80, 6)) @ RNG.standard_normal((6, 6))
  b = 1.5 * RNG.standard_normal((90, 6)) + 0.3
  one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = linalg.sqrtm(one @ other).real
  expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
    one + other - 2 * root
  )
  np.testing.assert_allclose(frechet.frechet(a, b), expected)


def test_gaussians_whose_distance_is_known():
  zero, unit = np.zeros(3), np.eye(3)
  found = frechet.frechet_of_moments(zero, unit, zero + 2, 4 * unit)
  np.testing.assert_allclose(found, 3 * 4 + 3 * (1 + 4 - 2 * 2))


def test_fewer_examples_than_features():
  a = RNG.standard_normal((5, 20))
  np.testing.assert_allclose(frechet.frechet(a, a), 0, atol=1e-9)
  np.testing.assert_allclose(frechet.frechet(a, a + 1), 20)
