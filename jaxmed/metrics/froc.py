"""The Camelyon16 FROC: lesions found against false alarms per slide.

At every threshold, the share of all lesions found against the mean number of
false positives over all slides, those without detections too. The score is
the mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives, linear between
points; beyond the last point the sensitivity stays what it is there.

`strict` reproduces the official script (Evaluation_FROC.py), whose ways are:

* The lowest of all confidences is never a threshold. It usually is the 0 of
  lesions that were missed, but where none was missed, and no ITC is there, a
  real threshold is lost.
* Lesions' confidences are float32, false positives' float64. An equal decimal
  so becomes two thresholds, which are sorted as Python and NumPy 2 sort such a
  mixture: by float32, and of equals as the set gave them.
* A missed lesion, or an ITC, has the confidence 0. Where confidences are
  negative it therefore counts as found at 0.
* A confidence of 0 or below finds no lesion.
* The resolution is 0.243 micrometres, whatever the slide's (the caller's).
* The false-positive axis has repeated values; the highest sensitivity counts.

Without `strict` thresholds are all confidences of lesions found and of false
positives, all in float64, and what was missed has none. An empty mask of
tumour gives no lesion either way (see lesions.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxmed.metrics import bootstrap
from jaxmed.metrics.lesions import Hits

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
GRID = 2.0 ** np.linspace(-3, 3, 97)  # Rates where the curve is given.
COARSE = 64  # Every so many thresholds are looked at first.


class Curve(NamedTuple):
  """By rising threshold; the last point is 0 and 0, at the threshold inf."""

  false_positives: Float[np.ndarray, ' points']
  sensitivity: Float[np.ndarray, ' points']
  thresholds: Float[np.ndarray, ' points']


class _Events(NamedTuple):
  """Confidences of all slides as places among the falling thresholds.

  `false` and `true` are pairs of arrays: whose slide, and from which
  threshold on an event counts. `own` is from which threshold on a true one
  would count if it were compared in float64.
  """

  thresholds: Float[np.ndarray, ' t']
  false: tuple[np.ndarray, np.ndarray]
  true: tuple[np.ndarray, np.ndarray]
  own: Int[np.ndarray, ' true']


def curve(slides: Sequence[Hits], strict: bool = False) -> Curve:
  """All points; the sensitivity is NaN where there is no lesion to find."""
  events = _events(slides, strict)
  count = len(events.thresholds)
  false, true = (
    np.cumsum(np.bincount(place, minlength=count))
    for _, place in (events.false, events.true)
  )
  order = np.arange(count)[::-1]
  if strict:
    order = _official_order(slides, events.thresholds)[1:]
  lesions = sum(slide.lesions for slide in slides) or np.nan
  return Curve(
    np.append(false[order], 0) / len(slides),
    np.append(true[order], 0) / lesions,
    np.append(events.thresholds[order], np.inf),
  )


def sensitivity_at(
  points: Curve, rates: Sequence[float] = RATES
) -> Float[np.ndarray, ' rates']:
  """At so many false positives per slide; their mean is the score."""
  rising = (part[::-1] for part in points[:2])
  return np.interp(rates, *rising)


def resampled(
  slides: Sequence[Hits],
  counts: Int[np.ndarray, 'resamples slides'],
  strict: bool = False,
  rates: Sequence[float] = RATES,
) -> Float[np.ndarray, 'resamples rates']:
  """The sensitivities of each resample of slides; NaN without a lesion.

  Those of the curve of the slides drawn, with the lowest of their own
  confidences left out by `strict`; where float32 and float64 tie, thresholds
  are in the order of their values.
  """
  events = _events(slides, strict)
  rates = np.asarray(rates, np.float64)
  most = rates.max() * len(slides)
  count = _thresholds_needed(events, counts, most)
  # A slide's own lowest threshold as a column of its own: drawn or not.
  lows, low = np.unique(_lowest(events, len(slides)), return_inverse=True)
  statistics = np.concatenate(
    [
      _histogram(events.false, len(slides), count),
      _histogram(events.true, len(slides), count),
      np.eye(len(lows))[low],
      np.array([[slide.lesions] for slide in slides]),
    ],
    axis=1,
  )

  def measure(sums):
    false, true, drawn, lesions = np.split(
      sums, np.cumsum([count, count, len(lows)]), axis=1
    )
    last = np.full(len(sums), count)
    if strict:
      highest = len(lows) - 1 - np.argmax(drawn[:, ::-1] > 0, axis=1)
      last = np.clip(lows[highest], 0, count)
    found = _interpolated(false, true, last, rates * len(slides))
    return found / np.where(lesions > 0, lesions, np.nan)

  return bootstrap.resampled(statistics, measure, counts)


def froc(
  slides: Sequence[Hits],
  resamples: int = 2000,
  seed: int = 0,
  strict: bool = False,
) -> dict:
  """The score, the six sensitivities and the curve, with 95 % intervals.

  In each Number, n is of slides and positives of lesions to be found.
  """
  lesions = sum(slide.lesions for slide in slides)
  reason = '' if lesions else 'there is no lesion to be found'
  about = len(slides), lesions, len(slides)
  if reason:
    missing = bootstrap.missing(reason, *about)
    at = {f'{rate:g}': missing for rate in RATES}
    return {'score': missing, 'sensitivity_at': at, 'curve': None}
  points = curve(slides, strict)
  counts = bootstrap.resample(len(slides), resamples, seed)
  many = resampled(slides, counts, strict, [*RATES, *GRID])
  at, along = np.split(many, [len(RATES)], axis=1)
  values = sensitivity_at(points)
  number = lambda value, drawn: bootstrap.interval(value, drawn, *about)
  return {
    'score': number(values.mean(), at.mean(axis=1)),
    'sensitivity_at': {
      f'{rate:g}': number(value, drawn)
      for rate, value, drawn in zip(RATES, values, at.T, strict=True)
    },
    'curve': _drawn(points, along, known=len(slides) > 1),
  }


def _drawn(points: Curve, many, known: bool) -> dict:
  """The curve on the grid with its band, which is null if not known."""
  low, high = (
    [float(v) if known and np.isfinite(v) else None for v in end]
    for end in bootstrap.band(many)
  )
  return {
    'false_positives': GRID.tolist(),
    'sensitivity': sensitivity_at(points, GRID).tolist(),
    'low': low,
    'high': high,
  }


def _events(slides: Sequence[Hits], strict: bool) -> _Events:
  false, of_false = _joined([slide.false for slide in slides])
  true, of_true = _joined([slide.best for slide in slides])
  if not strict:
    found = np.isfinite(true)
    true, of_true = true[found], of_true[found]
  values = np.unique(np.concatenate([false, true.astype(np.float64)]))[::-1]
  own = at = _place(values, true)
  if strict:  # Compared in float32, even with a threshold that is float64.
    at = _place(values.astype(np.float32), true)
  return _Events(values, (of_false, _place(values, false)), (of_true, at), own)


def _lowest(events: _Events, slides: int) -> Int[np.ndarray, ' slides']:
  """The place of each slide's own lowest confidence; -1 if it has none."""
  lowest = np.full(slides, -1)
  np.maximum.at(lowest, *events.false)
  np.maximum.at(lowest, events.true[0], events.own)
  return lowest


