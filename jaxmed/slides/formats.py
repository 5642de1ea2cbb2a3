"""Files of slides: what they say of themselves, and their pixels.

All of this runs in a helper process (see `guard`), because it is where foreign
headers and native libraries meet. OpenSlide reads what it knows; OME-TIFF and
other TIFF are read with tifffile; a PNG or JPEG is decoded whole.
"""

import collections
import dataclasses
import pathlib

import numpy as np
import openslide
import tifffile
from jaxtyping import UInt8
from PIL import Image

from jaxmed.slides import directories, jpeg, ome

WHITE = 255, 255, 255
PICTURE_PIXELS = 1 << 26  # Of a picture that is decoded whole.
COARSEST = 20.0  # µm a pixel; a coarser resolution is that of a printer.
OPEN_FILES = 4  # In each helper.
PIECE_BYTES = 32 << 20  # Of decoded tiles or strips that are kept.
TIFF_VENDORS = 'aperio', 'generic-tiff', 'philips'
PICTURES = 'PNG', 'JPEG'


class FormatError(Exception):
  """Why a file can't be read as a slide."""


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a file says of itself.

  levels: width, height and downsample of each.
  mpp: micrometres per pixel in x and y as written, '' where nothing is.
  whole: whether it is a picture without tiles, to be read at once.
  planes: of each level, where its tiles are plain JPEG.
  """

  levels: tuple[tuple[int, int, float], ...]
  mpp: tuple[str, str] = ('', '')
  background: tuple[int, int, int] = WHITE
  profile: bytes | None = None
  whole: bool = False
  planes: tuple[jpeg.Plane, ...] | None = None


class Shelf:
  """Open files, the latest of them kept, by a key of the caller's choice."""

  def __init__(self):
    self._open = collections.OrderedDict()
    Image.MAX_IMAGE_PIXELS = None  # The limit here is PICTURE_PIXELS.

  def describe(self, key: int, path: str) -> Facts:
    return self._file(key, path).facts

  def read(
    self,
    key: int,
    path: str,
    level: int,
    x: int,
    y: int,
    width: int,
    height: int,
  ) -> UInt8[np.ndarray, 'height width 3']:
    """A region inside `level`; x and y in its pixels."""
    return self._file(key, path).read(level, x, y, width, height)

  def forget(self, key: int) -> None:
    if key in self._open:
      self._open.pop(key).close()

  def _file(self, key: int, path: str):
    if key not in self._open:
      self._open[key] = open_file(pathlib.Path(path))
      if len(self._open) > OPEN_FILES:
        self._open.popitem(last=False)[1].close()
    self._open.move_to_end(key)
    return self._open[key]


def open_file(path: pathlib.Path) -> '_Whole | _Tiff | _Picture':
  """Opens a file with whatever reads it."""
  vendor = openslide.OpenSlide.detect_format(path)
  if vendor in (None, 'generic-tiff'):
    if _is_tiff(path):
      directories.check(path)
      tiff = tifffile.TiffFile(path, _multifile=False)
      if vendor is None or tiff.is_ome:
        return _Tiff(tiff)
      tiff.close()
    elif _is_picture(path):
      return _Picture(path)
  elif vendor in TIFF_VENDORS:
    directories.check(path)
  return _Whole(path, vendor)


