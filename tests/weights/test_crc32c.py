"""The checksum of TensorFlow's files."""

import numpy as np
import pytest

from jaxmed.weights import crc32c


@pytest.mark.parametrize(
  'raw, expected',
  [  # RFC 3720, B.4, and the usual check value.
    (bytes(32), 0x8A9136AA),
    (b'\xff' * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (b'123456789', 0xE3069283),
    (b'', 0),
  ],
)
def test_known_answers(raw, expected):
  assert crc32c.checksum(np.frombuffer(raw, np.uint8)) == expected


def bit_by_bit(raw: bytes) -> int:
  crc = 0xFFFFFFFF
  for byte in raw:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
  return crc ^ 0xFFFFFFFF


def test_any_length():
  draw = np.random.default_rng(0)
  row = draw.integers(0, 256, 200_000, np.uint8)
  for count in [*range(70), 127, 129, 4097, 65535, 65536, 65537, 65539, 131074]:
    start = count % 5  # Not aligned, either.
    part = row[start : start + count]
    assert crc32c.checksum(part) == bit_by_bit(part.tobytes()), count
