"""Tiles of a TIFF pyramid, decoded without OpenSlide.

Reads positions and sizes of the tiles once with tifffile; after that a tile is
one `pread` and one call of the codec, both of which let other threads run.
"""

import collections
import dataclasses
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence

import imagecodecs
import numpy as np
import tifffile
from jaxtyping import UInt8, UInt64

from jaxmed.slides import jpeg_stream

CACHE_BYTES = 32 << 20  # Of decoded tiles: neighbouring regions share them.
MOST_BYTES = 2  # Of a JPEG, for each of its pixels'.
SEEN = 1 << 16  # Tiles that are remembered to have been read.
START_OF_SCAN = b'\xff\xda'
END_OF_IMAGE = b'\xff\xd9'
GRAY = 128
HOLE = bytes(32)  # As a lost block of a disk; rare in what was written.
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

  def spans(self, x: int, y: int, width: int, height: int) -> bool:
    """Whether the region is this tile."""
    return (x, y, width, height) == (self.x, self.y, self.width, self.height)

  def inside(self, region: np.ndarray, x: int, y: int) -> bool:
    """Whether a region that begins at x and y has all of this tile."""
    height, width = region.shape[:2]
    return (
      x <= self.x
      and y <= self.y
      and self.x + self.width <= x + width
      and self.y + self.height <= y + height
    )

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


def is_plain(page: tifffile.TiffPage) -> bool:
  """Whether its tiles are JPEG in three colours, which `Tiles` decodes."""
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
class Plane:
  """What is needed to find and decode the tiles of one level."""

  width: int
  height: int
  tile_width: int
  tile_height: int
  offsets: UInt64[np.ndarray, ' tiles']
  counts: UInt64[np.ndarray, ' tiles']
  tables: bytes | None
  colour: str  # In which the JPEG stores its pixels.
  sparse: bool  # Whether a tile without bytes shows the background.

  @classmethod
  def of(cls, page: tifffile.TiffPage, sparse: bool = False) -> 'Plane':
    ycbcr = page.photometric == tifffile.PHOTOMETRIC.YCBCR
    return cls(
      page.imagewidth,
      page.imagelength,
      page.tilewidth,
      page.tilelength,
      np.array(page.dataoffsets, np.uint64),
      np.array(page.databytecounts, np.uint64),
      page.jpegtables,
      'YCBCR' if ycbcr else 'RGB',
      sparse,
    )

  def decode(
    self, data: bytes, out: np.ndarray | None = None
  ) -> UInt8[np.ndarray, 'height width 3']:
    return imagecodecs.jpeg8_decode(
      data,
      tables=self.tables,
      colorspace=self.colour,
      outcolorspace='RGB',
      out=out,
    )


