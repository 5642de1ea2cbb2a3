"""TensorFlow's checkpoints: an index, and the numbers in one or more shards.

`model.ckpt.index` says of each variable its type, shape and place in
`model.ckpt.data-00000-of-00001` and its like. This is the format that
tf.train.Saver has written since TensorFlow 0.12, and tf.train.Checkpoint
ever. Names stay as they are; what holds no numbers, such as the graph of
objects, is left out. The one format before, and variables in slices, are
refused.
"""

import os
import pathlib
import re

import jax.numpy as jnp
import numpy as np

from jaxmed.weights import crc32c, sorted_table
from jaxmed.weights.source import (
  Path,
  Refused,
  elements,
  numbers,
  opened,
  take,
)

SHARD = re.compile(r'\.data-\d{5}-of-\d{5}')
MOST_SHARDS = 4096
# As the enumeration DataType of TensorFlow has them.
TYPES = {
  1: np.dtype(np.float32),
  2: np.dtype(np.float64),
  3: np.dtype(np.int32),
  4: np.dtype(np.uint8),
  5: np.dtype(np.int16),
  6: np.dtype(np.int8),
  8: np.dtype(np.complex64),
  9: np.dtype(np.int64),
  10: np.dtype(bool),
  14: np.dtype(jnp.bfloat16),
  17: np.dtype(np.uint16),
  18: np.dtype(np.complex128),
  19: np.dtype(np.float16),
  22: np.dtype(np.uint32),
  23: np.dtype(np.uint64),
}
SLICED = 'it has variables in slices; save them without a partitioner'
NO_NUMBERS = {7: 'text', 20: 'a resource', 21: 'a variant'}


def index_of(path: Path) -> pathlib.Path:
  """The index, of whatever file or prefix of a checkpoint is given."""
  path = pathlib.Path(path)
  if not path.name:
    return path
  prefix = SHARD.sub('', path.name)
  index = path.with_name(f'{prefix}.index')
  there = os.path.exists  # Unlike Path's, it takes any name.
  if (prefix != path.name or not there(path)) and there(index):
    return index
  return path


def read(path: Path) -> dict[str, np.ndarray]:
  """All variables, by name; of the prefix, the index, or a shard."""
  path = index_of(path)
  with opened(path) as content:
    return arrays(path, content)


def arrays(path: Path, content: np.ndarray) -> dict[str, np.ndarray]:
  """The variables of an opened index."""
  if not sorted_table.is_table(content):
    raise Refused("it is no index of TensorFlow's: it was cut off, perhaps")
  if not os.fspath(path).endswith('.index'):
    raise Refused(
      "its name doesn't end in .index; if it is of TensorFlow before 0.12, "
      'load and save it with a newer one'
    )
  found = {}
  for key, value in sorted_table.items(content):
    name = _name(key)
    if name in found:
      raise Refused(f'it names {name!r} twice')
    found[name] = sorted_table.message(value)
  shards, big = _header(found.pop('', {}))
  prefix = os.fspath(path).removesuffix('.index')
  rows = [_shard(f'{prefix}.data-{i:05}-of-{shards:05}') for i in range(shards)]
  # They share no bytes here; and nobody sums up the same ones forever.
  claimed = sum(_number(e, 5, repr(name)) for name, e in found.items())
  there = sum(row.size for row in rows)
  if claimed > there:
    raise Refused(f'its variables claim {claimed} bytes and have {there}')
  variables = {}
  for name, entry in found.items():
    array = _variable(name, entry, rows, big)
    if array is not None:
      variables[name] = array
  if not variables:
    raise Refused('it holds no variables')
  return variables


def _header(entry: dict) -> tuple[int, bool]:
  """How many shards there are, and whether numbers are big endian."""
  shards, order = entry.get(1, [0])[-1], entry.get(2, [0])[-1]
  if type(shards) is not int or type(order) is not int:
    raise Refused(
      'it is of TensorFlow before 0.12; load and save it with a newer one'
    )
  if not 0 < shards <= MOST_SHARDS:
    raise Refused(f'it claims {shards} shards; 1 to {MOST_SHARDS} are read')
  return shards, order == 1


def _shard(path: str) -> np.ndarray:
  with opened(path) as content:
    return content


def _variable(
  name: str, entry: dict, rows: list[np.ndarray], big: bool
) -> np.ndarray | None:
  what = f'its variable {name!r}'
  number = lambda field: _number(entry, field, what)
  if number(1) in NO_NUMBERS:
    return None
  if number(1) not in TYPES:
    raise Refused(f'{what} is of the unknown type {number(1)}')
  if 7 in entry:
    raise Refused(SLICED)
  dtype, shape = TYPES[number(1)], _shape(entry, what)
  shard, start, size = number(3), number(4), number(5)
  if shard >= len(rows):
    raise Refused(f'{what} is in shard {shard}, but there are {len(rows)}')
  expected = elements(shape, what) * dtype.itemsize
  if size != expected:
    raise Refused(
      f'{what} of shape {shape} would have {expected} bytes and has {size}'
    )
  raw = take(rows[shard], start, size, what)
  if 6 in entry and _fixed(entry, what) != crc32c.masked(raw):
    raise Refused(f'{what} has another checksum than written: fetch it again')
  return numbers(raw, dtype, what, big).reshape(shape)


def _shape(entry: dict, what: str) -> tuple[int, ...]:
  broken = Refused(f'{what} has a shape that is none')
  shape = []
  for raw in entry.get(2, []):
    if type(raw) is not bytes:
      raise broken
    for axis in sorted_table.message(raw).get(2, []):
      if type(axis) is not bytes:
        raise broken
      shape.append(_number(sorted_table.message(axis), 1, what))
  return tuple(shape)


def _number(entry: dict, field: int, what: str) -> int:
  value = entry.get(field, [0])[-1]
  if type(value) is not int:
    raise Refused(f'{what} is not described as TensorFlow does')
  return value


def _fixed(entry: dict, what: str) -> int:
  value = entry[6][-1]
  if type(value) is not bytes or len(value) != 4:
    raise Refused(f'{what} has a checksum that is none')
  return int.from_bytes(value, 'little')


def _name(key: bytes) -> str:
  if key[:1] == b'\0':
    raise Refused(SLICED)
  try:
    return key.decode()
  except UnicodeDecodeError:
    raise Refused(f'its name {key[:40]!r} is no text') from None
