"""Files of torch.save are read as torch reads them."""

import argparse
import collections
import io
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.weights.read import WeightsError, read

torch = pytest.importorskip('torch')
FORMATS = [(new, protocol) for new in (True, False) for protocol in range(2, 6)]


def save(path, value, new=True, protocol=2):
  torch.save(
    value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new
  )
  return path


def same(array, tensor):
  """Also of types that torch doesn't give to NumPy."""
  tensor = tensor.detach().contiguous()
  name = str(tensor.dtype).removeprefix('torch.')
  assert array.dtype == np.dtype(getattr(jnp, name)), name
  assert array.shape == tuple(tensor.shape)
  theirs = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
  assert np.ascontiguousarray(array).tobytes() == theirs
  assert not array.flags.writeable or not array.size


def every_tensor():
  """Every type, and views of all kinds."""
  torch.manual_seed(0)
  numbers = torch.randn(6, 8) * 10
  types = (
    'float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 '
    'uint32 uint64 bool complex64 complex128 float8_e4m3fn float8_e5m2'
  )
  found = {name: numbers.to(getattr(torch, name)) for name in types.split()}
  base = torch.arange(120.0)
  cube = base.view(4, 5, 6)
  return found | {
    'float8, transposed': found['float8_e5m2'].t(),
    'whole': base,
    'transposed': cube.permute(2, 0, 1),
    'part': cube[1:3, ::2, 1:],
    'last': base[-1],
    'expanded': base[3:7, None].expand(4, 3),
    'windows': base.unfold(0, 5, 2),
    'scalar': torch.tensor(7),
    'none': torch.zeros(0, 4, dtype=torch.int64),
    'one': torch.as_strided(base, (1, 3), (1000, 2), 5),
    'parameter': torch.nn.Parameter(torch.ones(3)),
    'brain_part': torch.randn(8).to(torch.bfloat16)[1::3],
  }


@pytest.mark.parametrize('new, protocol', FORMATS)
def test_every_tensor(tmp_path, new, protocol):
  tensors = every_tensor()
  found = read(save(tmp_path / 'x.pth', tensors, new, protocol))
  assert list(found) == list(tensors)
  for name, tensor in tensors.items():
    same(found[name], tensor)


@pytest.mark.parametrize('new, protocol', FORMATS)
def test_a_checkpoint_with_all_that_people_put_in(tmp_path, new, protocol):
  net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
  optimiser = torch.optim.Adam(net.parameters())
  net(torch.ones(2, 3, 5, 5)).sum().backward()
  optimiser.step()
  value = {
    'bn': net.state_dict(),
    'nested': {'deep': [net.state_dict(), {'module.x': torch.ones(2)}]},
    'optimizer': optimiser.state_dict(),
    'epoch': 3,
    'large': 1 << 40,
    'best': np.float64(0.5),
    'history': np.arange(5.0),
    'text': 'é',
    'raw': b'bytes',
    'nothing': None,
    'rate': 1e-3,
    'set': {1, 2},
    'frozen': frozenset({1}),
    'options': argparse.Namespace(rate=1e-3, names=['a']),
    'counts': collections.defaultdict(dict, a={}),
    'device': torch.device('cpu'),
    'type': torch.float16,
    'size': torch.Size([1, 2]),
    'losses': [0.1] * 1000,
  }
  found = read(save(tmp_path / 'x.pth', value, new, protocol))
  for name, tensor in net.state_dict().items():
    same(found[f'bn.{name}'], tensor)
    same(found[f'nested.deep.0.{name}'], tensor)
  same(found['nested.deep.1.module.x'], torch.ones(2))
  same(
    found['optimizer.state.0.exp_avg'],
    optimiser.state_dict()['state'][0]['exp_avg'],
  )
  roots = {name.partition('.')[0] for name in found}
  assert roots == {'bn', 'nested', 'optimizer'}


@pytest.mark.parametrize('new', [True, False])
def test_shared_storage_is_read_once(tmp_path, new):
  base = torch.randn(1000)
  value = {'a': base, 'b': base[10:20], 'c': base.view(10, 100).T}
  found = read(save(tmp_path / 'x.pth', value, new))
  assert all(np.shares_memory(found['a'], found[name]) for name in 'bc')
  for name, tensor in value.items():
    same(found[name], tensor)


def test_a_tensor_with_attributes(tmp_path):
  tensor = torch.ones(3)
  tensor.note = 'kept by torch'
  parameter = torch.nn.Parameter(torch.zeros(2))
  parameter.sharded = False
  value = {'a': tensor, 'b': parameter}
  found = read(save(tmp_path / 'x.pth', value))
  for name in 'ab':
    same(found[name], value[name])


