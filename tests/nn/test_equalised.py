import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.nn.equalised import Conv, Dense, leaky

DICE = np.random.default_rng(0)
X = DICE.standard_normal((5, 6)).astype(np.float32)


def test_dense_scales_its_weights_when_it_uses_them():
  kernel = DICE.standard_normal((6, 3)).astype(np.float32)
  bias = DICE.standard_normal(3).astype(np.float32)
  params = {'params': {'kernel': kernel, 'bias': bias}}
  found = Dense(3, rate=0.01).apply(params, X)
  expected = X @ kernel * 0.01 / np.sqrt(6) + 0.01 * bias[None]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('rate', [1.0, 0.01])
def test_a_rate_changes_nothing_at_the_beginning(rate):
  """Outputs are of the same spread, and a bias is where it was put."""
  dense = Dense(400, rate=rate, bias=1.0)
  x = DICE.standard_normal((50, 300)).astype(np.float32)
  params = dense.init(jax.random.key(0), x)
  y = dense.apply(params, x)
  assert float(y.std()) == pytest.approx(1, rel=0.05)
  assert float(y.mean()) == pytest.approx(1, abs=0.05)
  deviation = float(params['params']['kernel'].std())
  assert deviation == pytest.approx(1 / rate, rel=0.05)


@pytest.mark.parametrize('stride', [1, 2])
def test_conv_is_torchs_with_scaled_weights(stride):
  torch = pytest.importorskip('torch')
  x = DICE.standard_normal((2, 9, 9, 4)).astype(np.float32)
  kernel = DICE.standard_normal((3, 3, 4, 5)).astype(np.float32)
  bias = DICE.standard_normal(5).astype(np.float32)
  conv = Conv(5, 3, stride, pad=0)
  found = conv.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  theirs = torch.nn.functional.conv2d(
    torch.tensor(x.transpose(0, 3, 1, 2)),
    torch.tensor(kernel.transpose(3, 2, 0, 1)) / np.sqrt(36),
    torch.tensor(bias),
    stride=stride,
  )
  theirs = theirs.permute(0, 2, 3, 1)
  np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-5)


def test_leaky_keeps_the_mean_square_of_a_normal():
  x = DICE.standard_normal(100_000)
  # (1 + 0.04) / 2 of it passes, and the gain doubles that.
  assert np.square(leaky(x)).mean() == pytest.approx(1.04, rel=0.02)


def test_bfloat16_is_computed_in_and_parameters_are_not():
  conv = Conv(5, 3, dtype=jnp.bfloat16)
  x = np.ones((1, 4, 4, 2), np.float32)
  params = conv.init(jax.random.key(0), x)
  assert conv.apply(params, x).dtype == jnp.bfloat16
  kinds = {leaf.dtype for leaf in jax.tree.leaves(params)}
  assert kinds == {jnp.dtype('float32')}
