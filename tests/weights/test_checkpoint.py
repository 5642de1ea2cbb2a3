"""TensorFlow's checkpoints, written here after the format's description."""

import random
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.weights.crc32c import masked
from jaxmed.weights.read import WeightsError, read
from jaxmed.weights.sorted_table import MAGIC

NUMBERS_OF_TYPES = {
  'f4': 1, 'f8': 2, 'i4': 3, 'u1': 4, 'i2': 5, 'i1': 6, 'c8': 8, 'i8': 9,
  '?': 10, 'u2': 17, 'c16': 18, 'f2': 19, 'u4': 22, 'u8': 23,
}  # fmt: skip
RESTART = 3  # Keys between two that are written in full.


def varint(value: int) -> bytes:
  found = b''
  while value > 127:
    found, value = found + bytes([value & 127 | 128]), value >> 7
  return found + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
  if isinstance(value, bytes):
    return varint(number << 3 | 2) + varint(len(value)) + value
  return varint(number << 3) + varint(value)


def crc(raw: bytes) -> int:
  return masked(np.frombuffer(raw, np.uint8))


def block(items: list[tuple[bytes, bytes]], pressed: int = 0) -> bytes:
  """Keys in order, each as what differs from the one before."""
  raw, restarts, last = b'', [], b''
  for i, (key, value) in enumerate(items):
    shared = 0
    if i % RESTART == 0:
      restarts.append(len(raw))
    else:
      while shared < min(len(key), len(last)) and key[shared] == last[shared]:
        shared += 1
    raw += varint(shared) + varint(len(key) - shared) + varint(len(value))
    raw += key[shared:] + value
    last = key
  restarts = restarts or [0]
  raw += struct.pack(f'<{len(restarts) + 1}L', *restarts, len(restarts))
  raw += bytes([pressed])
  return raw + struct.pack('<L', crc(raw))


def table(
  items: dict[bytes, bytes], pressed: int = 0, a_block: int = 4
) -> bytes:
  raw, index, ordered = b'', [], sorted(items.items())
  handle = lambda part: varint(len(raw)) + varint(len(part) - 5)
  for i in range(0, len(ordered), a_block):
    part = block(ordered[i : i + a_block], pressed)
    index.append((ordered[i : i + a_block][-1][0] + b'~', handle(part)))
    raw += part
  meta, last = block([]), block(index)
  footer = handle(meta)
  raw += meta
  footer += handle(last)
  return raw + last + footer.ljust(40, b'\0') + MAGIC


def entry(
  kind, shape=(), shard=0, offset=0, size=0, crc=None, extra=b''
) -> bytes:
  axes = b''.join(field(2, field(1, n)) for n in shape)
  raw = field(1, kind) + field(2, axes)
  # Zeros are not written by protobuf.
  for number, value in ((3, shard), (4, offset), (5, size)):
    raw += field(number, value) if value else b''
  if crc is not None:
    raw += varint(6 << 3 | 5) + struct.pack('<L', crc)
  return raw + extra


def header(shards=1, order=0) -> bytes:
  return field(1, shards) + (field(2, order) if order else b'') + field(3, b'')


def write(folder, arrays, shards=1, order=0):
  """A checkpoint of several shards, variables in turns."""
  data, items = [b''] * shards, {b'': header(shards, order)}
  for i, (name, array) in enumerate(arrays.items()):
    array = np.asarray(array)
    kind = 14 if array.dtype == jnp.bfloat16 else None
    kind = (
      kind or NUMBERS_OF_TYPES[array.dtype.str.strip('<>|').replace('b1', '?')]
    )
    if order:
      unit = array.dtype.itemsize // (2 if array.dtype.kind == 'c' else 1)
      flat = np.ascontiguousarray(array).reshape(-1)
      raw = flat.view(f'u{unit}').byteswap().tobytes()
    else:
      raw = array.tobytes()
    shard = i % shards
    items[name.encode()] = entry(
      kind, array.shape, shard, len(data[shard]), len(raw), crc(raw)
    )
    data[shard] += raw
  graph = entry(7, (), 0, len(data[0]), 9, 1)  # Text; its sum is another.
  items[b'_CHECKPOINTABLE_OBJECT_GRAPH'] = graph
  data[0] += b'\x08the text'
  for i, raw in enumerate(data):
    (folder / f'model.ckpt.data-{i:05}-of-{shards:05}').write_bytes(raw)
  (folder / 'model.ckpt.index').write_bytes(table(items))
  return folder / 'model.ckpt.index'


def every_array() -> dict[str, np.ndarray]:
  numbers = np.abs(np.random.default_rng(0).standard_normal((2, 3, 4))) * 9
  found = {
    f'G/G.{i}/G.{i}.Filters_{kind}': numbers.astype(kind)
    for i, kind in enumerate(NUMBERS_OF_TYPES)
  }
  return found | {
    'global_step': np.int64(7),
    'none': np.zeros((0, 4), np.float32),
    'brain': numbers.astype(jnp.bfloat16),
    'model/.ATTRIBUTES/VARIABLE_VALUE': numbers[0],
  }