def _joined(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """All in a row, and the number of the slide that each is of."""
  slide = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
  return np.concatenate(parts), slide


def _place(falling: np.ndarray, values: np.ndarray) -> Int[np.ndarray, ' n']:
  """The first of the falling numbers that is not above each value."""
  return np.searchsorted(-falling, -values)


def _official_order(slides, thresholds) -> Int[np.ndarray, ' n']:
  """Places of the thresholds as the script sorts them.

  It sorts a set of Python's floats and NumPy's float32, which compare in
  float32 with each other, so that near ties lie as the set happens to give
  them. Only the same set gives the same order.
  """
  false = np.concatenate([slide.false for slide in slides])
  true = np.concatenate([slide.best for slide in slides])
  distinct = np.unique(false)
  if (np.diff(distinct.astype(np.float32)) > 0).all():
    # Then everything compares as float32, and equals stay as the set has them.
    # Python's floats of the same values lie in a set as float32 do.
    values = np.array(list(set(false.tolist() + true.tolist())), np.float64)
    values = values[np.argsort(values.astype(np.float32), kind='stable')]
  else:
    values = np.array(sorted(set(false.tolist() + list(true))), np.float64)
  return _place(thresholds, values)


def _histogram(events, slides: int, count: int) -> Float[np.ndarray, 's t']:
  """Events by slide and threshold, those after the first `count` left out."""
  slide, place = events
  kept = place < count
  flat = np.bincount(
    slide[kept] * count + place[kept], minlength=slides * count
  )
  return flat.reshape(slides, count).astype(np.float64)


def _thresholds_needed(events: _Events, counts, most: float) -> int:
  """So many of the highest thresholds bring every resample beyond `most`."""
  slide, place = events.false
  total = len(events.thresholds)
  coarse = -(-total // COARSE)
  by_slide = _histogram((slide, place // COARSE), counts.shape[1], coarse)
  fewest = (counts @ by_slide.cumsum(axis=1)).min(axis=0, initial=np.inf)
  beyond = np.flatnonzero(fewest > most)
  return min(total, COARSE * (int(beyond[0]) + 1)) if len(beyond) else total


def _interpolated(false, true, last, at) -> Float[np.ndarray, 'resamples at']:
  """Lesions found where so many false positives are, in each row.

  Point 0 is the origin; of points with equal false positives the last one
  counts, and no point after `last`.
  """
  origin = np.zeros((len(false), 1))
  false = np.concatenate([origin, false.cumsum(axis=1)], axis=1)
  true = np.concatenate([origin, true.cumsum(axis=1)], axis=1)
  rows, points = false.shape
  # One search in all rows, each lifted above the one before it.
  lift = max(false[:, -1].max(initial=0), at.max()) + 1
  start = np.arange(rows)[:, None]
  place = np.searchsorted(
    (false + start * lift).ravel(), (at + start * lift).ravel(), side='right'
  )
  before = place.reshape(rows, -1) - start * points - 1
  before = np.minimum(before, last[:, None])
  after = np.minimum(before + 1, last[:, None])
  x0, x1 = (np.take_along_axis(false, i, axis=1) for i in (before, after))
  y0, y1 = (np.take_along_axis(true, i, axis=1) for i in (before, after))
  share = np.divide(at - x0, x1 - x0, np.zeros_like(x0), where=x1 > x0)
  return y0 + np.where(after > before, share, 0) * (y1 - y0)
