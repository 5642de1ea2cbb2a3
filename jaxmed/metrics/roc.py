"""Metrics of scores against labels: curves, areas, and what a cut gives.

A score is anomalous when it is at least the threshold. Where the labels are
of one class, areas are NaN; whoever writes them out says why.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn import metrics

Labels = Bool[np.ndarray, 'n'] | Int[np.ndarray, 'n']
Scores = Float[np.ndarray, 'n']


class RocCurve(NamedTuple):
  """Thresholds fall from inf; every distinct score is a point."""

  false_positive_rate: np.ndarray
  true_positive_rate: np.ndarray
  thresholds: np.ndarray


class PrCurve(NamedTuple):
  """Thresholds rise; the last point is precision 1 at recall 0."""

  precision: np.ndarray
  recall: np.ndarray
  thresholds: np.ndarray


class Youden(NamedTuple):
  """Where sensitivity + specificity - 1 is largest; of equals the highest."""

  threshold: float
  sensitivity: float
  specificity: float
  index: float


class BestF1(NamedTuple):
  """The largest F1; of equals the lowest threshold."""

  f1: float
  threshold: float
  precision: float
  recall: float


class Confusion(NamedTuple):
  """Counts at a threshold; every field may be an array of many resamples."""

  true_negatives: Shaped[np.ndarray, '...']
  false_positives: Shaped[np.ndarray, '...']
  false_negatives: Shaped[np.ndarray, '...']
  true_positives: Shaped[np.ndarray, '...']

  @property
  def sensitivity(self):
    return _ratio(
      self.true_positives, self.true_positives + self.false_negatives
    )

  @property
  def specificity(self):
    return _ratio(
      self.true_negatives, self.true_negatives + self.false_positives
    )

  @property
  def accuracy(self):
    return _ratio(self.true_positives + self.true_negatives, sum(self))

  @property
  def balanced_accuracy(self):
    return (self.sensitivity + self.specificity) / 2

  @property
  def f1(self):
    wrong = self.false_positives + self.false_negatives
    return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

  @property
  def matthews(self):
    """Matthews' correlation coefficient; 0 where a margin is empty."""
    tn, fp, fn, tp = (np.asarray(count, np.float64) for count in self)
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return np.where(
      margins > 0,
      (tp * tn - fp * fn) / np.sqrt(np.where(margins > 0, margins, 1)),
      0.0,
    )


def auroc(labels: Labels, scores: Scores) -> float:
  """Area under the ROC curve; ties count half."""
  if not _two_classes(labels):
    return float('nan')
  return float(metrics.roc_auc_score(labels, scores))


def average_precision(labels: Labels, scores: Scores) -> float:
  """The sum of precision over steps of recall, without interpolation."""
  if not _two_classes(labels):
    return float('nan')
  return float(metrics.average_precision_score(labels, scores))


def roc_curve(labels: Labels, scores: Scores) -> RocCurve:
  curve = metrics.roc_curve(labels, scores, drop_intermediate=False)
  return RocCurve(*curve)


def pr_curve(labels: Labels, scores: Scores) -> PrCurve:
  return PrCurve(*metrics.precision_recall_curve(labels, scores))


def youden(labels: Labels, scores: Scores) -> Youden:
  false, true, thresholds = roc_curve(labels, scores)
  # In whole numbers, so that equals are equal: tp * N - fp * P.
  positives = np.count_nonzero(labels)
  negatives = len(labels) - positives
  called = np.rint(true * positives) * negatives
  best = int(np.argmax(called - np.rint(false * negatives) * positives))
  return Youden(
    float(thresholds[best]),
    float(true[best]),
    float(1 - false[best]),
    float(true[best] - false[best]),
  )


def best_f1(labels: Labels, scores: Scores) -> BestF1:
  precision, recall, thresholds = pr_curve(labels, scores)
  precision, recall = precision[:-1], recall[:-1]
  # Of counts: by precision and recall, equals would differ by rounding.
  positives = np.count_nonzero(labels)
  called = len(scores) - np.searchsorted(np.sort(scores), thresholds)
  values = _ratio(2 * np.rint(recall * positives), called + positives)
  best = int(np.argmax(np.nan_to_num(values)))
  return BestF1(
    float(values[best]),
    float(thresholds[best]),
    float(precision[best]),
    float(recall[best]),
  )


def confusion(
  labels: Labels, scores: Scores, threshold: float, strict: bool = False
) -> Confusion:
  """Counts where `scores >= threshold` is called anomalous.

  `strict` calls only what lies above: for a quantile of normal scores, which
  may all be equal.
  """
  labels = np.asarray(labels).astype(bool)
  called = scores > threshold if strict else scores >= threshold
  return Confusion(
    *(
      np.count_nonzero((labels == truth) & (called == call))
      for truth in (False, True)
      for call in (False, True)
    )
  )


def sensitivity_at_specificity(
  labels: Labels, scores: Scores, specificity: float
) -> float:
  """The largest sensitivity of thresholds with at least this specificity."""
  false, true, _ = roc_curve(labels, scores)
  return float(true[1 - false >= specificity].max())


def _two_classes(labels: Labels) -> bool:
  labels = np.asarray(labels).astype(bool)
  return bool(labels.any() and not labels.all())


def _ratio(part, whole):
  """NaN where there is nothing to divide by."""
  part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
  shape = np.broadcast(part, whole).shape
  return np.divide(part, whole, np.full(shape, np.nan), where=whole > 0)
