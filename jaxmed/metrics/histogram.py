"""Metrics of two histograms over rising scores: what a bootstrap needs.

A statistic is the histogram of the negatives followed by that of the
positives, [..., 2 * bins]; a sum of groups is one again. With a bin for each
distinct score every metric is exact, ties included. Large sets share bins of
about equal counts: 1,024 change an AUROC in the sixth digit.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 1024
EXACT_BINS = 2048  # As many distinct scores are kept apart.

Statistics = Float[np.ndarray, '*r d']


def places(
  scores: Float[np.ndarray, 'n'], exact: int = EXACT_BINS, bins: int = BINS
) -> tuple[Int[np.ndarray, 'n'], int]:
  """The bin of each score, and how many bins there are."""
  values, place, count = np.unique(
    scores, return_inverse=True, return_counts=True
  )
  merge = merged(count, exact, bins)
  return merge[place.ravel()], int(merge[-1]) + 1 if len(merge) else 0


def merged(
  count: Int[np.ndarray, 'values'], exact: int = EXACT_BINS, bins: int = BINS
) -> Int[np.ndarray, 'values']:
  """The bin of each distinct value, given how often each occurs."""
  if len(count) <= exact:
    return np.arange(len(count))
  before = np.cumsum(count) - count
  share = (before * bins) // max(int(count.sum()), 1)
  return np.unique(share, return_inverse=True)[1]


def statistics(
  labels: Bool[np.ndarray, 'n'],
  place: Int[np.ndarray, 'n'],
  bins: int,
  groups: Int[np.ndarray, 'n'],
  count: int,
) -> Float[np.ndarray, 'groups d']:
  """Both histograms of every group."""
  at = groups * (2 * bins) + labels.astype(np.int64) * bins + place
  flat = np.bincount(at, minlength=count * 2 * bins)
  return flat.reshape(count, 2 * bins).astype(np.float64)


def auroc(sums: Statistics) -> Float[np.ndarray, '*r']:
  """Ties count half; NaN where a class is missing."""
  negative, positive = _split(sums)
  below = np.cumsum(negative, axis=-1) - 0.5 * negative
  pairs = negative.sum(axis=-1) * positive.sum(axis=-1)
  return _ratio((positive * below).sum(axis=-1), pairs)


def average_precision(sums: Statistics) -> Float[np.ndarray, '*r']:
  """The step sum; NaN where a class is missing."""
  false, true = _falling(sums)
  precision = _ratio(true, true + false, 0.0)
  gained = np.diff(true, axis=-1, prepend=0)
  area = _ratio((precision * gained).sum(axis=-1), true[..., -1])
  return np.where(false[..., -1] > 0, area, np.nan)


def youden_point(sums: Statistics) -> tuple[np.ndarray, ...]:
  """TN, FP, FN, TP at the best Youden index; of equals the highest cut."""
  false, true = _falling(sums)
  index = _ratio(true, true[..., -1:]) - _ratio(false, false[..., -1:])
  # NaN where a class is missing; the counts then say so themselves.
  best = np.nan_to_num(index, nan=-1.0).argmax(axis=-1)[..., None]
  fp = np.take_along_axis(false, best, -1)[..., 0]
  tp = np.take_along_axis(true, best, -1)[..., 0]
  return false[..., -1] - fp, fp, true[..., -1] - tp, tp


def best_f1(sums: Statistics) -> Float[np.ndarray, '*r']:
  """The largest F1 of any cut; NaN where a class is missing."""
  false, true = _falling(sums)
  values = _ratio(2 * true, true + false + true[..., -1:], 0.0).max(axis=-1)
  both = (false[..., -1] > 0) & (true[..., -1] > 0)
  return np.where(both, values, np.nan)


def roc_on_grid(
  sums: Float[np.ndarray, 'r d'], grid: Float[np.ndarray, 'g']
) -> Float[np.ndarray, 'r g']:
  """True positive rates at false positive rates, ties joined by lines."""
  false, true = _falling(sums)
  false = _with_origin(_ratio(false, false[..., -1:]))
  true = _with_origin(_ratio(true, true[..., -1:]))
  rows = [
    # Where the curve rises straight up, np.interp gives the upper end.
    np.interp(grid, x, y)
    if np.isfinite(x[-1]) and np.isfinite(y[-1])
    else np.full(len(grid), np.nan)
    for x, y in zip(false, true, strict=True)
  ]
  return np.array(rows).reshape(len(sums), len(grid))


def precision_on_grid(
  sums: Float[np.ndarray, 'r d'], grid: Float[np.ndarray, 'g']
) -> Float[np.ndarray, 'r g']:
  """Precision of the highest cut that reaches each recall."""
  false, true = _falling(sums)
  precision = _ratio(true, true + false, 1.0)
  recall = _ratio(true, true[..., -1:])
  rows = []
  for x, y in zip(recall, precision, strict=True):
    if not np.isfinite(x[-1]):
      rows.append(np.full(len(grid), np.nan))
      continue
    seen = np.flatnonzero(x > 0)[0]  # Before, nothing anomalous is called.
    at = np.maximum(np.searchsorted(x, grid - 1e-12), seen)
    rows.append(y[np.minimum(at, len(y) - 1)])
  return np.array(rows).reshape(len(sums), len(grid))


def _split(sums):
  bins = sums.shape[-1] // 2
  return sums[..., :bins], sums[..., bins:]


def _falling(sums):
  """False and true positives as the threshold falls."""
  return tuple(np.cumsum(part[..., ::-1], axis=-1) for part in _split(sums))


def _with_origin(values):
  return np.concatenate([np.zeros_like(values[..., :1]), values], axis=-1)


def _ratio(part, whole, empty=np.nan):
  part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
  shape = np.broadcast(part, whole).shape
  return np.divide(part, whole, np.full(shape, empty), where=whole > 0)
