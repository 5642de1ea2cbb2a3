"""NumPy's files are read as NumPy reads them, and written as it writes."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.weights import npz
from jaxmed.weights.read import WeightsError, read


def every_array() -> dict[str, np.ndarray]:
  numbers = np.abs(np.random.default_rng(0).standard_normal((3, 4, 5))) * 9
  types = '? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16 >f4 >i8 >c8'
  found = {name: numbers.astype(name) for name in types.split()}
  return found | {
    'fortran': np.asfortranarray(numbers),
    'transposed': numbers.T[1:],
    'scalar': np.float32(2),
    'none': np.zeros((0, 3)),
    'G/G.1/Filters:0': numbers,
  }


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_as_numpy_reads(tmp_path, save):
  arrays, path = every_array(), tmp_path / 'x.npz'
  save(path, **arrays, note=np.array('left out'), raw=np.array(b'too'))
  found = read(path)
  assert list(found) == list(arrays)
  for name, array in arrays.items():
    assert np.array_equal(found[name], array)
    assert found[name].dtype == np.asarray(array).dtype.newbyteorder('=')
    assert found[name].flags.aligned


def test_there_and_back(tmp_path):
  arrays = every_array() | {'b': np.arange(4).astype(jnp.bfloat16)}
  for name in 'xy':
    npz.write(tmp_path / f'{name}.npz', arrays)
  assert (tmp_path / 'x.npz').read_bytes() == (tmp_path / 'y.npz').read_bytes()
  found = npz.read(tmp_path / 'x.npz')
  assert found['b'].dtype == jnp.bfloat16
  with np.load(tmp_path / 'x.npz') as theirs:
    assert set(found) == set(arrays) == set(theirs)
    for name in arrays:
      assert (
        found[name].tobytes()
        == np.asarray(arrays[name].astype(found[name].dtype)).tobytes()
      )
      if name != 'b':
        assert np.array_equal(theirs[name], arrays[name])


@pytest.mark.parametrize(
  'array', [np.array(['text']), np.array([None]), np.ones(2, jnp.float8_e5m2)]
)
def test_what_the_format_has_no_type_for(tmp_path, array):
  with pytest.raises(WeightsError, match="its array 'a'"):
    npz.write(tmp_path / 'x.npz', {'a': array})
  assert not os.listdir(tmp_path)


def test_real_files(shared):
  for name in (
    'lpips_heads_v0.1.npz',
    'squeezenet1_1.npz',
    'resnet50v2_stages123.npz',
  ):
    path = shared(f'data/weights/{name}')
    found = read(path)
    with np.load(path) as theirs:
      assert list(found) == theirs.files
      assert all(np.array_equal(found[k], theirs[k]) for k in found)
