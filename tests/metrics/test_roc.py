"""Cuts and curves by hand and against scikit-learn."""

import fractions

import numpy as np
from sklearn import metrics

from jaxmed.metrics import roc

LABELS = np.array([0, 0, 1, 0, 1, 1])
SCORES = np.array([0.1, 0.4, 0.4, 0.6, 0.8, 0.9])


def test_cuts_by_hand():
  # At 0.8 two of three are found and nothing else; at 0.4 all three, and two
  # normals with them.
  best = roc.youden(LABELS, SCORES)
  assert (best.threshold, best.specificity) == (0.8, 1.0)
  np.testing.assert_allclose(best.sensitivity, 2 / 3)
  cut = roc.confusion(LABELS, SCORES, 0.4)
  assert cut == (1, 2, 0, 3)
  assert roc.confusion(LABELS, SCORES, 0.4, strict=True) == (2, 1, 1, 2)
  np.testing.assert_allclose(cut.f1, 6 / 8)
  found = roc.sensitivity_at_specificity(LABELS, SCORES, 0.9)
  np.testing.assert_allclose(found, 2 / 3)
  assert roc.sensitivity_at_specificity(LABELS, SCORES, 0.3) == 1


def test_confusion_is_sklearns():
  rng = np.random.default_rng(0)
  labels, scores = rng.random(80) < 0.4, rng.standard_normal(80)
  cut = roc.confusion(labels, scores, 0.1)
  called = scores >= 0.1
  for ours, theirs in (
    (cut.matthews, metrics.matthews_corrcoef),
    (cut.balanced_accuracy, metrics.balanced_accuracy_score),
    (cut.f1, metrics.f1_score),
    (cut.accuracy, metrics.accuracy_score),
  ):
    np.testing.assert_allclose(ours, theirs(labels, called))


def test_best_f1_is_the_largest_of_all_cuts():
  best = roc.best_f1(LABELS, SCORES)
  all_cuts = [
    (metrics.f1_score(LABELS, t <= SCORES), t) for t in np.unique(SCORES)
  ]
  np.testing.assert_allclose(best.f1, max(v for v, _ in all_cuts))
  np.testing.assert_allclose(
    best.f1, metrics.f1_score(LABELS, best.threshold <= SCORES)
  )


def test_of_equal_cuts_the_promised_one_is_taken():
  """Whatever the rounding of rates: compared in fractions."""
  for seed in range(100):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(30) < rng.integers(1, 29))
    scores = rng.integers(0, 9, 30).astype(float)
    cuts = {t: roc.confusion(labels, scores, t) for t in np.unique(scores)}
    ratio = lambda part, whole: fractions.Fraction(int(part), int(whole))
    index = {
      t: ratio(c.true_positives, labels.sum())
      - ratio(c.false_positives, (~labels).sum())
      for t, c in cuts.items()
    }
    best = max(index.values())
    if best > 0:
      highest = max(t for t, value in index.items() if value == best)
      assert roc.youden(labels, scores).threshold == highest
    f1 = {
      t: ratio(2 * c.true_positives, labels.sum() + c[1] + c[3])
      for t, c in cuts.items()
    }
    lowest = min(t for t, value in f1.items() if value == max(f1.values()))
    found = roc.best_f1(labels, scores)
    assert found.threshold == lowest
    np.testing.assert_allclose(found.f1, float(f1[lowest]))


def test_one_class_has_no_area():
  assert np.isnan(roc.auroc(np.ones(4), np.arange(4.0)))
  assert np.isnan(roc.average_precision(np.zeros(4), np.arange(4.0)))
  assert roc.confusion(np.ones(4), np.arange(4.0), 2).matthews == 0
