"""A file of weights as bytes that nothing is read past the end of.

Files of weights come from strangers. Every reader here works on the file's
bytes, mapped into memory: what it gives are views of them, so that a large
file is read once and copied never. A reader raises `Refused` with what is
wrong; `opened` adds which file it is. Arrays are read-only, as two names may
be one array, and the file is nobody's to write to.
"""

import contextlib
import math
import mmap
import os
import pathlib
import stat
from collections.abc import Iterator, Mapping, Sequence

import imagecodecs
import numpy as np

from jaxmed.errors import UserError

MOST_AXES = 32
MOST_NAME = 60_000  # Bytes; a zip file allows a few more.
MOST_ELEMENTS = 1 << 48
# Arrays may share bytes, and be spread out by strides of zero; but not so far
# that a small file fills the memory of whoever copies them.
MOST_TIMES = 16
SMALL = 1 << 20  # Bytes that any file may claim.

Path = str | os.PathLike


class WeightsError(UserError):
  """A file of weights that can't be used.

  Attributes:
    path: of the file.
    reason: what is wrong with it, without the path.
  """

  def __init__(self, path: Path, reason: str):
    self.path, self.reason = pathlib.Path(path), reason
    super().__init__(f'{path}: {reason}.')


class Refused(ValueError):
  """What is wrong with a file, by a reader that doesn't know its name."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[np.ndarray]:
  """The bytes of a file. Whatever is refused becomes a WeightsError."""
  try:
    yield _mapped(path)
  except OSError as error:
    raise WeightsError(path, error.strerror or str(error)) from None
  except Refused as refused:
    raise WeightsError(path, str(refused)) from None


def _mapped(path: Path) -> np.ndarray:
  # A pipe would never end, and be waited for.
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise Refused('it is not a file; give the path of one')
  with open(path, 'rb') as file:
    if not os.fstat(file.fileno()).st_size:
      return np.zeros(0, np.uint8)  # Which can't be mapped.
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  return np.frombuffer(content, np.uint8)


def take(content: np.ndarray, start: int, count: int, what: str) -> np.ndarray:
  """Some bytes, if they are there."""
  if start < 0 or count < 0 or start + count > content.size:
    raise Refused(
      f'{what} would be {count} bytes from byte {start}, but {content.size} '
      'are there: it was cut off or is broken; fetch it again'
    )
  return content[start : start + count]


def check_sum(content: np.ndarray, expected: int, what: str) -> None:
  """CRC-32, as in zip files."""
  if imagecodecs.deflate_crc32(content) != expected:
    raise Refused(f'{what} has another checksum than written: fetch it again')


def elements(shape: Sequence[int], what: str) -> int:
  """How many an array of some shape has; shapes of nonsense are refused."""
  if len(shape) > MOST_AXES:
    raise Refused(f'{what} has {len(shape)} axes; {MOST_AXES} are read')
  if not all(type(n) is int and n >= 0 for n in shape):
    raise Refused(f'{what} has sizes that are no numbers from 0: {_few(shape)}')
  # Zeros don't excuse the others: the array couldn't be made.
  if math.prod(max(n, 1) for n in shape) > MOST_ELEMENTS:
    raise Refused(
      f'{what} claims the shape {_few(shape)}; no more than {MOST_ELEMENTS} '
      'elements are read'
    )
  return math.prod(shape)


def numbers(
  raw: np.ndarray, dtype: np.dtype, what: str, big_endian: bool = False
) -> np.ndarray:
  """The bytes as a row of numbers; a view wherever that is possible."""
  dtype = np.dtype(dtype)
  if raw.size % dtype.itemsize:
    raise Refused(f'{what} has {raw.size} bytes, no multiple of {dtype}')
  if dtype.kind == 'b' and raw.size and raw.max() > 1:
    raise Refused(f'{what} holds other bytes than 0 and 1 for true and false')
  if big_endian and dtype.itemsize > 1:
    # Types such as bfloat16 have no other order of their own.
    unit = dtype.itemsize // (2 if dtype.kind == 'c' else 1)
    raw = raw.view(f'u{unit}').byteswap()
  array = raw.view(dtype)
  if not array.flags.aligned:
    array = array.copy()
  array.flags.writeable = False
  return array


def check_name(name: str) -> None:
  """Refuses what no file of ours could have as an array's name."""
  try:
    fits = len(name.encode()) <= MOST_NAME
  except UnicodeEncodeError:
    fits = False
  if not fits:
    raise Refused(f'its array {name!r:.80} has a name that no file can have')


def check_total(arrays: Mapping[str, np.ndarray], size: int) -> None:
  """Refuses arrays that would be far larger than their file, once copied."""
  most = MOST_TIMES * size + SMALL
  total = sum(array.nbytes for array in arrays.values())
  if total > most:
    raise Refused(
      f'its arrays claim {total} bytes of a file of {size}; no more '
      f'than {most} are read'
    )


def _few(shape: Sequence[int]) -> str:
  # Python writes no number of over 4,300 digits.
  huge = lambda n: type(n) is int and n.bit_length() > 128
  shown = ', '.join('...' if huge(n) else str(n)[:24] for n in shape[:8])
  return f'({shown}{", ..." if len(shape) > 8 else ""})'


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
  """Where to write a file that appears at `path` whole or not at all."""
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    yield partial
    os.replace(partial, path)
  except OSError as error:
    raise WeightsError(
      path, f'it could not be written ({error.strerror or error})'
    ) from None
  except Refused as refused:
    raise WeightsError(path, str(refused)) from None
  finally:
    partial.unlink(missing_ok=True)
