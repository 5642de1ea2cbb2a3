"""Lesions and their detections against scikit-image and plain loops."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import filters, measure

from jaxmed.metrics import lesions

PIXEL = 0.243 * 32


def blob(shape, *boxes) -> np.ndarray:
  mask = np.zeros(shape, bool)
  for top, left, height, width in boxes:
    mask[top : top + height, left : left + width] = True
  return mask


def scattered(seed: int, shape=(150, 170)) -> np.ndarray:
  noise = np.random.default_rng(seed).standard_normal(shape)
  smooth = ndimage.gaussian_filter(noise, 5, mode='wrap')
  return smooth > 1.8 * smooth.std()


def official_mask(tumour, pixel):
  """The official lines, on the whole image."""
  distance = ndimage.distance_transform_edt(
    255 - tumour.astype(np.uint8) * np.uint8(255)
  )
  filled = ndimage.binary_fill_holes(distance < 75 / (pixel * 2))
  return measure.label(filled, connectivity=2)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('pixel', [PIXEL, 0.5 * 64, 2.0])
def test_regions_are_those_of_the_official_script(seed, pixel):
  tumour = scattered(seed)
  found = lesions.regions(tumour, pixel)
  expected = official_mask(tumour, pixel)
  np.testing.assert_array_equal(found.labels, expected)
  properties = measure.regionprops(expected)
  assert len(found.areas) == len(properties) > 0
  np.testing.assert_array_equal(found.areas, [p.area for p in properties])
  lengths = [p.axis_major_length for p in properties]
  np.testing.assert_allclose(found.lengths, lengths, rtol=1e-12, atol=1e-12)
  np.testing.assert_array_equal(found.itc, np.array(lengths) < 275 / pixel)


@pytest.mark.parametrize(
  'box', [(0, 0, 3, 60), (97, 50, 3, 70), (40, 117, 9, 3), (0, 0, 100, 120)]
)
def test_tumour_at_the_border(box):
  tumour = blob((100, 120), box)
  np.testing.assert_array_equal(
    lesions.evaluation_mask(tumour, PIXEL), official_mask(tumour, PIXEL)
  )


@pytest.mark.parametrize('share', [0.0005, 0.005, 0.02])
def test_many_small_pieces_that_merge(share):
  tumour = np.random.default_rng(0).random((220, 260)) < share
  np.testing.assert_array_equal(
    lesions.evaluation_mask(tumour, PIXEL), official_mask(tumour, PIXEL)
  )


def test_what_lies_in_a_hole_is_of_the_lesion_around_it():
  tumour = blob((120, 120), (10, 10, 100, 100))
  tumour &= ~blob((120, 120), (20, 20, 80, 80))
  tumour |= blob((120, 120), (55, 55, 6, 6))
  found = lesions.evaluation_mask(tumour, PIXEL)
  np.testing.assert_array_equal(found, official_mask(tumour, PIXEL))
  assert found.max() == 1 and found[58, 58] == found[40, 40] == 1


def test_lines_dots_and_corners():
  labels = np.zeros((60, 60), np.int32)
  labels[3, 4] = 1
  labels[10, 5:25] = 2
  labels[np.arange(20, 40), np.arange(20, 40)] = 3
  areas, lengths = lesions.major_axes(labels)
  assert areas.tolist() == [1, 20, 20]
  expected = [p.axis_major_length for p in measure.regionprops(labels)]
  np.testing.assert_allclose(lengths, expected, atol=1e-12)
  assert lengths[0] == 0


@pytest.mark.parametrize(('gap', 'count'), [(8, 1), (9, 2)])
def test_lesions_closer_than_75_micrometres_are_one(gap, count):
  """The radius of 4.8 px reaches 4 pixels from either side."""
  tumour = blob((40, 120), (15, 10, 10, 30), (15, 40 + gap, 10, 30))
  assert lesions.evaluation_mask(tumour, PIXEL).max() == count


def test_holes_belong_to_the_lesion_and_corners_join():
  ring = blob((90, 90), (15, 15, 60, 60)) & ~blob((90, 90), (30, 30, 30, 30))
  labels = lesions.evaluation_mask(ring, PIXEL)
  assert labels[45, 45] == 1 and labels.max() == 1
  corner = blob((40, 40), (5, 5, 5, 5), (10, 10, 5, 5))
  assert lesions.evaluation_mask(corner, 75.0).max() == 1


def test_an_empty_mask_has_no_lesion():
  found = lesions.regions(np.zeros((30, 40), bool), PIXEL)
  assert not found.labels.any() and found.labels.shape == (30, 40)
  assert [len(part) for part in found[1:]] == [0, 0, 0]
  hits = lesions.hits(np.array([[0.5, 10.0, 10.0]]), found, 32)
  assert hits.false.tolist() == [0.5] and hits.lesions == 0


@pytest.fixture
def two():
  """A large lesion, and isolated tumour cells."""
  found = lesions.regions(blob((80, 90), (10, 10, 40, 50), (65, 70, 4, 4)), 7.8)
  assert found.itc.tolist() == [False, True]
  return found


ON_LESION, ON_ITC, OUTSIDE = (20, 20), (71, 66), (80, 5)  # (x, y).


def detections(*rows) -> np.ndarray:
  return np.array([(p, 32.0 * x, 32.0 * y) for p, (x, y) in rows])


@pytest.mark.parametrize('strict', [False, True])
def test_what_is_true_false_or_neither(two, strict):
  given = detections(
    (0.25, OUTSIDE), (0.5, ON_LESION), (0.9, ON_ITC), (0.75, (30, 30))
  )
  hits = lesions.hits(given, two, 32, strict)
  assert hits.false.tolist() == [0.25]
  assert hits.best.tolist() == [0.75, 0.0 if strict else -np.inf]
  assert hits.kept.tolist() == [3, -1]
  assert hits.lesions == 1
  assert hits.best.dtype == (np.float32 if strict else np.float64)


def test_of_equal_confidences_the_first_is_kept(two):
  given = detections((0.5, ON_LESION), (0.7, (30, 30)), (0.7, (40, 40)))
  assert lesions.hits(given, two, 32).kept[0] == 1
  # Equal in float32, in which the official script compares.
  given[2, 0] += 1e-12
  assert lesions.hits(given, two, 32).kept[0] == 2
  assert lesions.hits(given, two, 32, strict=True).kept[0] == 1


def test_what_is_not_above_zero_finds_nothing_in_the_official_script(two):
  given = detections((-1.0, ON_LESION), (0.0, (30, 30)))
  hits = lesions.hits(given, two, 32, strict=True)
  assert (hits.best[0], hits.kept[0]) == (0, -1)
  hits = lesions.hits(given, two, 32)
  assert (hits.best[0], hits.kept[0]) == (0, 1)


def test_a_normal_slide_and_one_without_detections(two):
  given = detections((0.5, ON_LESION), (0.9, OUTSIDE))
  hits = lesions.hits(given, None, 32)
  assert (hits.false.tolist(), hits.lesions) == ([0.5, 0.9], 0)
  hits = lesions.hits(np.zeros((0, 3)), two, 32)
  assert (len(hits.false), hits.lesions, hits.kept[0]) == (0, 1, -1)


def test_coordinates_are_rounded_down_and_those_beyond_are_false(two):
  labels = two.labels
  rng = np.random.default_rng(0)
  x, y = rng.uniform(0, 90 * 32, 500), rng.uniform(0, 80 * 32, 500)
  confidence = rng.random(500)
  given = np.stack([confidence, x, y], axis=1)
  hits = lesions.hits(given, two, 32)
  expected = [p for p, i, j in given if labels[int(j / 32), int(i / 32)] == 0]
  np.testing.assert_array_equal(hits.false, expected)
  beyond = detections((0.1, (-1, 20)), (0.2, (90, 5)), (0.3, (5, 80)))
  assert lesions.hits(beyond, two, 32).false.tolist() == [0.1, 0.2, 0.3]


def ncrf(probs_map, radius, threshold, level, sigma):
  """The loop of NCRF's nms.py, first axis x."""
  if sigma > 0:
    probs_map = filters.gaussian(probs_map, sigma=sigma)
  probs_map, found = probs_map.copy(), []
  while probs_map.max() > threshold:
    x, y = np.argwhere(probs_map == probs_map.max())[0]
    found.append(
      (probs_map[x, y], *(int((i + 0.5) * 2**level) for i in (x, y)))
    )
    probs_map[
      max(x - radius, 0) : x + radius, max(y - radius, 0) : y + radius
    ] = 0
  return np.array(found).reshape(-1, 3)


