"""Encoded or given images, made to fit: one size, one type, one channel count.

The shorter side becomes data.resize if that is set, then a square of data.size
is cut, in the middle or where the dice say.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import imagecodecs
import numpy as np
from jaxtyping import Bool, UInt8, UInt16
from ml_collections import ConfigDict
from PIL import Image

from jaxmed import errors
from jaxmed.datasets import images

Array = np.ndarray
Pixels = UInt8[Array, 'h w c'] | UInt16[Array, 'h w c']
Stack = UInt8[Array, 'b h w c'] | UInt16[Array, 'b h w c']
Place = tuple[float, float]  # Of a crop, down and right, each in [0, 1).
CENTRE = (0.5, 0.5)
JPEG = b'\xff\xd8'
ALIGNMENT = 64  # Bytes.
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601.


@dataclasses.dataclass(frozen=True)
class Frame:
  """What every image is made to be."""

  size: int
  channels: int = 3
  resize: int = 0
  dtype: type = np.uint8

  @classmethod
  def of(cls, data_config: ConfigDict, bits: int) -> 'Frame':
    size, channels = data_config.size, data_config.channels
    resize = data_config.resize
    if channels not in (1, 3):
      raise errors.UserError(
        f'data.channels is {channels}; it is 1 for gray or 3 for colour.'
      )
    if size < 1 or 0 < resize < size:
      raise errors.UserError(
        f'data.size is {size} and data.resize {resize}; images cannot be cut '
        'larger than they are. Set data.resize to 0 or at least data.size.'
      )
    return cls(size, channels, resize, np.uint16 if bits == 16 else np.uint8)

  @property
  def shape(self) -> tuple[int, int, int]:
    return self.size, self.size, self.channels

  @property
  def is_plain(self) -> bool:
    """Whether nothing is left to do for a colour JPEG of this shape."""
    resizes = self.resize not in (0, self.size)
    return self.channels == 3 and self.dtype is np.uint8 and not resizes

  def fit(
    self, out: Pixels, pixels: Pixels, name: object, place: Place = CENTRE
  ) -> None:
    """Resizes, cuts and converts an image into `out`."""
    if self.resize:
      pixels = _resize(pixels, self.resize)
    height, width = pixels.shape[:2]
    if min(height, width) < self.size:
      raise errors.UserError(
        f'The image {name} has {width} x {height} px, less than '
        f'data.size = {self.size}. Choose a smaller data.size, or set '
        f'data.resize to at least {self.size} to enlarge.'
      )
    pixels = _channels(_crop(pixels, self.size, place), self.channels)
    if pixels.dtype == np.uint8 and self.dtype is np.uint16:
      np.multiply(pixels, 257, out=out, dtype=np.uint16)
    elif pixels.dtype == np.uint16 and self.dtype is np.uint8:
      np.copyto(out, np.round(pixels / np.float32(257)).astype(np.uint8))
    else:
      np.copyto(out, pixels)

  def fit_mask(
    self, mask: Bool[Array, 'h w'], place: Place = CENTRE
  ) -> Bool[Array, 'size size']:
    """A mask, moved as its image is."""
    if self.resize and min(mask.shape) != self.resize:
      shares = _resize(mask[..., None].astype(np.uint8) * 255, self.resize)
      mask = shares[..., 0] >= 128
    return _crop(mask, self.size, place)


def decode(encoded: bytes) -> Pixels:
  """The pixels of a record, which was checked when it was written."""
  if encoded[:2] != JPEG:
    return images.decode(encoded)
  pixels = imagecodecs.jpeg8_decode(encoded)
  is_colour = pixels.ndim == 3 and pixels.shape[-1] == 3
  return pixels if is_colour else images.decode(encoded)


def scratch(shape: tuple[int, ...], dtype: type) -> np.ndarray:
  """Memory to decode into, on purpose not aligned to 32 bytes.

  Where it is, libjpeg-turbo writes past the cache, and a small image takes
  half as long again. NumPy's own memory is aligned, or not, by luck.
  """
  memory = aligned(math.prod(shape) * np.dtype(dtype).itemsize + 16, np.uint8)
  return memory[16:].view(dtype).reshape(shape)


def aligned(shape: int | tuple[int, ...], dtype: type) -> np.ndarray:
  """Memory that a CPU device takes over without a copy."""
  size = np.prod(shape, dtype=int) * np.dtype(dtype).itemsize
  memory = np.empty(size + ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def read_batch(
  given: Sequence[np.ndarray | str | os.PathLike],
  data_config: ConfigDict,
  first: int = 0,
) -> Stack:
  """Images as arrays or paths, as a batch like those of training.

  `first` is the number that a user knows the first of them by.
  """
  arrays, names = [], []
  for number, image in enumerate(given, first):
    if isinstance(image, str | os.PathLike):
      arrays.append(read_image(image))
      names.append(os.fspath(image))
    else:
      arrays.append(_checked(np.asarray(image), number))
      names.append(f'number {number}')
  bits = 16 if any(array.dtype == np.uint16 for array in arrays) else 8
  frame = Frame.of(data_config, bits)
  batch = np.empty((len(arrays), *frame.shape), frame.dtype)
  for out, array, name in zip(batch, arrays, names, strict=True):
    frame.fit(out, array, name)
  return batch


def read_image(path: str | os.PathLike) -> Pixels:
  """The pixels of a file; a user can mend what stops it."""
  try:
    with open(path, 'rb') as file:
      return images.decode(file.read())
  except FileNotFoundError as error:
    raise errors.UserError(f'There is no image {path}.') from error
  except images.ImageError as error:
    raise errors.UserError(
      f'The image {path} is unreadable: {error}.'
    ) from error
  except OSError as error:  # A folder, or nobody lets us.
    raise errors.UserError(
      f'The image {path} is unreadable: {error.strerror}.'
    ) from error


def _checked(image: np.ndarray, number: int) -> Pixels:
  pixels = image[..., None] if image.ndim == 2 else image
  fits = pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4) and pixels.size
  if not fits or pixels.dtype not in (np.uint8, np.uint16):
    raise errors.UserError(
      f'Image number {number} has shape {image.shape} and type {image.dtype}; '
      'expected [height, width] or [height, width, 1 or 3] in uint8 or uint16.'
    )
  return pixels[..., :3]


def _channels(pixels: Pixels, channels: int) -> Pixels:
  """Gray becomes colour by repetition, colour becomes gray by luminance."""
  found = pixels.shape[-1]
  if found == 1 and channels == 3:
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
  if found == 3 and channels == 1:
    gray = pixels.astype(np.float32) @ LUMINANCE
    return np.round(gray).astype(pixels.dtype)[..., None]
  return pixels


def _crop(pixels: np.ndarray, size: int, place: Place) -> np.ndarray:
  """A square whose corner is one of all that fit, each equally likely."""
  top, left = (
    int(share * (length - size + 1))
    for share, length in zip(place, pixels.shape[:2], strict=True)
  )
  return pixels[top : top + size, left : left + size]


def _resize(pixels: Pixels, shorter: int) -> Pixels:
  """Makes the shorter side `shorter` px, antialiased when it shrinks."""
  height, width, channels = pixels.shape
  scale = shorter / min(height, width)
  if scale == 1:
    return pixels
  size = (
    max(shorter, round(width * scale)),
    max(shorter, round(height * scale)),
  )
  bicubic = Image.Resampling.BICUBIC
  if pixels.dtype == np.uint8:
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.asarray(image.resize(size, bicubic)).reshape(
      *size[::-1], channels
    )
  planes = [  # Pillow has no colour of 16 bits.
    np.asarray(Image.fromarray(plane).resize(size, bicubic))
    for plane in np.moveaxis(pixels.astype(np.float32), -1, 0)
  ]
  return np.stack(planes, -1).round().clip(0, 65535).astype(np.uint16)
