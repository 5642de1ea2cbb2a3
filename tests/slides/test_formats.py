"""Plain pictures, OME-TIFF and Philips's TIFF as slides."""

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageCms

from jaxmed.slides import formats, reader
from tests.slides import corpus

PIXELS = corpus.pixels()


def _halves(pixels, count):
  for _ in range(count):
    yield pixels
    pixels = np.asarray(Image.fromarray(pixels).reduce(2))


@pytest.mark.parametrize('kind', ['png', 'jpg', 'tif'])
def test_a_picture_is_a_slide_of_one_level(tmp_path, kind):
  path = tmp_path / f'picture.{kind}'
  Image.fromarray(PIXELS).save(path)
  with reader.open_slide(path, 0.5) as slide:
    assert slide.levels == (reader.Level(corpus.WIDTH, corpus.HEIGHT, 1.0),)
    expected = np.asarray(Image.open(path))[30:90, 20:120]
    assert (slide.read(20, 30, 100, 60) == expected).all()
    region = slide.read(20, 30, 100, 60)
    region[:] = 0  # It is the caller's.
    assert slide.read(20, 30, 100, 60).any()


@pytest.mark.parametrize(
  'options',
  [
    {'rowsperstrip': 50},
    {'rowsperstrip': 50, 'compression': 'lzw', 'predictor': True},
    {'tile': (128, 128), 'planarconfig': 'separate', 'compression': 'zlib'},
    {'tile': (128, 64), 'compression': 'zlib', 'predictor': True},
    {'rowsperstrip': 64, 'compression': 'jpeg'},
  ],
)
def test_tiff_in_strips_and_planes(tmp_path, options):
  path = tmp_path / 'plain.tif'
  pixels = PIXELS
  if options.get('planarconfig') == 'separate':
    pixels = np.moveaxis(pixels, -1, 0)
  tifffile.imwrite(
    path,
    pixels,
    photometric='rgb',
    resolution=(20000, 20000),
    resolutionunit='CENTIMETER',
    **options,
  )
  whole = tifffile.imread(path)
  if whole.shape[0] == 3:
    whole = np.moveaxis(whole, 0, -1)
  with reader.open_slide(path) as slide:
    assert slide.mpp == pytest.approx(0.5)
    for x, y, width, height in [(0, 0, 640, 512), (130, 49, 70, 60)]:
      expected = whole[y : y + height, x : x + width]
      assert (slide.read(x, y, width, height) == expected).all()


def test_gray_and_transparent_pictures(tmp_path):
  gray = PIXELS[..., 0]
  Image.fromarray(gray).save(tmp_path / 'gray.png')
  with reader.open_slide(tmp_path / 'gray.png', 1) as slide:
    assert (slide.read(0, 0, 640, 512) == gray[..., None]).all()
  clear = np.dstack([PIXELS, np.where(gray > 99, 255, 0).astype(np.uint8)])
  Image.fromarray(clear).save(tmp_path / 'clear.png')
  tifffile.imwrite(
    tmp_path / 'clear.tif',
    clear,
    photometric='rgb',
    extrasamples=['unassalpha'],
  )
  expected = np.where(clear[..., 3:] > 0, PIXELS, 255)
  for name in 'clear.png', 'clear.tif':
    with reader.open_slide(tmp_path / name, 1) as slide:
      assert (slide.read(0, 0, 640, 512) == expected).all()


def test_a_resolution_that_is_no_screens_is_believed(tmp_path):
  path = tmp_path / 'dots.png'
  Image.fromarray(PIXELS).save(path, dpi=(50800, 50800))
  with reader.open_slide(path) as slide:
    assert slide.mpp == pytest.approx(0.5, rel=1e-4)
  Image.fromarray(PIXELS).save(path, dpi=(300, 300))
  with pytest.raises(reader.SlideError, match='mpp='):
    reader.Slide(path)
  assert formats.honest('20.1', '0.5') == ('', '')
  assert formats.honest('0.25', '0.26') == ('0.25', '0.26')


