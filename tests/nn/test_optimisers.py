import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmed.nn import optimisers

GRADIENT = np.array([3.0, -0.5, 1e-8, 0.0], np.float32)


def _steps(optimiser, gradients):
  params = jnp.ones(4)
  state = optimiser.init(params)
  for gradient in gradients:
    updates, state = optimiser.update(jnp.asarray(gradient), state, params)
    params = optax.apply_updates(params, updates)
    yield np.asarray(updates, np.float64)


def test_the_first_rmsprop_step_is_nearly_plain_descent():
  (step,) = _steps(optimisers.rmsprop(0.01), [GRADIENT])
  g = GRADIENT.astype(np.float64)
  by_hand = -0.01 * g / np.sqrt(0.9 * 1 + 0.1 * g**2 + 1e-10)
  np.testing.assert_allclose(step, by_hand, rtol=1e-6)
  assert step[1] == pytest.approx(0.01 * 0.5 / np.sqrt(0.925), rel=1e-6)


def test_adam_adds_epsilon_to_the_uncorrected_root():
  optimiser = optimisers.adam(0.1, beta1=0.5, beta2=0.9, epsilon=1e-8)
  gradients = [GRADIENT, -2 * GRADIENT]
  m, v = np.zeros(4), np.zeros(4)
  for t, step in enumerate(_steps(optimiser, gradients), start=1):
    g = gradients[t - 1].astype(np.float64)
    m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g**2
    size = 0.1 * np.sqrt(1 - 0.9**t) / (1 - 0.5**t)
    np.testing.assert_allclose(step, -size * m / (np.sqrt(v) + 1e-8), rtol=1e-4)


def test_without_momentum_adams_first_step_is_the_sign():
  (step,) = _steps(optimisers.adam(1e-4, 0.0, 0.9), [GRADIENT])
  np.testing.assert_allclose(step[:2], [-1e-4, 1e-4], rtol=1e-4)
  # A gradient of the size of epsilon: root 0.1 of it, not of 1 of it.
  root = np.sqrt(0.1)
  np.testing.assert_allclose(
    step[2], -1e-4 * root * 1e-8 / (root * 1e-8 + 1e-8), rtol=1e-3
  )
  assert step[3] == 0
