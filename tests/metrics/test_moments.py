"""Streamed moments against those of everything at once."""

import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.metrics import frechet
from jaxmed.metrics.moments import Moments

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((100, 4)) @ RNG.standard_normal((4, 4)) + 3


def streamed(rows, *ends) -> Moments:
  moments = Moments()
  for part in np.split(rows, ends):
    moments.add(part)
  return moments


@pytest.mark.parametrize('ends', [(), (1, 2, 50), (0, 99, 100)])
def test_equal_those_of_all_rows(ends):
  moments = streamed(ROWS, *ends)
  assert moments.count == 100
  np.testing.assert_allclose(moments.mean, ROWS.mean(axis=0))
  np.testing.assert_allclose(moments.covariance, np.cov(ROWS, rowvar=False))


def test_merged_from_two_hosts():
  one, other = streamed(ROWS[:30]), streamed(ROWS[30:], 10)
  one.merge(other)
  one.merge(Moments())
  np.testing.assert_allclose(one.covariance, np.cov(ROWS, rowvar=False))


def test_a_mean_far_off_costs_no_digits():
  """Plain sums of float64 products would lose all of them."""
  moments = streamed(ROWS + 1e7, 10, 20, 70)
  expected = np.cov(ROWS, rowvar=False)
  np.testing.assert_allclose(moments.covariance, expected, rtol=1e-6)


def test_float32_rows_are_summed_in_float64():
  rows = ROWS.astype(np.float32)
  found = streamed(rows, 50).covariance
  expected = np.cov(rows.astype(np.float64), rowvar=False)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_distance_of_streams():
  one, other = streamed(ROWS[:40], 7), streamed(2 * ROWS[40:] + 1, 11)
  expected = frechet.frechet(ROWS[:40], 2 * ROWS[40:] + 1)
  found = frechet.frechet_of_streams(one, other)
  np.testing.assert_allclose(found, expected)


def test_what_cannot_be_is_said():
  with pytest.raises(UserError, match='NaN'):
    streamed(np.full((2, 3), np.nan))
  with pytest.raises(UserError, match='rows of numbers'):
    Moments().add(np.zeros(3))
  with pytest.raises(UserError, match='2 examples are needed'):
    _ = streamed(ROWS[:1]).covariance