class Tiles:
  """Decoded tiles of all levels, those kept that are likely needed again."""

  def __init__(
    self,
    path: pathlib.Path,
    planes: Sequence[Plane],
    background: tuple[int, int, int] = (255, 255, 255),
  ):
    self._planes, self._background = planes, background
    self._file = os.open(path, os.O_RDONLY)
    self._lock = threading.Lock()
    self._cache, self._cached = collections.OrderedDict(), 0
    self._seen: set[tuple[int, int]] = set()
    self._own = threading.local()

  def close(self) -> None:
    if self._file >= 0:
      os.close(self._file)
      self._file = -1

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

  def take(self, tile: Tile) -> UInt8[np.ndarray, 'height width 3']:
    """A tile's pixels, as the caller's own."""
    kept = self._kept(tile)
    pixels = self._decode(tile) if kept is None else kept.copy()
    return pixels[: tile.height, : tile.width]

  def encoded(self, tile: Tile) -> bytes | None:
    """A tile as a JPEG file, its pixels coded as they are here.

    None where it has no bytes and shows the background.
    """
    self._decode(tile, self._scratch(tile.level))  # Raises if it is broken.
    plane = self._planes[tile.level]
    count = int(plane.counts[tile.index])
    if not count:
      return None
    data = os.pread(self._file, count, int(plane.offsets[tile.index]))
    try:
      return jpeg_stream.whole_file(data, plane.tables, plane.colour)
    except ValueError as error:
      raise DecodeError(str(error)) from error

  def copy(self, tile: Tile, region: np.ndarray, x: int, y: int) -> None:
    """Copies what a tile has of a region that begins at x and y.

    A tile that is wholly in the region is needed but once, where regions don't
    overlap. Where they do it comes again, and is kept from then on.
    """
    pixels = self._kept(tile)
    if pixels is None:
      if not tile.inside(region, x, y) or self._again(tile):
        pixels = self._decode(tile)
        self._keep(tile, pixels)
      else:
        pixels = self._decode(tile, self._scratch(tile.level))
    tile.copy(pixels, region, x, y)

  def _scratch(self, level: int) -> np.ndarray:
    """Memory of this thread that is warm already, for a tile."""
    plane = self._planes[level]
    shape = plane.tile_height, plane.tile_width, 3
    pixels = getattr(self._own, 'pixels', None)
    if pixels is None or pixels.shape != shape:
      pixels = self._own.pixels = np.empty(shape, np.uint8)
    return pixels

  def _kept(self, tile: Tile) -> np.ndarray | None:
    key = tile.level, tile.index
    with self._lock:
      if key in self._cache:
        self._cache.move_to_end(key)
      return self._cache.get(key)

  def _again(self, tile: Tile) -> bool:
    """Whether a tile has been asked for before, of late."""
    key = tile.level, tile.index
    with self._lock:
      if key in self._seen:
        return True
      if len(self._seen) >= SEEN:
        self._seen.clear()
      self._seen.add(key)
    return False

  def _keep(self, tile: Tile, pixels: np.ndarray) -> None:
    key = tile.level, tile.index
    with self._lock:
      if key not in self._cache:
        self._cache[key] = pixels
        self._cached += pixels.nbytes
        while self._cached > CACHE_BYTES:
          self._cached -= self._cache.popitem(last=False)[1].nbytes

  def _decode(
    self, tile: Tile, out: np.ndarray | None = None
  ) -> UInt8[np.ndarray, 'height width 3']:
    plane = self._planes[tile.level]
    shape = plane.tile_height, plane.tile_width, 3
    if tile.index >= len(plane.offsets):
      raise DecodeError('the file lists too few tiles')
    count = int(plane.counts[tile.index])
    if out is None:
      out = np.empty(shape, np.uint8)
    if plane.sparse and not count:
      out[:] = self._background
      return out
    if count > MOST_BYTES * out.nbytes:
      raise DecodeError(f'it has {count} bytes for {out.nbytes} of pixels')
    try:
      data = os.pread(self._file, count, int(plane.offsets[tile.index]))
    except (OSError, OverflowError) as error:
      raise DecodeError(str(error)) from error
    if not count or len(data) < count:
      raise DecodeError(f'{len(data)} bytes of {count} are there')
    scan = check_markers(data)
    try:
      # With its place given, a JPEG of another size is refused unread.
      pixels = plane.decode(data, out)
      fault = _fault(plane, data, scan, pixels)
    except Exception as error:  # The codec has its own types of error.
      raise DecodeError(str(error)) from error
    if fault:
      raise DecodeError(fault)
    return pixels


def _fault(plane: Plane, data: bytes, scan: int, pixels: np.ndarray) -> str:
  """What the codec has passed over: data that is too short or too long.

  To be sure takes another decoding, done where there is a reason to doubt.
  """
  # After its data has run out, all that the codec gives is middle gray.
  if (
    pixels[-1, -1, 0] == GRAY
    and (pixels[-8:, -8:] == GRAY).all()
    and (pixels != plane.decode(_padded(data))).any()
  ):
    return 'its JPEG ends too soon'
  if (
    data.find(HOLE, scan) >= 0
    and (pixels == plane.decode(_shortened(data))).all()
  ):
    return 'its JPEG has a hole'
  return ''


def check_markers(data: bytes) -> int:
  """Raises where a JPEG was cut off or overwritten; the codec doesn't.

  Returns where its scan begins.
  """
  scan = data.find(START_OF_SCAN)
  end = data.rfind(END_OF_IMAGE)
  if scan < 0 or end < scan:
    raise DecodeError('its JPEG has no end')
  begin = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], 'big')
  stray = STRAY_MARKER.search(data, begin, end)
  # A progressive JPEG has tables and scans between its scans.
  if stray and stray[0][1] not in (0xC4, 0xDA, 0xDB, 0xDD):
    raise DecodeError(f'its JPEG has a stray marker at byte {stray.start()}')
  return begin


def _padded(data: bytes) -> bytes:
  """A JPEG with more data before its end; a whole one decodes as before."""
  end = data.rfind(END_OF_IMAGE)
  return data[:end] + b'\x53\xa6\x2d\x91' * 8 + data[end:]


def _shortened(data: bytes) -> bytes:
  """A JPEG with less data before its end; a whole one loses its last blocks."""
  end = data.rfind(END_OF_IMAGE)
  return data[: end - 16] + data[end:]
