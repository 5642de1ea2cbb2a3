"""Any file of weights -> {name: array}, by what the file is.

The end of its name says nothing: a file is known by its first bytes. None of
the readers runs anything that a file asks for, and none makes an array before
its size has been compared with the file's.
"""

import numpy as np

from jaxmed.weights import (
  archive,
  checkpoint,
  npz,
  pytorch,
  safetensors,
  sorted_table,
)
from jaxmed.weights.source import Path, Refused, WeightsError, opened

__all__ = ['WeightsError', 'read']

# What people give instead, by how it begins.
OTHERS = {
  b'\x89HDF': 'it is HDF5, as Keras writes; convert it to .npz or .safetensors',
  b'\x93NUMPY': 'it is one array without a name; save it with numpy.savez',
  b'\x1f\x8b': 'it is pressed by gzip; unpack it first',
  b'<': 'it is a web page, so fetching it went wrong',
  b'version https://git-lfs': 'it only says where Git LFS keeps the weights; '
  'fetch those with git lfs pull',
}


def read(path: Path) -> dict[str, np.ndarray]:
  """All arrays of a .pth, .pt, .safetensors or .npz file, by name.

  Also of a checkpoint of TensorFlow, of which any file may be given, or what
  their names have in common.

  Names are the file's own; those in nested dicts are joined by dots. Arrays
  are read-only, and views of the file where that is possible. Raises
  WeightsError, which names the file and the reason.
  """
  path = checkpoint.index_of(path)
  with opened(path) as content:
    if sorted_table.is_table(content):
      return checkpoint.arrays(path, content)
    return _read(content)


def _read(content: np.ndarray) -> dict[str, np.ndarray]:
  start = content[:512].tobytes()
  if not start:
    raise Refused('it is empty; fetch it again')
  if start[:4] in (b'PK\3\4', b'PK\5\6'):
    return _zipped(content)
  # A length, then JSON; it may begin as pickles do, but then has zeros.
  pickled = start[:1] == b'\x80'
  if start[8:9] == b'{' and (start[4:8] == bytes(4) or not pickled):
    return safetensors.arrays(content)
  if pickled:
    return pytorch.legacy(content)
  if start[257:262] == b'ustar':
    raise Refused(
      'it is a tar file, the format of torch before 0.1.10; load and save it '
      'with a newer torch'
    )
  for mark, reason in OTHERS.items():
    if start.lstrip().startswith(mark):
      raise Refused(reason)
  raise Refused(
    'it is of no known format: .pth, .safetensors, .npz, '
    'or an index of TensorFlow'
  )


def _zipped(content: np.ndarray) -> dict[str, np.ndarray]:
  members = archive.members(content)
  if not members:
    raise Refused('it is a zip file of nothing')
  if any(name.endswith('/data.pkl') for name in members):
    return pytorch.zipped(content, members)
  if all(name.endswith('.npy') for name in members):
    return npz.arrays(content, members)
  first = next(iter(members))
  raise Refused(
    f'it is a zip file of {first!r} and others, not of tensors; unpack it and '
    'give the one that holds weights'
  )
