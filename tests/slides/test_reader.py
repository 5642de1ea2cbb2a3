import concurrent.futures
import pathlib

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from jaxmed.slides import jpeg, reader

ROUNDING = 2  # Of a JPEG decoder's integers.


def test_direct_decode_equals_openslide(small):
  fast, slow = reader.Slide(small.path), reader.Slide(small.path, direct=False)
  assert fast.direct and not slow.direct
  _agree(fast, slow, levels=[0, 1])


def test_direct_decode_equals_openslide_on_a_real_slide(shared):
  path = shared('data/slides/CMU-1-Small-Region.svs')
  fast, slow = reader.Slide(path), reader.Slide(path, direct=False)
  assert fast.direct and fast.mpp == 0.499
  assert fast.size == (2220, 2967)  # Not of the label or macro image.
  _agree(fast, slow, levels=[0])


def _agree(fast, slow, levels):
  assert fast.levels == slow.levels
  for level in levels:
    scale = round(fast.levels[level].downsample)
    for x, y, width, height in [
      (0, 0, 128, 60),
      (65 * scale, 33 * scale, 97, 61),
      (-20 * scale, -8 * scale, 64, 64),
      (fast.size[0] - 32 * scale, fast.size[1] - 16 * scale, 64, 64),
    ]:
      one = fast.read(x, y, width, height, level).astype(int)
      two = slow.read(x, y, width, height, level).astype(int)
      assert one.shape == (height, width, 3)
      assert np.abs(one - two).max() <= ROUNDING


def test_a_jpeg_2000_slide_goes_through_openslide(shared):
  path = shared('data/slides/tcga-cr-7395-01a-01-ts1.svs')
  with reader.open_slide(path, mpp=(0.25, 0.26)) as slide:
    assert not slide.direct
    assert slide.mpp_xy == (0.25, 0.26)
    expected = openslide.OpenSlide(path).read_region((1600, 900), 1, (90, 70))
    assert (
      slide.read(1600, 900, 90, 70, 1) == np.asarray(expected)[..., :3]
    ).all()


def test_pixel_size_that_is_missing_names_the_option(tmp_path):
  path = tmp_path / 'plain.tif'
  image = np.zeros((256, 256, 3), np.uint8)
  tifffile.imwrite(path, image, tile=(256, 256), photometric='rgb')
  with pytest.raises(reader.SlideError, match='mpp='):
    reader.Slide(path)
  with reader.open_slide(path, mpp=0.25) as slide:
    assert slide.mpp == 0.25


@pytest.mark.parametrize('mpp', [0, -0.5, float('nan'), 'fine', (0.5,)])
def test_pixel_size_that_is_none(small, mpp):
  with pytest.raises(reader.SlideError, match='mpp='):
    reader.Slide(small.path, mpp)


def test_a_file_that_is_no_slide(shared, tmp_path):
  with pytest.raises(reader.SlideError, match='broken.svs can.t be opened'):
    reader.Slide(shared('data/slides/broken.svs'))
  text = tmp_path / 'text.svs'
  text.write_text('not a slide')
  with pytest.raises(reader.SlideError, match='can.t be opened'):
    reader.Slide(text)
  with pytest.raises(reader.SlideError, match='There is no slide'):
    reader.Slide(tmp_path / 'absent.svs')


def test_a_level_that_is_not_there(small):
  slide = reader.Slide(small.path)
  with pytest.raises(reader.SlideError, match='levels 0 to'):
    slide.read(0, 0, 8, 8, level=7)


