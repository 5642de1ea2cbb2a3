"""One matrix product gives what drawing the groups' rows again gives."""

import numpy as np
import pytest
from sklearn import metrics

from jaxmed.metrics import bootstrap, histogram, images, overlap, pixels, roc

GROUPS = 6


def data(seed=0, n=90, ties=True):
  rng = np.random.default_rng(seed)
  groups = rng.integers(0, GROUPS, n)
  labels = rng.random(n) < 0.2 + 0.1 * groups
  scores = (
    rng.standard_normal(n) + labels + 0.5 * rng.standard_normal(GROUPS)[groups]
  )
  return labels, np.round(scores, 1) if ties else scores, groups


def brute(counts, groups, measure):
  """The measure of the rows of every drawn group, over and over."""
  found = []
  for count in counts:
    rows = np.concatenate(
      [
        np.flatnonzero(groups == g)
        for g, k in enumerate(count)
        for _ in range(k)
      ]
      + [np.empty(0, int)]
    )
    found.append(measure(rows))
  return np.array(found)


def two_classes(labels, measure):
  def guarded(rows):
    kept = labels[rows]
    return measure(rows) if kept.any() and not kept.all() else np.nan

  return guarded


def best_f1(labels, scores):
  return max(metrics.f1_score(labels, scores >= t) for t in np.unique(scores))


@pytest.mark.parametrize('ties', [True, False])
@pytest.mark.parametrize(
  'ours, theirs',
  [
    (histogram.auroc, metrics.roc_auc_score),
    (histogram.average_precision, metrics.average_precision_score),
    (histogram.best_f1, best_f1),
    (
      lambda counts: np.where(
        counts.both,
        roc.Confusion(*histogram.youden_point(counts)).accuracy,
        np.nan,
      ),
      lambda labels, scores: metrics.accuracy_score(
        labels, scores >= roc.youden(labels, scores).threshold
      ),
    ),
    (
      lambda counts: np.where(
        counts.both,
        roc.Confusion(*histogram.best_f1_point(counts)).accuracy,
        np.nan,
      ),
      lambda labels, scores: metrics.accuracy_score(
        labels, scores >= roc.best_f1(labels, scores).threshold
      ),
    ),
  ],
)
def test_resamples_equal_brute_force(ours, theirs, ties):
  labels, scores, groups = data(ties=ties)
  test = images.sample(labels, groups, 12, 3)
  place, bins = histogram.places(scores)
  sums = histogram.statistics(labels, place, bins, groups, GROUPS)
  found = bootstrap.resampled(
    sums, lambda s: ours(histogram.falling(s)), test.counts
  )
  expected = brute(
    test.counts,
    groups,
    two_classes(labels, lambda rows: theirs(labels[rows], scores[rows])),
  )
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_threshold_metrics_equal_brute_force():
  labels, scores, groups = data()
  test = images.sample(labels, groups, 50, 1)
  found = images.at_threshold(test, scores, 0.4)
  for name, theirs in (
    ('f1', metrics.f1_score),
    ('accuracy', metrics.accuracy_score),
    ('sensitivity', metrics.recall_score),
  ):
    expected = brute(
      test.counts, groups, lambda r, f=theirs: f(labels[r], scores[r] > 0.4)
    )
    low, high = np.quantile(expected, (0.025, 0.975))
    np.testing.assert_allclose((found[name].low, found[name].high), (low, high))
    np.testing.assert_allclose(found[name].value, theirs(labels, scores > 0.4))


def test_pixels_equal_brute_force_and_the_exact_values():
  rng = np.random.default_rng(0)
  masks = np.zeros((5, 9, 8), bool)
  masks[1, 2:5, 1:4] = masks[2, 6:, 6:] = masks[2, 5, 5] = masks[4, 0] = True
  maps = np.round(rng.standard_normal(masks.shape) + masks, 1)
  maps = maps.astype(np.float16)
  groups = np.array([0, 1, 1, 2, 3])
  test = images.sample(masks.any(axis=(1, 2)), groups, 60, 0)
  found = pixels.pixel_metrics(test, masks, maps)

  def on(measure):
    def measured(rows):
      if not masks[rows].any():
        return np.nan
      return measure(masks[rows], maps[rows].astype(np.float64))

    return measured

  flat = lambda f: on(lambda m, s: f(m.ravel(), s.ravel()))
  for name, measured in {
    'auroc': flat(metrics.roc_auc_score),
    'ap': flat(metrics.average_precision_score),
    'aupro_4': on(lambda m, s: overlap.aupro(m, s, 4)),
    'aupro_8': on(lambda m, s: overlap.aupro(m, s, 8)),
  }.items():
    values = brute(test.counts, groups, measured)
    low, high = np.nanquantile(values, (0.025, 0.975))
    number = found[name]
    assert number.dropped == np.isnan(values).sum() > 0
    np.testing.assert_allclose(number.value, measured(np.arange(5)))
    np.testing.assert_allclose((number.low, number.high), (low, high))
  assert found['aupro_4'].positives == 4
  assert found['aupro_8'].positives == 3
  assert found['auroc'].n == masks.size


