"""Mean and covariance of features that pass by: no bank of them is held."""

import numpy as np
from jaxtyping import Float

from jaxmed.errors import UserError


class Moments:
  """Running sums in float64, around the mean so far.

  Sums of plain products would lose what is small beside the mean; these are
  merged as Chan, Golub and LeVeque do (1979).
  """

  def __init__(self):
    self.count = 0
    self._mean, self._scatter = 0.0, 0.0

  def add(self, rows: Float[np.ndarray, 'n d']) -> None:
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2:
      raise UserError(
        f'Features are rows of numbers, but got an array of {list(rows.shape)}.'
      )
    if not np.isfinite(rows).all():
      raise UserError(
        'Features hold NaN or infinite numbers: look for such images.'
      )
    if not len(rows):
      return
    other = Moments()
    other.count, other._mean = len(rows), rows.mean(axis=0)
    centred = rows - other._mean
    other._scatter = centred.T @ centred
    self.merge(other)

  def merge(self, other: 'Moments') -> None:
    """Those of another part of the data, e.g. of another host."""
    if not other.count:
      return
    count = self.count + other.count
    away = other._mean - self._mean
    self._mean = self._mean + away * (other.count / count)
    between = np.outer(away, away) * (self.count * other.count / count)
    self._scatter = self._scatter + other._scatter + between
    self.count = count

  @property
  def mean(self) -> Float[np.ndarray, ' d']:
    self._need(1)
    return self._mean

  @property
  def covariance(self) -> Float[np.ndarray, 'd d']:
    """The unbiased one."""
    self._need(2)
    return self._scatter / (self.count - 1)

  def _need(self, least: int) -> None:
    if self.count < least:
      raise UserError(
        f'{least} examples are needed for this, but there have been '
        f'{self.count}.'
      )
