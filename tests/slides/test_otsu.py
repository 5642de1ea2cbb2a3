import numpy as np
import pytest
from skimage import color, filters

from jaxmed.slides import otsu


@pytest.mark.parametrize('seed', range(4))
def test_thresholds_are_scikit_images(seed):
  rng = np.random.default_rng(seed)
  middle = rng.integers(20, 230, 3)
  image = rng.normal(middle, 15, (60, 80, 3))
  image[:30] = rng.normal(240, 5, (30, 80, 3))
  image = np.clip(image, 0, 255).astype(np.uint8)
  image[0, :5] = 0
  saturation = color.rgb2hsv(image)[..., 1]
  np.testing.assert_array_equal(otsu.saturation(image), saturation)
  expected = [filters.threshold_otsu(image[..., i]) for i in range(3)]
  expected.append(filters.threshold_otsu(saturation))
  assert otsu.otsu_thresholds(image) == tuple(expected)


def test_the_mask_takes_what_all_rules_allow():
  glass, pink, ink = (250, 251, 249), (220, 130, 180), (60, 20, 30)
  image = np.full((40, 40, 3), glass, np.uint8)
  image[10:30, 10:20] = pink
  image[10:30, 20:24] = ink  # A channel of at most 50.
  found = otsu.otsu_mask(image)
  assert found[10:30, 10:20].all() and found.sum() == 200
  assert otsu.otsu_mask(image, rgb_min=10)[10:30, 20:24].all()
  image[32:36] = 255, 253, 180  # Saturated, but above every threshold of RGB.
  assert not otsu.otsu_mask(image)[32:36].any()


def test_one_colour_has_no_tissue():
  assert not otsu.otsu_mask(np.full((8, 9, 3), 180, np.uint8)).any()
  assert otsu.otsu_threshold(np.full((4, 4), 7, np.uint8)) == 7
