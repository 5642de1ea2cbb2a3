"""Regions at a scale in micrometres."""

import numpy as np
import pytest
from PIL import Image

from jaxmed.slides import reader, resample
from tests.slides import corpus

PIXELS = corpus.pixels()
HEIGHT, WIDTH = PIXELS.shape[:2]


@pytest.fixture
def slide(tmp_path):
  """Of one level, 0.5 µm, without loss."""
  Image.fromarray(PIXELS).save(tmp_path / 'slide.png')
  with reader.open_slide(tmp_path / 'slide.png', 0.5) as slide:
    yield slide


def _reduced(pixels, steps):
  """The whole picture by PIL alone, its filter as wide as it should be."""
  size = [
    int(side / s) for side, s in zip(pixels.shape[1::-1], steps, strict=True)
  ]
  box = (0, 0, size[0] * steps[0], size[1] * steps[1])
  return np.asarray(
    Image.fromarray(pixels).resize(size, Image.BICUBIC, box=box)
  ).astype(int)


@pytest.mark.parametrize('step', [1.25, 1.6, 2.0, 3.2])
def test_equals_a_crop_of_the_whole_picture_resized_by_pil(slide, step):
  whole = _reduced(PIXELS, (step, step))
  found = slide.region(step * 30, step * 20, 90, 70, 0.5 * step)
  assert found.valid.all()
  difference = np.abs(found.pixels - whole[20:90, 30:120])
  assert difference.max() <= 1


def test_far_reductions_average_first_and_stay_close_to_pil(slide):
  step = 9.0
  whole = _reduced(PIXELS[:, :639], (step, step))
  found = slide.region(0, 0, 60, 50, 0.5 * step).pixels[2:-2, 2:-2]
  difference = np.abs(found - whole[2:48, 2:58])
  assert difference.mean() < 2 and difference.max() <= 12


def test_neighbouring_regions_have_no_seam(slide):
  for mpp in 0.83, 2.7, 4.0:
    step = mpp / 0.5
    whole = slide.region(0, 0, 60, 40, mpp).pixels
    for x, y in [(0, 0), (20, 8), (31, 17)]:
      part = slide.region(x * step, y * step, 20, 16, mpp).pixels
      expected = whole[y : y + 16, x : x + 20].astype(int)
      assert np.abs(part - expected).max() <= 1


def test_finest_stripes_become_gray(tmp_path):
  """What can't be shown at a scale must not come back as other stripes."""
  stripes = np.zeros((300, 400, 3), np.uint8)
  stripes[:, ::2] = 255
  Image.fromarray(stripes).save(tmp_path / 'stripes.png')
  with reader.open_slide(tmp_path / 'stripes.png', 0.25) as slide:
    for mpp in 0.6, 0.77, 1.3, 3.1:
      pixels = slide.region(10, 10, 20, 20, mpp).pixels
      assert np.abs(pixels.astype(int) - 127).max() < 18
      assert pixels.std() < 8


def test_the_scale_of_a_level_gives_its_pixels(small):
  with reader.open_slide(small.path) as slide:
    for level, plane in enumerate(slide.levels):
      mpp = slide.mpp * round(plane.downsample)
      x, y = (round(8 * plane.downsample), round(5 * plane.downsample))
      found = slide.region(x, y, 40, 30, mpp)
      assert (found.pixels == slide.read(x, y, 40, 30, level)).all()
      assert found.valid.all()


def test_the_next_finer_level_is_taken(small):
  with reader.open_slide(small.path) as slide:
    asked = []
    pixels = slide._pixels
    slide._pixels = lambda level, *box: (
      asked.append(level) or pixels(level, *box)
    )
    for mpp in 0.5, 1.9, 2.0, 5.0:
      slide.region(40, 40, 20, 20, mpp)
    assert asked == [0, 0, 1, 1]
    fine = slide.region(0, 0, 80, 60, 1.9).pixels.astype(int)
    coarse = slide.region(0, 0, 80, 60, 2.0).pixels
    assert np.abs(fine.mean((0, 1)) - coarse.mean((0, 1))).max() < 6


def test_places_in_micrometres(slide):
  one = slide.region(120, 80, 50, 40, 0.8)
  two = slide.region(60.0, 40.0, 50, 40, 0.8, unit='um')
  assert (one.pixels == two.pixels).all()
  with pytest.raises(reader.errors.UserError, match='unit'):
    slide.region(0, 0, 8, 8, 1.0, unit='mm')


def test_pixels_that_are_not_square_become_square(tmp_path):
  Image.fromarray(PIXELS).save(tmp_path / 'slide.png')
  with reader.open_slide(tmp_path / 'slide.png', (0.25, 0.5)) as slide:
    whole = _reduced(PIXELS, (3.2, 1.6))
    found = slide.region(20 * 3.2, 30 * 1.6, 100, 90, 0.8)
    assert np.abs(found.pixels - whole[30:120, 20:120]).max() <= 1
    # Exact along y alone is no passthrough.
    found = slide.region(0, 0, 64, 64, 0.5).pixels
    assert np.abs(found - _reduced(PIXELS, (2, 1))[:64, :64]).max() <= 1
    assert slide.region(50.0, 50.0, 9, 9, 0.8, 'um').pixels.shape == (9, 9, 3)


def test_beyond_the_border_is_background_and_not_valid(slide):
  for mpp in 0.5, 0.85, 3.0:
    step = mpp / 0.5
    x, y = -8 * step, HEIGHT - 6 * step
    found = slide.region(x, y, 20, 14, mpp)
    rows, columns = np.arange(14)[:, None], np.arange(20)
    inside = (columns >= 8) & (y + (rows + 0.5) * step < HEIGHT)
    assert (found.valid == inside).all()
    assert (found.pixels[~found.valid] == 255).all()
    assert found.pixels[found.valid].mean() < 200
    away = slide.region(-1000, 9999, 20, 14, mpp)
    assert not away.valid.any() and (away.pixels == 255).all()


def test_the_border_is_not_mixed_with_background(tmp_path):
  dark = np.full((100, 100, 3), 40, np.uint8)
  Image.fromarray(dark).save(tmp_path / 'dark.png')
  with reader.open_slide(tmp_path / 'dark.png', 0.5) as slide:
    for mpp in 0.5, 0.7, 1.15, 4.3:
      found = slide.region(-13.3, -7.7, 150, 150, mpp)
      assert (found.pixels[found.valid] == 40).all()
      assert found.valid.any() and not found.valid.all()


def test_a_finer_scale_than_there_is(slide):
  near = slide.region(30, 30, 64, 64, 0.48)  # A scanner of 0.5 for one of 0.48.
  assert near.valid.all()
  with pytest.raises(reader.SlideError, match='nothing finer; 0.25 was'):
    slide.region(0, 0, 64, 64, 0.25)
  for mpp in 0, -1, float('nan'), float('inf'):
    with pytest.raises(reader.SlideError, match='positive'):
      slide.region(0, 0, 64, 64, mpp)


def test_bands_change_nothing(slide, monkeypatch):
  once = slide.region(17, 11, 30, 30, 5.0).pixels
  monkeypatch.setattr(resample, 'BAND_BYTES', 640 * 3 * 8)
  assert (slide.region(17, 11, 30, 30, 5.0).pixels == once).all()


def test_a_region_with_a_broken_tile_is_an_error(tmp_path):
  path = corpus.tile_of_zeros(tmp_path)
  with reader.open_slide(path) as slide:
    with pytest.raises(reader.TileError):
      slide.region(200, 200, 64, 64, 0.8)
    assert slide.region(0, 0, 64, 64, 0.8).valid.all()