def _write_ome(
  path, options, unit='µm', sizes=(0.25, 0.3), names=('slide', 'label image')
):
  first, *others = _halves(PIXELS, 3)
  metadata = {
    'axes': 'YXS',
    'Name': names[0],
    'PhysicalSizeX': sizes[0],
    'PhysicalSizeXUnit': unit,
    'PhysicalSizeY': sizes[1],
    'PhysicalSizeYUnit': unit,
  }
  label = np.full((700, 900, 3), 7, np.uint8)  # Larger than the slide.
  with tifffile.TiffWriter(path, ome=True) as tiff:
    tiff.write(
      first, subifds=2, photometric='rgb', metadata=metadata, **options
    )
    for level in others:
      tiff.write(level, subfiletype=1, photometric='rgb', **options)
    tiff.write(
      label, photometric='rgb', metadata={'axes': 'YXS', 'Name': names[1]}
    )


@pytest.mark.parametrize('compression', ['jpeg', 'zlib'])
def test_ome_tiff_with_its_levels(tmp_path, compression):
  path = tmp_path / 'slide.ome.tif'
  _write_ome(path, {'tile': (128, 128), 'compression': compression})
  with reader.open_slide(path) as slide:
    assert slide.mpp_xy == (0.25, 0.3)
    assert [level.downsample for level in slide.levels] == [1, 2, 4]
    assert slide.size == (corpus.WIDTH, corpus.HEIGHT)  # Not the label.
    assert slide.direct == (compression == 'jpeg')
    for level in range(3):
      found = slide.read(40, 80, 90, 100, level)
      pixels = tifffile.imread(path, series=0, level=level)
      x, y = 40 >> level, 80 >> level
      part = pixels[y : y + 100, x : x + 90]
      assert (found[: part.shape[0], : part.shape[1]] == part).all()


@pytest.mark.parametrize(
  'names',
  [
    ('Macrophages_CD68', 'Label'),
    ('unlabelled', 'LabelImage'),
    ('7: MACROD1', 'slide_macro-1'),
    ('x', 'SlideLabel'),
    ('thumb nails', 'THUMBNAILS'),
  ],
)
def test_names_of_pictures_of_the_glass(tmp_path, names):
  path = tmp_path / 'slide.ome.tif'
  _write_ome(path, {'tile': (128, 128)}, names=names)
  with reader.open_slide(path) as slide:
    assert slide.size == (corpus.WIDTH, corpus.HEIGHT)
  _write_ome(path, {'tile': (128, 128)}, names=(names[1],) * 2)
  with pytest.raises(reader.SlideError, match='names no image but labels'):
    reader.Slide(path)


def test_units_of_ome(tmp_path):
  path = tmp_path / 'slide.ome.tif'
  _write_ome(path, {'tile': (128, 128)}, 'nm', (250.0, 250.0))
  with reader.open_slide(path) as slide:
    assert slide.mpp == pytest.approx(0.25)
  _write_ome(path, {'tile': (128, 128)}, 'pixel')
  with pytest.raises(reader.SlideError, match="doesn't say .* mpp="):
    reader.Slide(path)
  _write_ome(path, {'tile': (128, 128)}, sizes=(0, -1))
  with pytest.raises(reader.SlideError, match='says .* mpp='):
    reader.Slide(path)


