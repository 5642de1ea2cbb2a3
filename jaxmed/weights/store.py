"""Weights on this machine: one .safetensors file a name, in one folder.

The folder is $JAXMED_WEIGHTS, else ~/.cache/jaxmed/weights. A file keeps the
names of the original's arrays, so other programs read it too, and carries
where it is from: network, source, SHA-256 of the original file, licence, and
how the original was checked. A digest of its own arrays is looked at whenever
it is read, so that a damaged file is never taken for a good one.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from jaxmed import errors
from jaxmed.errors import UserError
from jaxmed.weights import safetensors

NAME = r'[A-Za-z0-9][A-Za-z0-9._-]{0,99}'
SUFFIX = '.safetensors'
TAKEN = ('imagenet', 'random')  # What `model.weights` may be besides a name.


class StoreError(UserError):
  """Weights that are stored wrongly, or not at all."""


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is known of stored weights.

  Attributes:
    name: by which they are stored.
    network: that they fit.
    source: URL, or path, of the original file.
    sha256: of the original file.
    licence: '' if nobody has said.
    citation: likewise.
    verified: how the original was checked, in words.
    digest: of the stored arrays.
  """

  name: str
  network: str
  source: str
  sha256: str
  licence: str = ''
  citation: str = ''
  verified: str = ''
  digest: str = ''


def folder() -> pathlib.Path:
  given = os.environ.get('JAXMED_WEIGHTS')
  return pathlib.Path(given or '~/.cache/jaxmed/weights').expanduser()


def path_of(name: str) -> pathlib.Path:
  if not re.fullmatch(NAME, name) or name in TAKEN:
    raise StoreError(
      f'{name!r:.80} cannot be a name of weights; choose another one, of at '
      'most 100 letters and digits and, after the first, . _ and -.'
    )
  return folder() / f'{name}{SUFFIX}'


def has(name: str) -> bool:
  return name in names()


def names() -> list[str]:
  """Of all that is stored."""
  found = (p.name.removesuffix(SUFFIX) for p in folder().glob(f'*{SUFFIX}'))
  return sorted(n for n in found if re.fullmatch(NAME, n) and n not in TAKEN)


def save(facts: Facts, arrays: Mapping[str, np.ndarray]) -> Facts:
  """Stores arrays, whole or not at all, in place of any of that name.

  Numbers of half precision are widened to float32, which loses nothing.
  """
  wide = {name: _widened(array) for name, array in arrays.items()}
  facts = dataclasses.replace(facts, digest=digest(wide))
  path = path_of(facts.name)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise StoreError(
      f"{path.parent} can't be made: {error.strerror}; set JAXMED_WEIGHTS to "
      'a folder that can.'
    ) from error
  safetensors.write(path, wide, dataclasses.asdict(facts))
  return facts


def load(name: str) -> tuple[dict[str, np.ndarray], Facts]:
  """Stored arrays by the original's names, and what is known of them."""
  facts = facts_of(name)
  arrays = safetensors.read(path_of(name))
  if digest(arrays) != facts.digest:
    raise StoreError(
      f'{path_of(name)} is damaged: its arrays are not those that were '
      f'stored; fetch or import {name} again.'
    )
  return arrays, facts


def facts_of(name: str) -> Facts:
  path = path_of(name)
  if not path.is_file():
    raise errors.unknown(f'weights in {folder()}', name, names())
  found, wanted = safetensors.read_metadata(path), dataclasses.fields(Facts)
  if missing := [f.name for f in wanted if f.name not in found]:
    raise StoreError(
      f'{path} was not stored by jaxmed: it does not say its {missing[0]}; '
      f'move it elsewhere and run jaxmed weights import FILE --name {name}.'
    )
  return Facts(**{f.name: found[f.name] for f in wanted})


def digest(arrays: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of all names, types, shapes and numbers."""
  found = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    head = name, array.dtype.newbyteorder('<').str, array.shape
    found.update(repr(head).encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return found.hexdigest()


def sha256_of(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _widened(array: np.ndarray) -> np.ndarray:
  array = np.asarray(array)
  half = array.dtype.name in ('float16', 'bfloat16')
  return array.astype(np.float32) if half else array