def test_without_checksums(tmp_path):
  torch.serialization.set_crc32_options(False)
  try:
    save(tmp_path / 'x.pth', {'a': torch.arange(9)})
  finally:
    torch.serialization.set_crc32_options(True)
  same(read(tmp_path / 'x.pth')['a'], torch.arange(9))


def test_big_endian(tmp_path):
  value = {
    'a': torch.randn(5),
    'b': torch.randn(4).to(torch.bfloat16),
    'c': torch.randn(3, dtype=torch.complex64),
    'd': torch.arange(3),
    'e': torch.tensor([True, False]),
  }
  save(tmp_path / 'little.pth', value)
  units = [4, 2, 4, 8, 1]
  with (
    zipfile.ZipFile(tmp_path / 'little.pth') as old,
    zipfile.ZipFile(tmp_path / 'big.pth', 'w') as new,
  ):
    for name in old.namelist():
      raw = old.read(name)
      if name.endswith('/byteorder'):
        raw = b'big'
      if '/data/' in name:
        unit = units[int(name.rpartition('/')[2])]
        raw = np.frombuffer(raw, f'u{unit}').byteswap().tobytes()
      new.writestr(name, raw)
  theirs = torch.load(tmp_path / 'big.pth')
  for name, array in read(tmp_path / 'big.pth').items():
    same(array, value[name])
    same(array, theirs[name])


def test_parts_of_storages_of_very_old_files(tmp_path):
  """Their persistent ids could name a part; torch still reads it."""
  base = torch.arange(10.0)
  save(tmp_path / 'x.pth', {'a': base}, new=False)
  raw = (tmp_path / 'x.pth').read_bytes()
  # The last of the storage's numbers, and the None after it.
  at = raw.index(b'K\nNt')
  view = b'X\x01\x00\x00\x00vK\x03K\x05\x87'
  raw = raw[: at + 2] + view + raw[at + 3 :]
  raw = raw.replace(b'K\x00K\n\x85', b'K\x01K\x03\x85')  # Offset and shape.
  (tmp_path / 'y.pth').write_bytes(raw)
  same(read(tmp_path / 'y.pth')['a'], base[4:7])
  same(read(tmp_path / 'y.pth')['a'], torch.load(tmp_path / 'y.pth')['a'])


def test_python_2(tmp_path):
  """Text without a type, and dicts made of lists of pairs."""
  save(tmp_path / 'x.pth', {'name': torch.ones(2)}, new=False)
  raw = (tmp_path / 'x.pth').read_bytes()
  old = raw.replace(b'X\x04\x00\x00\x00name', b'U\x04name')
  assert old != raw
  (tmp_path / 'x.pth').write_bytes(old)
  same(read(tmp_path / 'x.pth')['name'], torch.ones(2))


def test_torchscript_is_refused(tmp_path):
  path = tmp_path / 'x.pt'
  with pytest.warns(DeprecationWarning):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
  with pytest.raises(WeightsError, match='TorchScript'):
    read(path)


@pytest.mark.parametrize('new', [True, False])
def test_a_whole_model_is_refused(tmp_path, new):
  save(tmp_path / 'x.pth', torch.nn.Linear(2, 2), new)
  reason = 'torch.nn.modules.linear.Linear.*state_dict'
  with pytest.raises(WeightsError, match=reason):
    read(tmp_path / 'x.pth')


@pytest.mark.parametrize(
  'value, reason',
  [
    (lambda: torch.ones(3), 'without a name'),
    (lambda: {'epoch': 3}, 'no tensors'),
    (lambda: {'a.b': torch.ones(1), 'a': {'b': torch.ones(1)}}, "'a.b'"),
    (lambda: {'a': torch.eye(3).to_sparse()}, '_rebuild_sparse_tensor'),
    (lambda: {'a': torch.ones(2, dtype=torch.complex64).conj()}, 'conjugated'),
    (lambda: {('a', 1): torch.ones(1)}, 'key that is a tuple'),
  ],
)
def test_what_is_no_checkpoint_of_named_tensors(tmp_path, value, reason):
  save(tmp_path / 'x.pth', value())
  with pytest.raises(WeightsError, match=reason):
    read(tmp_path / 'x.pth')


@pytest.mark.parametrize('new', [True, False])
def test_cut_off_anywhere(tmp_path, new):
  place = io.BytesIO()
  torch.save({'a': torch.arange(9)}, place, _use_new_zipfile_serialization=new)
  raw = place.getvalue()
  for end in range(0, len(raw), 7):
    (tmp_path / 'x.pth').write_bytes(raw[:end])
    with pytest.raises(WeightsError, match='x.pth'):
      read(tmp_path / 'x.pth')
