"""Encoded images: what a file says it is, and its pixels.

Reads PNG, JPEG and TIFF of 8 or 16 bits, gray or in colour. Everything else
is an ImageError that says what was found: a picture is never guessed.
"""

import dataclasses
import io
import struct
import warnings

import imagecodecs
import numpy as np
import tifffile
from jaxtyping import Bool, UInt8, UInt16
from PIL import Image

Array = np.ndarray
Decoded = UInt8[Array, 'h w c'] | UInt16[Array, 'h w c']
SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff')
MOST_PIXELS = 2**28  # A header may promise more than any memory holds.
_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # By colour type, less alpha.
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class ImageError(ValueError):
  """An image file that cannot be read, and why."""


@dataclasses.dataclass(frozen=True)
class Header:
  """What an image file says of itself; alpha does not count as a channel."""

  format: str  # png, jpeg or tiff.
  height: int
  width: int
  channels: int
  bits: int


def probe(encoded: bytes) -> Header:
  """Reads the header alone."""
  header = _header(encoded)
  if header.height * header.width > MOST_PIXELS:
    raise ImageError(
      f'{header.width} x {header.height} px is more than an image may have'
    )
  return header


def decode(encoded: bytes) -> Decoded:
  """The pixels as [height, width, 1 or 3], in 8 or 16 bits; no alpha."""
  header = probe(encoded)
  try:
    pixels = _DECODERS[header.format](encoded)
  except ImageError:
    raise
  except Exception as error:  # Each codec has errors of its own.
    raise ImageError(f'broken {header.format}: {error}') from error
  pixels = pixels[..., None] if pixels.ndim == 2 else pixels
  if pixels.dtype == np.bool_:
    pixels = pixels.astype(np.uint8) * 255
  fits = pixels.ndim == 3 and pixels.shape[-1] <= 4
  if pixels.dtype not in (np.uint8, np.uint16) or not fits:
    raise ImageError(
      f'{header.format} of type {pixels.dtype} and shape {pixels.shape}, '
      'where 8 or 16 bits, gray or colour, were expected'
    )
  return pixels[..., : 1 if pixels.shape[-1] < 3 else 3]


def check(encoded: bytes) -> Header:
  """Decodes to be sure that it can be done, and gives the header.

  A truncated JPEG is an error here, where a fast decoder fills it with gray,
  and so is a TIFF of such.
  """
  header = probe(encoded)
  if header.format == 'jpeg':
    _decode_with_pillow(encoded)
  if header.format == 'tiff':
    _check_tiff(encoded)
  pixels = decode(encoded)
  if min(pixels.shape[:2]) < 2:
    raise ImageError(f'only {pixels.shape[1]} x {pixels.shape[0]} px')
  return header


def decode_mask(encoded: bytes) -> Bool[Array, 'h w']:
  """True where the mask is not black; of a lossy one, above the middle."""
  pixels = decode(encoded).max(axis=-1)
  return pixels > (127 if encoded[:2] == b'\xff\xd8' else 0)


def encode_mask(mask: Bool[Array, 'h w']) -> bytes:
  return imagecodecs.png_encode(mask.astype(np.uint8) * 255)


def _header(encoded: bytes) -> Header:
  if not encoded:
    raise ImageError('the file is empty')
  try:
    if encoded[:8] == _PNG:
      width, height, bits, colour = struct.unpack('>IIBB', encoded[16:26])
      depth = 16 if bits == 16 else 8
      return Header('png', height, width, _PNG_CHANNELS[colour], depth)
    if encoded[:2] == b'\xff\xd8':
      return _jpeg_header(encoded)
    if encoded[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
      return _tiff_header(encoded)
  except ImageError:
    raise
  except Exception as error:
    raise ImageError(f'broken header: {error}') from error
  raise ImageError('neither PNG nor JPEG nor TIFF')


def _jpeg_header(encoded: bytes) -> Header:
  at = 2
  while at + 9 < len(encoded):
    if encoded[at] != 0xFF:
      break
    marker, size = encoded[at + 1], encoded[at + 2 : at + 4]
    if marker == 0xFF:  # Fill bytes before a marker.
      at += 1
      continue
    if marker in _START_OF_FRAME:
      bits, height, width, channels = struct.unpack_from(
        '>BHHB', encoded, at + 4
      )
      if bits != 8:
        raise ImageError(f'JPEG of {bits} bits, where 8 were expected')
      return Header('jpeg', height, width, 1 if channels == 1 else 3, 8)
    at += 2 + int.from_bytes(size)
  raise ImageError('broken header: a JPEG without a frame')


def _tiff_header(encoded: bytes) -> Header:
  with tifffile.TiffFile(io.BytesIO(encoded)) as file:
    page = file.pages[0]
    palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
    channels = 3 if page.samplesperpixel >= 3 or palette else 1
    bits = 16 if page.bitspersample > 8 else 8
    return Header('tiff', page.imagelength, page.imagewidth, channels, bits)


def _check_tiff(encoded: bytes) -> None:
  """Decoders fill what a file lacks at its end."""
  with tifffile.TiffFile(io.BytesIO(encoded)) as file:
    page = file.pages[0]
    parts = zip(page.dataoffsets, page.databytecounts, strict=True)
    end = max((start + size for start, size in parts), default=0)
  if end > len(encoded):
    raise ImageError(f'broken tiff: {end - len(encoded)} bytes are missing')


def _decode_jpeg(encoded: bytes) -> np.ndarray:
  pixels = imagecodecs.jpeg8_decode(encoded)
  if pixels.ndim == 3 and pixels.shape[-1] == 4:  # CMYK, often inverted.
    return _decode_with_pillow(encoded)
  return pixels


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      image = Image.open(io.BytesIO(encoded))
      image.load()
  except Exception as error:
    raise ImageError(f'broken jpeg: {error}') from error
  return np.asarray(
    image if image.mode in ('L', 'RGB') else image.convert('RGB')
  )


def _decode_tiff(encoded: bytes) -> np.ndarray:
  with tifffile.TiffFile(io.BytesIO(encoded)) as file:
    page = file.pages[0]
    pixels = page.asarray()
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
      return (page.colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
      pixels = ~pixels
    separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    return (
      np.moveaxis(pixels, 0, -1) if separate and pixels.ndim == 3 else pixels
    )


_DECODERS = {
  'png': imagecodecs.png_decode,
  'jpeg': _decode_jpeg,
  'tiff': _decode_tiff,
}
