"""Every metric of one score per image, with intervals and curves."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxmed.metrics import bootstrap, histogram, roc
from jaxmed.metrics.bootstrap import Number

Scores = Float[np.ndarray, 'n']

GRID = np.linspace(0, 1, 101)  # Where the curves are given.
ORACLES = (
  'oracle_youden_accuracy',
  'oracle_youden_f1',
  'oracle_best_f1',
  'oracle_best_f1_accuracy',  # What FW-RD's code calls its accuracy.
)


@dataclasses.dataclass(frozen=True)
class Sample:
  """What is tested: the labels, whose images they are, and the resamples."""

  labels: Bool[np.ndarray, ' n']
  groups: Int[np.ndarray, ' n']
  counts: Int[np.ndarray, 'resamples groups']

  def where(self, kept: Bool[np.ndarray, ' n']) -> 'Sample':
    """The same resamples of fewer examples."""
    return Sample(self.labels[kept], self.groups[kept], self.counts)

  @property
  def sizes(self) -> tuple[int, int, int]:
    """Examples, anomalous ones, and groups."""
    groups = len(np.unique(self.groups))
    return len(self.labels), int(self.labels.sum()), groups

  @property
  def lacking(self) -> str:
    """Why metrics of two classes are not defined, if they are not."""
    if not len(self.labels):
      return 'there are no labelled examples'
    if self.labels.all():
      return 'all examples are anomalous'
    return '' if self.labels.any() else 'all examples are normal'


def sample(labels, groups, resamples: int, seed: int) -> Sample:
  """`groups` are names; whole groups are drawn."""
  names, number = np.unique(np.asarray(groups), return_inverse=True)
  counts = bootstrap.resample(max(len(names), 1), resamples, seed)
  return Sample(np.asarray(labels).astype(bool), number, counts)


def threshold(normals: Float[np.ndarray, ' n'], quantile: float) -> float:
  """The quantile of validation normals; NaN without any."""
  normals = normals[np.isfinite(normals)]
  return float(np.quantile(normals, quantile)) if len(normals) else np.nan


@dataclasses.dataclass(frozen=True)
class Resampled:
  """What does not depend on a threshold from outside, of every resample."""

  auroc: Float[np.ndarray, ' resamples']
  ap: Float[np.ndarray, ' resamples']
  oracle: Float[np.ndarray, 'resamples 4']
  tpr: Float[np.ndarray, 'resamples g'] | None
  precision: Float[np.ndarray, 'resamples g'] | None


def resampled(
  test: Sample, scores: Scores, with_curves: bool = False
) -> Resampled:
  """All metrics of each resample in one pass over the histograms."""
  grid = GRID if with_curves else GRID[:0]

  def measure(sums):
    counts = histogram.falling(sums)
    tuned = roc.Confusion(*histogram.youden_point(counts))
    at_f1 = roc.Confusion(*histogram.best_f1_point(counts))
    columns = (
      histogram.auroc(counts),
      histogram.average_precision(counts),
      np.where(counts.both, tuned.accuracy, np.nan),
      np.where(counts.both, tuned.f1, np.nan),
      histogram.best_f1(counts),
      np.where(counts.both, at_f1.accuracy, np.nan),
    )
    curves = histogram.roc_on_grid, histogram.precision_on_grid
    parts = [np.stack(columns, axis=1), *(f(counts, grid) for f in curves)]
    return np.concatenate(parts, axis=1)

  found = bootstrap.resampled(_histograms(test, scores), measure, test.counts)
  tpr, precision = np.split(found[:, 6:], 2, axis=1)
  return Resampled(
    found[:, 0],
    found[:, 1],
    found[:, 2:6],
    tpr if with_curves else None,
    precision if with_curves else None,
  )


def areas(test: Sample, scores: Scores, many: Resampled) -> dict[str, Number]:
  """AUROC and average precision."""
  ap = roc.average_precision(test.labels, scores)
  return {
    'auroc': _number(test, roc.auroc(test.labels, scores), many.auroc),
    'ap': _number(test, ap, many.ap),
  }


def curves(test: Sample, scores: Scores, many: Resampled) -> dict | None:
  """ROC and PR with the bands of the resamples; None with one class."""
  if test.lacking:
    return None
  sums = _histograms(test, scores, exact=len(scores)).sum(axis=0)
  counts = histogram.falling(sums[None])
  tpr = histogram.roc_on_grid(counts, GRID)[0]
  precision = histogram.precision_on_grid(counts, GRID)[0]
  return {
    'roc': _curve('fpr', 'tpr', tpr, test, many.tpr),
    'pr': _curve('recall', 'precision', precision, test, many.precision),
  }


def at_threshold(test: Sample, scores: Scores, cut: float) -> dict[str, Number]:
  """What calling all above `cut` anomalous gives."""
  found = decided(test, scores, cut)
  return {
    name: _number(test, value, values, lacking)
    for name, (value, values, lacking) in found.items()
  }


def sensitivity_at(test: Sample, scores: Scores, cut: float) -> Number:
  """Sensitivity where `cut` fixes the specificity on validation normals."""
  return at_threshold(test, scores, cut)['sensitivity']


def oracle(test: Sample, scores: Scores, many: Resampled) -> dict[str, Number]:
  """Metrics whose threshold is tuned on the test itself, in each resample."""
  values = (np.nan,) * len(ORACLES)
  if not test.lacking:
    at = lambda best: roc.confusion(test.labels, scores, best.threshold)
    youden = at(roc.youden(test.labels, scores))
    best = roc.best_f1(test.labels, scores)
    values = youden.accuracy, youden.f1, best.f1, at(best).accuracy
  return {
    name: _number(test, value, column)
    for name, value, column in zip(ORACLES, values, many.oracle.T, strict=True)
  }


def best_direction(number: Number) -> Number:
  """Of an AUROC, whichever end of the score is the anomalous one."""
  if not np.isfinite(number.value) or number.value >= 0.5:
    return number
  return dataclasses.replace(
    number,
    value=1 - number.value,
    low=1 - number.high,
    high=1 - number.low,
  )


def decided(test: Sample, scores: Scores, cut: float) -> dict[str, tuple]:
  """Value, resampled values and reason of each metric at a threshold."""
  if not np.isfinite(cut):
    reason = 'no threshold: there are no validation normals'
    nothing = np.nan, np.full(len(test.counts), np.nan), reason
    return dict.fromkeys(
      ('f1', 'accuracy', 'sensitivity', 'specificity'), nothing
    )
  called = scores > cut
  cases = np.stack(
    [
      (test.labels == truth) & (called == call)
      for truth in (False, True)
      for call in (False, True)
    ],
    axis=1,
  )
  groups = bootstrap.sums(cases, test.groups, test.counts.shape[1])
  whole = roc.Confusion(*cases.sum(axis=0))
  many = roc.Confusion(*(test.counts @ groups).T)
  no_positives = '' if test.labels.any() else test.lacking
  no_negatives = '' if not test.labels.all() else test.lacking
  empty = '' if len(test.labels) else test.lacking
  return {
    'f1': (_f1(whole), _f1(many), no_positives),
    'accuracy': (whole.accuracy, many.accuracy, empty),
    'sensitivity': (whole.sensitivity, many.sensitivity, no_positives),
    'specificity': (whole.specificity, many.specificity, no_negatives),
  }


def _f1(counts: roc.Confusion):
  """Not defined where nothing is anomalous, whatever was called so."""
  anomalous = counts.true_positives + counts.false_negatives
  return np.where(anomalous > 0, counts.f1, np.nan)


def _histograms(test: Sample, scores, exact: int = histogram.EXACT_BINS):
  place, bins = histogram.places(scores, exact)
  return histogram.statistics(
    test.labels, place, bins, test.groups, test.counts.shape[1]
  )


def _number(test: Sample, value, values, lacking: str | None = None) -> Number:
  lacking = test.lacking if lacking is None else lacking
  if lacking:
    return _missing(test, lacking)
  return bootstrap.interval(float(value), values, *test.sizes)


def _missing(test: Sample, reason: str) -> Number:
  return bootstrap.missing(reason, *test.sizes)


def _curve(x: str, y: str, values, test: Sample, many) -> dict:
  """With one group there is no band: its ends are null."""
  known = test.sizes[2] > 1
  ends = [
    [float(v) if known and np.isfinite(v) else None for v in end]
    for end in bootstrap.band(many)
  ]
  return {
    x: GRID.tolist(),
    y: values.tolist(),
    'low': ends[0],
    'high': ends[1],
  }
