"""Intervals by drawing whole groups (slides, patients) again.

Patches of one slide are alike, so drawing patches would promise too much. A
metric here is a statistic per group that can be added up, and a function of
the sum. All resamples are then one matrix product, [resamples, groups] times
[groups, statistics], instead of thousands of passes over the data.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

LEVEL = 0.95
BLOCK = 2**17  # Numbers of a product at a time: they stay in the cache.

Statistics = Float[np.ndarray, 'groups d'] | Int[np.ndarray, 'groups d']
Measure = Callable[[Float[np.ndarray, '*r d']], Float[np.ndarray, '*r']]


@dataclasses.dataclass(frozen=True)
class Number:
  """A metric with its interval; NaN where it is not defined."""

  value: float
  low: float
  high: float
  n: int
  positives: int
  groups: int
  dropped: int = 0  # Resamples in which it is not defined, e.g. one class.
  reason: str = ''  # Why value, or low and high, are missing.

  def as_dict(self) -> dict:
    """For JSON, which has no NaN."""
    found = dataclasses.asdict(self)
    for name in ('value', 'low', 'high'):
      found[name] = found[name] if np.isfinite(found[name]) else None
    if not self.reason:
      del found['reason']
    return found


def resample(
  groups: int, resamples: int, seed: int
) -> Int[np.ndarray, 'resamples groups']:
  """How often each group is drawn, as many draws as there are groups."""
  dice = np.random.default_rng(seed)
  share = np.full(groups, 1 / groups)
  return dice.multinomial(groups, share, size=resamples)


def sums(
  statistics: Statistics, groups: Int[np.ndarray, ' n'], count: int
) -> Float[np.ndarray, 'count d']:
  """Statistics of examples, added up by the number of their group."""
  total = np.zeros((count, statistics.shape[1]))
  np.add.at(total, groups, statistics)
  return total


def resampled(
  statistics: Statistics,
  measure: Callable[[np.ndarray], np.ndarray],
  counts: Int[np.ndarray, 'resamples groups'],
) -> Float[np.ndarray, '  resamples *m']:
  """The measure of every resample, in blocks that fit the memory."""
  statistics = np.asarray(statistics, np.float64)
  rows = max(1, BLOCK // max(statistics.shape[1], 1))
  # Threads of the linear algebra library gain nothing on products so small,
  # and on a busy machine they mostly wait for each other.
  with threadpool_limits(1, user_api='blas'):
    parts = [
      measure(counts[i : i + rows].astype(np.float64) @ statistics)
      for i in range(0, len(counts), rows)
    ]
  return np.concatenate(parts)


def band(values: Float[np.ndarray, '  resamples *m']):
  """Low and high ends over resamples, undefined ones left out."""
  tail = (1 - LEVEL) / 2
  kept = values[~np.isnan(values.reshape(len(values), -1)).any(axis=1)]
  if not len(kept):
    missing = np.full(values.shape[1:], np.nan)
    return missing, missing
  low, high = np.quantile(kept, (tail, 1 - tail), axis=0)
  return low, high


def interval(
  value: float,
  values: Float[np.ndarray, ' resamples'],
  n: int,
  positives: int,
  groups: int,
  reason: str = '',
) -> Number:
  """A number from its value and those of the resamples."""
  if not np.isfinite(value):
    return missing(reason or 'not defined', n, positives, groups)
  dropped = int(np.isnan(values).sum())
  if groups < 2:
    return Number(
      float(value),
      np.nan,
      np.nan,
      n,
      positives,
      groups,
      dropped,
      'no interval: all examples are of one group',
    )
  low, high = band(values)
  why = '' if np.isfinite(low) else 'no interval: no resample had both classes'
  return Number(
    float(value), float(low), float(high), n, positives, groups, dropped, why
  )


def missing(reason: str, n: int, positives: int, groups: int) -> Number:
  """A number that could not be computed, and why."""
  return Number(np.nan, np.nan, np.nan, n, positives, groups, 0, reason)
