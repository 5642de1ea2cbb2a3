"""Fits of a slope and an offset against scikit-learn and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from jaxmed.ops import calibration


def _draw(count=4000, share=0.2, size=7.0, shift=-2.0, seed=0):
  """Log-odds that are `size` times too large and shifted."""
  dice = np.random.default_rng(seed)
  truth = dice.normal(special.logit(share), 2.0, count)
  label = (dice.random(count) < special.expit(truth)).astype(np.int32)
  return (size * truth + shift).astype(np.float32), label


def _fit(odds, label, valid=None, **options):
  valid = np.ones(len(odds), bool) if valid is None else valid
  run = jax.jit(lambda *x: calibration.fit(*x, **options))
  return [float(x) for x in run(odds, label, jnp.asarray(valid))]


def _targets(label):
  many = label.sum()
  few = len(label) - many
  return np.where(label == 1, (many + 1) / (many + 2), 1 / (few + 2))


def test_both_are_those_of_a_logistic_regression():
  odds, label = _draw()
  slope, offset = _fit(odds, label)
  targets = _targets(label)  # One row for each class, weighed by the target.
  rows = np.concatenate([odds, odds])[:, None].astype(np.float64)
  classes = np.repeat([1, 0], len(odds))
  known = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
    rows, classes, sample_weight=np.concatenate([targets, 1 - targets])
  )
  assert slope == pytest.approx(known.coef_.item(), rel=1e-3)
  assert offset == pytest.approx(known.intercept_.item(), rel=2e-3)
  assert slope == pytest.approx(1 / 7, rel=0.1)
  said = special.expit(slope * odds + offset)
  for low in np.arange(0, 1, 0.2):  # It means what it says.
    here = (said >= low) & (said < low + 0.2)
    assert said[here].mean() == pytest.approx(label[here].mean(), abs=0.06)


@pytest.mark.parametrize('balanced', [False, True])
def test_a_temperature_alone_is_the_minimum(balanced):
  odds, label = _draw(count=500, shift=1.0)
  slope, offset = _fit(odds, label, offset=False, balanced=balanced)
  targets, weight = _targets(label), np.ones(len(label))
  if balanced:
    weight = np.where(label == 1, 1 / label.sum(), 1 / (label == 0).sum())
  z = odds.astype(np.float64)
  loss = lambda a: (weight * (np.logaddexp(0, a * z) - targets * a * z)).sum()
  best = optimize.minimize_scalar(loss, bounds=(1e-4, 5), method='bounded')
  assert offset == 0
  assert slope == pytest.approx(best.x, rel=2e-3)


def test_padding_is_in_no_fit():
  odds, label = _draw(count=300)
  loud = np.full(50, 1e4, np.float32)
  valid = np.arange(350) < 300
  padded = np.concatenate([odds, loud]), np.concatenate([label, 0 * loud])
  for options in ({}, {'offset': False, 'balanced': True}):
    want = _fit(odds, label, **options)
    got = _fit(padded[0], padded[1].astype(np.int32), valid, **options)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e4])
def test_classes_that_are_apart_have_a_finite_slope(scale):
  odds = np.array([-3, -2, -1, 1, 2, 3], np.float32) * scale
  label = np.array([0, 0, 0, 1, 1, 1], np.int32)
  slope, offset = _fit(odds, label)
  said = special.expit(slope * odds + offset)
  assert np.isfinite([slope, offset]).all() and 0.5 < said.max() < 0.99
  np.testing.assert_allclose(said, 1 - said[::-1], atol=1e-3)


def test_the_order_stays_even_where_the_classifier_is_wrong():
  odds, label = _draw(count=400)
  for options in ({}, {'offset': False}):
    slope, offset = _fit(-odds, label, **options)
    assert slope > 0 and slope * np.ptp(odds) < 0.02  # It says nothing.
  slope, offset = _fit(-odds, label)
  share = special.expit(slope * -odds + offset)
  np.testing.assert_allclose(share, _targets(label).mean(), atol=0.01)


def test_log_odds_that_are_all_zero_leave_the_slope():
  label = np.array([0, 0, 0, 1], np.int32)
  slope, offset = _fit(np.zeros(4, np.float32), label)
  assert slope == 1.0
  assert special.expit(offset) == pytest.approx(_targets(label).mean(), 1e-3)
