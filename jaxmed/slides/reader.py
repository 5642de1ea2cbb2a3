"""Opens whole-slide images and reads regions of them.

OpenSlide reads every format that it knows, and plain TIFF, OME-TIFF, PNG and
JPEG are slides too. All that happens in helper processes, so that a file on
which a library aborts or hangs is an error like any other. Where a slide's
levels are tiled JPEG (Aperio's SVS, Philips's and plain pyramidal TIFF), its
tiles are decoded here, which gives the same pixels several times faster. A
tile that can't be read is an error that carries its place; it never becomes
white pixels.
Label and macro images, which may carry a patient's name, are never touched.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from jaxmed import errors
from jaxmed.slides import formats, guard, icc, jpeg, resample

BAND_BYTES = 64 << 20  # Of a level that is reduced to an overview at a time.
PIECE = 1 << 22  # Pixels that a helper is asked for at once.
SECONDS_A_PIXEL = 2e-6  # Of patience, beside guard.PATIENCE.
MOST_LOST = 3  # Helpers that a slide may cost before it is given up.
FINER = 1.25  # How much finer than level 0 a region may be interpolated.
LONGEST = 1 << 21  # Pixels of a side: half a metre of glass.
ASPECT = 0.02  # By which a level's reduction in x and in y may differ.
HELPERS = guard.Pool(f'{formats.__name__}.{formats.Shelf.__name__}')
_keys = itertools.count()


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


@dataclasses.dataclass(frozen=True)
class Region:
  """Pixels at a scale that was asked for.

  valid: which of them lie on the slide; the others have its background colour.
  """

  pixels: UInt8[np.ndarray, 'height width 3']
  valid: Bool[np.ndarray, 'height width']


@contextlib.contextmanager
def open_slide(
  path: str | os.PathLike,
  mpp: float | Sequence[float] | None = None,
  icc: bool = False,
) -> Iterator['Slide']:
  """Opens a slide; `mpp` in micrometres overrides what the file says.

  With `icc` its pixels are converted from the scanner's colours to sRGB.
  """
  slide = Slide(path, mpp, icc=icc)
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
  background: colour of what is not on the slide.
  profile: the ICC profile of the scanner's colours, if the file has one.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    mpp: float | Sequence[float] | None = None,
    direct: bool = True,
    icc: bool = False,
  ):
    self.path = pathlib.Path(path)
    self._key, self._lost = next(_keys), 0
    self._absolute = os.path.abspath(path)
    self._tiles = self._whole = None
    facts = self._describe()
    try:
      self.levels = tuple(Level(*level) for level in facts.levels)
      _check_levels(self.path, self.levels)
      self.size = self.levels[0].width, self.levels[0].height
      self.mpp_xy = _mpp(self.path, mpp, facts.mpp)
      self.mpp = math.sqrt(self.mpp_xy[0] * self.mpp_xy[1])
      self.background, self.profile = facts.background, facts.profile
      self._to_srgb = _to_srgb(self.path, self.profile) if icc else None
      if facts.whole:
        self._whole = self._read_whole()
      elif direct and facts.planes:
        self._tiles = jpeg.Tiles(self.path, facts.planes, self.background)
    except BaseException:
      self.close()
      raise
    if self.direct or facts.whole:
      HELPERS.forget('forget', self._key)

  @property
  def direct(self) -> bool:
    """Whether tiles are decoded here rather than by OpenSlide."""
    return self._tiles is not None

  def close(self) -> None:
    if self._tiles is not None:
      self._tiles.close()
    HELPERS.forget('forget', self._key)

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
    x0, x1 = max(left, 0), min(left + width, plane.width)
    y0, y1 = max(top, 0), min(top + height, plane.height)
    if (x1 - x0, y1 - y0) == (width, height):
      region = self._pixels(level, left, top, width, height)
    else:
      region = self._empty(width, height)
      if x0 < x1 and y0 < y1:
        inside = self._pixels(level, x0, y0, x1 - x0, y1 - y0)
        region[y0 - top : y1 - top, x0 - left : x1 - left] = inside
    return self._coloured(region)

  def region(
    self,
    x: float,
    y: float,
    width: int,
    height: int,
    mpp: float | tuple[float, float],
    unit: Literal['px', 'um'] = 'px',
  ) -> Region:
    """A region of width x height square pixels of `mpp` micrometres.

    They are as wide and high as two numbers say, if these are given.
    It begins at x and y in pixels of level 0, or in micrometres. Where a level
    has this scale its pixels are given as they are, from the nearest one on;
    else those of the next finer level are reduced, without aliasing.
    """
    if unit not in ('px', 'um'):
      raise errors.unknown('unit', unit, ('px', 'um'))
    if unit == 'um':
      x, y = x / self.mpp_xy[0], y / self.mpp_xy[1]
    level, steps = self._finer(mpp, (width, height))
    plane = self.levels[level]
    across, down = resample.snapped(
      resample.Axis(x / plane.downsample, steps[0], width, plane.width),
      resample.Axis(y / plane.downsample, steps[1], height, plane.height),
    )
    pixels = self._empty(width, height)
    valid = down.valid[:, None] & across.valid[None, :]
    if valid.any():
      pixels[down.inner, across.inner] = resample.resample(
        lambda *box: self._pixels(level, *box), across, down
      )
    return Region(self._coloured(pixels), valid)

  def encoded_tile(self, x: int, y: int, size: int) -> bytes | None:
    """A square of level 0 as the file has it: a JPEG, not coded anew.

    None where the square is not just one of the file's own JPEG tiles, or
    its colours are to be converted.
    """
    if self._tiles is None or self._to_srgb or x < 0 or y < 0:
      return None
    if x + size > self.size[0] or y + size > self.size[1]:
      return None
    tile = next(self._tiles.covering(0, x, y, size, size))
    if not tile.spans(x, y, size, size):
      return None
    try:
      return self._tiles.encoded(tile)
    except jpeg.DecodeError as error:
      raise TileError(self.path, 0, x, y, str(error)) from error

  def overview(self, downsample: float) -> UInt8[np.ndarray, 'height width 3']:
    """The whole slide reduced `downsample` times, averaged over areas.

    Only a band of the next finer level is in memory at a time; a level that
    is within 1 % of what is asked for is taken as that, for sizes of levels
    are rounded.
    """
    near = downsample * 1.01
    fits = [i for i, v in enumerate(self.levels) if v.downsample <= near]
    level = max(fits, key=lambda i: self.levels[i].downsample, default=0)
    plane = self.levels[level]
    width = max(1, round(self.size[0] / downsample))
    height = max(1, round(self.size[1] / downsample))
    factor = max(1, int(downsample / plane.downsample + 1e-6))
    rows = max(1, BAND_BYTES // (plane.width * 3) // factor) * factor
    bands = []
    for top in range(0, plane.height, rows):
      size = plane.width, min(rows, plane.height - top)
      band = Image.fromarray(self._pixels(level, 0, top, *size))
      bands.append(np.asarray(band.reduce(factor)))
    reduced = Image.fromarray(np.concatenate(bands))
    box = (0, 0, plane.width / factor, plane.height / factor)
    if reduced.size != (width, height) or box[2:] != reduced.size:
      reduced = reduced.resize((width, height), Image.BOX, box=box)
    return self._coloured(np.asarray(reduced))

  def thumbnail(self, longest: int) -> UInt8[np.ndarray, 'height width 3']:
    """The whole slide, its longer side `longest` pixels (or all it has)."""
    return self.overview(max(1.0, max(self.size) / longest))

  def scaled(
    self, x: int, y: int, size: int, scale: float
  ) -> UInt8[np.ndarray, 'size size 3']:
    """A square of level 0, each pixel `scale` of its pixels wide and high.

    It lies where a grid over level 0 has it, also where that has pixels that
    are not quite square.
    """
    if scale == 1:
      return self.read(x, y, size, size)
    mpp = self.mpp_xy[0] * scale, self.mpp_xy[1] * scale
    return self.region(x, y, size, size, mpp).pixels

  def _finer(
    self, mpp: float | tuple[float, float], counts: tuple[int, int]
  ) -> tuple[int, list[float]]:
    """The coarsest level that is fine enough, and its pixels per pixel."""
    wanted = np.broadcast_to(mpp, 2).tolist()
    if not all(0 < one < math.inf for one in wanted):
      raise SlideError(
        f'A region of {self.path} was asked for at mpp={mpp!r}; expected a '
        'positive number of micrometres per pixel.'
      )
    for level in reversed(range(len(self.levels))):
      scale = self.levels[level].downsample
      steps = [
        one / (own * scale)
        for one, own in zip(wanted, self.mpp_xy, strict=True)
      ]
      if all(resample.fine(*one) for one in zip(steps, counts, strict=True)):
        return level, steps
    if min(steps) * FINER < 1:
      raise SlideError(
        f'{self.path} has {self.mpp:.4g} µm per pixel and nothing finer; '
        f'{min(wanted):.4g} was asked for.'
      )
    return 0, steps

  def _empty(self, width: int, height: int) -> np.ndarray:
    """A region of the background's colour."""
    row = np.tile(np.array(self.background, np.uint8), width)
    region = np.empty((height, width, 3), np.uint8)
    region.reshape(height, -1)[:] = row  # Colour by colour it is far slower.
    return region

  def _coloured(self, pixels: np.ndarray) -> np.ndarray:
    return self._to_srgb(pixels) if self._to_srgb else pixels

  def _pixels(
    self, level: int, x: int, y: int, width: int, height: int
  ) -> UInt8[np.ndarray, 'height width 3']:
    """A region inside `level`, at x and y in its pixels."""
    if self._whole is not None:
      return self._whole[y : y + height, x : x + width].copy()
    if self._tiles is None:
      return self._through_helper(level, x, y, width, height)
    scale = self.levels[level].downsample
    tiles = self._tiles.covering(level, x, y, width, height)
    region = None
    for tile in tiles:
      try:
        if tile.spans(x, y, width, height):
          return self._tiles.take(tile)
        if region is None:
          region = np.empty((height, width, 3), np.uint8)
        self._tiles.copy(tile, region, x, y)
      except jpeg.DecodeError as error:
        place = level, round(tile.x * scale), round(tile.y * scale)
        raise TileError(self.path, *place, str(error)) from error
    return region

  def _through_helper(
    self, level: int, x: int, y: int, width: int, height: int
  ) -> UInt8[np.ndarray, 'height width 3']:
    rows = max(1, PIECE // width)
    if height > rows:
      region = np.empty((height, width, 3), np.uint8)
      for top in range(0, height, rows):
        part = region[top : top + rows]
        part[:] = self._through_helper(level, x, y + top, width, len(part))
      return region
    scale = self.levels[level].downsample
    place = self.path, level, round(x * scale), round(y * scale)
    if self._lost >= MOST_LOST:
      raise TileError(*place, f'given up: {MOST_LOST} processes died of it')
    try:
      return self._call('read', level, x, y, width, height)
    except guard.CallError as error:
      self._lost += error.lost
      raise TileError(*place, error.reason) from error

  def _call(self, method: str, *arguments):
    pixels = arguments[-1] * arguments[-2] if arguments else 0
    return HELPERS.call(
      method,
      self._key,
      self._absolute,
      *arguments,
      patience=guard.PATIENCE + pixels * SECONDS_A_PIXEL,
    )

  def _describe(self) -> formats.Facts:
    try:
      _check_file(self.path)
      return self._call('describe')
    except (OSError, guard.CallError) as error:
      raise _unreadable(self.path, error) from error

  def _read_whole(self) -> UInt8[np.ndarray, 'height width 3']:
    try:
      return self._call('read', 0, 0, 0, *self.size)
    except guard.CallError as error:
      raise _unreadable(self.path, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> SlideError:
  if isinstance(error, FileNotFoundError):
    return SlideError(f'There is no slide at {path}; check the path.')
  reason = getattr(error, 'strerror', None) or str(error)
  return SlideError(f"{path} can't be opened as a slide: {reason.rstrip('.')}.")


def _check_file(path: pathlib.Path) -> None:
  """Raises OSError for what isn't a file with something in it.

  Anything else than a file, such as a pipe, could be waited for without end.
  """
  found = os.stat(path)
  if stat.S_ISDIR(found.st_mode):
    raise OSError('it is a folder; give the file of a slide')
  if not stat.S_ISREG(found.st_mode):
    raise OSError('it is no regular file')
  if not found.st_size:
    raise OSError('it is empty')
  with path.open('rb'):
    pass


def _check_levels(path: pathlib.Path, levels: Sequence[Level]) -> None:
  """Each level must be level 0, reduced alike in x and in y."""
  first = levels[0]
  sides = first.width, first.height
  if min(sides) < 1 or max(sides) > LONGEST:
    raise SlideError(
      f'{path} says that it has {first.width} x {first.height} px; expected '
      f'sides of 1 to {LONGEST}.'
    )
  for number, level in enumerate(levels):
    # Sides are rounded, by a pixel at most.
    off = [
      abs(side * level.downsample - whole) - level.downsample
      for side, whole in (
        (level.width, first.width),
        (level.height, first.height),
      )
    ]
    if (
      off[0] > ASPECT * first.width
      or off[1] > ASPECT * first.height
      or not level.downsample >= levels[max(0, number - 1)].downsample
    ):
      raise SlideError(
        f'{path}: level {number} of {level.width} x {level.height} px is no '
        f'reduction of level 0, {first.width} x {first.height} px, by '
        f'{level.downsample:.4g} in x and y.'
      )


def _to_srgb(path: pathlib.Path, profile: bytes | None) -> icc.Transform:
  if not profile:
    raise SlideError(
      f'{path} has no ICC profile; open it without icc=True to take its '
      'colours as they are.'
    )
  try:
    return icc.to_srgb(profile)
  except ValueError as error:
    raise SlideError(
      f"{path} has an ICC profile that can't be used: {error}."
    ) from error


def _mpp(
  path: pathlib.Path,
  given: float | Sequence[float] | None,
  found: tuple[str, str],
) -> tuple[float, float]:
  """Micrometres per pixel in x and y: given, or what the file says."""
  if given is None:
    said = (
      f'says {found[0]!r} x {found[1]!r} micrometres per pixel'
      if any(found)
      else "doesn't say its pixel size"
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
      'mpp= (of commands: --mpp), for example mpp=0.25 for a scan at 40x.'
    )
  return x, y
