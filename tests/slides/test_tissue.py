import numpy as np
from scipy import ndimage

from jaxmed.slides import reader, tissue


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
