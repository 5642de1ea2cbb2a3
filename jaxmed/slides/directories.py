"""Checks the directories of a TIFF before a library follows them.

libtiff and tifffile stop at a directory that they can't read, so that a slide
that was cut off seems to have fewer levels. And a header may promise more
pixels than the file lists tiles for.
"""

import os
import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

MOST = 4096  # Directories: a slide has tens.
MOST_TILES = 1 << 22  # Of a level: 500,000 px a side in tiles of 256.
SIDES = 256, 257, 322, 323  # Tags: width and length of picture and tile.
OFFSETS = 324  # Tag: where each tile is.
NUMBERS = {3: 'H', 4: 'I', 16: 'Q'}


def check(path: pathlib.Path) -> None:
  """Raises ValueError with what is wrong."""
  with path.open('rb') as file:
    end = os.fstat(file.fileno()).st_size
    head = file.read(4)
    order, large = '<' if head[:2] == b'II' else '>', 43 in head[2:4]
    link = f'{order}Q' if large else f'{order}I'
    count = f'{order}Q' if large else f'{order}H'
    entry = struct.Struct(f'{order}HHQ8s' if large else f'{order}HHI4s')
    (place,) = _unpack(file, end, 8 if large else 4, link)
    seen = set()
    while place:
      if place in seen or len(seen) > MOST:
        raise ValueError('its list of levels has no end')
      seen.add(place)
      (entries,) = _unpack(file, end, place, count)
      size = entries * entry.size
      content = _unpack(file, end, file.tell(), f'{size}s{link[1]}', order)
      _check_tiles(entry.iter_unpack(content[0]), order)
      place = content[1]


def _unpack(
  file: BinaryIO, end: int, place: int, form: str, order: str = ''
) -> tuple:
  form = order + form
  size = struct.calcsize(form)
  if place + size > end:
    raise ValueError(
      f'its list of levels goes on at byte {place}, but the file has {end}: '
      'it was cut off'
    )
  file.seek(place)
  return struct.unpack(form, file.read(size))


def _check_tiles(entries: Iterator[tuple], order: str) -> None:
  """Whether a directory lists a tile for each part of its picture."""
  found, listed = {}, 0
  for tag, kind, count, value in entries:
    if tag == OFFSETS:
      listed = count
    elif tag in SIDES and kind in NUMBERS:
      (found[tag],) = struct.unpack_from(order + NUMBERS[kind], value)
  if len(found) < len(SIDES):
    return  # A picture in strips.
  width, length, tile_width, tile_length = (found[tag] for tag in SIDES)
  if not all(found.values()):
    raise ValueError(
      f'a level of {width} x {length} px has tiles of {tile_width} x '
      f'{tile_length}'
    )
  tiles = -(-width // tile_width) * -(-length // tile_length)
  if tiles > MOST_TILES:
    raise ValueError(
      f'a level of {width} x {length} px has {tiles} tiles; no more than '
      f'{MOST_TILES} are read'
    )
  if listed < tiles:
    raise ValueError(
      f'a level of {width} x {length} px lists {listed} of its {tiles} tiles'
    )
