import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from jaxmed.slides import jpeg_stream, reader


def _picture() -> np.ndarray:
  y, x = np.mgrid[:48, :64]
  return np.stack([4 * x, 5 * y, 255 - 3 * x], axis=-1).astype(np.uint8)


def _split(stream: bytes) -> tuple[bytes, bytes]:
  """Shared tables and what is left of a JPEG, as a TIFF keeps them."""
  tables, rest, at = b'', b'', 2
  while stream[at + 1] != 0xDA:
    stop = at + 2 + int.from_bytes(stream[at + 2 : at + 4])
    if stream[at + 1] in (0xC4, 0xDB):
      tables += stream[at:stop]
    else:
      rest += stream[at:stop]
    at = stop
  return b'\xff\xd8' + tables + b'\xff\xd9', b'\xff\xd8' + rest + stream[at:]


@pytest.mark.parametrize('colour', ['RGB', 'YCBCR'])
@pytest.mark.parametrize('apart', [False, True])
def test_any_reader_sees_the_pixels_that_the_tile_has(colour, apart):
  stream = imagecodecs.jpeg8_encode(
    _picture(), 90, colorspace='RGB', outcolorspace=colour
  )
  expected = imagecodecs.jpeg8_decode(
    stream, colorspace=colour, outcolorspace='RGB'
  )
  assert np.abs(expected.astype(int) - _picture()).max() < 40
  tables, tile = _split(stream) if apart else (None, stream)
  if apart:  # Neither is an image alone.
    with pytest.raises(imagecodecs.Jpeg8Error):
      imagecodecs.jpeg8_decode(tile)
  whole = jpeg_stream.whole_file(tile, tables, colour)
  assert (imagecodecs.jpeg8_decode(whole) == expected).all()
  with Image.open(io.BytesIO(whole)) as image:
    assert image.mode == 'RGB' and (np.asarray(image) == expected).all()
  scan = stream[stream.index(b'\xff\xda') :]
  assert whole.endswith(scan)  # Not a coefficient is another.


def test_what_a_tile_says_of_its_colours_is_overruled():
  """Aperio's tiles may carry JFIF's marker, though they are in RGB."""
  stream = imagecodecs.jpeg8_encode(
    _picture(), 90, colorspace='RGB', outcolorspace='RGB'
  )
  jfif = b'\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0'
  lying = stream[:2] + jfif + stream[2:]
  expected = imagecodecs.jpeg8_decode(
    stream, colorspace='RGB', outcolorspace='RGB'
  )
  whole = jpeg_stream.whole_file(lying, None, 'RGB')
  assert (imagecodecs.jpeg8_decode(whole) == expected).all()


@pytest.mark.parametrize('broken', [b'', b'II*\0', b'\xff\xd8\0\0\0\0'])
def test_what_is_no_jpeg_is_refused(broken):
  with pytest.raises(ValueError, match='its JPEG has no'):
    jpeg_stream.whole_file(broken, None, 'RGB')


def test_tiles_of_a_real_slide(shared):
  with reader.open_slide(shared('data/slides/CMU-1-Small-Region.svs')) as slide:
    for x, y in ((480, 720), (0, 240)):
      whole = slide.encoded_tile(x, y, 240)
      pixels = slide.read(x, y, 240, 240)
      assert (imagecodecs.jpeg8_decode(whole) == pixels).all()
    for place in ((1, 0, 240), (0, 0, 256), (0, 0, 480), (2160, 0, 240)):
      assert slide.encoded_tile(*place) is None


def test_a_broken_tile_is_not_passed_on(small, tmp_path):
  content = bytearray(small.path.read_bytes())
  with reader.open_slide(small.path) as slide:
    assert slide.encoded_tile(256, 256, 256)
    plane = slide._tiles._planes[0]
    start, count = int(plane.offsets[4]), int(plane.counts[4])
  content[start + count // 2 : start + count] = bytes(count - count // 2)
  path = tmp_path / 'broken.tif'
  path.write_bytes(content)
  with reader.open_slide(path) as slide:
    assert slide.encoded_tile(0, 0, 256)
    with pytest.raises(reader.TileError) as raised:
      slide.encoded_tile(256, 256, 256)
  assert (raised.value.x, raised.value.y) == (256, 256)