def _is_tiff(path: pathlib.Path) -> bool:
  with path.open('rb') as file:
    return file.read(4) in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def _is_picture(path: pathlib.Path) -> bool:
  with path.open('rb') as file:
    return file.read(8).startswith((b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff'))


class _Whole:
  """A slide in one of OpenSlide's formats."""

  def __init__(self, path: pathlib.Path, vendor: str | None):
    self._path = path
    try:
      self._slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
      raise FormatError(
        'nothing reads its format; expected one of OpenSlide, such as SVS, '
        'TIFF, NDPI or MRXS, or a PNG or JPEG'
      ) from error
    said = self._slide.properties
    sizes = self._slide.level_dimensions
    mpp = tuple(said.get(f'openslide.mpp-{axis}', '') for axis in 'xy')
    colour = said.get('openslide.background-color', 'FFFFFF')
    empty = self._slide.read_region((0, 0), 0, (0, 0))
    self.facts = Facts(
      tuple(
        (*size, downsample)
        for size, downsample in zip(
          sizes, self._slide.level_downsamples, strict=True
        )
      ),
      honest(*mpp) if vendor == 'generic-tiff' else mpp,
      tuple(int(colour[i : i + 2], 16) for i in (0, 2, 4)),
      empty.info.get('icc_profile'),
      planes=_planes(path, vendor, sizes) if vendor in TIFF_VENDORS else None,
    )

  def read(
    self, level: int, x: int, y: int, width: int, height: int
  ) -> UInt8[np.ndarray, 'height width 3']:
    scale = self.facts.levels[level][2]
    place = round(x * scale), round(y * scale)
    try:
      region = self._slide.read_region(place, level, (width, height))
    except openslide.OpenSlideError:
      self._slide.close()  # Its handle stays broken.
      self._slide = openslide.OpenSlide(self._path)
      raise
    return _opaque(region, self.facts.background)

  def close(self) -> None:
    self._slide.close()


def _planes(
  path: pathlib.Path, vendor: str, sizes
) -> tuple[jpeg.Plane, ...] | None:
  """The tiles of OpenSlide's levels, if all of them are plain JPEG."""
  with tifffile.TiffFile(path, _multifile=False) as tiff:
    tiled = [page for page in tiff.pages if page.is_tiled]
    if vendor == 'philips':  # Its pages are padded to whole tiles.
      chosen = tiled if len(tiled) == len(sizes) else [None]
    else:
      pages = {}
      for page in tiled:
        pages.setdefault((page.imagewidth, page.imagelength), page)
      chosen = [pages.get(tuple(size)) for size in sizes]
    if not all(page is not None and jpeg.is_plain(page) for page in chosen):
      return None
    sparse = vendor == 'philips'  # It leaves empty glass out.
    return tuple(jpeg.Plane.of(page, sparse) for page in chosen)


class _Tiff:
  """Tiles or strips of a TIFF that OpenSlide doesn't know, or knows less of."""

  def __init__(self, tiff: tifffile.TiffFile):
    self._tiff = tiff
    self._pieces, self._kept = collections.OrderedDict(), 0
    mpp = ('', '')
    if tiff.is_ome:
      series = ome.main_series(tiff)
      self._pages = [level.keyframe for level in series.levels]
      mpp = ome.pixel_size(tiff, self._pages[0])
    else:
      self._pages = [_only_page(tiff)]
    for page in self._pages:
      _check_page(page)
    first = self._pages[0]
    if mpp == ('', ''):
      mpp = _resolution(first)
    profile = first.tags.get('InterColorProfile')
    plain = all(jpeg.is_plain(page) for page in self._pages)
    self.facts = Facts(
      tuple(_level(page, first) for page in self._pages),
      mpp,
      profile=profile.value if profile else None,
      planes=tuple(map(jpeg.Plane.of, self._pages)) if plain else None,
    )

  def read(
    self, level: int, x: int, y: int, width: int, height: int
  ) -> UInt8[np.ndarray, 'height width 3']:
    page = self._pages[level]
    rows, columns = _piece_shape(page)
    region = np.empty((height, width, 3), np.uint8)
    for top in range(y // rows * rows, y + height, rows):
      for left in range(x // columns * columns, x + width, columns):
        size = min(columns, page.imagewidth - left), rows
        tile = jpeg.Tile(level, 0, left, top, *size)
        tile.copy(
          self._piece(level, top // rows, left // columns), region, x, y
        )
    return region

  def _piece(self, level: int, row: int, column: int) -> np.ndarray:
    key = level, row, column
    if key not in self._pieces:
      self._pieces[key] = pixels = self._decode(*key)
      self._kept += pixels.nbytes
      while self._kept > PIECE_BYTES and len(self._pieces) > 1:
        self._kept -= self._pieces.popitem(last=False)[1].nbytes
    self._pieces.move_to_end(key)
    return self._pieces[key]

  def _decode(self, level: int, row: int, column: int) -> np.ndarray:
    page = self._pages[level]
    rows, columns = _piece_shape(page)
    across, down = -(-page.imagewidth // columns), -(-page.imagelength // rows)
    apart = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    samples = []
    for sample in range(page.samplesperpixel if apart else 1):
      index = (sample * down + row) * across + column
      offset, count = page.dataoffsets[index], page.databytecounts[index]
      data = self._tiff.filehandle
      data.seek(offset)
      content = data.read(count)
      if not count or len(content) < count:
        raise FormatError(f'{len(content)} bytes of {count} are there')
      decoded = page.decode(content, index, jpegtables=page.jpegtables)[0]
      samples.append(decoded[0])
    return _to_rgb(np.concatenate(samples, axis=-1), page)

  def close(self) -> None:
    self._tiff.close()


def _only_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
  """The first; others of its size would make a stack of it."""
  first = tiff.pages[0]
  same = [page for page in tiff.pages if page.shape == first.shape]
  if len(same) > 1:
    raise FormatError(
      f'it is a stack of {len(same)} pictures of one size; expected one'
    )
  return first


def _check_page(page: tifffile.TiffPage) -> None:
  """Whether it holds pixels that are colours, and says where they are."""
  kinds = tifffile.PHOTOMETRIC
  known = kinds.RGB, kinds.YCBCR, kinds.MINISBLACK
  if (
    page.bitspersample != 8
    or page.sampleformat not in (1, None)
    or page.samplesperpixel not in (1, 2, 3, 4)
    or page.photometric not in known
  ):
    raise FormatError(
      f'it holds {page.samplesperpixel} samples of {page.bitspersample} bits '
      f'a pixel, {page.photometric.name.lower()}; expected RGB or gray of 8'
    )
  rows, columns = _piece_shape(page)
  if rows * columns > PICTURE_PIXELS:
    raise FormatError(f'its pieces of {columns} x {rows} px are too large')
  pieces = -(-page.imagewidth // columns) * -(-page.imagelength // rows)
  if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
    pieces *= page.samplesperpixel
  found = min(len(page.dataoffsets), len(page.databytecounts))
  if found < pieces:
    raise FormatError(
      f'a level of {page.imagewidth} x {page.imagelength} px lists {found} '
      f'of its {pieces} pieces'
    )


def _piece_shape(page: tifffile.TiffPage) -> tuple[int, int]:
  """(rows, columns) of a tile or strip."""
  if page.is_tiled:
    return page.tilelength, page.tilewidth
  return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _level(
  page: tifffile.TiffPage, first: tifffile.TiffPage
) -> tuple[int, int, float]:
  across = first.imagewidth / page.imagewidth
  down = first.imagelength / page.imagelength
  return page.imagewidth, page.imagelength, (across + down) / 2


def _resolution(page: tifffile.TiffPage) -> tuple[str, str]:
  """Micrometres per pixel by the resolution tags; '' if they mean none."""
  unit = page.tags.get('ResolutionUnit')
  micrometres = {2: 25400.0, 3: 10000.0}.get(int(unit.value) if unit else 2)
  found = []
  for name in 'XResolution', 'YResolution':
    tag = page.tags.get(name)
    above, below = tag.value if tag else (0, 1)
    if not (micrometres and above and below):
      return '', ''
    found.append(str(micrometres * below / above))
  return honest(*found)


def honest(x: str, y: str) -> tuple[str, str]:
  """A resolution, or '' where it is that of a screen or printer."""
  try:
    coarse = max(float(x), float(y)) > COARSEST
  except ValueError:
    return x, y
  return ('', '') if coarse else (x, y)


class _Picture:
  """A PNG or JPEG, whole in memory."""

  def __init__(self, path: pathlib.Path):
    with Image.open(path, formats=PICTURES) as image:
      width, height = image.size
      if width * height > PICTURE_PIXELS:
        raise FormatError(
          f'a picture of {width} x {height} px is too large to be read whole; '
          'convert it to a tiled TIFF'
        )
      if image.mode not in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA'):
        raise FormatError(
          f'its pixels are {image.mode}, expected RGB or gray of 8 bits'
        )
      dots = image.info.get('dpi', (0, 0))
      mpp = ('', '')
      if all(dots):
        mpp = honest(*(str(25400.0 / float(dot)) for dot in dots))
      profile = image.info.get('icc_profile')
    self._path, self._pixels = path, None
    self.facts = Facts(
      ((width, height, 1.0),), mpp, profile=profile, whole=True
    )

  def read(
    self, level: int, x: int, y: int, width: int, height: int
  ) -> UInt8[np.ndarray, 'height width 3']:
    if self._pixels is None:
      with Image.open(self._path, formats=PICTURES) as image:
        self._pixels = _opaque(image)
    return self._pixels[y : y + height, x : x + width]

  def close(self) -> None:
    pass


def _opaque(
  image: Image.Image, background: tuple[int, int, int] = WHITE
) -> UInt8[np.ndarray, 'height width 3']:
  """RGB; what is transparent shows the background."""
  if image.has_transparency_data:
    image = image.convert('RGBA')
    alpha = image.getchannel('A')
    if alpha.getextrema()[0] < 255:
      canvas = Image.new('RGB', image.size, background)
      canvas.paste(image, mask=alpha)
      return np.asarray(canvas)
  if image.mode != 'RGB':
    image = image.convert('RGB')
  return np.asarray(image)


def _to_rgb(
  pixels: UInt8[np.ndarray, 'height width samples'], page: tifffile.TiffPage
) -> UInt8[np.ndarray, 'height width 3']:
  samples = pixels.shape[-1]
  mode = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}[samples]
  if samples in (2, 4) and not any(page.extrasamples):
    pixels = pixels[..., : samples - 1]  # The last one means nothing.
    mode = mode[:-1]
  image = Image.fromarray(np.ascontiguousarray(pixels.squeeze()), mode)
  return _opaque(image)
