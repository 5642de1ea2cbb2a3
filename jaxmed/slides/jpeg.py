"""Tiles of a TIFF pyramid, decoded without OpenSlide.

Reads positions and sizes of the tiles once with tifffile; after that a tile is
one `pread` and one call of the codec, both of which let other threads run.
"""

import collections
import dataclasses
import logging
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence

import imagecodecs
import numpy as np
import tifffile
from jaxtyping import UInt8

from jaxmed.slides import jpeg_stream

CACHE_BYTES = 32 << 20  # Of decoded tiles: neighbouring regions share them.
START_OF_SCAN = b'\xff\xda'
END_OF_IMAGE = b'\xff\xd9'
# In a scan 0xff is followed by 0, a restart marker or another 0xff.
STRAY_MARKER = re.compile(b'\xff[^\x00\xd0-\xd7\xff]')


class DecodeError(Exception):
  """A tile whose bytes are missing or are no whole JPEG."""


@dataclasses.dataclass(frozen=True)
class Tile:
  """The pixels [x, x + width) and [y, y + height) of a level."""

  level: int
  index: int
  x: int
  y: int
  width: int
  height: int

  def copy(
    self, pixels: np.ndarray, region: np.ndarray, x: int, y: int
  ) -> None:
    """Copies what this tile has of a region that begins at x and y."""
    height, width = region.shape[:2]
    x0, x1 = max(self.x, x), min(self.x + self.width, x + width)
    y0, y1 = max(self.y, y), min(self.y + self.height, y + height)
    region[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[
      y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x
    ]


def open_tiles(
  path: pathlib.Path, sizes: Sequence[tuple[int, int]]
) -> 'Tiles | None':
  """The tiles of levels of these (width, height), where all are plain JPEG.

  None where a level is anything else: then OpenSlide reads the slide.
  """
  logging.getLogger('tifffile').setLevel(logging.CRITICAL)
  try:
    with tifffile.TiffFile(path) as tiff:
      pages = {}
      for page in tiff.pages:
        pages.setdefault((page.imagewidth, page.imagelength), page)
      chosen = [pages.get(tuple(size)) for size in sizes]
      if not all(page is not None and _plain(page) for page in chosen):
        return None
      return Tiles(path, [_Plane.of(page) for page in chosen])
  except (tifffile.TiffFileError, OSError, ValueError, KeyError):
    return None


def _plain(page: tifffile.TiffPage) -> bool:
  return (
    page.is_tiled
    and page.compression == tifffile.COMPRESSION.JPEG
    and page.samplesperpixel == 3
    and page.bitspersample == 8
    and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
    and page.photometric
    in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
  )


@dataclasses.dataclass(frozen=True)
class _Plane:
  """What is needed to find and decode the tiles of one level."""

  width: int
  height: int
  tile_width: int
  tile_height: int
  offsets: tuple[int, ...]
  counts: tuple[int, ...]
  tables: bytes | None
  colour: str  # In which the JPEG stores its pixels.

  @classmethod
  def of(cls, page: tifffile.TiffPage) -> '_Plane':
    ycbcr = page.photometric == tifffile.PHOTOMETRIC.YCBCR
    return cls(
      page.imagewidth,
      page.imagelength,
      page.tilewidth,
      page.tilelength,
      tuple(page.dataoffsets),
      tuple(page.databytecounts),
      page.jpegtables,
      'YCBCR' if ycbcr else 'RGB',
    )

  def decode(self, data: bytes) -> UInt8[np.ndarray, 'height width 3']:
    return imagecodecs.jpeg8_decode(
      data, tables=self.tables, colorspace=self.colour, outcolorspace='RGB'
    )


class Tiles:
  """Decoded tiles of all levels, the latest of them kept."""

  def __init__(self, path: pathlib.Path, planes: Sequence[_Plane]):
    self._planes = planes
    self._file = os.open(path, os.O_RDONLY)
    self._lock = threading.Lock()
    self._cache, self._cached = collections.OrderedDict(), 0

  def close(self) -> None:
    os.close(self._file)

  def covering(
    self, level: int, x: int, y: int, width: int, height: int
  ) -> Iterator[Tile]:
    """The tiles that a region inside the level touches."""
    plane = self._planes[level]
    across = -(-plane.width // plane.tile_width)
    rows = range(y // plane.tile_height, -(-(y + height) // plane.tile_height))
    columns = range(x // plane.tile_width, -(-(x + width) // plane.tile_width))
    for row in rows:
      for column in columns:
        left, top = column * plane.tile_width, row * plane.tile_height
        yield Tile(
          level,
          row * across + column,
          left,
          top,
          min(plane.tile_width, plane.width - left),
          min(plane.tile_height, plane.height - top),
        )

  def read(self, tile: Tile) -> UInt8[np.ndarray, 'height width 3']:
    """A tile's pixels; at the right and lower border with its padding."""
    key = tile.level, tile.index
    with self._lock:
      if key in self._cache:
        self._cache.move_to_end(key)
        return self._cache[key]
    pixels = self._decode(tile)
    with self._lock:
      if key not in self._cache:
        self._cache[key] = pixels
        self._cached += pixels.nbytes
        while self._cached > CACHE_BYTES:
          self._cached -= self._cache.popitem(last=False)[1].nbytes
    return pixels

  def encoded(self, tile: Tile) -> bytes:
    """A tile as a JPEG file, its pixels coded as they are here."""
    self.read(tile)  # Raises where it is broken.
    plane = self._planes[tile.level]
    count, offset = plane.counts[tile.index], plane.offsets[tile.index]
    data = os.pread(self._file, count, offset)
    try:
      return jpeg_stream.whole_file(data, plane.tables, plane.colour)
    except ValueError as error:
      raise DecodeError(str(error)) from error

  def _decode(self, tile: Tile) -> UInt8[np.ndarray, 'height width 3']:
    plane = self._planes[tile.level]
    if tile.index >= len(plane.offsets):
      raise DecodeError('the file lists too few tiles')
    count = plane.counts[tile.index]
    data = os.pread(self._file, count, plane.offsets[tile.index])
    if not count or len(data) < count:
      raise DecodeError(f'{len(data)} bytes of {count} are there')
    check_markers(data)
    try:
      pixels = plane.decode(data)
      whole = (
        not _flat_end(pixels) or (pixels == plane.decode(_pad(data))).all()
      )
    except Exception as error:  # The codec has its own types of error.
      raise DecodeError(str(error)) from error
    if not whole:
      raise DecodeError('its JPEG ends too soon')
    expected = (plane.tile_height, plane.tile_width, 3)
    if pixels.shape != expected:
      raise DecodeError(f'its JPEG is {pixels.shape}, expected {expected}')
    return pixels


def check_markers(data: bytes) -> None:
  """Raises where a JPEG was cut off or overwritten; the codec doesn't."""
  scan = data.find(START_OF_SCAN)
  end = data.rfind(END_OF_IMAGE)
  if scan < 0 or end < scan:
    raise DecodeError('its JPEG has no end')
  begin = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], 'big')
  stray = STRAY_MARKER.search(data, begin, end)
  # A progressive JPEG has tables and scans between its scans.
  if stray and stray[0][1] not in (0xC4, 0xDA, 0xDB, 0xDD):
    raise DecodeError(f'its JPEG has a stray marker at byte {stray.start()}')


def _flat_end(pixels: np.ndarray) -> bool:
  """Whether the last block has one colour, as after data has run out.

  The codec then goes on silently. Empty glass looks the same; see `_pad`.
  """
  corner = pixels[-8:, -8:].reshape(-1, 3)
  return bool((corner == corner[0]).all())


def _pad(data: bytes) -> bytes:
  """A JPEG with more data before its end; a whole one decodes as before."""
  end = data.rfind(END_OF_IMAGE)
  return data[:end] + b'\x53\xa6\x2d\x91' * 8 + data[end:]
