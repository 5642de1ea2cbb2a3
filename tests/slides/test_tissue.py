import numpy as np
import pytest
from scipy import ndimage

from jaxmed import errors
from jaxmed.slides import codait, grid, otsu, reader, tissue


def test_finds_a_phantoms_tissue_and_not_its_pen(small):
  with reader.open_slide(small.path) as slide:
    mask = tissue.tissue_mask(slide)
    image = slide.overview(8)
  assert mask.size == slide.size
  assert mask.pixels.shape == image.shape[:2]
  density = tissue.optical_density(image)
  ink = tissue.find_ink(density)
  ink = ndimage.binary_opening(ink, np.ones((2, 2)))  # Not single pixels.
  assert ink.sum() > 40  # The slide has a pen mark.
  assert not mask.pixels[ink].any()
  glass = density.max(-1) < 0.05
  assert mask.pixels[glass].mean() < 0.02
  stained = (density[..., 1] > 0.4) & (density[..., 0] < density[..., 1])
  assert mask.pixels[stained].mean() > 0.9


def test_pens_of_four_colours_are_no_tissue_and_dyes_are():
  white = np.full((60, 90, 3), 245, np.uint8)
  inks = {
    'blue': (45, 80, 170),
    'green': (40, 140, 90),
    'black': (40, 42, 45),
    'red': (205, 40, 60),
  }
  dyes = {'nuclei': (95, 70, 150), 'eosin': (225, 140, 190)}
  for name, colour in (inks | dyes).items():
    image = white.copy()
    image[10:50, 10:80] = colour
    found = tissue.find_tissue(image, 4.0)
    assert found[20:40, 20:70].mean() == (name in dyes), name
    assert not found[:5].any(), name


def test_dust_goes_and_small_holes_close():
  image = np.full((100, 100, 3), 245, np.uint8)
  image[20:80, 20:80] = (200, 120, 180)
  image[40:43, 40:43] = 245  # 144 square micrometres.
  image[60:70, 60:70] = 245  # 1,600.
  image[5:8, 5:8] = (200, 120, 180)
  found = tissue.find_tissue(image, 4.0)
  assert found[41, 41] and not found[65, 65] and not found[6, 6]


def test_empty_glass_has_no_tissue():
  rng = np.random.default_rng(0)
  image = rng.integers(238, 246, (80, 80, 3)).astype(np.uint8)
  assert not tissue.find_tissue(image, 4.0).any()


def test_a_real_slide_agrees_with_its_published_mask(shared):
  """With NCRF's Otsu mask, which keeps less of pale stroma."""
  path = shared('data/slides/CMU-1-Small-Region.svs')
  golden = np.load(shared('golden/tissue/outputs.npz'))
  shape = golden['slide_mask_shape'].astype(int)
  count = int(np.prod(shape))
  otsu = np.unpackbits(golden['slide_mask'])[:count].reshape(shape).T
  with reader.open_slide(path) as slide:
    mask = tissue.tissue_mask(slide)
    height, width = mask.pixels.shape
    y = (np.arange(height) + 0.5) * slide.size[1] / height
    x = (np.arange(width) + 0.5) * slide.size[0] / width
    image = slide.overview(tissue.MPP / slide.mpp)
  otsu = otsu[np.ix_(y.astype(int), x.astype(int))].astype(bool)
  assert mask.pixels[otsu].mean() > 0.9
  assert 0.2 < mask.pixels.mean() < 0.95
  assert mask.pixels[image.min(-1) > 235].mean() < 0.01


