"""Opens whole-slide images and reads regions of them.

OpenSlide reads every format that it knows. Where a slide's levels are tiled
JPEG (Aperio's SVS, plain pyramidal TIFF), its tiles are decoded directly,
which gives the same pixels several times faster. A tile that can't be read is
an error that carries its place; it never becomes white pixels.
Label and macro images, which may carry a patient's name, are never touched.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import openslide
from jaxtyping import UInt8
from PIL import Image

from jaxmed import errors
from jaxmed.slides import jpeg

BAND_BYTES = 64 << 20  # Of a level that is reduced to an overview at a time.


class SlideError(errors.UserError):
  """A file that is no slide, or lacks what a slide needs."""


class TileError(Exception):
  """Pixels that couldn't be read, and where: level, and level-0 x and y."""

  def __init__(self, path, level: int, x: int, y: int, reason: str):
    super().__init__(path, level, x, y, reason)
    self.path, self.level, self.x, self.y = path, level, x, y
    self.reason = reason

  def __str__(self) -> str:
    place = f'level {self.level}, x {self.x}, y {self.y}'
    return f"Can't read {self.path} at {place}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Level:
  """One plane of the pyramid; a pixel of it is `downsample` of level 0."""

  width: int
  height: int
  downsample: float


@contextlib.contextmanager
def open_slide(
  path: str | os.PathLike, mpp: float | Sequence[float] | None = None
) -> Iterator['Slide']:
  """Opens a slide; `mpp` in micrometres overrides what the file says."""
  slide = Slide(path, mpp)
  try:
    yield slide
  finally:
    slide.close()