def _damaged(small, directory, damage) -> tuple[pathlib.Path, tuple[int, int]]:
  """A copy whose tile (256, 256) of level 0 is changed by `damage`."""
  with tifffile.TiffFile(small.path) as tiff:
    page = tiff.pages[0]
    index = 1 * -(-page.imagewidth // 256) + 1
    offset, count = page.dataoffsets[index], page.databytecounts[index]
  content = bytearray(small.path.read_bytes())
  tile = bytearray(content[offset : offset + count])
  damage(tile)
  assert len(tile) == count
  content[offset : offset + count] = tile
  path = directory / 'damaged.tif'
  path.write_bytes(content)
  return path


def _cut_off(tile):
  tile[len(tile) // 2 :] = bytes(len(tile) - len(tile) // 2)


def _overwritten(tile):
  tile[:] = bytes(len(tile))


def _ends_too_soon(tile):
  """Entropy-coded data is lost, but the end of the image is there."""
  tile[len(tile) // 3 : -2] = bytes(len(tile) - 2 - len(tile) // 3)


def _stray_marker(tile):
  middle = len(tile) // 2
  tile[middle : middle + 2] = b'\xff\xd8'


@pytest.mark.parametrize('direct', [True, False])
@pytest.mark.parametrize('damage', [_cut_off, _overwritten, _ends_too_soon])
def test_a_broken_tile_is_an_error_with_its_place(
  small, tmp_path, damage, direct
):
  slide = reader.Slide(_damaged(small, tmp_path, damage), direct=direct)
  assert slide.direct == direct
  whole = reader.Slide(small.path)
  for _ in range(2):
    with pytest.raises(reader.TileError) as caught:
      slide.read(300, 290, 16, 16)
    assert caught.value.level == 0
    expected = (256, 256) if direct else (300, 290)
    assert (caught.value.x, caught.value.y) == expected
    # The rest can still be read.
    assert (slide.read(0, 0, 99, 99) == whole.read(0, 0, 99, 99)).all()


def test_a_stray_marker_is_an_error(small, tmp_path):
  slide = reader.Slide(_damaged(small, tmp_path, _stray_marker))
  with pytest.raises(reader.TileError, match='stray marker'):
    slide.read(256, 256, 16, 16)


def test_a_file_that_was_cut_off_never_reads_as_white(small, tmp_path):
  """The directory comes first, so such a file opens."""
  content = small.path.read_bytes()
  with tifffile.TiffFile(small.path) as tiff:
    last = tiff.pages[0].dataoffsets[-1]
  path = tmp_path / 'short.tif'
  path.write_bytes(content[: last + 10])
  try:
    slide = reader.Slide(path)
  except reader.SlideError:
    return  # Where the directories of other levels were lost.
  with pytest.raises(reader.TileError):
    slide.read(690, 510, 8, 8)


def test_threads_share_a_slide(small):
  with reader.open_slide(small.path) as slide:
    places = [(x, y) for x in range(0, 640, 64) for y in range(0, 448, 64)]
    alone = [slide.read(x, y, 64, 64) for x, y in places]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      again = list(pool.map(lambda p: slide.read(*p, 64, 64), places * 3))
  assert all(
    (one == two).all() for one, two in zip(alone * 3, again, strict=True)
  )


def test_overview_averages(small):
  with reader.open_slide(small.path) as slide:
    whole = slide.read(0, 0, *slide.size)
    expected = np.asarray(Image.fromarray(whole).reduce(2)).astype(int)
    assert np.abs(slide.overview(2) - expected).max() <= 1
    assert slide.thumbnail(100).shape == (74, 100, 3)
    assert slide.thumbnail(10**4).shape == whole.shape


def test_overview_in_bands_equals_overview_at_once(small, monkeypatch):
  with reader.open_slide(small.path) as slide:
    once = slide.overview(3)
    monkeypatch.setattr(reader, 'BAND_BYTES', 704 * 3 * 40)
    assert (slide.overview(3) == once).all()


@pytest.mark.parametrize(
  ('side', 'taken'), [(1000, 1), (1002, 1), (998, 1), (1040, 0)]
)
def test_overview_takes_a_level_whose_size_was_rounded(tmp_path, side, taken):
  """Level 1 of 500 px has another gray than level 0, to be told from it."""
  path = tmp_path / 'two.tif'
  with tifffile.TiffWriter(path) as file:
    for level, size in enumerate((side, 500)):
      file.write(
        np.full((size, size, 3), (40, 200)[level], np.uint8),
        tile=(256, 256),
        photometric='rgb',
        compression='jpeg',
        subfiletype=level,
      )
  with reader.open_slide(path, mpp=0.5) as slide:
    assert len(slide.levels) == 2
    seen = slide.overview(2)
  assert seen.shape == (side // 2, side // 2, 3)
  # JPEG's blocks at the border end in black.
  assert abs(np.median(seen) - (40, 200)[taken]) <= ROUNDING


def test_the_cache_of_tiles_is_bounded(small, monkeypatch):
  monkeypatch.setattr(jpeg, 'CACHE_BYTES', 2 * 256 * 256 * 3)
  with reader.open_slide(small.path) as slide:
    first = slide.read(0, 0, *slide.size)
    assert (slide.read(0, 0, *slide.size) == first).all()
    assert len(slide._tiles._cache) == 2
