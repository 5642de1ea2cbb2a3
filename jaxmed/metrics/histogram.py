"""Metrics of two histograms over rising scores: what a bootstrap needs.

A statistic is the histogram of the negatives followed by that of the
positives, [..., 2 * bins]; a sum of groups is one again. With a bin for each
distinct score every metric is exact, ties included. Large sets share bins of
about equal counts: 1,024 change an AUROC in the sixth digit.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 1024
EXACT_BINS = 2048  # As many distinct scores are kept apart.


def places(
  scores: Float[np.ndarray, ' n'], exact: int = EXACT_BINS, bins: int = BINS
) -> tuple[Int[np.ndarray, ' n'], int]:
  """The bin of each score, and how many bins there are."""
  values, place, count = np.unique(
    scores, return_inverse=True, return_counts=True
  )
  merge = merged(count, exact, bins)
  return merge[place.ravel()], int(merge[-1]) + 1 if len(merge) else 0


def merged(
  count: Int[np.ndarray, ' values'], exact: int = EXACT_BINS, bins: int = BINS
) -> Int[np.ndarray, ' values']:
  """The bin of each distinct value, given how often each occurs."""
  if len(count) <= exact:
    return np.arange(len(count))
  before = np.cumsum(count) - count
  share = (before * bins) // max(int(count.sum()), 1)
  return np.unique(share, return_inverse=True)[1]


def statistics(
  labels: Bool[np.ndarray, ' n'],
  place: Int[np.ndarray, ' n'],
  bins: int,
  groups: Int[np.ndarray, ' n'],
  count: int,
) -> Float[np.ndarray, 'groups d']:
  """Both histograms of every group."""
  at = groups * (2 * bins) + labels.astype(np.int64) * bins + place
  flat = np.bincount(at, minlength=count * 2 * bins)
  return flat.reshape(count, 2 * bins).astype(np.float64)


class Falling(NamedTuple):
  """False and true positives as the threshold falls, from none called."""

  false: Float[np.ndarray, '*r cuts']
  true: Float[np.ndarray, '*r cuts']

  @property
  def both(self) -> Bool[np.ndarray, '*r']:
    """Whether there are examples of either class."""
    return (self.false[..., -1] > 0) & (self.true[..., -1] > 0)


def falling(sums: Float[np.ndarray, '*r d']) -> Falling:
  """What every metric here starts from."""
  bins = sums.shape[-1] // 2
  counts = np.zeros((2, *sums.shape[:-1], bins + 1))
  np.cumsum(sums[..., bins - 1 :: -1], axis=-1, out=counts[0, ..., 1:])
  np.cumsum(sums[..., : bins - 1 : -1], axis=-1, out=counts[1, ..., 1:])
  return Falling(*counts)


def auroc(counts: Falling) -> Float[np.ndarray, '*r']:
  """Ties count half; NaN where a class is missing."""
  area = np.trapezoid(counts.true, counts.false, axis=-1)
  return _ratio(area, counts.false[..., -1] * counts.true[..., -1])


def average_precision(counts: Falling) -> Float[np.ndarray, '*r']:
  """The step sum; NaN where a class is missing."""
  precision = _ratio(counts.true, counts.true + counts.false, 0.0)
  gained = np.diff(counts.true, axis=-1)
  area = (precision[..., 1:] * gained).sum(axis=-1)
  return np.where(counts.both, _ratio(area, counts.true[..., -1]), np.nan)


def youden_point(counts: Falling) -> tuple[np.ndarray, ...]:
  """TN, FP, FN, TP at the best Youden index; of equals the highest cut.

  Where a class is missing nothing is called anomalous.
  """
  false, true = counts
  # In whole numbers, so that equals are equal.
  index = true * false[..., -1:] - false * true[..., -1:]
  return _counts_at(counts, index.argmax(axis=-1))


def best_f1_point(counts: Falling) -> tuple[np.ndarray, ...]:
  """TN, FP, FN, TP at the largest F1; of equals the lowest cut.

  Where a class is missing nothing is called anomalous.
  """
  rising = _f1(counts)[..., ::-1]
  return _counts_at(counts, rising.shape[-1] - 1 - rising.argmax(axis=-1))


def best_f1(counts: Falling) -> Float[np.ndarray, '*r']:
  """The largest F1 of any cut; NaN where a class is missing."""
  return np.where(counts.both, _f1(counts).max(axis=-1), np.nan)


def _f1(counts: Falling) -> Float[np.ndarray, '*r cuts']:
  false, true = counts
  return _ratio(2 * true, true + false + true[..., -1:], 0.0)


def _counts_at(counts: Falling, cut) -> tuple[np.ndarray, ...]:
  """TN, FP, FN, TP."""
  false, true = counts
  best = np.where(counts.both, cut, 0)[..., None]
  fp = np.take_along_axis(false, best, -1)[..., 0]
  tp = np.take_along_axis(true, best, -1)[..., 0]
  return false[..., -1] - fp, fp, true[..., -1] - tp, tp


def roc_on_grid(
  counts: Falling, grid: Float[np.ndarray, ' g']
) -> Float[np.ndarray, 'r g']:
  """True positive rates at false positive rates, ties joined by lines.

  Where the curve rises straight up, np.interp gives the upper end.
  """
  found = np.full((len(counts.false), len(grid)), np.nan)
  for i in np.flatnonzero(counts.both):
    false, true = counts.false[i], counts.true[i]
    found[i] = np.interp(grid * false[-1], false, true) / true[-1]
  return found


def precision_on_grid(
  counts: Falling, grid: Float[np.ndarray, ' g']
) -> Float[np.ndarray, 'r g']:
  """Precision of the highest cut that reaches each recall."""
  found = np.full((len(counts.false), len(grid)), np.nan)
  precision = _ratio(counts.true, counts.true + counts.false)
  for i in np.flatnonzero(counts.both):
    true = counts.true[i]
    # At recall 0: the first cut that finds anything.
    wanted = np.maximum(grid * true[-1] - 1e-9, 0)
    at = np.searchsorted(true, wanted, side='left')
    first = np.searchsorted(true, 0, side='right')
    found[i] = precision[i, np.maximum(at, first)]
  return found


def _ratio(part, whole, empty=np.nan):
  part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
  shape = np.broadcast(part, whole).shape
  return np.divide(part, whole, np.full(shape, float(empty)), where=whole > 0)
