"""A tile of a TIFF as a JPEG file of its own, without coding it anew.

A TIFF may keep the tables that all its tiles share in one place, and says
outside of the JPEG in which colours that is coded. A file says both itself.
"""

import struct
from collections.abc import Iterator

START = b'\xff\xd8'
END = b'\xff\xd9'
SCAN = 0xDA
# Markers that say in which colours a JPEG is coded: JFIF's and Adobe's.
SAYS_COLOUR = (0xE0, 0xEE)
TRANSFORMS = {'RGB': 0, 'YCBCR': 1}  # As Adobe's marker has it.


def whole_file(tile: bytes, tables: bytes | None, colour: str) -> bytes:
  """A tile's JPEG with its tables and its colours, RGB or YCBCR."""
  body = struct.pack('>HHHB', 100, 0, 0, TRANSFORMS[colour])
  adobe = b'\xff\xee' + struct.pack('>H', 14) + b'Adobe' + body
  parts = [START, adobe]
  for stream in (tables, tile) if tables else (tile,):
    parts += [
      segment
      for marker, segment in _segments(stream)
      if marker not in SAYS_COLOUR
    ]
  return b''.join(parts)


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
  """The segments of a JPEG and their markers; from the scan on all is one.

  Raises ValueError where the stream is none.
  """
  if stream[:2] != START:
    raise ValueError('its JPEG has no start')
  at = 2
  while stream[at : at + 2] != END:
    if at + 4 > len(stream) or stream[at] != 0xFF:
      raise ValueError(f'its JPEG has no marker at byte {at}')
    marker = stream[at + 1]
    if marker == 0xFF:  # Fill bytes before a marker.
      at += 1
      continue
    if marker == SCAN:
      yield marker, stream[at:]
      return
    stop = at + 2 + int.from_bytes(stream[at + 2 : at + 4])
    yield marker, stream[at:stop]
    at = stop
