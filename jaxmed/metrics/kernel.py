"""Kernel distance of two sets of features: KID, of whatever features.

Binkowski, Sutherland, Arbel, Gretton: Demystifying MMD GANs, ICLR 2018. With
the kernel k(x, y) = (x y / d + 1)^3 of d features, the squared maximum mean
discrepancy of n features x and m features y is estimated without bias by

  sum_{i != j} k(x_i, x_j) / n (n - 1) + sum_{i != j} k(y_i, y_j) / m (m - 1)
    - 2 sum_{i, j} k(x_i, y_j) / n m

and may be below 0. Unlike FID it needs no more examples than features.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmed.errors import UserError

DEGREE = 3


class Kid(NamedTuple):
  """The mean over subsets, and their standard deviation."""

  value: float
  spread: float


def squared_mmd(
  x: Float[np.ndarray, 'n d'], y: Float[np.ndarray, 'm d']
) -> float:
  """The unbiased estimate."""
  x, y = _features(x), _features(y)
  if x.shape[1] != y.shape[1]:
    raise UserError(
      f'Features of one network are compared, but one set has {x.shape[1]} '
      f'numbers and the other {y.shape[1]}.'
    )
  across = _kernel(x, y).mean()
  return float(_within(x) + _within(y) - 2 * across)


def kid(
  x: Float[np.ndarray, 'n d'],
  y: Float[np.ndarray, 'm d'],
  subsets: int = 100,
  size: int = 1000,
  seed: int = 0,
) -> Kid:
  """Over random subsets of both sets, as large as they allow."""
  size = min(size, len(x), len(y))
  if subsets < 1:
    raise UserError(f'KID over {subsets} subsets: give 1 at least.')
  rng = np.random.default_rng(seed)
  draw = lambda of: of[rng.choice(len(of), size, replace=False)]
  found = [squared_mmd(draw(x), draw(y)) for _ in range(subsets)]
  return Kid(float(np.mean(found)), float(np.std(found)))


class Sample:
  """A uniform sample of a stream of rows; it holds `size` of them at most."""

  def __init__(self, size: int, seed: int = 0):
    self._size, self._rng = size, np.random.default_rng(seed)
    self._rows, self._ranks = None, np.zeros(0)

  def add(self, rows: Float[np.ndarray, 'n d']) -> None:
    """Every row draws a rank; those of the lowest stay."""
    rows, ranks = np.asarray(rows), self._rng.random(len(rows))
    if self._rows is not None:
      rows = np.concatenate([self._rows, rows])
      ranks = np.concatenate([self._ranks, ranks])
    if len(rows) > self._size:
      kept = np.sort(np.argpartition(ranks, self._size)[: self._size])
      rows, ranks = rows[kept], ranks[kept]
    self._rows, self._ranks = rows, ranks

  @property
  def rows(self) -> Float[np.ndarray, 'n d']:
    if self._rows is None:
      raise UserError('A sample was asked for of no features at all.')
    return self._rows


def _kernel(x, y) -> np.ndarray:
  return (x @ y.T / x.shape[1] + 1) ** DEGREE


def _within(x) -> float:
  """The mean kernel of different rows."""
  values, count = _kernel(x, x), len(x)
  return (values.sum() - np.trace(values)) / (count * (count - 1))


def _features(x) -> np.ndarray:
  x = np.asarray(x, np.float64)
  if x.ndim != 2 or len(x) < 2:
    raise UserError(
      f'KID needs two examples at least in each set, as rows; got an array of '
      f'{list(x.shape)}.'
    )
  return x
