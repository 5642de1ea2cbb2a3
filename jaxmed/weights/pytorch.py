"""Files of torch.save: the zip format, and the one before torch 1.6.

Both hold a pickle that says which tensors there are, each a view of a
storage, and the storages as plain bytes. What the pickle may name is the
fixed list here. Tensors in nested dicts and lists get the names of the steps
to them, joined by dots; what is no tensor (epochs, options, optimisers'
settings) is left out.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmed.weights import archive, pickles
from jaxmed.weights.pickles import INERT, Symbol
from jaxmed.weights.source import (
  Path,
  Refused,
  check_total,
  elements,
  numbers,
  opened,
  take,
)

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MOST_DEPTH = 32
MOST_VALUES = 1 << 18
MOST_NAME = 1024
BYTES = np.dtype(np.uint8)
TYPES = {
  'float32': np.dtype(np.float32),
  'float64': np.dtype(np.float64),
  'float16': np.dtype(np.float16),
  'bfloat16': np.dtype(jnp.bfloat16),
  'float8_e4m3fn': np.dtype(jnp.float8_e4m3fn),
  'float8_e5m2': np.dtype(jnp.float8_e5m2),
  'float8_e4m3fnuz': np.dtype(jnp.float8_e4m3fnuz),
  'float8_e5m2fnuz': np.dtype(jnp.float8_e5m2fnuz),
  'float8_e8m0fnu': np.dtype(jnp.float8_e8m0fnu),
  'int64': np.dtype(np.int64),
  'int32': np.dtype(np.int32),
  'int16': np.dtype(np.int16),
  'int8': np.dtype(np.int8),
  'uint64': np.dtype(np.uint64),
  'uint32': np.dtype(np.uint32),
  'uint16': np.dtype(np.uint16),
  'uint8': BYTES,
  'bool': np.dtype(bool),
  'complex64': np.dtype(np.complex64),
  'complex128': np.dtype(np.complex128),
}
STORAGES = {
  'Float': 'float32',
  'Double': 'float64',
  'Half': 'float16',
  'BFloat16': 'bfloat16',
  'Long': 'int64',
  'Int': 'int32',
  'Short': 'int16',
  'Char': 'int8',
  'Byte': 'uint8',
  'Bool': 'bool',
  'ComplexFloat': 'complex64',
  'ComplexDouble': 'complex128',
}
# Found in checkpoints beside the tensors. They are read over.
LEFT_OUT = (
  '_codecs.encode',
  'argparse.Namespace',
  'builtins.bytearray',
  'builtins.complex',
  'builtins.dict',
  'builtins.frozenset',
  'builtins.list',
  'builtins.set',
  '__builtin__.set',
  'numpy.core.multiarray._reconstruct',
  'numpy._core.multiarray._reconstruct',
  'numpy.core.multiarray.scalar',
  'numpy._core.multiarray.scalar',
  'numpy.core.numeric._frombuffer',
  'numpy._core.numeric._frombuffer',
  'numpy.dtype',
  'numpy.ndarray',
  'pathlib.PosixPath',
  'pathlib.WindowsPath',
  'torch.device',
)


@dataclasses.dataclass(frozen=True)
class Storage:
  """A row of numbers in the file, or a part of one."""

  key: str
  dtype: np.dtype
  count: int  # Of the whole row.
  start: int = 0
  stop: int | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


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
      raise Refused(f'it lacks its member {name!r}')
    return archive.contents(content, members[f'{root}/{name}'])

  big = False
  if f'{root}/byteorder' in members:
    order = member('byteorder')[:8].tobytes()
    if order not in (b'little', b'big'):
      raise Refused(f'its byte order {order!r} is unknown')
    big = order == b'big'
  pickle = member('data.pkl')
  found, end = pickles.load(pickle, 0, SYMBOLS, _storage)
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
  found, place = pickles.load(content, place, SYMBOLS, _legacy_storage)
  keys, place = pickles.load(content, place, {})
  if type(keys) is not list or not all(type(key) is str for key in keys):
    raise Refused('its list of storages is none')
  tensors = dict(_flat(found))
  known = {t.storage.key: t.storage for t in tensors.values()}
  raw = {}
  for key in keys:
    what = f'its storage {key!r:.40}'
    count = int.from_bytes(take(content, place, 8, what), 'little', signed=True)
    place += 8
    if key not in known:
      # Of something else than a tensor: its size in bytes isn't known.
      raise Refused(f'{what} is of no tensor')
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
  check_total(arrays, content)
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
  return np.lib.stride_tricks.as_strided(
    part, shape, [s * part.itemsize for s in steps], writeable=False
  )


def _flat(found: Any) -> Iterator[tuple[str, Tensor]]:
  """Every tensor with its name."""
  if type(found) is Tensor:
    raise Refused('it holds one tensor without a name; save a dict of them')
  seen = 0
  stack = [iter([('', found, 0)])]
  while stack:
    step = next(stack[-1], None)
    if step is None:
      stack.pop()
      continue
    name, value, depth = step
    seen += 1
    if seen > MOST_VALUES:
      raise Refused(f'it holds more than {MOST_VALUES} values')
    if type(value) is Tensor:
      yield name, value
    elif type(value) in (dict, list, tuple):
      if depth > MOST_DEPTH:
        raise Refused(f'it is nested deeper than {MOST_DEPTH} times')
      stack.append(_inside(name, value, depth))


def _inside(name: str, value: Any, depth: int) -> Iterator[tuple]:
  items = value.items() if type(value) is dict else enumerate(value)
  for key, item in items:
    inner = f'{name}.{key}' if name else str(key)
    if len(inner) > MOST_NAME:
      raise Refused(f'it has a name of more than {MOST_NAME} letters')
    yield inner, item, depth + 1


def _storage(saved: Any) -> Storage:
  """What a persistent id of the zip format stands for."""
  if type(saved) is not tuple or len(saved) != 5:
    raise Refused('its pickle asks for storage as torch never does')
  return _checked_storage(*saved)


def _legacy_storage(saved: Any) -> Storage:
  """The same of the old format, which may name a part of a storage."""
  if type(saved) is tuple and saved and saved[0] == 'module':
    raise Refused(
      'it is a whole model with its Python code, of which only the tensors '
      'could be trusted; save its state_dict() instead'
    )
  if type(saved) is not tuple or len(saved) != 6:
    raise Refused('its pickle asks for storage as torch never does')
  storage = _checked_storage(*saved[:5])
  view = saved[5]
  if view is None:
    return storage
  if type(view) is not tuple or len(view) != 3:
    raise Refused('its pickle asks for a part of a storage that is none')
  _, start, count = view
  for n in (start, count):
    if type(n) is not int or not 0 <= n <= storage.count:
      raise Refused('its pickle asks for a part of a storage that is none')
  if start + count > storage.count:
    raise Refused('its pickle asks for more than a storage has')
  return dataclasses.replace(storage, start=start, stop=start + count)


def _checked_storage(
  kind: Any, symbol: Any, key: Any, location: Any, count: Any
) -> Storage:
  dtype = symbol.value if type(symbol) is Symbol else None
  if kind != 'storage' or symbol not in STORAGE_SYMBOLS:
    raise Refused('its pickle asks for something else than storage')
  if type(key) is not str or type(count) is not int:
    raise Refused('its pickle asks for storage as torch never does')
  elements((count,), f'its storage {key!r:.40}')
  return Storage(key, dtype, count)


def _rebuild(storage, offset, shape, strides, *_) -> Tensor:
  if type(storage) is not Storage:
    raise Refused('a tensor is made of something else than storage')
  if type(shape) is not tuple or type(strides) is not tuple:
    raise Refused('a tensor has a shape or strides that are no tuple')
  return Tensor(storage, storage.dtype, offset, shape, strides)


def _rebuild_2(storage, offset, shape, strides, grad, hooks, bits=None):
  if bits:
    raise Refused('a tensor is to be conjugated or negated; resolve it first')
  return _rebuild(storage, offset, shape, strides)


def _rebuild_3(storage, offset, shape, strides, grad, hooks, dtype, bits=None):
  """Of types that came later: the storage is bytes."""
  if type(dtype) is not Symbol or dtype not in TYPE_SYMBOLS:
    raise Refused('a tensor is of a type that is none')
  tensor = _rebuild_2(storage, offset, shape, strides, grad, hooks, bits)
  return dataclasses.replace(tensor, dtype=dtype.value)


def _parameter(tensor, grad, hooks, state=None):
  if type(tensor) is not Tensor:
    raise Refused('a parameter is made of something else than a tensor')
  return tensor


def _subclass(rebuild, kind, arguments, state):
  """A tensor to which somebody has given attributes."""
  if type(rebuild) is not Symbol or rebuild.call not in (
    _rebuild_2,
    _rebuild_3,
    _parameter,
  ):
    raise Refused('a tensor of a class of its own is not read')
  return rebuild.call(*arguments)


def _ordered(pairs=()):
  """OrderedDict(), which Python 2 gave a list of pairs."""
  if type(pairs) not in (list, tuple) or any(
    type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs
  ):
    raise Refused('an OrderedDict is made of something else than pairs')
  return {pickles.checked_key(key): value for key, value in pairs}


def _size(shape):
  return tuple(shape) if type(shape) is list else shape


def _symbols() -> dict[str, Symbol]:
  calls = {
    'collections.OrderedDict': _ordered,
    'collections.defaultdict': lambda factory=None: {},
    'torch.Size': _size,
    'torch._utils._rebuild_tensor': _rebuild,
    'torch._utils._rebuild_tensor_v2': _rebuild_2,
    'torch._utils._rebuild_tensor_v3': _rebuild_3,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _subclass,
    'torch.Tensor': None,
    'torch.nn.parameter.Parameter': None,
    'torch.nn.parameter.Buffer': None,
  }
  calls |= {name: lambda *_: INERT for name in LEFT_OUT}
  return {name: Symbol(name, call) for name, call in calls.items()}


STORAGE_SYMBOLS = {
  Symbol(f'{module}.{kind}Storage', value=TYPES[dtype])
  for kind, dtype in STORAGES.items()
  for module in ('torch', 'torch.cuda')
} | {
  Symbol(name, value=BYTES)
  for name in ('torch.UntypedStorage', 'torch.storage.UntypedStorage')
}
TYPE_SYMBOLS = {
  Symbol(f'torch.{name}', value=dtype) for name, dtype in TYPES.items()
}
SYMBOLS = _symbols() | {
  symbol.name: symbol for symbol in STORAGE_SYMBOLS | TYPE_SYMBOLS
}
