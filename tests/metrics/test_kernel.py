"""The kernel distance against a double loop, and where it is known."""

import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.metrics import kernel

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 5))
Y = 1.2 * RNG.standard_normal((20, 5)) + 0.4


def slowly(x, y):
  """Every pair by itself."""
  k = lambda a, b: (sum(a * b) / len(a) + 1) ** 3
  pairs = lambda z: [
    k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j
  ]
  across = [k(a, b) for a in x for b in y]
  return np.mean(pairs(x)) + np.mean(pairs(y)) - 2 * np.mean(across)


def test_equals_a_double_loop():
  assert kernel.squared_mmd(X, Y) == pytest.approx(slowly(X, Y), rel=1e-12)


def test_one_subset_of_everything_is_the_whole():
  found = kernel.kid(X[:20], Y, subsets=3, size=1000)
  assert found.value == pytest.approx(kernel.squared_mmd(X[:20], Y))
  assert found.spread == pytest.approx(0, abs=1e-12)


def test_subsets_are_unbiased_and_have_a_spread():
  whole = kernel.squared_mmd(X, Y)
  found = kernel.kid(X, Y, subsets=2000, size=12)
  error = found.spread / np.sqrt(2000)
  assert abs(found.value - whole) < 5 * error
  assert found.spread > 10 * error
  assert found == kernel.kid(X, Y, subsets=2000, size=12)
  assert found != kernel.kid(X, Y, subsets=2000, size=12, seed=1)


def test_of_one_distribution_it_is_zero_on_the_average():
  draws = [
    kernel.squared_mmd(*RNG.standard_normal((2, 8, 4))) for _ in range(4000)
  ]
  assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(len(draws))
  assert min(draws) < 0


def test_a_sample_is_uniform_over_the_stream():
  kept = np.zeros(40)
  for seed in range(600):
    sample = kernel.Sample(10, seed)
    for part in np.split(np.arange(40.0)[:, None], [3, 4, 25]):
      sample.add(part)
    assert len(sample.rows) == 10
    kept[sample.rows[:, 0].astype(int)] += 1
  deviation = np.sqrt(600 * 0.25 * 0.75)
  assert np.abs(kept - 150).max() < 4.5 * deviation


def test_a_short_stream_is_kept_whole_and_in_order():
  sample = kernel.Sample(100)
  sample.add(X[:7])
  sample.add(X[7:])
  np.testing.assert_array_equal(sample.rows, X)


@pytest.mark.parametrize(
  ('call', 'says'),
  [
    (lambda: kernel.squared_mmd(X[:1], Y), 'two examples'),
    (lambda: kernel.squared_mmd(X[:, :3], Y), 'one set has 3'),
    (lambda: kernel.kid(X, Y, subsets=0), '0 subsets'),
    (lambda: kernel.Sample(3).rows, 'no features'),
  ],
)
def test_what_cannot_be_is_said(call, says):
  with pytest.raises(UserError, match=says):
    call()
