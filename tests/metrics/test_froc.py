"""The FROC against the official script's loops, and its intervals."""

import numpy as np
import pytest

from jaxmed.metrics import bootstrap, froc
from jaxmed.metrics.lesions import Hits

RATES = np.array(froc.RATES)


def slide(false=(), best=(), itc=0) -> Hits:
  """`best` of the lesions to be found, 0 where missed; ITC come after."""
  best = np.array([*best, *[0] * itc], np.float32)
  kept = np.where(best > 0, 0, -1)
  return Hits(np.array(false, float), best, kept, len(best) - itc)


def lenient(one: Hits) -> Hits:
  """The same without `strict`: what was missed has no confidence."""
  best = np.where(one.kept >= 0, one.best.astype(float), -np.inf)
  return one._replace(best=best)


def drawn(seed: int, slides: int = 12, decimals: float = 1 / 32) -> list[Hits]:
  """Slides, some without detections, normal ones and such with ITC."""
  rng = np.random.default_rng(seed)
  values = lambda n: np.round(rng.beta(2, 3, n) / decimals) * decimals
  found = []
  for i in range(slides):
    tumour = i % 3 == 0
    hit = values(rng.integers(1, 5)) if tumour else []
    hit = np.where(rng.random(len(hit)) < 0.7, hit, 0)
    false = values(rng.integers(0, 30)) if i % 5 else []
    found.append(slide(false, hit, int(tumour and i % 2)))
  return found


def official(slides) -> tuple[np.ndarray, np.ndarray]:
  """computeFROC of the official script, confidences as it holds them."""
  false = [p for one in slides for p in one.false.tolist()]
  true = [p for one in slides for p in one.best.astype(np.float32)]
  mean_false, found = [], []
  for threshold in sorted(set(false + true))[1:]:
    mean_false.append((np.asarray(false) >= threshold).sum())
    found.append((np.asarray(true) >= threshold).sum())
  lesions = sum(one.lesions for one in slides)
  return (
    np.asarray([*mean_false, 0]) / len(slides),
    np.asarray([*found, 0]) / lesions,
  )


def sane(slides) -> tuple[np.ndarray, np.ndarray]:
  """A loop over every threshold, in float64."""
  false = [p for one in slides for p in one.false]
  true = [p for one in slides for p in one.best if np.isfinite(p)]
  points = [
    (sum(p >= cut for p in false), sum(p >= cut for p in true))
    for cut in sorted({*false, *true})
  ]
  points.append((0, 0))
  lesions = sum(one.lesions for one in slides)
  return tuple(np.array(points).T / [[len(slides)], [lesions]])


def looped(slides, strict, rates=RATES) -> np.ndarray:
  mean_false, found = official(slides) if strict else sane(slides)
  return np.interp(rates, mean_false[::-1], found[::-1])


def reading(slides, strict):
  return slides if strict else [lenient(one) for one in slides]


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('decimals', [1 / 32, 0.01, 1e-9])
def test_every_point_is_that_of_the_loop(seed, strict, decimals):
  slides = reading(drawn(seed, decimals=decimals), strict)
  points = froc.curve(slides, strict)
  expected = official(slides) if strict else sane(slides)
  np.testing.assert_array_equal(points.false_positives, expected[0])
  np.testing.assert_allclose(points.sensitivity, expected[1], rtol=1e-15)
  np.testing.assert_allclose(
    froc.sensitivity_at(points), looped(slides, strict), rtol=1e-15
  )
  assert points.thresholds[-1] == np.inf
  assert (np.diff(points.thresholds) > -1e-6).all()


def test_by_hand():
  slides = [slide([0.5, 0.25], [0.875, 0.375]), slide([0.6]), slide(), slide()]
  points = froc.curve(reading(slides, False))
  np.testing.assert_array_equal(points.thresholds[::-1][1:3], [0.875, 0.6])
  np.testing.assert_allclose(points.sensitivity[::-1], [0, 0.5, 0.5, 0.5, 1, 1])
  np.testing.assert_array_equal(
    points.false_positives[::-1], np.array([0, 0, 1, 2, 2, 3]) / 4
  )
  at = froc.sensitivity_at(points)
  np.testing.assert_array_equal(at, [0.5, 1, 1, 1, 1, 1])


def test_the_lowest_threshold_is_lost_where_no_lesion_was_missed():
  slides = [slide([0.5], [0.75, 0.25]), slide([0.375])]
  assert froc.sensitivity_at(froc.curve(slides, True)).max() == 0.5
  everything = reading(slides, False)
  assert froc.sensitivity_at(froc.curve(everything)).max() == 1


