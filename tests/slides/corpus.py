"""Slides that are broken, each in its own way, and what must be said of them.

`CASES` is for the tests of the reader and of whole runs. As a script it writes
every case, opens it, and prints the error, the seconds and the peak memory:

  python -m tests.slides.corpus
"""

import dataclasses
import functools
import os
import pathlib
import re
import resource
import struct
import tempfile
import time
import zlib
from collections.abc import Callable

import numpy as np
import tifffile
from PIL import Image

from jaxmed.datasets import phantom
from jaxmed.slides import reader

WIDTH, HEIGHT = 640, 512
APERIO = 'Aperio Image Library v11.2.1\r\n640x512 |AppMag = 20|MPP = {}'
OME = (
  '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/'
  '2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
  'Type="uint16" SizeX="640" SizeY="512" SizeC="4" SizeZ="1" SizeT="1">'
  '<TiffData/></Pixels></Image></OME>'
)


@dataclasses.dataclass(frozen=True)
class Case:
  """A broken slide.

  write: makes the file in a folder and returns its path.
  says: a pattern of what the error says.
  opens: whether it opens, and reading all of level 0 is a TileError.
  mpp: the option that it is opened with.
  """

  name: str
  write: Callable[[pathlib.Path], pathlib.Path]
  says: str
  opens: bool = False
  mpp: object = None

  def provoke(self, path: pathlib.Path) -> None:
    """Opens the slide and reads all of it."""
    with reader.open_slide(path, self.mpp) as slide:
      width, height = slide.size
      for y in range(0, height, 256):
        slide.read(0, y, width, 256)


CASES: list[Case] = []


def case(says: str, **more):
  """Lists a function that writes a broken slide."""

  def add(write):
    CASES.append(Case(write.__name__, write, says, **more))
    return write

  return add