def test_a_method_works_at_its_own_scale_or_any_other(small):
  with reader.open_slide(small.path) as slide:
    for method, downsample in (('stain', 8), ('codait', 32), ('otsu', 64)):
      natural = tissue.tissue_mask(slide, method)
      assert natural.size == slide.size
      assert natural.pixels.dtype == bool
      across, down = natural.downsample
      assert across == pytest.approx(downsample, rel=0.05)
      assert down == pytest.approx(downsample, rel=0.05)
      fine = tissue.tissue_mask(slide, method, mpp=2.0)
      assert fine.pixels.shape == (130, 176)
      same = tissue.tissue_mask(slide, method, mpp=downsample * slide.mpp)
      assert (same.pixels == natural.pixels).all()
      full = tissue.tissue_mask(slide, method, mpp=0.01)
      assert full.pixels.shape == slide.size[::-1]
    # Away from ink, which each knows in its own way, they agree.
    tiles = grid.tile_grid(slide.size, 64)
    stain, other, third = (
      grid.coverage(tissue.tissue_mask(slide, method, mpp=4.0), tiles)
      for method in tissue.METHODS
    )
  assert np.abs(stain - other).mean() < 0.2
  assert np.corrcoef(stain.ravel(), third.ravel())[0, 1] > 0.7


def test_methods_are_those_of_their_modules(small):
  with reader.open_slide(small.path) as slide:
    image = slide.overview(16)
    found = tissue.tissue_mask(slide, 'codait', mpp=16 * slide.mpp)
    # The smallest part has 500 px at 1/32, and the area of that here.
    expected = codait.slide_filter(image, smallest=2000)
    assert (found.pixels == expected).all() and expected.any()
    strict = tissue.tissue_mask(slide, 'codait', 16 * slide.mpp, strict=True)
    slip = image.sum(axis=-1) % 256 == 0
    assert (strict.pixels == expected & ~slip).all()
    assert (expected & slip).any()
    found = tissue.tissue_mask(slide, 'otsu', mpp=16 * slide.mpp)
    assert (found.pixels == otsu.otsu_mask(image)).all()


def test_mistakes_are_named(small):
  with reader.open_slide(small.path) as slide:
    with pytest.raises(errors.UserError, match="Did you mean 'otsu'"):
      tissue.tissue_mask(slide, 'otzu')
    with pytest.raises(errors.UserError, match='slips'):
      tissue.tissue_mask(slide, 'otsu', strict=True)
    for mpp in (0, -1.0, float('nan')):
      with pytest.raises(errors.UserError, match='mpp above 0'):
        tissue.tissue_mask(slide, mpp=mpp)


def test_density_is_the_logarithm_of_what_glass_lets_through():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (50, 41, 3)).astype(np.uint8)
  image[..., 1] //= 2  # No glass here: 225 is taken for it.
  glass = np.percentile(image.reshape(-1, 3), 99, axis=0)
  glass = np.clip(glass, 225, 255)
  expected = -np.log((image.astype(np.float64) + 1) / (glass + 1))
  found = tissue.optical_density(image)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  for share in (0, 33.3, 99, 100):
    plane = image[..., 2]
    expected = np.percentile(plane, share)
    assert tissue._percentile(plane, share) == pytest.approx(expected)


@pytest.mark.parametrize('shape', [(40, 60), (1, 9), (9, 1), (2, 2)])
def test_opening_is_that_by_four_pixels(shape):
  mask = np.random.default_rng(2).random(shape) < 0.7
  expected = ndimage.binary_opening(mask, np.ones((2, 2)))
  assert (tissue._opened(mask) == expected).all()


@pytest.mark.parametrize('radius', [0.5, 1, 2.5, 3, 12, 99])
def test_around_is_a_distance(radius):
  mask = np.random.default_rng(1).random((40, 60)) < 0.004
  away = ndimage.distance_transform_edt(~mask)
  assert mask.any()
  assert (tissue._around(mask, radius) == (away <= radius)).all()
  assert not tissue._around(np.zeros((3, 4), bool), radius).any()


def test_an_outline_runs_around_the_tissue_and_the_rest_fades():
  pixels = np.zeros((20, 30), bool)
  pixels[5:15, 10:20] = True
  thumbnail = np.full((200, 300, 3), 100, np.uint8)
  picture = tissue.outlined(thumbnail, grid.Mask(pixels, (3000, 2000)))
  green = (picture == tissue.OUTLINE).all(axis=-1)
  assert (picture[55:145, 105:195] == 100).all()
  assert (picture[:40, :90] == 204).all()
  assert green[48:50, 100:200].all() and green[100, 98:100].all()
  assert green.sum() == pytest.approx(4 * 100 * 2, rel=0.05)
