"""The safetensors format: a header in JSON that says where each array is.

It is what weights are kept in here: nothing in it can be run, and arrays are
read where they lie. The same arrays and metadata always give the same bytes,
so that a checksum tells whether two files hold the same.
"""

import json
import struct
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxmed.weights.source import (
  Path,
  Refused,
  check_name,
  elements,
  numbers,
  opened,
  replacing,
  take,
)

LENGTH = struct.Struct('<Q')
MOST_HEADER = 1 << 25
ALIGNMENT = 64  # Of the first array, so that JAX can take it as it lies.
METADATA = '__metadata__'
TYPES = {
  'BOOL': np.dtype(bool),
  'U8': np.dtype(np.uint8),
  'I8': np.dtype(np.int8),
  'U16': np.dtype(np.uint16),
  'I16': np.dtype(np.int16),
  'U32': np.dtype(np.uint32),
  'I32': np.dtype(np.int32),
  'U64': np.dtype(np.uint64),
  'I64': np.dtype(np.int64),
  'F16': np.dtype(np.float16),
  'F32': np.dtype(np.float32),
  'F64': np.dtype(np.float64),
  'C64': np.dtype(np.complex64),
  'BF16': np.dtype(jnp.bfloat16),
  'F8_E4M3': np.dtype(jnp.float8_e4m3fn),
  'F8_E5M2': np.dtype(jnp.float8_e5m2),
  'F8_E8M0': np.dtype(jnp.float8_e8m0fnu),
}
NAMES = {dtype: name for name, dtype in TYPES.items()}


def read(path: Path) -> dict[str, np.ndarray]:
  """All arrays, by name."""
  with opened(path) as content:
    return arrays(content)


def read_metadata(path: Path) -> dict[str, str]:
  """What the writer noted beside the arrays."""
  with opened(path) as content:
    return _header(content)[0]


def write(
  path: Path,
  given: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes the whole file or nothing."""
  listed = {name: np.asarray(array) for name, array in given.items()}
  # Wide types first keep every array aligned.
  order = sorted(listed, key=lambda name: (-listed[name].itemsize, name))
  with replacing(path) as partial, partial.open('wb') as file:
    _check(listed, metadata or {})
    file.write(_described(listed, order, metadata or {}))
    for name in order:
      array = listed[name]
      little = array.dtype.newbyteorder('<')
      # A row of bytes, as files don't know types such as bfloat16.
      row = np.ascontiguousarray(array.astype(little, copy=False)).reshape(-1)
      file.write(row.view(np.uint8).data)


def _described(
  listed: Mapping[str, np.ndarray],
  order: list[str],
  metadata: Mapping[str, str],
) -> bytes:
  """The header, with its length."""
  header, place = {}, 0
  if metadata:
    header[METADATA] = dict(sorted(metadata.items()))
  for name in order:
    array = listed[name]
    header[name] = {
      'dtype': NAMES[array.dtype.newbyteorder('=')],
      'shape': list(array.shape),
      'data_offsets': [place, place + array.nbytes],
    }
    place += array.nbytes
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-(LENGTH.size + len(text)) % ALIGNMENT)
  return LENGTH.pack(len(text)) + text


def arrays(content: np.ndarray) -> dict[str, np.ndarray]:
  """The arrays of an opened file."""
  _, header, begins = _header(content)
  data, found, end = content[begins:], {}, 0
  places = sorted(header.items(), key=lambda item: item[1]['data_offsets'])
  for name, entry in places:
    what, (start, stop) = f'its array {name!r:.80}', entry['data_offsets']
    if start != end or stop < start:
      raise Refused(f'{what} does not begin where the one before it ends')
    dtype = TYPES.get(entry['dtype'])
    if dtype is None:
      raise Refused(f'{what} has the unknown type {entry["dtype"]!r:.40}')
    size = elements(entry['shape'], what) * dtype.itemsize
    if size != stop - start:
      raise Refused(
        f'{what} of shape {entry["shape"]} would have {size} bytes and has '
        f'{stop - start}'
      )
    raw = take(data, start, size, what)
    found[name] = numbers(raw, dtype, what).reshape(entry['shape'])
    end = stop
  if end != data.size:
    raise Refused(f'it has {data.size - end} bytes that belong to no array')
  return {name: found[name] for name in header}


def _header(content: np.ndarray) -> tuple[dict, dict, int]:
  """Metadata, what is said of each array, and where arrays begin."""
  (length,) = LENGTH.unpack(take(content, 0, LENGTH.size, 'its header'))
  if length > MOST_HEADER:
    raise Refused(f'its header claims {length} bytes; {MOST_HEADER} are read')
  raw = take(content, LENGTH.size, length, 'its header').tobytes()
  try:
    header = json.loads(raw, object_pairs_hook=_once)
  except Refused:
    raise
  except (ValueError, RecursionError):
    raise Refused('its header is no JSON') from None
  if not isinstance(header, dict):
    raise Refused('its header lists no arrays')
  metadata = header.pop(METADATA, {})
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise Refused('its metadata is no text')
  for name, entry in header.items():
    check_name(name)
    if not _is_entry(entry):
      raise Refused(f'its header does not say where {name!r:.80} is')
  return metadata, header, LENGTH.size + length


def _is_entry(entry: object) -> bool:
  if not isinstance(entry, dict) or not isinstance(entry.get('dtype'), str):
    return False
  shape, place = entry.get('shape'), entry.get('data_offsets')
  if not isinstance(shape, list) or not isinstance(place, list):
    return False
  return len(place) == 2 and all(type(n) is int for n in place)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise Refused('its header names something twice')
  return found


def _check(
  listed: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
  for name, array in listed.items():
    check_name(name)
    if name == METADATA:
      raise Refused(f'no array can be named {METADATA}')
    if array.dtype.newbyteorder('=') not in NAMES:
      raise Refused(
        f'the format has no type for {name!r:.80}, which is {array.dtype}'
      )
  for key, value in metadata.items():
    if not isinstance(key, str) or not isinstance(value, str):
      raise Refused(f'metadata is text, and {key!r} is not')
