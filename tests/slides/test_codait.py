import math

import numpy as np
import pytest
from skimage import morphology

from jaxmed.slides import codait


def _noise(shape, seed=0, low=0, high=256):
  rng = np.random.default_rng(seed)
  return rng.integers(low, high, (*shape, 3)).astype(np.uint8)


def _by_pixel(image, green_limit):
  """The rules of the slide filter, told for one pixel at a time."""
  kept = np.zeros(image.shape[:2], bool)
  for place in np.ndindex(kept.shape):
    r, g, b = (int(v) for v in image[place])
    differs = max(abs(r - g), abs(r - b), abs(g - b)) > 15
    red = any(r > x and g < y and b < z for x, y, z in codait.RED_PEN)
    green = any(r < x and g > y and b > z for x, y, z in codait.GREEN_PEN)
    blue = any(r < x and g < y and b > z for x, y, z in codait.BLUE_PEN)
    ink = red or green or blue
    kept[place] = 0 < g < green_limit and differs and not ink
  return kept


def test_colours_are_told_as_by_pixel():
  image = _noise((80, 90))
  image[:, :20] = _noise((80, 20), 1, 100, 120)  # Gray and nearly gray.
  image[:5, :, 1] = 0
  expected = _by_pixel(image, 200)
  assert 0.1 < expected.mean() < 0.9
  assert (codait.slide_filter(image, smallest=0) == expected).all()


@pytest.mark.parametrize(
  ('colour', 'ink'),
  [
    ((200, 60, 80), True),  # Of a red pen.
    ((60, 150, 120), True),  # Green.
    ((50, 100, 195), True),  # Blue.
    ((150, 79, 89), False),  # On the limits of red.
    ((151, 79, 89), True),
    ((200, 120, 180), False),  # Eosin.
    ((95, 70, 130), False),  # Haematoxylin.
  ],
)
def test_pens_and_dyes(colour, ink):
  assert codait.pen(np.full((2, 3, 3), colour, np.uint8)).all() == ink


def test_the_limit_of_green_rises_while_too_much_is_masked():
  image = np.full((10, 100, 3), 255, np.uint8)
  image[..., 1] = np.repeat(np.arange(100), 10).reshape(10, 100)[:, ::-1] + 156
  # 155 < green < 256; less than 200 are 44 %: enough.
  assert (codait.not_green(image) == (image[..., 1] < 200)).all()
  image[..., 1] = np.clip(image[..., 1].astype(int) + 40, 0, 255)
  limit, tried = 200, []
  while (image[..., 1] < limit).mean() <= 0.1:
    tried.append(limit)
    limit = math.ceil(limit + (255 - limit) / 2)
  assert tried == [200] and limit == 228
  assert (codait.not_green(image) == (image[..., 1] < 228)).all()
  image[..., 1] = 255
  image[0, 0, 1] = 254
  assert (codait.not_green(image) == (image[..., 1] < 255)).all()
  assert not codait.not_green(image, avoid_overmask=False).any()


@pytest.mark.parametrize('smallest', [0.4, 1, 7, 60, 500])
def test_small_parts_are_removed_as_by_scikit_image(smallest):
  kept = np.random.default_rng(2).random((90, 110)) < 0.45
  expected = morphology.remove_small_objects(kept, max_size=smallest - 1e-9)
  found = codait.without_small(kept, smallest, avoid_overmask=False)
  assert (found == expected).all()


def test_the_smallest_part_is_halved_while_too_much_is_masked():
  kept = np.zeros((100, 100), bool)
  kept[10:18, 10:30] = True  # 160 px of 10,000.
  kept[50, 50:54] = True
  assert not codait.without_small(kept, 500, avoid_overmask=False).any()
  # 98.4 % are masked whatever is kept, so that even single pixels are.
  assert (codait.without_small(kept, 500) == kept).all()
  kept[60:90, 60:80] = True  # Now 600 px more, which is over 5 %.
  found = codait.without_small(kept, 500)
  assert found[70, 70] and found.sum() == 600
  empty = np.zeros((9, 9), bool)
  assert not codait.without_small(empty).any()


def test_pixels_whose_channels_add_up_to_256_are_masked_by_mistake_only():
  image = np.full((40, 40, 3), (200, 120, 180), np.uint8)
  image[:, :10] = (120, 36, 100)  # 256.
  image[:, 10:15] = (212, 120, 180)  # 512.
  kept = codait.slide_filter(image)
  assert kept.all()
  strict = codait.slide_filter(image, strict=True)
  assert not strict[:, :15].any() and strict[:, 15:].all()
  assert codait.tissue_share(image, kept) == 1
  assert codait.tissue_share(image, kept, strict=True) == 25 / 40


def test_a_tile_is_kept_for_its_tissue_and_size():
  rng = np.random.default_rng(3)
  tissue = rng.integers(60, 180, (128, 128, 3)).astype(np.uint8)
  assert codait.keep_tile(tissue, 128, 0.9)
  assert not codait.keep_tile(tissue, 129, 0.9)
  assert not codait.keep_tile(tissue[:-1], 128, 0.9)
  half = tissue.copy()
  half[:, :64] = 250
  assert codait.keep_tile(half, 128, 0.4)
  assert not codait.keep_tile(half, 128, 0.75)
  for value in (0, 205, 255):  # Even: no edges.
    assert not codait.keep_tile(np.full_like(tissue, value), 128, 0.1)
  dense = codait.tile_checks(np.full_like(tissue, 0))[1]
  assert dense.all()


def test_growing_is_scikit_images():
  rng = np.random.default_rng(4)
  for radius in (2, 10):
    mask = rng.random((70, 90)) < 0.01
    mask[30:50, 40:60] = rng.random((20, 20)) < 0.7
    disk = morphology.disk(radius)
    expected = morphology.dilation(morphology.closing(mask, disk), disk)
    found = codait._dilated(
      ~codait._dilated(~codait._dilated(mask, radius), radius), radius
    )
    assert (found == expected).all()
