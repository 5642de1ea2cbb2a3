"""The chain of a TIFF's directories: levels get lost silently where it breaks.

libtiff and tifffile stop at a directory that they can't read, and the slide
then seems to have fewer levels than were written.
"""

import os
import pathlib
import struct

MOST = 4096  # Directories: a slide has tens.


def check(path: pathlib.Path) -> None:
  """Raises ValueError where the chain leaves the file or bites its tail."""
  with path.open('rb') as file:
    end = os.fstat(file.fileno()).st_size
    head = file.read(16)
    order = '<' if head[:2] == b'II' else '>'
    if struct.unpack(order + 'H', head[2:4])[0] == 43:
      count_of, entry, link = 'Q', 20, 'Q'
      (place,) = struct.unpack(order + 'Q', head[8:16])
    else:
      count_of, entry, link = 'H', 12, 'I'
      (place,) = struct.unpack(order + 'I', head[4:8])
    seen = set()
    while place:
      if place in seen or len(seen) > MOST:
        raise ValueError('its list of levels has no end')
      seen.add(place)
      count = _number(file, end, place, order + count_of)
      place += struct.calcsize(order + count_of) + count * entry
      place = _number(file, end, place, order + link)


def _number(file, end: int, place: int, form: str) -> int:
  size = struct.calcsize(form)
  if place + size > end:
    raise ValueError(
      f'its list of levels goes on at byte {place}, but the file has {end}: '
      'it was cut off'
    )
  file.seek(place)
  return struct.unpack(form, file.read(size))[0]