def test_many_scores_share_bins_without_moving_the_area():
  rng = np.random.default_rng(0)
  labels = rng.random(20000) < 0.3
  scores = rng.standard_normal(20000) + labels
  place, bins = histogram.places(scores)
  assert bins == histogram.BINS
  assert (np.diff(place[np.argsort(scores)]) >= 0).all()
  zeros = np.zeros(20000, int)
  sums = histogram.statistics(labels, place, bins, zeros, 1)
  exact = roc.auroc(labels, scores)
  found = histogram.auroc(histogram.falling(sums))
  np.testing.assert_allclose(found, exact, atol=1e-5)


def test_grids_follow_sklearns_curves():
  labels, scores, groups = data()
  test = images.sample(labels, groups, 20, 0)
  many = images.resampled(test, scores, with_curves=True)
  curves = images.curves(test, scores, many)
  fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
  expected = np.interp(images.GRID, fpr, tpr)
  np.testing.assert_allclose(curves['roc']['tpr'], expected)
  precision, recall, _ = metrics.precision_recall_curve(labels, scores)
  for at, value in zip(
    images.GRID[1:], curves['pr']['precision'][1:], strict=True
  ):
    reached = np.flatnonzero(recall >= at - 1e-12)[-1]
    np.testing.assert_allclose(value, precision[reached])
  for curve, name in (('roc', 'tpr'), ('pr', 'precision')):
    low, high = (np.array(curves[curve][end]) for end in ('low', 'high'))
    assert (low <= high).all() and (low < high).any()
    assert ((low <= 1) & (low >= 0)).all(), name


def test_one_class_is_missing_with_a_reason():
  labels, scores, groups = data()
  test = images.sample(np.zeros_like(labels), groups, 20, 0)
  many = images.resampled(test, scores)
  number = images.areas(test, scores, many)['auroc'].as_dict()
  assert number['value'] is None and number['low'] is None
  assert number['reason'] == 'all examples are normal'
  at = images.at_threshold(test, scores, 0.0)
  assert np.isfinite(at['specificity'].value)
  assert np.isfinite(at['accuracy'].value)
  assert at['sensitivity'].reason and at['f1'].reason
  assert images.curves(test, scores, many) is None


def test_one_group_has_a_value_but_no_interval():
  labels, scores, _ = data()
  test = images.sample(labels, np.zeros(len(labels)), 20, 0)
  number = images.areas(test, scores, images.resampled(test, scores))['auroc']
  assert np.isfinite(number.value) and np.isnan(number.low)
  assert 'one group' in number.reason


def test_resamples_of_one_class_are_dropped_and_counted():
  labels = np.array([False] * 5 + [True] * 5)
  groups = np.repeat([0, 1], 5)
  test = images.sample(labels, groups, 1000, 0)
  scores = np.arange(10.0)
  number = images.areas(test, scores, images.resampled(test, scores))['auroc']
  alone = (test.counts == 2).any(axis=1).sum()
  assert number.dropped == alone > 400
  assert (number.low, number.high) == (1.0, 1.0)


def test_blocks_of_resamples_change_nothing(monkeypatch):
  counts = bootstrap.resample(4, 30, 0)
  assert (counts.sum(axis=1) == 4).all()
  values = np.random.default_rng(0).random((4, 6))
  whole = bootstrap.resampled(values, lambda s: s.sum(axis=1), counts)
  monkeypatch.setattr(bootstrap, 'BLOCK', 20)
  parts = bootstrap.resampled(values, lambda s: s.sum(axis=1), counts)
  np.testing.assert_allclose(parts, whole)