def test_float32_makes_two_thresholds_of_an_equal_decimal():
  slides = [slide([0.35, 0.1], [0.35, 0])]
  points = froc.curve(slides, True)
  expected = [0.1, float(np.float32(0.35)), 0.35, np.inf]
  assert sorted(points.thresholds.tolist()) == expected
  np.testing.assert_array_equal(points[:2], official(slides))
  exact = froc.curve([slides[0]._replace(best=np.array([0.35, -np.inf]))])
  assert exact.thresholds.tolist() == [0.1, 0.35, np.inf]


def test_below_zero_the_official_script_finds_what_was_missed():
  slides = [slide([-0.5, -0.25], [0.5, 0], itc=1)]
  assert froc.curve(slides, True).sensitivity.max() == 3 / 2
  np.testing.assert_array_equal(froc.curve(slides, True)[:2], official(slides))
  assert froc.curve(reading(slides, False)).sensitivity.max() == 1 / 2


@pytest.mark.parametrize('strict', [True, False])
def test_no_detections_is_a_score_of_zero(strict):
  slides = reading([slide([], [0, 0]), slide(), slide()], strict)
  found = froc.froc(slides, 50, strict=strict)
  assert found['score'].value == 0
  assert (found['score'].n, found['score'].positives) == (3, 2)
  assert 0 < found['score'].dropped < 50  # Some resamples have no lesion.
  assert (found['score'].low, found['score'].high) == (0, 0)


@pytest.mark.parametrize('strict', [True, False])
def test_without_a_lesion_there_is_no_score_but_a_reason(strict):
  slides = reading([slide([0.5, 0.25]), slide([], [], itc=1)], strict)
  found = froc.froc(slides, 50, strict=strict)
  assert np.isnan(found['score'].value) and found['curve'] is None
  assert found['score'].reason == 'there is no lesion to be found'
  assert list(found['sensitivity_at']) == ['0.25', '0.5', '1', '2', '4', '8']
  assert np.isnan(froc.curve(slides, strict).sensitivity).all()


def test_one_slide_has_no_interval():
  found = froc.froc([slide([0.5], [0.75])], 50)
  assert found['score'].value == 1 and np.isnan(found['score'].low)
  assert 'one group' in found['score'].reason
  assert set(found['curve']['low']) == {None}


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('slides', [4, 15])
@pytest.mark.parametrize('coarse', [1, 3, 64])
def test_resamples_are_the_loop_over_the_slides_drawn(
  strict, slides, coarse, monkeypatch
):
  monkeypatch.setattr(froc, 'COARSE', coarse)
  given = reading(drawn(7, slides), strict)
  # A slide where nothing is missed: its lowest threshold is a real one.
  given[0] = reading([slide([0.5, 0.125], [0.75, 0.25])], strict)[0]
  counts = bootstrap.resample(slides, 200, seed=1)
  found = froc.resampled(given, counts, strict)
  for row, count in zip(found, counts, strict=True):
    some = [one for one, n in zip(given, count, strict=True) for _ in range(n)]
    if not sum(one.lesions for one in some):
      assert np.isnan(row).all()
    else:
      np.testing.assert_allclose(row, looped(some, strict), atol=1e-12)


@pytest.mark.parametrize('strict', [True, False])
def test_each_slide_once_is_the_value_itself(strict):
  given = reading(drawn(3, 20, decimals=1e-9), strict)
  once = froc.resampled(given, np.ones((1, 20), int), strict, froc.GRID)
  value = froc.sensitivity_at(froc.curve(given, strict), froc.GRID)
  np.testing.assert_allclose(once[0], value, rtol=1e-12)


@pytest.mark.parametrize('strict', [True, False])
def test_intervals_and_band(strict):
  given = reading(drawn(5, 40), strict)
  found = froc.froc(given, 300, seed=2, strict=strict)
  counts = bootstrap.resample(40, 300, seed=2)
  scores = froc.resampled(given, counts, strict).mean(axis=1)
  expected = np.quantile(scores, [0.025, 0.975])
  score = found['score']
  np.testing.assert_allclose([score.low, score.high], expected)
  assert score.low < score.value < score.high
  assert (score.n, score.groups) == (40, 40)
  np.testing.assert_allclose(
    score.value, np.mean([n.value for n in found['sensitivity_at'].values()])
  )
  curve = found['curve']
  grid = curve['false_positives']
  for rate, number in found['sensitivity_at'].items():
    i = grid.index(float(rate))
    np.testing.assert_allclose(
      [curve[k][i] for k in ('low', 'sensitivity', 'high')],
      [number.low, number.value, number.high],
    )