class Slide:
  """An open slide. Its methods may be called from several threads.

  path: of the file.
  size: (width, height) of level 0 in pixels.
  mpp: micrometres per pixel of level 0; mpp_xy: the same in x and in y.
  levels: of the pyramid, finest first.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    mpp: float | Sequence[float] | None = None,
    direct: bool = True,
  ):
    self.path = pathlib.Path(path)
    self._whole = _OpenSlide(self.path)
    try:
      self.levels = self._whole.levels
      self.size = self.levels[0].width, self.levels[0].height
      self.mpp_xy = _mpp(self.path, mpp, self._whole.properties)
      self.mpp = math.sqrt(self.mpp_xy[0] * self.mpp_xy[1])
      self.background = self._whole.background
      self._tiles = None
      if direct and self._whole.vendor in ('aperio', 'generic-tiff'):
        sizes = [(level.width, level.height) for level in self.levels]
        self._tiles = jpeg.open_tiles(self.path, sizes)
    except BaseException:
      self._whole.close()
      raise

  @property
  def direct(self) -> bool:
    """Whether tiles are decoded here rather than by OpenSlide."""
    return self._tiles is not None

  def close(self) -> None:
    if self._tiles is not None:
      self._tiles.close()
    self._whole.close()

  def read(
    self, x: int, y: int, width: int, height: int, level: int = 0
  ) -> UInt8[np.ndarray, 'height width 3']:
    """A region: x and y in pixels of level 0, width and height of `level`.

    What lies beyond the border has the slide's background colour.
    """
    if not 0 <= level < len(self.levels):
      raise SlideError(
        f'{self.path} has levels 0 to {len(self.levels) - 1}; '
        f'level {level} was asked for.'
      )
    plane = self.levels[level]
    left, top = round(x / plane.downsample), round(y / plane.downsample)
    region = np.empty((height, width, 3), np.uint8)
    region[:] = self.background
    x0, x1 = max(left, 0), min(left + width, plane.width)
    y0, y1 = max(top, 0), min(top + height, plane.height)
    if x0 < x1 and y0 < y1:
      inside = region[y0 - top : y1 - top, x0 - left : x1 - left]
      self._fill(inside, x0, y0, level)
    return region

  def encoded_tile(self, x: int, y: int, size: int) -> bytes | None:
    """A square of level 0 as the file has it: a JPEG, not coded anew.

    None where the square is not just one of the file's own JPEG tiles.
    """
    if self._tiles is None or x < 0 or y < 0:
      return None
    if x + size > self.size[0] or y + size > self.size[1]:
      return None
    tile = next(self._tiles.covering(0, x, y, size, size))
    if (tile.x, tile.y, tile.width, tile.height) != (x, y, size, size):
      return None
    try:
      return self._tiles.encoded(tile)
    except jpeg.DecodeError as error:
      raise TileError(self.path, 0, x, y, str(error)) from error

  def overview(self, downsample: float) -> UInt8[np.ndarray, 'height width 3']:
    """The whole slide reduced `downsample` times, averaged over areas.

    Only a band of the next finer level is in memory at a time.
    """
    fits = [i for i, v in enumerate(self.levels) if v.downsample <= downsample]
    level = max(fits, key=lambda i: self.levels[i].downsample, default=0)
    plane = self.levels[level]
    width = max(1, round(self.size[0] / downsample))
    height = max(1, round(self.size[1] / downsample))
    factor = max(1, int(downsample / plane.downsample + 1e-6))
    rows = max(1, BAND_BYTES // (plane.width * 3) // factor) * factor
    bands = []
    for top in range(0, plane.height, rows):
      band = np.empty((min(rows, plane.height - top), plane.width, 3), np.uint8)
      self._fill(band, 0, top, level)
      bands.append(np.asarray(Image.fromarray(band).reduce(factor)))
    reduced = Image.fromarray(np.concatenate(bands))
    box = (0, 0, plane.width / factor, plane.height / factor)
    if reduced.size == (width, height) and box[2:] == reduced.size:
      return np.asarray(reduced)
    return np.asarray(reduced.resize((width, height), Image.BOX, box=box))

  def thumbnail(self, longest: int) -> UInt8[np.ndarray, 'height width 3']:
    """The whole slide, its longer side `longest` pixels (or all it has)."""
    return self.overview(max(1.0, max(self.size) / longest))

  def _fill(self, region: np.ndarray, x: int, y: int, level: int) -> None:
    """Reads into `region`, at x and y in pixels of `level`."""
    scale = self.levels[level].downsample
    if self._tiles is None:
      region[:] = self._whole.read(x, y, *region.shape[1::-1], level)
      return
    for tile in self._tiles.covering(level, x, y, *region.shape[1::-1]):
      place = self.path, level, round(tile.x * scale), round(tile.y * scale)
      try:
        pixels = self._tiles.read(tile)
      except jpeg.DecodeError as error:
        raise TileError(*place, str(error)) from error
      tile.copy(pixels, region, x, y)


class _OpenSlide:
  """OpenSlide, opened again after an error: its handle stays broken."""

  def __init__(self, path: pathlib.Path):
    self._path, self._lock = path, threading.Lock()
    if not path.is_file():
      raise SlideError(f'There is no slide at {path}; check the path.')
    try:
      self._handle = openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
      reason = str(error).rstrip('.')
      raise SlideError(
        f"{path} can't be opened as a slide ({reason}): expected a "
        'whole format that OpenSlide reads, such as SVS, TIFF, NDPI or MRXS.'
      ) from error
    self.properties = dict(self._handle.properties)
    self.vendor = self.properties.get('openslide.vendor', '')
    self.background = _background(self.properties)
    self.levels = tuple(
      Level(*size, downsample)
      for size, downsample in zip(
        self._handle.level_dimensions,
        self._handle.level_downsamples,
        strict=True,
      )
    )

  def read(
    self, x: int, y: int, width: int, height: int, level: int
  ) -> UInt8[np.ndarray, 'height width 3']:
    """A region at x and y in pixels of `level`, over the background."""
    scale = self.levels[level].downsample
    place = round(x * scale), round(y * scale)
    handle = self._handle
    try:
      region = handle.read_region(place, level, (width, height))
    except openslide.OpenSlideError as error:
      self._reopen(handle)
      raise TileError(self._path, level, *place, str(error)) from error
    canvas = Image.new('RGB', region.size, self.background)
    canvas.paste(region, mask=region.getchannel('A'))
    return np.asarray(canvas)

  def _reopen(self, broken: openslide.OpenSlide) -> None:
    # The broken handle isn't closed: another thread may still be in it.
    with self._lock:
      if self._handle is broken:
        self._handle = openslide.OpenSlide(self._path)

  def close(self) -> None:
    self._handle.close()


def _background(properties: dict) -> tuple[int, int, int]:
  colour = properties.get('openslide.background-color', 'FFFFFF')
  return tuple(int(colour[i : i + 2], 16) for i in (0, 2, 4))


def _mpp(
  path: pathlib.Path, given: float | Sequence[float] | None, properties: dict
) -> tuple[float, float]:
  """Micrometres per pixel in x and y: given, or what the file says."""
  if given is None:
    names = 'openslide.mpp-x', 'openslide.mpp-y'
    found = [properties.get(name, '') for name in names]
    said = (
      "doesn't say its pixel size"
      if not any(found)
      else (f'says {found[0]!r} x {found[1]!r} micrometres per pixel')
    )
  else:
    found = list(given) if isinstance(given, Sequence) else [given, given]
    said = f'was given mpp={given!r}'
  try:
    x, y = (float(value) for value in found)
    usable = 0 < x < math.inf and 0 < y < math.inf
  except (TypeError, ValueError):
    usable = False
  if not usable:
    raise SlideError(
      f'{path} {said}; give it in micrometres per pixel with the option '
      'mpp=, for example mpp=0.25 for a scan at 40x.'
    )
  return x, y
