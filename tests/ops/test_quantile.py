import jax
import numpy as np
import pytest

from jaxmed.ops.quantile import quantile

RNG = np.random.default_rng(0)
ROWS = {
  'normal': RNG.standard_normal(257),
  'ties': RNG.integers(-2, 3, 257) * 0.5,
  'one value': np.full(257, -3.0),
  'tiny and huge': RNG.standard_normal(257)
  * 10.0 ** RNG.integers(-38, 38, 257),
  'zeros of both signs': np.where(RNG.random(257) < 0.5, 0.0, -0.0),
}


@pytest.mark.parametrize('share', [0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize('kept', [1, 2, 3, 100, 257])
def test_as_numpy_has_it_of_any_values(share, kept):
  x = np.stack(list(ROWS.values())).astype(np.float32)
  where = np.zeros(x.shape, bool)
  for row in where:
    row[RNG.permutation(257)[:kept]] = True
  found = jax.jit(quantile, static_argnums=2)(x, where, share)
  for name, values, keep, value in zip(ROWS, x, where, found, strict=True):
    expected = np.quantile(values[keep].astype(np.float64), share)
    size = np.abs(values[keep]).max()
    np.testing.assert_allclose(value, expected, atol=1e-4 * size, err_msg=name)


def test_of_nothing_it_is_zero():
  x = RNG.standard_normal((2, 9)).astype(np.float32)
  where = np.array([[False] * 9, [True] * 9])
  found = quantile(x, where, 0.5)
  assert found[0] == 0
  assert found[1] == np.median(x[1])