@functools.cache
def pixels(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
  """Something with texture everywhere, so that no tile is flat."""
  dice = np.random.default_rng(0)
  coarse = dice.integers(60, 230, (height // 4, width // 4, 3), dtype=np.uint8)
  image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
  return np.asarray(image)


@functools.cache
def healthy() -> bytes:
  """A slide of two levels with nothing wrong."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'healthy.tif'
    phantom.write_slide(path, pixels(), 0.5)
    return path.read_bytes()


def _put(folder: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
  path = folder / name
  path.write_bytes(content)
  return path


def _pages() -> list[tifffile.TiffPage]:
  with tempfile.TemporaryDirectory() as folder:
    path = _put(pathlib.Path(folder), 'healthy.tif', healthy())
    with tifffile.TiffFile(path) as tiff:
      for page in tiff.pages:
        assert page.dataoffsets and page.databytecounts
      return list(tiff.pages)


def _tile(index: int) -> tuple[int, int]:
  """Where a tile of level 0 is: (offset, bytes)."""
  page = _pages()[0]
  return page.dataoffsets[index], page.databytecounts[index]


def _change(
  folder: pathlib.Path, name: str, offset: int, new: bytes
) -> pathlib.Path:
  """The healthy slide with bytes replaced."""
  content = bytearray(healthy())
  content[offset : offset + len(new)] = new
  return _put(folder, name, content)


def _set_tag(folder, name, page, tag: str, value: int) -> pathlib.Path:
  """The healthy slide with the value of a tag replaced."""
  found = _pages()[page].tags[tag]
  form = {1: 'B', 3: 'H', 4: 'I'}[int(found.dtype)]
  return _change(
    folder, name, found.valueoffset, struct.pack(f'<{form}', value)
  )


@case('it is empty')
def no_bytes(folder):
  return _put(folder, 'no_bytes.svs', b'')


@case('nothing reads its format')
def text(folder):
  return _put(folder, 'text.svs', b'This is a letter, not a slide.\n' * 40)


@case('nothing reads its format')
def noise(folder):
  content = np.random.default_rng(1).bytes(5000)
  return _put(folder, 'noise.ndpi', content)


@case('There is no slide')
def absent(folder):
  return folder / 'absent.svs'


@case('it is a folder')
def directory(folder):
  (folder / 'directory.svs').mkdir()
  return folder / 'directory.svs'


@case('no regular file')
def pipe(folder):
  os.mkfifo(folder / 'pipe.svs')
  return folder / 'pipe.svs'


@case('no regular file')
def device(folder):
  (folder / 'device.svs').symlink_to('/dev/zero')
  return folder / 'device.svs'


@case('symbolic links')
def links_in_a_ring(folder):
  (folder / 'one.svs').symlink_to(folder / 'two.svs')
  (folder / 'two.svs').symlink_to(folder / 'one.svs')
  return folder / 'one.svs'


@case('There is no slide')
def link_to_nothing(folder):
  (folder / 'dangling.svs').symlink_to(folder / 'gone.svs')
  return folder / 'dangling.svs'


@case('[Pp]ermission denied')
def forbidden(folder):
  """Root may read everything: then this one is healthy."""
  path = _put(folder, 'forbidden.tif', healthy())
  path.chmod(0)
  return path


@case('it was cut off')
def header_only(folder):
  return _put(folder, 'header_only.tif', healthy()[:8])


@case('it was cut off')
def first_directory_cut(folder):
  return _put(folder, 'first_directory_cut.svs', healthy()[:100])


@case('it was cut off')
def cut_in_half(folder):
  return _put(folder, 'cut_in_half.tif', healthy()[: len(healthy()) // 2])


@case('Short read')
def last_bytes_cut(folder):
  """All directories are there, but not all tiles."""
  path = folder / 'last_bytes_cut.tif'
  phantom.write_slide(path, pixels()[:256, :256], 0.5)
  return _put(folder, path.name, path.read_bytes()[:-2000])


@case('list of levels')
def levels_missing(folder):
  """The first directory points to a second one that is not there."""
  return _next_of_first(folder, 'levels_missing.tif', len(healthy()) + 5000)


@case('has no end')
def levels_in_a_ring(folder):
  return _next_of_first(folder, 'levels_in_a_ring.tif', _pages()[0].offset)


def _next_of_first(folder, name, value) -> pathlib.Path:
  page = _pages()[0]
  place = page.offset + 2 + 12 * len(page.tags)
  return _change(folder, name, place, struct.pack('<I', value))


@case('no reduction of level 0')
def level_of_another_shape(folder):
  path = folder / 'level_of_another_shape.tif'
  with tifffile.TiffWriter(path) as tiff:
    for number, (height, width) in enumerate([(HEIGHT, WIDTH), (128, 512)]):
      tiff.write(
        pixels()[:height, :width],
        tile=(128, 128),
        photometric='rgb',
        compression='jpeg',
        subfiletype=int(number > 0),
        resolution=(20000, 20000),
        resolutionunit='CENTIMETER',
        metadata=None,
      )
  return path


@case('px has tiles of')
def width_of_nothing(folder):
  return _set_tag(folder, 'width_of_nothing.tif', 0, 'ImageWidth', 0)


@case('px has tiles of')
def tiles_of_nothing(folder):
  return _set_tag(folder, 'tiles_of_nothing.tif', 0, 'TileWidth', 0)


@case('has 15264649 tiles')
def bomb(folder):
  """10^6 x 10^6 pixels, by its header, and six tiles."""
  return _enlarged(folder, 'bomb.tif', 10**6)


@case('lists 6 of its 152881 tiles')
def tiles_missing(folder):
  return _enlarged(folder, 'tiles_missing.tif', 10**5)


@case('expected sides of')
def wider_than_any_glass(folder):
  """Tiles of which are as wide, so that it lists enough of them."""
  path = _set_tag(folder, 'wide.tif', 0, 'ImageWidth', 2**31)
  content = bytearray(path.read_bytes())
  tag = _pages()[0].tags['TileWidth']
  content[tag.offset + 2 : tag.offset + 4] = struct.pack('<H', 4)
  content[tag.offset + 8 : tag.offset + 12] = struct.pack('<I', 2**30)
  return _put(folder, 'wide.tif', content)


def _enlarged(folder, name, side) -> pathlib.Path:
  path = _set_tag(folder, name, 0, 'ImageWidth', side)
  content = bytearray(path.read_bytes())
  place = _pages()[0].tags['ImageLength'].valueoffset
  content[place : place + 4] = struct.pack('<I', side)
  return _put(folder, name, content)


@case('lists')
def bomb_in_strips(folder):
  path = folder / 'bomb_in_strips.tif'
  tifffile.imwrite(path, pixels(), photometric='rgb', rowsperstrip=16)
  with tifffile.TiffFile(path) as tiff:
    tags = tiff.pages[0].tags
    places = [tags[n].valueoffset for n in ('ImageWidth', 'ImageLength')]
  content = bytearray(path.read_bytes())
  for place in places:
    content[place : place + 4] = struct.pack('<I', 10**6)
  return _put(folder, 'bomb_in_strips.tif', content)


@case('too large')
def bomb_of_a_picture(folder):
  def chunk(kind, content):
    check = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + check

  header = struct.pack('>IIBBBBB', 10**6, 10**6, 8, 2, 0, 0, 0)
  content = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
  content += chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
  return _put(folder, 'bomb_of_a_picture.png', content)


@case('process that read it .* SIG', opens=True)
def tile_that_no_memory_holds(folder):
  """OpenSlide asks for 14 GB, doesn't get them, and ends its process."""
  name, side = 'tile_that_no_memory_holds.tif', 60000
  path = folder / name
  tifffile.imwrite(
    path,
    pixels()[:256, :256],
    tile=(256, 256),
    photometric='rgb',
    compression='zlib',
    resolution=(20000, 20000),
    resolutionunit='CENTIMETER',
  )
  with tifffile.TiffFile(path) as tiff:
    found = tiff.pages[0].tags
    tags = [found[n] for n in ('TileWidth', 'TileLength')]
    changes = [
      (t.valueoffset, '<I' if int(t.dtype) == 4 else '<H') for t in tags
    ]
  content = bytearray(path.read_bytes())
  for place, form in changes:
    content[place : place + struct.calcsize(form)] = struct.pack(form, side)
  return _put(folder, name, content)


@case('JPEG', opens=True)
def tile_of_flipped_bytes(folder):
  offset, count = _tile(4)
  old = healthy()[offset + count // 3 : offset + 2 * count // 3]
  new = bytes(value ^ 0xFF for value in old)
  return _change(folder, 'flipped.tif', offset + count // 3, new)


@case('no end', opens=True)
def tile_of_zeros(folder):
  offset, count = _tile(4)
  return _change(folder, 'zeros.tif', offset, bytes(count))


@case('ends too soon|hole', opens=True)
def tile_that_ends_too_soon(folder):
  offset, count = _tile(4)
  lost = bytes(count - count // 3 - 2)
  return _change(folder, 'ends_too_soon.tif', offset + count // 3, lost)


@case('bytes of', opens=True)
def tile_outside_the_file(folder):
  tag = _pages()[0].tags['TileOffsets']
  new = struct.pack('<I', len(healthy()) + 10**6)
  return _change(folder, 'outside.tif', tag.valueoffset + 4 * 4, new)


@case('bytes for', opens=True)
def tile_of_four_gigabytes(folder):
  tag = _pages()[0].tags['TileByteCounts']
  whole = bytearray(healthy())
  page = _pages()[0]
  # Too long for the type it is written in: the counts move to the end.
  place = len(whole)
  counts = list(page.databytecounts)
  counts[4] = 2**32 - 1
  whole += struct.pack(f'<{len(counts)}I', *counts)
  whole[tag.offset + 2 : tag.offset + 4] = struct.pack('<H', 4)
  whole[tag.offset + 8 : tag.offset + 12] = struct.pack('<I', place)
  return _put(folder, 'four_gigabytes.tif', bytes(whole))


@case('shape|size', opens=True)
def tile_of_another_size(folder):
  """A JPEG that says it has 65,000 x 65,000 px."""
  offset, count = _tile(4)
  tile = healthy()[offset : offset + count]
  frame = tile.index(b'\xff\xc0')
  new = struct.pack('>HH', 65000, 65000)
  return _change(folder, 'another_size.tif', offset + frame + 5, new)


@case('bytes of', opens=True)
def tile_without_bytes(folder):
  tag = _pages()[0].tags['TileByteCounts']
  new = bytes({3: 2, 4: 4}[int(tag.dtype)])
  place = tag.valueoffset + 4 * len(new)
  return _change(folder, 'without_bytes.tif', place, new)


@case("doesn't say its pixel size; .* mpp=")
def no_pixel_size(folder):
  path = folder / 'no_pixel_size.png'
  Image.fromarray(pixels()).save(path)
  return path


@case("doesn't say its pixel size; .* mpp=")
def pixel_size_of_a_screen(folder):
  path = folder / 'pixel_size_of_a_screen.tif'
  tifffile.imwrite(
    path,
    pixels(),
    photometric='rgb',
    tile=(256, 256),
    resolution=(72, 72),
    resolutionunit='INCH',
  )
  return path


def _aperio(folder: pathlib.Path, name: str, mpp: str) -> pathlib.Path:
  path = folder / f'{name}.svs'
  tifffile.imwrite(
    path,
    pixels(),
    photometric='rgb',
    tile=(256, 256),
    compression='jpeg',
    description=APERIO.format(mpp),
    metadata=None,
  )
  return path


@case('mpp=')
def pixel_size_written_as_zero(folder):
  return _aperio(folder, 'zero', '0')


@case('mpp=')
def pixel_size_written_as_negative(folder):
  return _aperio(folder, 'negative', '-0.5')


@case('mpp=')
def pixel_size_written_in_words(folder):
  return _aperio(folder, 'words', 'fine')


@case('mpp=')
def pixel_size_written_as_nan(folder):
  return _aperio(folder, 'nan', 'nan')


def _given(name: str, mpp: object) -> None:
  """The healthy slide, opened with an option that makes no sense."""

  def write(folder):
    return _put(folder, f'{name}.tif', healthy())

  CASES.append(Case(f'option_mpp_{name}', write, 'was given mpp=.*', mpp=mpp))


_given('zero', 0)
_given('negative', -0.25)
_given('words', 'fine')
_given('nan', float('nan'))


@case('truncated', mpp=0.5)
def picture_cut_off(folder):
  path = no_pixel_size(folder)
  content = path.read_bytes()
  path.unlink()
  return _put(folder, 'cut_off.png', content[: len(content) // 2])


@case('truncated', mpp=0.5)
def photograph_cut_off(folder):
  path = folder / 'photograph.jpg'
  Image.fromarray(pixels()).save(path)
  content = path.read_bytes()
  path.unlink()
  return _put(folder, 'photograph_cut_off.jpg', content[: len(content) // 2])


@case('CMYK', mpp=0.5)
def photograph_for_printing(folder):
  path = folder / 'for_printing.jpg'
  Image.fromarray(pixels()).convert('CMYK').save(path)
  return path


@case('16 bits', mpp=0.5)
def fluorescence(folder):
  path = folder / 'fluorescence.tif'
  tifffile.imwrite(path, pixels()[..., 0].astype(np.uint16) * 100)
  return path


@case('4 planes', mpp=0.5)
def ome_of_four_channels(folder):
  path = folder / 'four_channels.ome.tif'
  planes = np.stack([pixels()[..., 0]] * 4)
  tifffile.imwrite(
    path, planes, metadata={'axes': 'CYX'}, photometric='minisblack'
  )
  return path


@case('not well-formed', mpp=0.5)
def ome_of_broken_words(folder):
  path = folder / 'broken_words.ome.tif'
  tifffile.imwrite(
    path,
    pixels(),
    photometric='rgb',
    description=OME.replace('</Image>', '</Imag'),
    metadata=None,
  )
  return path


def main():
  with tempfile.TemporaryDirectory() as folder:
    for number, one in enumerate(CASES):
      own = pathlib.Path(folder) / str(number)
      own.mkdir()
      path, began = one.write(own), time.monotonic()
      try:
        one.provoke(path)
        said = 'nothing'
      except (reader.SlideError, reader.TileError) as error:
        said = f'{type(error).__name__}: {error}'.replace(str(own), '')
      print(f'{time.monotonic() - began:.2f} s  {one.name}  {said}')
  reader.HELPERS.close()
  # getrusage's own number begins with what the process that started us had.
  status = pathlib.Path('/proc/self/status').read_text()
  own = int(re.search(r'VmHWM:\s+(\d+) kB', status)[1])
  helpers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  print(f'peak memory {max(own, helpers) >> 10} MB')


if __name__ == '__main__':
  main()
