"""Members of a zip file, checked before any is read.

torch's files and NumPy's are zip files. Nothing of them is ever written to
disk; still a member whose name would leave a folder, that shares bytes with
another, or that would grow without end, is the work of somebody who wants
harm, and the whole file is refused.
"""

import dataclasses
import struct
import zlib

import numpy as np

from jaxmed.weights.source import Refused, check_sum, take

MOST_MEMBERS = 1 << 18
# Deflated members, together, may become so many bytes, or so many times the
# file. Trained weights hardly shrink at all; zeros shrink a thousand times.
MOST_INFLATED, MOST_TIMES = 1 << 26, 32
STORED, DEFLATED = 0, 8
ENCRYPTED = 1  # Flag.
END = struct.Struct('<4s4H2LH')
END_64 = struct.Struct('<4sQ2H2L4Q')
LOCATOR = struct.Struct('<4sLQL')
ENTRY = struct.Struct('<4s6H3L5H2L')
LOCAL = struct.Struct('<4s5H3L2H')
FULL = 0xFFFFFFFF  # The number stands in the entry's extra field.


@dataclasses.dataclass(frozen=True)
class Member:
  """A file in the zip file: `packed` bytes from `start` become `size`."""

  name: str
  method: int
  crc: int
  start: int
  packed: int
  size: int


def members(content: np.ndarray) -> dict[str, Member]:
  """All members by name, in the file's order."""
  start, directory, count = _directory(content)
  found, spans, place = {}, [], 0
  for _ in range(count):
    *entry, place = _entry(directory, place)
    member, span = _member(content[:start], *entry)
    if member.name in found:
      raise Refused(f'two members are named {member.name!r:.80}')
    if not member.name.endswith('/'):
      found[member.name] = member
    spans.append((*span, member.name))
  spans.sort()
  for (_, end, name), (start, _, other) in zip(spans, spans[1:], strict=False):
    if start < end:
      raise Refused(f'its members {name!r:.80} and {other!r:.80} overlap')
  if place != directory.size:
    raise Refused('its directory has another length than it says')
  inflated = sum(m.size for m in found.values() if m.method == DEFLATED)
  if inflated > max(MOST_INFLATED, MOST_TIMES * content.size):
    raise Refused(
      f'its {content.size} bytes would become {inflated}: no weights can be '
      'pressed so well'
    )
  return found


def contents(content: np.ndarray, member: Member) -> np.ndarray:
  """A member's bytes: a view of the file's, or inflated."""
  raw = take(content, member.start, member.packed, f'{member.name!r:.80}')
  if member.method == DEFLATED:
    raw = _inflate(raw, member)
  # torch can be told to write no checksums; then all of them are 0.
  if member.crc:
    check_sum(raw, member.crc, f'its member {member.name!r:.80}')
  return raw


def beginning(content: np.ndarray, member: Member, count: int) -> bytes:
  """No more than the first `count` bytes of a member."""
  raw = take(content, member.start, member.packed, f'{member.name!r:.80}')
  if member.method == STORED:
    return raw[:count].tobytes()
  try:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, count)
  except zlib.error as error:
    raise Refused(f'{member.name!r:.80} is broken ({error})') from None


def _inflate(raw: np.ndarray, member: Member) -> np.ndarray:
  inflater = zlib.decompressobj(-zlib.MAX_WBITS)
  try:
    data = inflater.decompress(raw, member.size + 1)
  except zlib.error as error:
    raise Refused(f'{member.name!r:.80} is broken ({error})') from None
  if len(data) != member.size or not inflater.eof or inflater.unused_data:
    raise Refused(
      f'{member.name!r:.80} has not the {member.size} bytes it claims'
    )
  return np.frombuffer(data, np.uint8)


