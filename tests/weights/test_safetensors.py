"""The format that weights are kept in, written and read."""

import json
import os
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.weights import npz, safetensors
from jaxmed.weights.read import WeightsError, read


def every_array() -> dict[str, np.ndarray]:
  draw = np.random.default_rng(0)
  numbers = draw.standard_normal((4, 6)) * 5
  found = {
    name: np.abs(numbers).astype(dtype)
    for name, dtype in safetensors.TYPES.items()
  }
  return found | {
    'transposed': numbers.T,
    'reversed': numbers[::-1, ::2],
    'big endian': numbers.astype('>f4'),
    'scalar': np.float32(3.5),
    'none': np.zeros((0, 5), np.int16),
    'é/ü.x': np.arange(3),
  }


def test_there_and_back(tmp_path):
  arrays = every_array()
  path = tmp_path / 'x.safetensors'
  safetensors.write(path, arrays, {'licence': 'é', 'from': 'here'})
  found = read(path)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    array = np.asarray(array)
    assert found[name].dtype == array.dtype.newbyteorder('=')
    assert found[name].shape == array.shape
    native = array.astype(found[name].dtype)
    assert found[name].tobytes() == native.tobytes(), name
    assert found[name].flags.aligned and not found[name].flags.writeable
  assert safetensors.read_metadata(path) == {'licence': 'é', 'from': 'here'}


def test_the_bytes_are_those_of_the_format(tmp_path):
  path = tmp_path / 'x.safetensors'
  arrays = {'b': np.array([1, 2], np.uint8), 'a': np.float32([1.5])}
  safetensors.write(path, arrays, {'k': 'v'})
  raw = path.read_bytes()
  (length,) = struct.unpack_from('<Q', raw)
  assert json.loads(raw[8 : 8 + length]) == {
    '__metadata__': {'k': 'v'},
    'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]},
    'b': {'dtype': 'U8', 'shape': [2], 'data_offsets': [4, 6]},
  }
  assert raw[8 + length :] == struct.pack('<fBB', 1.5, 1, 2)
  assert (8 + length) % safetensors.ALIGNMENT == 0


def test_the_same_arrays_give_the_same_bytes(tmp_path):
  arrays = every_array()
  safetensors.write(tmp_path / 'a', arrays, {'x': '1', 'y': '2'})
  mixed = dict(reversed(arrays.items()))
  safetensors.write(tmp_path / 'b', mixed, {'y': '2', 'x': '1'})
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_another_writers_file(tmp_path):
  """In any order, with any space, without metadata."""
  header = json.dumps(
    {
      'late': {'shape': [2], 'data_offsets': [3, 5], 'dtype': 'U8'},
      'odd': {'dtype': 'BOOL', 'shape': [3], 'data_offsets': [0, 3]},
      'empty': {'dtype': 'F64', 'shape': [0], 'data_offsets': [3, 3]},
      'half': {'dtype': 'BF16', 'shape': [1], 'data_offsets': [5, 7]},
    },
    indent=1,
  ).encode()
  data = bytes([1, 0, 1, 7, 8]) + np.asarray([2], jnp.bfloat16).tobytes()
  path = tmp_path / 'x'
  path.write_bytes(struct.pack('<Q', len(header)) + header + data)
  found = read(path)
  assert list(found) == ['late', 'odd', 'empty', 'half']
  assert found['odd'].tolist() == [True, False, True]
  assert found['late'].tolist() == [7, 8]
  assert found['half'].tolist() == [2] and found['half'].flags.aligned


@pytest.mark.parametrize('length', [128, 384, 896])
def test_a_header_may_begin_as_pickles_do(tmp_path, length):
  header = {'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}
  text = json.dumps(header).encode().ljust(length)
  numbers = np.float32([1, 2])
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', length) + text + numbers.tobytes())
  assert path.read_bytes()[:1] == b'\x80'
  np.testing.assert_array_equal(read(path)['a'], numbers)


@pytest.mark.parametrize('name', ['\ud800.weight', 'a' * 10**5])
def test_names_that_no_file_can_have(tmp_path, name):
  for form in (safetensors, npz):
    with pytest.raises(WeightsError, match='no file can have'):
      form.write(tmp_path / 'x', {name: np.ones(2)})
  header = json.dumps(
    {name: {'dtype': 'U8', 'shape': [1], 'data_offsets': [0, 1]}}
  ).encode()
  (tmp_path / 'y').write_bytes(struct.pack('<Q', len(header)) + header + b'\0')
  with pytest.raises(WeightsError, match='no file can have'):
    read(tmp_path / 'y')


def test_a_failed_write_leaves_what_was_there(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.write(path, {'a': np.ones(2)})
  before = path.read_bytes()
  for arrays, metadata, reason in (
    ({'a': np.array(['text'])}, None, "no type for 'a'"),
    ({'a': np.array([None])}, None, "no type for 'a'"),
    ({'__metadata__': np.ones(1)}, None, 'named'),
    ({'a': np.ones(1)}, {'k': 1}, 'metadata'),
  ):
    with pytest.raises(WeightsError, match=reason):
      safetensors.write(path, arrays, metadata)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['x.safetensors']
  with pytest.raises(WeightsError, match='could not be written'):
    safetensors.write(tmp_path / 'none' / 'x', {'a': np.ones(2)})


def test_what_was_read_outlives_its_file(tmp_path):
  """A file that is written anew is another; the arrays keep the old one."""
  path = tmp_path / 'x.safetensors'
  safetensors.write(path, {'a': np.arange(5)})
  found = read(path)
  safetensors.write(path, {name: array + 1 for name, array in found.items()})
  assert found['a'].tolist() == [0, 1, 2, 3, 4]
  assert read(path)['a'].tolist() == [1, 2, 3, 4, 5]
