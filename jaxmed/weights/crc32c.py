"""CRC-32C, the checksum of TensorFlow's files, many words at a time.

A checksum is the remainder of a polynomial over {0, 1}. The message's words
of 32 bits are dealt to many lanes in turns; a lane is multiplied by
x^(32 * lanes) and its next word added, for all lanes at once. In the end
neighbours are joined, pair by pair. To multiply by a power of x is linear:
four look-ups, one for each byte.
"""

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # The lowest bit is the highest power.
LANES = 14  # 2 ** 14 of them, if there is so much.
WORD = 5  # x^(2 ** 5) moves by a word of 32 bits.
# TensorFlow hides checksums, as those of checksums tell little.
MASK = 0xA282EAD8


def masked(content: np.ndarray) -> int:
  """The checksum of bytes, as TensorFlow writes it."""
  crc = checksum(content)
  return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


def checksum(content: np.ndarray) -> int:
  """The checksum of bytes."""
  if content.size < 4:
    return _plain(content.tobytes())
  lanes = min(LANES, (content.size // 4).bit_length() - 1)
  width = 4 << lanes
  # What fills no row stands at the end of two; zeros before change nothing.
  first = content.size % width
  first += width if first < 4 else 0
  head = np.zeros(2 * width, np.uint8)
  head[2 * width - first :] = content[:first]
  head[2 * width - first :][:4] ^= 0xFF  # The register begins with ones.
  lane = np.zeros(1 << lanes, np.uint32)
  for part in (head, content[first:]):
    for words in part.view('<u4').reshape(-1, 1 << lanes):
      lane = _times(lane, WORD + lanes) ^ words
  return _joined(lane)


def _joined(lane: np.ndarray) -> int:
  power = WORD
  while lane.size > 1:
    lane = _times(lane[0::2], power) ^ lane[1::2]
    power += 1
  return int(_times(lane, WORD)[0]) ^ 0xFFFFFFFF


def _plain(raw: bytes) -> int:
  crc = 0xFFFFFFFF
  for byte in raw:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def _times(lane: np.ndarray, exponent: int) -> np.ndarray:
  """Multiplied by x^(2 ** exponent)."""
  tables = _tables(exponent)
  return (
    tables[0][lane & 0xFF]
    ^ tables[1][lane >> 8 & 0xFF]
    ^ tables[2][lane >> 16 & 0xFF]
    ^ tables[3][lane >> 24]
  )


@functools.cache
def _tables(exponent: int) -> np.ndarray:
  """What each value of each byte becomes: [4, 256]."""
  columns = np.array(_columns(exponent), np.uint32).reshape(4, 8)
  bits = np.arange(256)[:, None] >> np.arange(8) & 1
  terms = np.where(bits[None], columns[:, None], np.uint32(0))
  return np.bitwise_xor.reduce(terms, axis=-1)


@functools.cache
def _columns(exponent: int) -> tuple[int, ...]:
  """What each of 32 bits becomes; squared as often as the exponent says."""
  if not exponent:
    return (POLYNOMIAL, *(1 << i for i in range(31)))
  half = _columns(exponent - 1)

  def apply(value: int) -> int:
    found = 0
    for i in range(32):
      found ^= half[i] if value >> i & 1 else 0
    return found

  return tuple(apply(column) for column in half)
