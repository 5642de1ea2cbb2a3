import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.ops import fir

DICE = np.random.default_rng(0)
X = DICE.standard_normal((2, 7, 9, 3)).astype(np.float32)
ODD = DICE.standard_normal((3, 4))
# Kernel, up, down, pads.
CASES = {
  'plain': (ODD, (1, 1), (1, 1), ((0, 0), (0, 0))),
  'up': (fir.outer(), (2, 2), (1, 1), ((2, 1), (2, 1))),
  'down': (fir.outer(), (1, 1), (2, 2), ((1, 1), (1, 1))),
  'both': (ODD, (2, 2), (3, 3), ((2, 1), (2, 1))),
  'axes': (ODD, (2, 1), (1, 2), ((1, 2), (3, 0))),
  'sparse': (ODD[:, :2], (3, 4), (1, 1), ((0, 2), (1, 5))),
  'crop': (ODD, (2, 1), (1, 1), ((-3, 2), (4, -2))),
}


def by_hand(x, kernel, up, down, pads):
  """As it is defined, number by number."""
  b, h, w, c = x.shape
  large = np.zeros((b, h * up[0], w * up[1], c))
  large[:, :: up[0], :: up[1]] = x
  (top, bottom), (left, right) = pads
  far = 10  # Zeros enough for any crop.
  large = np.pad(large, ((0, 0), (far, far), (far, far), (0, 0)))
  large = large[
    :,
    far - top : large.shape[1] - far + bottom,
    far - left : large.shape[2] - far + right,
  ]
  rows, columns = kernel.shape
  turned = kernel[::-1, ::-1]
  found = np.zeros(
    (b, large.shape[1] - rows + 1, large.shape[2] - columns + 1, c)
  )
  for i in range(found.shape[1]):
    for j in range(found.shape[2]):
      window = large[:, i : i + rows, j : j + columns]
      found[:, i, j] = np.einsum('bhwc,hw->bc', window, turned)
  return found[:, :: down[0], :: down[1]]


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_values_are_those_of_the_definition(case):
  found = jax.jit(lambda x: fir.upfirdn(x, *case))(X)
  np.testing.assert_allclose(found, by_hand(X, *case), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['up', 'down', 'both', 'crop'])
def test_gradients_are_the_transposed_filters(name):
  case, small = CASES[name], X[:1, :, :, :1]
  weights = DICE.standard_normal(by_hand(small, *case).shape)
  weights = weights.astype(np.float32)
  total = lambda x: (fir.upfirdn(x, *case) * weights).sum()
  # Linear: <K x, y> = <x, K^T y> for all x, so for every unit vector.
  found = jax.jit(jax.grad(total))(small)
  units = np.eye(small.size, dtype=np.float32).reshape(-1, *small.shape[1:])
  expected = (by_hand(units, *case) * weights).sum(axis=(1, 2, 3))
  np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients():
  """R1 needs them: of |K^T K x|^2, twice through the filter."""
  plain = lambda x: jnp.square(fir.blur(x, (2, 1))).sum() / 2
  twice = lambda x: jnp.square(jax.grad(plain)(x)).sum() / 2
  x = X[:1, :5, :5, :1]
  found = jax.jit(jax.grad(twice))(x)
  case = fir.outer(), (1, 1), (1, 1), ((2, 1), (2, 1))
  units = np.eye(x.size).reshape(-1, *x.shape[1:])
  matrix = by_hand(units, *case).reshape(x.size, -1).T
  square = matrix.T @ matrix
  expected = square @ square @ x.ravel()
  np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-6)


def test_a_constant_stays_constant_within():
  x = np.ones((1, 8, 8, 1), np.float32)
  np.testing.assert_allclose(fir.upsample(x)[:, 2:-2, 2:-2], 1, rtol=1e-6)
  np.testing.assert_allclose(fir.downsample(x)[:, 1:-1, 1:-1], 1, rtol=1e-6)
  assert fir.upsample(x).shape == (1, 16, 16, 1)
  assert fir.downsample(x).shape == (1, 4, 4, 1)


def test_values_are_torchs():
  torch = pytest.importorskip('torch')
  x = torch.tensor(X.transpose(0, 3, 1, 2))
  kernel = torch.tensor(4 * fir.outer(), dtype=torch.float32)
  kernel = kernel.expand(3, 1, 4, 4)
  theirs = torch.nn.functional.conv_transpose2d(
    x, kernel, stride=2, padding=1, groups=3
  )
  found = fir.upsample(X).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-5)


def test_a_filter_larger_than_the_map_is_an_error():
  with pytest.raises(ValueError, match='4 taps does not fit into 2 pixels'):
    fir.upfirdn(X[:, :2], fir.outer())
