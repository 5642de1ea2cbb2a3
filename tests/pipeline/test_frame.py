import imagecodecs
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxmed.datasets import images
from jaxmed.errors import UserError
from jaxmed.pipeline import read_batch
from jaxmed.pipeline.frame import CENTRE, Frame, decode, scratch
from tests.datasets.pictures import jpeg, picture


def _data(**more) -> ConfigDict:
  return ConfigDict({'size': 16, 'channels': 3, 'resize': 0} | more)


def _fit(pixels, **frame):
  frame = Frame(**frame)
  out = np.full(frame.shape, 7, frame.dtype)
  frame.fit(out, pixels, 'an image')
  return out


def test_a_jpeg_of_the_right_size_needs_nothing_more():
  pixels = decode(jpeg(3))
  assert Frame(size=16).is_plain
  np.testing.assert_array_equal(_fit(pixels, size=16), pixels)
  np.testing.assert_array_equal(images.decode(jpeg(3)), pixels)
  beside = scratch((16, 16, 3), np.uint8)
  assert imagecodecs.jpeg8_decode(jpeg(3), out=beside) is beside
  np.testing.assert_array_equal(beside, pixels)


@pytest.mark.parametrize(
  ('encoded', 'frame'),
  [
    (jpeg(3, size=20), Frame(16)),
    (jpeg(3), Frame(16, channels=1)),
    (jpeg(3), Frame(16, dtype=np.uint16)),
    (jpeg(3), Frame(16, resize=20)),
    (imagecodecs.png_encode(picture(3, channels=1)), Frame(16)),
    (imagecodecs.jpeg8_encode(picture(3)[..., 0].copy()), Frame(16)),
  ],
)
def test_what_does_not_fit_is_made_to(encoded, frame):
  out = np.zeros(frame.shape, frame.dtype)
  if frame.is_plain:  # Then the codec notices.
    with pytest.raises((ValueError, imagecodecs.Jpeg8Error)):
      imagecodecs.jpeg8_decode(encoded, out=out)
  frame.fit(out, decode(encoded), 'an image')
  assert out.std() > 10


def test_gray_and_colour_and_depth_become_each_other():
  gray, colour = picture(1, channels=1), picture(2)
  np.testing.assert_array_equal(_fit(gray, size=16), np.repeat(gray, 3, -1))
  as_gray = _fit(colour, size=16, channels=1)[..., 0]
  expected = colour @ np.array([0.299, 0.587, 0.114])
  np.testing.assert_allclose(as_gray, expected, atol=0.51)
  deep = _fit(colour, size=16, dtype=np.uint16)
  np.testing.assert_array_equal(deep, colour.astype(np.uint16) * 257)
  np.testing.assert_array_equal(_fit(deep, size=16), colour)


def test_the_centre_is_cut():
  pixels = picture(0, size=20)
  np.testing.assert_array_equal(_fit(pixels, size=16), pixels[2:18, 2:18])


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [1, 3])
def test_resizing_is_antialiased_and_keeps_the_aspect(dtype, channels):
  checks = np.indices((64, 96)).sum(0) % 2  # Aliased, it would stay 0 or 1.
  high = np.iinfo(dtype).max
  pixels = np.repeat((checks * high).astype(dtype)[..., None], channels, -1)
  small = _fit(pixels, size=16, channels=channels, resize=16, dtype=dtype)
  np.testing.assert_allclose(small[2:-2, 2:-2] / high, 0.5, atol=0.02)
  ramp = np.tile(np.linspace(0, high, 96), (48, 1)).astype(dtype)
  ramp = np.repeat(ramp[..., None], channels, -1)
  half = _fit(ramp, size=24, channels=channels, resize=24, dtype=dtype)
  wanted = np.linspace(0, high, 96).reshape(48, 2).mean(1)[12:36]
  np.testing.assert_allclose(half[5, :, 0] / high, wanted / high, atol=0.01)


def test_a_small_image_can_be_enlarged():
  assert _fit(picture(0, size=8), size=16, resize=16).std() > 10


def test_a_mask_moves_with_its_image():
  frame = Frame(size=16, channels=1, resize=24)
  mask = np.zeros((48, 72), bool)
  mask[10:30, 20:44] = True
  pixels = np.where(mask, 255, 0).astype(np.uint8)[..., None]
  out = np.zeros(frame.shape, np.uint8)
  for place in (CENTRE, (0.0, 0.99), (0.7, 0.2)):
    frame.fit(out, pixels, 'an image', place)
    moved = frame.fit_mask(mask, place)
    assert moved.shape == (16, 16) and 0 < moved.mean() < 1
    assert (moved == (out[..., 0] >= 128)).mean() > 0.98


def test_a_batch_of_paths_and_arrays(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(imagecodecs.png_encode(picture(1)))
  batch = read_batch(
    [path, picture(2, size=20), picture(3)[..., 0], str(path)], _data()
  )
  assert batch.shape == (4, 16, 16, 3) and batch.dtype == np.uint8
  np.testing.assert_array_equal(batch[0], picture(1))
  np.testing.assert_array_equal(batch[1], picture(2, size=20)[2:18, 2:18])
  np.testing.assert_array_equal(batch[3], batch[0])
  deep = read_batch([picture(1), picture(2).astype(np.uint16)], _data())
  assert deep.dtype == np.uint16
  assert read_batch([], _data()).shape == (0, 16, 16, 3)


@pytest.mark.parametrize(
  ('image', 'complaint'),
  [
    (picture(0, size=8), 'number 0 has 8 x 8 px.*data.resize'),
    (picture(0).astype(np.float32), 'float32; expected'),
    (picture(0)[None], r'shape \(1, 16, 16, 3\)'),
    ('nowhere.png', 'There is no image nowhere.png'),
  ],
)
def test_what_is_wrong_with_an_image_is_said(image, complaint):
  with pytest.raises(UserError, match=complaint):
    read_batch([image], _data())


def test_a_file_that_is_no_image_is_named(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(b'hello')
  with pytest.raises(UserError, match='a.png is unreadable: neither PNG'):
    read_batch([path], _data())