def _directory(content: np.ndarray) -> tuple[int, np.ndarray, int]:
  """Where the zip file's directory is, it, and how many entries it claims."""
  tail = content[-(END.size + 0xFFFF) :].tobytes()
  place = tail.rfind(b'PK\5\6')
  if place < 0 or place + END.size > len(tail):
    raise Refused('the end of the zip file is missing: fetch it again')
  end = content.size - len(tail) + place
  _, disk, first, here, count, size, start, comment = END.unpack_from(
    tail, place
  )
  if place + END.size + comment != len(tail):
    raise Refused('something follows the end of the zip file')
  locator = end - LOCATOR.size
  if locator >= 0 and content[locator : locator + 4].tobytes() == b'PK\6\7':
    _, disk, end, _ = LOCATOR.unpack_from(content, locator)
    record = take(content, end, END_64.size, 'the end of the zip file')
    mark, _, _, _, _, first, here, count, size, start = END_64.unpack(record)
    if mark != b'PK\6\6':
      raise Refused('the end of the zip file is broken: fetch it again')
  if disk or first or here != count:
    raise Refused('it is one part of a zip file in several')
  if count > MOST_MEMBERS:
    raise Refused(f'it claims {count} members; {MOST_MEMBERS} are read')
  if start + size != end:
    raise Refused('its directory is not where the zip file says')
  return start, take(content, start, size, 'its directory'), count


def _entry(directory: np.ndarray, place: int) -> tuple:
  """Name, flags, method, checksum, sizes and offset; the next's place."""
  fixed = take(directory, place, ENTRY.size, 'an entry of its directory')
  mark, _, _, flags, method, _, _, crc, *sizes, names, extras, comment = (
    ENTRY.unpack(fixed)[:13]
  )
  if mark != b'PK\1\2':
    raise Refused('its directory is broken: fetch it again')
  offset = ENTRY.unpack(fixed)[-1]
  place += ENTRY.size
  name = take(directory, place, names, 'a name').tobytes()
  extra = take(directory, place + names, extras, 'an entry').tobytes()
  packed, size, offset = _large(extra, *sizes, offset)
  following = place + names + extras + comment
  return name, flags, method, crc, packed, size, offset, following


def _large(extra: bytes, packed: int, size: int, offset: int) -> tuple:
  """The numbers that are too large for their places."""
  place, long = 0, b''
  while place + 4 <= len(extra):
    kind, length = struct.unpack_from('<2H', extra, place)
    if kind == 1:
      long = extra[place + 4 : place + 4 + length]
    place += 4 + length
  given = [n for n in (size, packed, offset) if n == FULL]
  if len(long) < 8 * len(given):
    raise Refused('its directory lacks a large size: fetch it again')
  larger = iter(struct.unpack_from(f'<{len(given)}Q', long))
  size, packed, offset = (
    next(larger) if n == FULL else n for n in (size, packed, offset)
  )
  return packed, size, offset


def _member(
  content: np.ndarray,
  raw: bytes,
  flags: int,
  method: int,
  crc: int,
  packed: int,
  size: int,
  offset: int,
) -> tuple[Member, tuple[int, int]]:
  """A member, and the bytes of the file that it occupies."""
  name = _name(raw)
  if flags & ENCRYPTED:
    raise Refused(f'its member {name!r:.80} is encrypted')
  if method not in (STORED, DEFLATED):
    raise Refused(f'its member {name!r:.80} is pressed by method {method}')
  if method == STORED and packed != size:
    raise Refused(
      f'its member {name!r:.80} claims {size} bytes and has {packed}'
    )
  fixed = take(content, offset, LOCAL.size, f'its member {name!r:.80}')
  mark, _, _, local_method, *_, names, extras = LOCAL.unpack(fixed)
  local = take(content, offset + LOCAL.size, names, f'its member {name!r:.80}')
  if mark != b'PK\3\4' or local_method != method or local.tobytes() != raw:
    raise Refused(f'its member {name!r:.80} is another than its directory says')
  start = offset + LOCAL.size + names + extras
  take(content, start, packed, f'its member {name!r:.80}')
  return Member(name, method, crc, start, packed, size), (
    offset,
    start + packed,
  )


def _name(raw: bytes) -> str:
  try:
    name = raw.decode()
  except UnicodeDecodeError:
    raise Refused(
      f'its member {raw!r:.80} has a name that is no text'
    ) from None
  steps = name.removesuffix('/').split('/')
  if '\0' in name or '\\' in name or {'', '.', '..'} & set(steps):
    raise Refused(
      f'its member {name!r:.80} has a name that leads out of a folder; do not '
      'open the file with anything else'
    )
  return name