def _philips(path, empty=()):
  """As Philips exports: pages padded to whole tiles, empty ones left out."""
  levels = list(_halves(PIXELS[:, :600], 3))  # 600, 300 and 150 px wide.
  spacing = ''.join(
    '<DataObject ObjectType="PixelDataRepresentation"><Attribute '
    f'Name="DICOM_PIXEL_SPACING">"{0.0005 * 2**i}" "{0.0005 * 2**i}"'
    '</Attribute></DataObject>'
    for i in range(3)
  )
  xml = (
    '<?xml version="1.0"?><DataObject ObjectType="DPUfsImport">'
    '<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array>'
    '<DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="PIM_DP_IMAGE_TYPE">WSI</Attribute>'
    '<Attribute Name="DICOM_PIXEL_SPACING">"0.0005" "0.0005"</Attribute>'
    '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>'
    f'{spacing}</Array></Attribute></DataObject></Array></Attribute>'
    '</DataObject>'
  )
  with tifffile.TiffWriter(path) as tiff:
    for number, level in enumerate(levels):
      if number:
        height, width = (-(-side // 128) * 128 for side in level.shape[:2])
        padding = (height - level.shape[0], width - level.shape[1])
        level = np.pad(level, ((0, padding[0]), (0, padding[1]), (0, 0)))
      tiff.write(
        level,
        tile=(128, 128),
        photometric='rgb',
        compression='jpeg',
        subfiletype=int(number > 0),
        description=xml if not number else 'level',
        software='Philips DP v1.0',
        metadata=None,
      )
  with tifffile.TiffFile(path, mode='r+b') as tiff:
    for name in 'TileOffsets', 'TileByteCounts':
      tag = tiff.pages[0].tags[name]
      tag.overwrite([0 if i in empty else v for i, v in enumerate(tag.value)])


def test_philips_tiff_is_decoded_directly(tmp_path):
  """Its padding is no part of a level, its empty tiles are background."""
  path = tmp_path / 'philips.tiff'
  _philips(path, empty=(6,))  # The tile at 128, 128.
  assert openslide.OpenSlide.detect_format(path) == 'philips'
  fast, slow = reader.Slide(path), reader.Slide(path, direct=False)
  assert fast.direct and not slow.direct
  assert fast.mpp == 0.5 and fast.levels == slow.levels
  assert [level.width for level in fast.levels] == [600, 300, 150]
  for level, plane in enumerate(fast.levels):
    one = fast.read(0, 0, plane.width + 9, plane.height + 9, level).astype(int)
    two = slow.read(0, 0, plane.width + 9, plane.height + 9, level)
    assert np.abs(one - two).max() <= 2
  assert (fast.read(128, 128, 128, 128) == 255).all()


def _swapped() -> bytes:
  """An ICC profile of a scanner whose red is green and whose green is red."""
  profile = bytearray(
    ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  )
  count = int.from_bytes(profile[128:132], 'big')
  tags = {
    bytes(profile[p : p + 4]): p for p in range(132, 132 + 12 * count, 12)
  }
  red, green = tags[b'rXYZ'], tags[b'gXYZ']
  profile[red : red + 4], profile[green : green + 4] = b'gXYZ', b'rXYZ'
  return bytes(profile)


@pytest.mark.parametrize('kind', ['png', 'tiled', 'strips', 'jpeg'])
def test_colours_by_the_profile_if_asked_for(tmp_path, kind):
  path, profile = tmp_path / f'slide.{kind}', _swapped()
  if kind == 'png':
    Image.fromarray(PIXELS).save(path, icc_profile=profile)
  else:
    options = {
      'tiled': {'tile': (128, 128)},
      'strips': {'rowsperstrip': 32},
      'jpeg': {'tile': (128, 128), 'compression': 'jpeg'},
    }[kind]
    tifffile.imwrite(
      path, PIXELS, photometric='rgb', iccprofile=profile, **options
    )
  with reader.open_slide(path, 0.5) as plain:
    before = plain.read(-9, 5, 200, 150)
    assert plain.profile == profile
  with reader.open_slide(path, 0.5, icc=True) as slide:
    after = slide.read(-9, 5, 200, 150).astype(int)
    assert np.abs(after - before[..., [1, 0, 2]]).max() <= 2
    assert np.abs(after - before).max() > 50
    region = slide.region(-9, 5, 200, 150, 0.5).pixels
    assert (region == after).all()
    plain = reader.Slide(path, 0.5)
    swapped = plain.overview(3)[..., [1, 0, 2]].astype(int)
    assert np.abs(slide.overview(3) - swapped).max() <= 2


def test_a_profile_that_is_not_there_or_is_none(tmp_path, small):
  with pytest.raises(reader.SlideError, match='no ICC profile'):
    reader.Slide(small.path, icc=True)
  path = tmp_path / 'slide.png'
  Image.fromarray(PIXELS).save(path, icc_profile=b'nonsense' * 50)
  with pytest.raises(reader.SlideError, match="can't be used"):
    reader.Slide(path, 0.5, icc=True)
  reader.Slide(path, 0.5)  # Nobody asked for it.