@pytest.mark.parametrize('sigma', [0.0, 1.5])
@pytest.mark.parametrize(('radius', 'decimals'), [(1, 9), (5, 1), (12, 2)])
def test_suppression_is_ncrfs(sigma, radius, decimals):
  rng = np.random.default_rng(radius)
  given = np.round(rng.random((70, 50)), decimals)
  found = lesions.suppress(given.T, radius, 0.3, 64, sigma)
  expected = ncrf(given, radius, 0.3, 6, sigma)
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  assert len(found) > 3


def test_suppression_over_more_candidates_than_a_block(monkeypatch):
  given = np.round(np.random.default_rng(0).random((70, 50)), 2)
  whole = lesions.suppress(given, 3, 0.0, 64)
  monkeypatch.setattr(lesions, 'BLOCK', 7)
  np.testing.assert_array_equal(lesions.suppress(given, 3, 0.0, 64), whole)


def test_suppression_of_glass_of_nothing_and_below_zero():
  scores = np.full((20, 30), np.nan)
  assert lesions.suppress(scores, 4, 0.5, 64).shape == (0, 3)
  scores[5, 7], scores[18, 20], scores[0, 0] = 3.0, -2.0, -9.0
  found = lesions.suppress(scores, 4, -5.0, 64)
  expected = [[3, 7.5 * 64, 5.5 * 64], [-2, 20.5 * 64, 18.5 * 64]]
  np.testing.assert_array_equal(found, expected)
  found = lesions.suppress(scores, 4, 0.01, 64, sigma=1.0)
  assert found[:, 1:].tolist() == [[7.5 * 64, 5.5 * 64]]
  assert len(lesions.suppress(np.ones((3, 3)), 0, 0.5, 1)) == 9
