"""What a pickle of torch may name, and what is made of it.

A tensor is a view of a storage, described here by numbers alone; the arrays
are made by whoever has the storages' bytes. The names are a fixed list, and
each call of one is a function below: nothing of torch's is ever called.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmed.weights import pickles
from jaxmed.weights.pickles import INERT, Symbol
from jaxmed.weights.source import Refused, elements

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
  'collections.Counter',
  *(
    f'{module}.{name}'
    for module in ('builtins', '__builtin__')  # Python 2's, and protocol 2's.
    for name in ('bytearray', 'complex', 'dict', 'frozenset', 'list', 'set')
  ),
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


def storage(saved: Any) -> Storage:
  """What a persistent id of the zip format stands for."""
  if type(saved) is not tuple or len(saved) != 5:
    raise Refused('its pickle asks for storage as torch never does')
  return _checked_storage(*saved)


def legacy_storage(saved: Any) -> Storage:
  """The same of the old format, which may name a part of a storage."""
  if type(saved) is not tuple or len(saved) != 6:
    raise Refused('its pickle asks for storage as torch never does')
  whole, view = _checked_storage(*saved[:5]), saved[5]
  if view is None:
    return whole
  if type(view) is not tuple or len(view) != 3:
    raise Refused('its pickle asks for a part of a storage that is none')
  _, start, count = view
  for n in (start, count):
    if type(n) is not int or not 0 <= n <= whole.count:
      raise Refused('its pickle asks for a part of a storage that is none')
  if start + count > whole.count:
    raise Refused('its pickle asks for more than a storage has')
  return dataclasses.replace(whole, start=start, stop=start + count)


def _checked_storage(
  kind: Any, symbol: Any, key: Any, location: Any, count: Any
) -> Storage:
  # Only then may it be hashed.
  known = type(symbol) is Symbol and symbol in STORAGE_SYMBOLS
  if kind != 'storage' or not known:
    raise Refused('its pickle asks for something else than storage')
  if type(key) is not str or len(key) > pickles.MOST_TEXT:
    raise Refused('its pickle asks for storage by what is no name')
  if type(count) is not int:
    raise Refused('its pickle asks for storage as torch never does')
  elements((count,), f'its storage {key!r:.40}')
  return Storage(key, symbol.value, count)


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
