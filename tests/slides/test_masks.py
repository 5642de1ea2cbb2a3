import tracemalloc

import numpy as np
import pytest
import tifffile

from jaxmed.slides import annotations, grid, masks

SIZE = (499, 701)


@pytest.fixture
def lesions():
  """Blobs of 7 px, at the border too."""
  rng = np.random.default_rng(0)
  return np.kron(rng.random((101, 72)) < 0.4, np.ones((7, 7)))[:701, :499] > 0


def _write(path, pixels, levels=1, **options):
  with tifffile.TiffWriter(path, bigtiff=True) as tiff:
    for level in range(levels):
      tiff.write(
        pixels[:: 2**level, :: 2**level],
        metadata=None,
        subfiletype=int(level > 0),
        **options,
      )


@pytest.mark.parametrize('mark', (1, 255))
@pytest.mark.parametrize(
  'options',
  [
    {},
    {'rowsperstrip': 13, 'compression': 'deflate'},
    {'tile': (64, 64), 'compression': 'lzw', 'levels': 4},
    {'tile': (64, 64), 'compression': 'deflate', 'predictor': True},
  ],
  ids=str,
)
def test_a_mask_is_what_was_written(tmp_path, lesions, mark, options):
  _write(tmp_path / 'a.tif', lesions.astype(np.uint8) * mark, **options)
  found = masks.read_mask(tmp_path / 'a.tif', SIZE, 1)
  np.testing.assert_array_equal(found.pixels, lesions)
  assert found.size == SIZE


def test_of_several_channels_the_first_counts(tmp_path, lesions):
  rgb = np.stack([lesions, ~lesions, lesions & False], -1).astype(np.uint8)
  rgb *= 255
  _write(tmp_path / 'a.tif', rgb, photometric='rgb', tile=(64, 64))
  found = masks.read_mask(tmp_path / 'a.tif', SIZE, 1).pixels
  np.testing.assert_array_equal(found, lesions)
  planes = np.moveaxis(rgb, -1, 0)
  tifffile.imwrite(
    tmp_path / 'b.tif',
    planes,
    photometric='rgb',
    planarconfig='separate',
    metadata=None,
  )
  found = masks.read_mask(tmp_path / 'b.tif', SIZE, 1).pixels
  np.testing.assert_array_equal(found, lesions)


@pytest.mark.parametrize('downsample', (1, 1.7, 2, 4, 6.1, 16))
def test_pixels_are_looked_up_at_their_centres(tmp_path, lesions, downsample):
  _write(tmp_path / 'a.tif', lesions.astype(np.uint8), tile=(128, 128))
  found = masks.read_mask(tmp_path / 'a.tif', SIZE, downsample)
  height, width = found.pixels.shape
  assert (width, height) == tuple(int(np.ceil(s / downsample)) for s in SIZE)
  y = ((np.arange(height) + 0.5) * found.downsample[1]).astype(int)
  x = ((np.arange(width) + 0.5) * found.downsample[0]).astype(int)
  np.testing.assert_array_equal(found.pixels, lesions[np.ix_(y, x)])


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path):
  """Each level of this pyramid has marks elsewhere."""
  path = tmp_path / 'a.tif'
  with tifffile.TiffWriter(path) as tiff:
    for level in range(4):
      pixels = np.zeros((512 >> level, 256 >> level), np.uint8)
      pixels[: len(pixels) // (level + 1)] = 1
      # Levels hang on the first page, as in OME-TIFF.
      options = {'subifds': 3} if not level else {'subfiletype': 1}
      tiff.write(pixels, tile=(64, 64), metadata=None, **options)
  share = lambda downsample: masks.read_mask(
    path, (256, 512), downsample
  ).pixels.mean()
  assert share(1) == 1 and share(1.9) == 1
  assert share(2) == pytest.approx(1 / 2) == share(3.9)
  assert share(4) == pytest.approx(1 / 3, abs=0.01)
  assert share(8) == share(64) == pytest.approx(1 / 4)


def test_a_mask_at_a_fraction_of_its_slide(tmp_path, lesions):
  _write(tmp_path / 'a.tif', lesions.astype(np.uint8) * 255)
  size = SIZE[0] * 32 + 5, SIZE[1] * 32 + 31  # What is over is left out.
  found = masks.read_mask(tmp_path / 'a.tif', size, 32)
  assert found.pixels.shape == (702, 500) and found.size == size
  # What is beyond the mask is as its last row and column.
  x, y = (
    np.minimum((np.arange(n) + 0.5) * whole / n / 32, side - 1).astype(int)
    for n, whole, side in zip((500, 702), size, SIZE, strict=True)
  )
  np.testing.assert_array_equal(found.pixels, lesions[np.ix_(y, x)])


def test_tiles_that_are_left_out_have_no_lesion(tmp_path):
  """As ASAP writes tiles of background: without any bytes."""
  pixels = np.zeros((256, 256), np.uint8)
  pixels[50:90, 50:70] = 1
  tiles = [
    pixels[y : y + 64, x : x + 64]
    for y in range(0, 256, 64)
    for x in range(0, 256, 64)
  ]
  tifffile.imwrite(
    tmp_path / 'a.tif',
    (tile if tile.any() else None for tile in tiles),
    shape=(256, 256),
    dtype=np.uint8,
    tile=(64, 64),
    metadata=None,
  )
  found = masks.read_mask(tmp_path / 'a.tif', (256, 256), 1)
  np.testing.assert_array_equal(found.pixels, pixels > 0)


def test_polygons_of_a_mask_fill_it_again():
  rng = np.random.default_rng(3)
  pixels = rng.random((60, 80)) < 0.5  # Holes, islands, touching corners.
  mask = grid.Mask(pixels, (803, 601))
  polygons = masks.trace(mask, '_0')
  again = annotations.rasterise(polygons, 80, 60, downsample=mask.downsample)
  np.testing.assert_array_equal(again, pixels)
  assert {polygon.group for polygon in polygons} == {'_0'}
  assert any(polygon.holes for polygon in polygons)
  assert masks.trace(grid.Mask(pixels & False, (80, 60))) == []


def test_a_large_empty_pyramid_is_read_in_little_memory(tmp_path):
  """Two billion pixels at level 0, of which few are asked for."""
  width = height = 45056
  tile = np.ones((512, 512), np.uint8)
  count = (width // 512) * (height // 512)
  marks = {0, 500, count - 1}
  tifffile.imwrite(
    tmp_path / 'a.tif',
    (tile if i in marks else None for i in range(count)),
    shape=(height, width),
    dtype=np.uint8,
    tile=(512, 512),
    compression='deflate',
    metadata=None,
  )
  tracemalloc.start()
  found = masks.read_mask(tmp_path / 'a.tif', (width, height), 32)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert found.pixels.sum() == len(marks) * 16 * 16
  assert peak < 64 << 20
