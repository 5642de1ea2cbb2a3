"""NumPy's .npz: a zip file of arrays, each with a header of its own.

What holds no numbers, such as text, is left out. Python objects are refused.
NumPy has no name for bfloat16 and writes it as two bytes of anything; that is
how it is read, too, and written.
"""

import ast
import re
import struct
import zipfile
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxmed.weights import archive
from jaxmed.weights.source import (
  Path,
  Refused,
  check_name,
  check_total,
  elements,
  numbers,
  opened,
  replacing,
)

MAGIC = b'\x93NUMPY'
MOST_HEADER = 10_000  # Bytes; NumPy's own limit.
NUMBERS = re.compile(r'[<>|=]?([biuf][1248]|c8|c16)')
BFLOAT16 = re.compile(r'[<>|]?V2')
TEXT = re.compile(r'[<>|=]?[SU]\d{1,9}')


def read(path: Path) -> dict[str, np.ndarray]:
  """All arrays of numbers, by name."""
  with opened(path) as content:
    return arrays(content, archive.members(content))


def write(path: Path, given: Mapping[str, np.ndarray]) -> None:
  """The same arrays give the same bytes; the file appears whole or not."""
  with replacing(path) as partial, zipfile.ZipFile(partial, 'w') as file:
    for name in sorted(given):
      array = np.asarray(given[name], order='C')
      check_name(name)
      _dtype(
        np.lib.format.dtype_to_descr(array.dtype), f'its array {name!r:.80}'
      )
      # A date of its own makes two files of the same arrays equal.
      member = zipfile.ZipInfo(f'{name}.npy', (1980, 1, 1, 0, 0, 0))
      member.external_attr = 0o600 << 16
      with file.open(member, 'w', force_zip64=True) as place:
        np.lib.format.write_array(place, array, allow_pickle=False)


def arrays(
  content: np.ndarray, members: Mapping[str, archive.Member]
) -> dict[str, np.ndarray]:
  """The arrays of an opened file."""
  found = {}
  for name, member in members.items():
    array = _array(content, member)
    if array is not None:
      found[name.removesuffix('.npy')] = array
  check_total(found, content.size)
  return found


def _array(content: np.ndarray, member: archive.Member) -> np.ndarray | None:
  what = f'its array {member.name!r:.80}'
  begins, described = _header(content, member)
  if TEXT.fullmatch(described['descr']):
    return None
  dtype, big = _dtype(described['descr'], what)
  shape, fortran = described['shape'], described['fortran_order']
  size = elements(shape, what) * dtype.itemsize
  if begins + size != member.size:
    raise Refused(
      f'{what} of shape {shape} would have {size} bytes and has '
      f'{member.size - begins}'
    )
  raw = archive.contents(content, member)[begins:]
  row = numbers(raw, dtype, what, big)
  return row.reshape(shape, order='F' if fortran else 'C')


def _header(content: np.ndarray, member: archive.Member) -> tuple[int, dict]:
  """Where the numbers begin, and what stands before."""
  broken = Refused(f'its member {member.name!r:.80} is no array of NumPy')
  raw = archive.beginning(content, member, MOST_HEADER + 12)
  if not member.name.endswith('.npy') or raw[:6] != MAGIC or len(raw) < 12:
    raise broken
  form = '<H' if raw[6] == 1 else '<L'
  begins = 8 + struct.calcsize(form)
  (length,) = struct.unpack_from(form, raw, 8)
  if raw[6] not in (1, 2, 3) or begins + length > len(raw):
    raise broken
  try:
    text = raw[begins : begins + length].decode('utf8')
    described = ast.literal_eval(text.strip())
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    raise broken from None
  fields = {'descr': (str, list), 'fortran_order': bool, 'shape': tuple}
  if type(described) is not dict or described.keys() != fields.keys():
    raise broken
  if not all(isinstance(described[k], kind) for k, kind in fields.items()):
    raise broken
  if not isinstance(described['descr'], str):
    raise Refused(f'its array {member.name!r:.80} holds records, no numbers')
  return begins + length, described


def _dtype(descr: str, what: str) -> tuple[np.dtype, bool]:
  """The type of the numbers, and whether they are big endian."""
  if BFLOAT16.fullmatch(descr):
    return np.dtype(jnp.bfloat16), descr[0] == '>'
  kind = NUMBERS.fullmatch(descr)
  if '|O' in descr:
    raise Refused(f'{what} holds Python objects, which are never unpickled')
  try:
    if not kind:
      raise TypeError
    return np.dtype(kind[1]), descr[0] == '>'
  except TypeError:
    raise Refused(f'{what} is of the type {descr[:24]!r}, no numbers') from None
