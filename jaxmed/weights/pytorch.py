"""Files of torch.save: the zip format, and the one before torch 1.6.

Both hold a pickle that says which tensors there are, each a view of a
storage, and the storages as plain bytes. Tensors in nested dicts and lists get
the names of the steps to them, joined by dots; what is no tensor (epochs,
options, optimisers' settings) is left out.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxmed.weights import archive, pickles, tensors
from jaxmed.weights.source import (
  Path,
  Refused,
  check_total,
  elements,
  numbers,
  opened,
  take,
)
from jaxmed.weights.tensors import Storage, Tensor

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MOST_DEPTH = 32
MOST_VALUES = 1 << 21
MOST_NAMES = 1 << 17  # Of tensors, and of what may hold them.
MOST_NAME = 1024


def read(path: Path) -> dict[str, np.ndarray]:
  """All tensors, by name."""
  with opened(path) as content:
    if content[:2].tobytes() == b'PK':
      return zipped(content, archive.members(content))
    return legacy(content)


def zipped(
  content: np.ndarray, members: Mapping[str, archive.Member]
) -> dict[str, np.ndarray]:
  """The tensors of a zip file, the format since torch 1.6."""
  root = next(iter(members)).partition('/')[0]
  if any(not name.startswith(f'{root}/') for name in members):
    raise Refused('it is a zip file, but none of torch: its members lie apart')
  if f'{root}/constants.pkl' in members:
    raise Refused(
      "it is a TorchScript program, which is not read; save the model's "
      'state_dict() with torch.save'
    )

  def member(name: str) -> np.ndarray:
    if f'{root}/{name}' not in members:
      raise Refused(f'it lacks its member {name!r:.80}')
    return archive.contents(content, members[f'{root}/{name}'])

  big = False
  if f'{root}/byteorder' in members:
    order = member('byteorder')[:8].tobytes()
    if order not in (b'little', b'big'):
      raise Refused(f'its byte order {order!r} is unknown')
    big = order == b'big'
  pickle = member('data.pkl')
  found, end = pickles.load(pickle, 0, tensors.SYMBOLS, tensors.storage)
  if end != pickle.size:
    raise Refused('something follows its pickle')
  fetch = lambda storage: member(f'data/{storage.key}')
  return _arrays(found, fetch, content, big)


def legacy(content: np.ndarray) -> dict[str, np.ndarray]:
  """The tensors of a file from before torch 1.6, or of one that is like it."""
  magic, place = pickles.load(content, 0, {})
  if type(magic) is not int or magic != MAGIC:
    raise Refused(
      'it is a pickle, but none of torch.save; only tensors are read from '
      "pickles: save the model's state_dict() with torch.save"
    )
  version, place = pickles.load(content, place, {})
  if type(version) is not int or version != VERSION:
    raise Refused('it is of an unknown version of the format')
  _, place = pickles.load(content, place, {})  # Sizes of C's types.
  known: dict[str, Storage] = {}

  def persistent(saved: Any) -> Storage:
    storage = tensors.legacy_storage(saved)
    known.setdefault(storage.key, storage)
    return storage

  found, place = pickles.load(content, place, tensors.SYMBOLS, persistent)
  keys, place = pickles.load(content, place, {})
  if type(keys) is not list or not all(type(key) is str for key in keys):
    raise Refused('its list of storages is none')
  raw = {}
  for key in keys:
    what = f'its storage {key!r:.40}'
    count = int.from_bytes(take(content, place, 8, what), 'little', signed=True)
    place += 8
    if key not in known:
      raise Refused(f'{what} is asked for by nothing')
    size = count * known[key].dtype.itemsize
    if count != known[key].count:
      raise Refused(f'{what} holds {count} numbers, not {known[key].count}')
    raw[key] = take(content, place, size, what)
    place += size
  if place != content.size:
    raise Refused('something follows its storages')

  def fetch(storage: Storage) -> np.ndarray:
    if storage.key not in raw:
      raise Refused(f'it lacks its storage {storage.key!r:.40}')
    return raw[storage.key]

  return _arrays(found, fetch, content, big=False)


def _arrays(
  found: Any,
  fetch: Callable[[Storage], np.ndarray],
  content: np.ndarray,
  big: bool,
) -> dict[str, np.ndarray]:
  """The arrays of all tensors, storages read once."""
  rows: dict[str, np.ndarray] = {}
  sizes: dict[str, tuple] = {}
  arrays: dict[str, np.ndarray] = {}
  for name, tensor in _flat(found):
    storage = tensor.storage
    what = f'the storage of {name!r}'
    facts = (storage.dtype, tensor.dtype, storage.count)
    if sizes.setdefault(storage.key, facts) != facts:
      raise Refused(f'{what} is of two types or sizes')
    if storage.key not in rows:
      raw, size = fetch(storage), storage.count * storage.dtype.itemsize
      if raw.size != size:
        raise Refused(f'{what} claims {size} bytes and has {raw.size}')
      rows[storage.key] = numbers(raw, tensor.dtype, what, big)
    if name in arrays:
      raise Refused(f'two of its tensors are named {name!r}')
    arrays[name] = _view(tensor, rows[storage.key], f'its tensor {name!r}')
  if not arrays:
    raise Refused('it holds no tensors')
  check_total(arrays, content.size)
  return arrays


def _view(tensor: Tensor, row: np.ndarray, what: str) -> np.ndarray:
  storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
  part = row[storage.start : storage.stop]
  count = elements(shape, what)
  if len(strides) != len(shape) or not all(
    type(n) is int and n >= 0 for n in (tensor.offset, *strides)
  ):
    raise Refused(f'{what} has an offset or strides of nonsense')
  if not count:
    return np.empty(shape, part.dtype)
  last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
  if tensor.offset + last >= part.size:
    raise Refused(
      f'{what} reaches to number {tensor.offset + last} of its storage, which '
      f'has {part.size}'
    )
  part = part[tensor.offset : tensor.offset + last + 1]
  # Of an axis of one, the stride may be anything.
  steps = [s if n > 1 else 0 for n, s in zip(shape, strides, strict=True)]
  rows = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
  if all(n == 1 or s == r for n, s, r in zip(shape, steps, rows, strict=True)):
    return part.reshape(shape)
  # Types of one byte go there as bytes: NumPy takes <f1 for none of its own.
  known = part.view(np.uint8) if part.itemsize == 1 else part
  return np.lib.stride_tricks.as_strided(
    known, shape, [s * part.itemsize for s in steps], writeable=False
  ).view(part.dtype)


def _flat(found: Any) -> Iterator[tuple[str, Tensor]]:
  """Every tensor with its name."""
  if type(found) is Tensor:
    raise Refused('it holds one tensor without a name; save a dict of them')
  # The same list may be met again and again, or inside of itself.
  names, values, below = 0, 0, [iter([('', found)])]
  while below:
    name, value = next(below[-1], (None, None))
    if name is None:
      below.pop()
      continue
    names += 1
    if type(value) is Tensor:
      yield name, value
    elif type(value) in (dict, list, tuple):
      values += len(value)
      if len(below) > MOST_DEPTH:
        raise Refused(f'it is nested deeper than {MOST_DEPTH} times')
      below.append(_inside(name, value))
    if names > MOST_NAMES or values > MOST_VALUES:
      raise Refused(
        f'it holds more than {MOST_NAMES} tensors and lists, or more than '
        f'{MOST_VALUES} values'
      )


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
  """What may hold tensors, with its name."""
  items = value.items() if type(value) is dict else enumerate(value)
  for key, item in items:
    if type(item) in (Tensor, dict, list, tuple):
      inner = f'{name}.{key}' if name else str(key)
      if len(inner) > MOST_NAME:
        raise Refused(f'it has a name of more than {MOST_NAME} letters')
      yield inner, item
