import jax
import numpy as np
import pytest

from jaxmed.ops import triangle

_inverse_root = jax.jit(triangle.inverse_root)
SIZES = [1, 2, 5, 20, 21, 41, 64, 97]


def _matrices(n, count=3):
  return np.random.default_rng(n).standard_normal((count, n, n), np.float32)


@pytest.mark.parametrize('n', SIZES)
def test_a_triangle_is_packed_into_half_and_comes_back(n):
  x = _matrices(n)
  packed = triangle.pack(x)
  assert packed.shape == (3, *triangle.shape(n))
  assert packed[0].size <= (n + 1) * (n + 2) / 2
  np.testing.assert_array_equal(triangle.unpack(packed, n), np.tril(x))


@pytest.mark.parametrize('n', SIZES)
def test_a_packed_triangle_times_vectors(n):
  x, vectors = _matrices(n), _matrices(n + 1)[:, :4, :n]
  product = triangle.times(triangle.pack(x), vectors)
  true = np.einsum('bij,bmj->bmi', np.tril(x).astype(float), vectors)
  np.testing.assert_allclose(product, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('n', SIZES)
def test_the_inverse_root_is_that_of_numpy(n):
  x = _matrices(n).astype(np.float64)
  covariance = x @ x.transpose(0, 2, 1) / n + 0.05 * np.eye(n)
  # What is above the diagonal is not looked at.
  given = np.tril(covariance) + np.triu(np.full((n, n), 7.0), 1)
  root = _inverse_root(given.astype(np.float32))
  true = np.linalg.inv(np.linalg.cholesky(covariance))
  np.testing.assert_allclose(root, true, rtol=1e-3, atol=1e-4)
  assert not np.triu(root, 1).any()


@pytest.mark.parametrize('at', [0, 11, 33, 49])
def test_what_is_not_positive_definite_is_not_a_number(at):
  matrix = np.tile(np.eye(50, dtype=np.float32), (2, 1, 1))
  matrix[1, at, at] = -1e-3
  found = np.diagonal(_inverse_root(matrix), axis1=1, axis2=2)
  assert np.isfinite(found[0]).all() and np.isnan(found[1]).any()