@pytest.mark.parametrize('shards, order', [(1, 0), (3, 0), (2, 1)])
def test_every_array(tmp_path, shards, order):
  arrays = every_array()
  index = write(tmp_path, arrays, shards, order)
  for path in (
    index,
    tmp_path / 'model.ckpt',
    tmp_path / f'model.ckpt.data-00000-of-0000{shards}',
  ):
    found = read(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
      assert found[name].dtype == array.dtype
      assert np.array_equal(found[name], array), name
      assert found[name].flags.aligned


WORDS = b'\0\0\x80\x3f' * 4  # Ones.


def one(folder, described: bytes, head: bytes = header(), **options):
  (folder / 'x.data-00000-of-00001').write_bytes(WORDS)
  path = folder / 'x.index'
  path.write_bytes(table({b'': head, b'w': described}, **options))
  return path


def test_a_shard_of_nothing(tmp_path):
  index = write(tmp_path, {'a': np.ones(3)}, shards=2)
  assert (tmp_path / 'model.ckpt.data-00001-of-00002').stat().st_size == 0
  assert read(index)['a'].tolist() == [1, 1, 1]


def test_the_frame_of_the_next_test_is_sound(tmp_path):
  path = one(tmp_path, entry(1, (2, 2), 0, 0, 16, crc(WORDS)))
  assert read(path)['w'].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
  'described, reason',
  [
    (entry(1, (10**12,), size=4 * 10**12), 'claim 4000000000000'),
    (entry(1, (10**12,), size=16), 'would have'),
    (entry(1, (1 << 63,), size=16), 'elements'),
    (entry(1, (4,), 0, 8, 16), 'cut off'),
    (entry(1, (4,), 0, (1 << 64) - 8, 16), 'cut off'),
    (entry(1, (4,), 1, 0, 16), 'shard 1'),
    (entry(1, (4,), 0, 0, 16, crc(WORDS) ^ 1), 'checksum'),
    (entry(99, (4,), 0, 0, 16), 'type 99'),
    (entry(1, (4,), size=16, extra=field(7, b'')), 'slices'),
    (field(1, b'x'), 'described'),
    (field(1, 1) + field(2, 3), 'a shape that is none'),
    (field(1, 1) + field(2, field(2, 3)), 'a shape that is none'),
    (b'\x0b', 'broken'),
    (b'\x0a\xff', 'broken'),
    (b'\xff' * 20, 'broken'),
    (entry(7), 'no variables'),
  ],
)
def test_refused(tmp_path, described, reason):
  path = one(tmp_path, described)
  with pytest.raises(WeightsError, match=reason) as error:
    read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  'head, reason',
  [
    (field(1, field(1, b'')), 'before 0.12'),
    (header(10**9), '1000000000 shards'),
    (header(0), '0 shards'),
    (header(2), r'x\.data-00000-of-00002.*No such file'),
    (b'', '0 shards'),
  ],
)
def test_headers_that_are_refused(tmp_path, head, reason):
  path = one(tmp_path, entry(1, (4,), size=16), head)
  with pytest.raises(WeightsError, match=reason):
    read(path)


def test_pressed_and_old_ones(tmp_path):
  path = one(tmp_path, entry(1, (4,), size=16), pressed=1)
  with pytest.raises(WeightsError, match='snappy'):
    read(path)
  old = tmp_path / 'model.ckpt'
  old.write_bytes(table({b'': field(1, field(1, b''))}))
  with pytest.raises(WeightsError, match='before 0.12'):
    read(old)
  path.unlink()
  with pytest.raises(WeightsError, match='no known format'):
    read(tmp_path / 'x.data-00000-of-00001')


def test_a_block_that_is_named_again_and_again(tmp_path):
  """Its checksum would be computed as often."""
  data = block([])
  handle = varint(0) + varint(len(data) - 5)
  index = block([(b'%05d' % i, handle) for i in range(1000)])
  footer = handle + varint(len(data)) + varint(len(index) - 5)
  path = tmp_path / 'x.index'
  path.write_bytes(data + index + footer.ljust(40, b'\0') + MAGIC)
  with pytest.raises(WeightsError, match='overlap'):
    read(path)


def test_flipped_bytes(tmp_path):
  """Everything but the footer and what no entry names has a checksum."""
  arrays = {f'layer/{i}': np.arange(i * 4.0).reshape(i, 4) for i in range(9)}
  index = write(tmp_path, arrays)
  data, draw = tmp_path / 'model.ckpt.data-00000-of-00001', random.Random(0)
  good = {path: path.read_bytes() for path in (index, data)}
  refused = 0
  for _ in range(300):
    path = draw.choice((index, data))
    broken = bytearray(good[path])
    broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
    path.write_bytes(broken)
    try:
      found = read(tmp_path / 'model.ckpt')
      assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    except WeightsError:
      refused += 1
    path.write_bytes(good[path])
  assert refused > 200
