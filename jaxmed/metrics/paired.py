"""Do two scores of the same examples differ by more than chance?

Both are measured on the same resamples of whole groups, so that what makes a
resample easy is easy for both and falls out of the difference. Where a method
was trained with several seeds its measure is their mean, and in every resample
the seeds are drawn again as well as the groups.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxmed.metrics import bootstrap

ROUND = 12  # Digits: the same AUROC by another sum is no difference.


@dataclasses.dataclass(frozen=True)
class Measured:
  """A metric, and what it is in every resample; NaN where not defined."""

  value: float
  many: Float[np.ndarray, ' resamples']
  reason: str = ''  # Why there is no value.

  @property
  def interval(self) -> tuple[float, float]:
    if not np.isfinite(self.value):
      return np.nan, np.nan
    low, high = bootstrap.band(self.many)
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Difference:
  """Of two measures, the first less the second; NaN where not defined."""

  value: float
  low: float
  high: float
  p: float
  reason: str = ''


def over_seeds(measured: Sequence[Measured], seed: int) -> Measured:
  """The mean over runs that differ by their seed alone.

  `seed` is of drawing them: another one for each method, whose seeds have
  nothing to do with each other.
  """
  if len(measured) == 1:
    return measured[0]
  values = np.array([one.value for one in measured])
  many = np.stack([one.many for one in measured], axis=1)
  drawn = bootstrap.resample(len(measured), len(many), seed) / len(measured)
  reason = next((one.reason for one in measured if one.reason), '')
  return Measured(float(values.mean()), (drawn * many).sum(axis=1), reason)


def difference(one: Measured, other: Measured, groups: int) -> Difference:
  """With its interval and its two-sided p-value, over resampled groups.

  The p-value is that of the interval: below 0.05 where the interval of 95 %
  leaves out 0. It is never below what turning the signs of so many groups
  could give at best, 2 / 2 ** groups: of few groups a bootstrap says too much.
  """
  nothing = Difference(np.nan, np.nan, np.nan, np.nan)
  value = round(one.value - other.value, ROUND)
  if not np.isfinite(value):
    return dataclasses.replace(nothing, reason=one.reason or other.reason)
  many = np.round(one.many - other.many, ROUND)
  many = many[np.isfinite(many)]
  if groups < 2 or not len(many):
    reason = 'all examples are of one group'
    if groups > 1:
      reason = 'no resample had both classes'
    return dataclasses.replace(nothing, value=value, reason=reason)
  low, high = bootstrap.band(many)
  tail = min(np.count_nonzero(many <= 0), np.count_nonzero(many >= 0))
  p = 2 * (1 + tail) / (1 + len(many))
  p = min(1.0, max(p, 2.0 ** (1 - groups)))
  return Difference(value, float(low), float(high), p)


def holm(p: Sequence[float]) -> Float[np.ndarray, ' n']:
  """Holm's p-values of several comparisons; NaN counts for none.

  The smallest is multiplied by their number, the next by one less, and none
  is smaller than the one before it.
  """
  p = np.asarray(p, np.float64)
  known = np.flatnonzero(~np.isnan(p))
  order = known[np.argsort(p[known], kind='stable')]
  found = np.full(len(p), np.nan)
  scaled = p[order] * np.arange(len(order), 0, -1)
  found[order] = np.minimum(np.maximum.accumulate(scaled), 1)
  return found
