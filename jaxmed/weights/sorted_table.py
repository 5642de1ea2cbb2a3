"""TensorFlow's index files: a table of sorted keys in blocks, as in LevelDB.

The last 48 bytes say where the block of blocks is; it names a block for each
range of keys. In a block a key only says in what it differs from the one
before. The values are messages of protobuf, of which the plain wire format is
read here.
"""

import struct
from collections.abc import Iterator

import numpy as np

from jaxmed.weights import crc32c
from jaxmed.weights.source import Refused, take

MAGIC = struct.pack('<Q', 0xDB4775248B80FB57)
FOOTER = 48
TRAILER = struct.Struct('<BL')  # How it is pressed, and a checksum.
MOST_KEYS, MOST_KEY = 1 << 16, 1024
BROKEN = 'its index is broken: fetch it again'


def is_table(content: np.ndarray) -> bool:
  return content.size >= FOOTER and content[-8:].tobytes() == MAGIC


def items(content: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
  """All keys and values."""
  footer = content[-FOOTER:].tobytes()
  place = _varint(footer, _varint(footer, 0)[1])[1]  # Past what isn't needed.
  index, count, end = _place(footer[place:]), 0, 0
  for _, value in _block(content, *index):
    start, size = _place(value)
    if start < end:
      raise Refused('blocks of its index overlap')
    end = start + size
    for item in _block(content, start, size):
      yield item
      count += 1
      if count > MOST_KEYS:
        raise Refused(f'its index has more than {MOST_KEYS} names')


def _place(handle: bytes) -> tuple[int, int]:
  """Where a block is, and of how many bytes."""
  start, place = _varint(handle, 0)
  return start, _varint(handle, place)[0]


def _block(
  content: np.ndarray, start: int, size: int
) -> Iterator[tuple[bytes, bytes]]:
  """Keys and values of a block."""
  whole = take(content, start, size + TRAILER.size, 'a block of its index')
  pressed, crc = TRAILER.unpack_from(whole, size)
  if crc != crc32c.masked(whole[: size + 1]):
    raise Refused('its index has another checksum than written: ' + BROKEN)
  if pressed:
    raise Refused('its index is pressed; save the checkpoint without snappy')
  raw = whole[:size].tobytes()
  restarts = int.from_bytes(raw[-4:], 'little')
  end, place, key = size - 4 - 4 * restarts, 0, b''
  if end < 0:
    raise Refused(BROKEN)
  while place < end:
    shared, place = _varint(raw, place)
    added, place = _varint(raw, place)
    length, place = _varint(raw, place)
    if shared > len(key) or place + added + length > end:
      raise Refused(BROKEN)
    key = key[:shared] + raw[place : place + added]
    if len(key) > MOST_KEY:
      raise Refused(f'its index has a name of more than {MOST_KEY} letters')
    place += added
    yield key, raw[place : place + length]
    place += length


def message(raw: bytes) -> dict[int, list[int | bytes]]:
  """A message of protobuf: the values of each field."""
  fields, place = {}, 0
  while place < len(raw):
    tag, place = _varint(raw, place)
    kind = tag & 7
    if kind == 0:
      value, place = _varint(raw, place)
    else:
      if kind == 2:
        length, place = _varint(raw, place)
      elif kind in (1, 5):
        length = 8 if kind == 1 else 4
      else:
        raise Refused(BROKEN)
      value = raw[place : place + length]
      place += length
      if place > len(raw):
        raise Refused(BROKEN)
    fields.setdefault(tag >> 3, []).append(value)
  return fields


def _varint(raw: bytes, place: int) -> tuple[int, int]:
  """A number of seven bits a byte, and the place after it."""
  value = 0
  for shift in range(0, 70, 7):
    if place >= len(raw):
      break
    byte = raw[place]
    place += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value & 0xFFFFFFFFFFFFFFFF, place
  raise Refused(BROKEN)
