"""Paired differences against drawing rows again, DeLong's test, and Holm."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from jaxmed.metrics import bootstrap, images, paired, roc
from jaxmed.metrics.paired import Measured


def data(seed=0, n=200, groups=40, gap=1.0, other=0.5):
  """Labels, groups, and two scores that share some of their noise."""
  dice = np.random.default_rng(seed)
  labels = np.arange(n) % 2 == 0
  shared = dice.standard_normal(n)
  one = gap * labels + shared + 0.5 * dice.standard_normal(n)
  two = other * labels + shared + 0.5 * dice.standard_normal(n)
  return labels, dice.permutation(np.arange(n) % groups), one, two


def measured(sample: images.Sample, scores) -> Measured:
  many = images.resampled(sample, scores).auroc
  return Measured(roc.auroc(sample.labels, scores), many)


def compared(labels, groups, one, two, resamples=500) -> paired.Difference:
  sample = images.sample(labels, groups, resamples, 0)
  return paired.difference(
    measured(sample, one), measured(sample, two), sample.sizes[2]
  )


def test_it_is_what_drawing_the_rows_again_gives():
  labels, groups, one, two = data(n=60, groups=9)
  found = compared(labels, groups, one, two, 100)
  counts = bootstrap.resample(9, 100, 0)
  many = []
  for count in counts:
    drawn = [
      np.flatnonzero(groups == g) for g in range(9) for _ in range(count[g])
    ]
    rows = np.concatenate(drawn)
    area = lambda scores, rows=rows: metrics.roc_auc_score(
      labels[rows], scores[rows]
    )
    many.append(area(one) - area(two))
  low, high = np.quantile(many, (0.025, 0.975))
  np.testing.assert_allclose((found.low, found.high), (low, high))
  areas = [metrics.roc_auc_score(labels, s) for s in (one, two)]
  np.testing.assert_allclose(found.value, areas[0] - areas[1])
  tail = min(np.mean(np.array(many) <= 0), np.mean(np.array(many) >= 0))
  np.testing.assert_allclose(found.p, 2 * (100 * tail + 1) / 101)


def delong(labels, one, two) -> float:
  """The two-sided p-value of DeLong, DeLong and Clarke-Pearson (1988)."""
  wins = [
    (s[labels][:, None] > s[~labels]) + 0.5 * (s[labels][:, None] == s[~labels])
    for s in (one, two)
  ]
  gap = wins[0] - wins[1]
  positives, negatives = gap.shape
  variance = gap.mean(1).var(ddof=1) / positives
  variance += gap.mean(0).var(ddof=1) / negatives
  return 2 * stats.norm.sf(abs(gap.mean()) / np.sqrt(variance))


@pytest.mark.parametrize('other', [0.95, 0.8, 0.65])
def test_where_every_image_is_a_group_it_agrees_with_delong(other):
  labels, _, one, two = data(seed=3, other=other)
  found = compared(labels, np.arange(len(labels)), one, two, 2000)
  expected = delong(labels, one, two)
  assert abs(found.p - expected) < 0.01 + 0.15 * expected


def test_equal_scores_do_not_differ():
  labels, groups, one, _ = data()
  for other in (one, np.exp(one), one * 3 - 7):  # Ranks are all that counts.
    found = compared(labels, groups, one, other)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_large_difference_is_found_and_has_a_sign():
  labels, groups, one, two = data(gap=2.0, other=0.0)
  found = compared(labels, groups, one, two)
  assert found.p == 2 / 501 and found.low > 0.1
  back = compared(labels, groups, two, one)
  np.testing.assert_allclose(
    (back.value, back.low, back.high, back.p),
    (-found.value, -found.high, -found.low, found.p),
  )


def test_where_nothing_differs_few_are_called_different():
  called = [
    compared(*data(seed, n=120, other=1.0), 100).p < 0.05 for seed in range(40)
  ]
  assert np.mean(called) < 0.15


def test_few_groups_allow_no_small_p():
  labels, groups, one, two = data(groups=4, gap=3.0, other=-3.0)
  assert compared(labels, groups, one, two).p == 2 / 2**4
  found = compared(labels, np.zeros(len(labels)), one, two)
  assert np.isnan(found.p) and found.reason == 'all examples are of one group'
  assert found.value > 0


def test_what_is_not_defined_says_why():
  lacking = Measured(np.nan, np.full(10, np.nan), 'all examples are normal')
  whole = Measured(0.5, np.full(10, 0.5))
  for pair in ((lacking, whole), (whole, lacking)):
    found = paired.difference(*pair, 5)
    assert np.isnan(found.value) and np.isnan(found.p)
    assert found.reason == 'all examples are normal'
  dropped = Measured(0.5, np.full(10, np.nan))
  found = paired.difference(dropped, whole, 5)
  assert found.reason == 'no resample had both classes'


def test_seeds_are_drawn_again_too():
  dice = np.random.default_rng(0)
  runs = [Measured(v, v + dice.normal(0, 0.1, 50)) for v in (0.6, 0.7, 0.9)]
  runs[1].many[4] = np.nan
  found = paired.over_seeds(runs, 5)
  np.testing.assert_allclose(found.value, 2.2 / 3)
  drawn = bootstrap.resample(3, 50, 5)
  for i, count in enumerate(drawn):
    values = [
      r.many[i] for r, k in zip(runs, count, strict=True) for _ in range(k)
    ]
    expected = np.nan if i == 4 else np.mean(values)
    np.testing.assert_allclose(found.many[i], expected)
  low, high = found.interval
  assert low < 0.65 and high > 0.85
  assert paired.over_seeds(runs[:1], 5) is runs[0]


def test_holm_is_bonferroni_over_all_that_could_be_true_together():
  """The closed test: the worst of all sets of hypotheses that hold one."""
  dice = np.random.default_rng(1)
  for count in (1, 2, 5):
    p = np.round(dice.random(count) ** 3, 2)
    sets = [
      list(chosen)
      for size in range(1, count + 1)
      for chosen in itertools.combinations(range(count), size)
    ]
    expected = [
      max(min(1, len(s) * min(p[s])) for s in sets if i in s)
      for i in range(count)
    ]
    np.testing.assert_allclose(paired.holm(p), expected)


def test_holm_leaves_out_what_is_not_defined():
  found = paired.holm([0.01, np.nan, 0.04])
  np.testing.assert_allclose(found, [0.02, np.nan, 0.04])
  assert not len(paired.holm([]))
