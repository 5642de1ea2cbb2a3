"""Files made to do harm are refused at once, and nothing of them is run."""

import io
import os
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxmed.weights import pickles, safetensors
from jaxmed.weights.read import WeightsError, read

BILLION = 10**12
MOST_MEMORY = 150e6


def number(value: int) -> bytes:
  return b'\x8a\x08' + struct.pack('<q', value)


def text(value: bytes) -> bytes:
  return b'X' + struct.pack('<L', len(value)) + value


def tuple_of(*values: int) -> bytes:
  return b'(' + b''.join(number(value) for value in values) + b't'


def tensor(shape=(3,), strides=(1,), offset=0, count=3, key=b'0') -> bytes:
  """What torch writes of a tensor, with any numbers."""
  return (
    b'ctorch._utils\n_rebuild_tensor_v2\n('
    + b'('
    + text(b'storage')
    + b'ctorch\nFloatStorage\n'
    + text(key)
    + text(b'cpu')
    + number(count)
    + b'tQ'
    + number(offset)
    + tuple_of(*shape)
    + tuple_of(*strides)
    + b'\x89ccollections\nOrderedDict\n)RtR'
  )


def dict_of(value: bytes) -> bytes:
  return b'\x80\x02}X\x01\0\0\0w' + value + b's.'


def zipped(pickled: bytes, **storages: bytes) -> bytes:
  """A file of torch.save with a given pickle."""
  place = io.BytesIO()
  with zipfile.ZipFile(place, 'w') as file:
    file.writestr('x/data.pkl', pickled)
    file.writestr('x/byteorder', 'little')
    for name, raw in (storages or {'0': bytes(12)}).items():
      file.writestr(f'x/data/{name}', raw)
  return place.getvalue()


def old(pickled: bytes, count: int = 3, raw: bytes = bytes(12)) -> bytes:
  """The same in the format before torch 1.6."""
  head = [0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}]
  # Its persistent ids have a sixth part.
  pickled = pickled.replace(b'tQ', b'NtQ')
  return (
    b''.join(pickle.dumps(part, 2) for part in head)
    + pickled
    + pickle.dumps(['0'], 2)
    + struct.pack('<q', count)
    + raw
  )


def others(*members: tuple[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
  place = io.BytesIO()
  with zipfile.ZipFile(place, 'w', method) as file:
    for name, raw in members:
      file.writestr(name, raw)
  return place.getvalue()


def npy(descr: str, shape: str, raw: bytes = b'') -> bytes:
  text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"
  return b'\x93NUMPY\1\0' + struct.pack('<H', len(text)) + text.encode() + raw


def safe(header: str, raw: bytes = b'') -> bytes:
  return struct.pack('<Q', len(header)) + header.encode() + raw


def overlapping() -> bytes:
  """Two names in the directory for one member's bytes."""
  raw = others(('x/data.pkl', b'same'), ('x/data.pk2', b'same'))
  at = raw.rindex(b'PK\1\2')
  place = raw.index(b'PK\1\2') - len(raw[: raw.index(b'PK\3\4', 1)])
  changed = bytearray(raw)
  # The first says that it is as long as both, and the second lies inside.
  first, size = raw.index(b'PK\1\2'), place + 4
  struct.pack_into('<LL', changed, first + 20, size, size)
  assert changed[at + 42 : at + 46] == raw[at + 42 : at + 46]
  return bytes(changed)


def bomb(claims: int = 1 << 27) -> bytes:
  place = io.BytesIO()
  with (
    zipfile.ZipFile(place, 'w', zipfile.ZIP_DEFLATED) as file,
    file.open('x/data.pkl', 'w') as member,
  ):
    for _ in range(claims >> 20):
      member.write(bytes(1 << 20))
  return place.getvalue()


def system(operations: bytes) -> bytes:
  """Calls of os.system, in one way or another."""
  return b'\x80\x02' + operations + b'.'


TOUCH = b'X\x05\0\0\0touch'
REFUSED = {
  'reduce': (zipped(system(b'cos\nsystem\n' + TOUCH + b'\x85R')), 'os.system'),
  'reduce, old': (
    old(system(b'cos\nsystem\n' + TOUCH + b'\x85R')),
    'os.system',
  ),
  'posix': (zipped(system(b'cposix\nsystem\n' + TOUCH + b'\x85R')), 'posix'),
  'eval': (zipped(system(b'cbuiltins\neval\n' + TOUCH + b'\x85R')), 'eval'),
  'getattr': (zipped(system(b'cbuiltins\ngetattr\n.')), 'builtins.getattr'),
  'a plain pickle': (system(b'cos\nsystem\n' + TOUCH + b'\x85R'), 'os.system'),
  'stack global': (
    zipped(b'\x80\x04\x8c\x02os\x8c\x06system\x93' + TOUCH + b'\x85R.'),
    'os.system',
  ),
  'dotted': (
    zipped(b'\x80\x04\x8c\x05torch\x8c\x09os.system\x93' + TOUCH + b'\x85R.'),
    'torch.os.system',
  ),
  'tuples of tuples for a name': (
    zipped(b'\x80\x04)\x85q\0' + b'h\0h\0\x86q\0' * 60 + b'\x8c\x01a\x93.'),
    'no text',
  ),
  'deep tuple for a name': (
    zipped(b'\x80\x04)' + b'\x85' * 10**5 + b'\x8c\x01a\x93.'),
    'no text',
  ),
  'numbers for names': (zipped(b'\x80\x04K\x01K\x02\x93.'), 'no text'),
  'build': (
    zipped(system(tensor() + b'}' + text(b'__class__') + b'cos\nsystem\nsb')),
    'os.system',
  ),
  'build, harmless': (zipped(dict_of(tensor() + b'}b')), 'attributes'),
  'inst': (zipped(system(b'(' + TOUCH + b'ios\nsystem\n')), "INST.*'system'"),
  'obj': (zipped(system(b'(cos\nsystem\n' + TOUCH + b'o')), 'os.system'),
  'obj, known': (zipped(system(b'(ctorch\nSize\n' + TOUCH + b'o')), 'OBJ'),
  'newobj': (
    zipped(system(b'cos\nsystem\n' + TOUCH + b'\x85\x81')),
    'os.system',
  ),
  'newobj, known': (
    zipped(system(b'ctorch\nTensor\n)\x81')),
    'calls torch.Tensor',
  ),
  'newobj_ex': (
    zipped(b'\x80\x04ccollections\nOrderedDict\n)}\x92.'),
    'NEWOBJ_EX.*OrderedDict',
  ),
  'ext1': (zipped(system(b'\x82\x05)R')), 'EXT1.*class 5'),
  'ext2': (zipped(system(b'\x83\x05\x01)R')), 'EXT2.*class 261'),
  'ext4': (zipped(system(b'\x84\x05\0\0\0)R')), 'EXT4.*class 5'),
  'text persistent id': (zipped(system(b'Pstorage\n')), 'PERSID'),
  'pop': (zipped(system(b'0.')), 'POP'),
  'calling text': (zipped(system(TOUCH + b')R')), 'no function'),
  'calling a type': (
    zipped(system(b'ctorch\nFloatStorage\n)R')),
    'calls torch',
  ),
  'arguments': (
    zipped(system(b'ctorch._utils\n_rebuild_tensor_v2\n)R')),
    'other arguments',
  ),
  'no arguments': (zipped(system(b'ctorch\nSize\nK\x01R')), 'no list'),
  'persistent number': (zipped(system(b'K\x01Q')), 'never does'),
  'persistent nothing': (zipped(system(b')Q')), 'never does'),
  'persistent module': (zipped(system(b'(X\6\0\0\0moduleNNNNtQ')), 'else'),
  'persistent of no type': (zipped(system(b'(X\7\0\0\0storage]]]]tQ')), 'else'),
  'persistent path': (
    zipped(dict_of(tensor(key=b'../../etc/passwd'))),
    'lacks',
  ),
  'persistent in the head': (b'\x80\x02K\x01Q.', 'outside'),
  'claims, storage': (
    zipped(dict_of(tensor((BILLION,), count=BILLION))),
    'has 12',
  ),
  'claims, tensor': (zipped(dict_of(tensor((BILLION,)))), 'reaches'),
  'claims, old': (old(dict_of(tensor((BILLION,), count=BILLION))), 'holds 3'),
  'claims, both': (
    old(dict_of(tensor((BILLION,), count=BILLION)), BILLION),
    'cut off',
  ),
  'claims, stride of zero': (
    zipped(dict_of(tensor((BILLION,), (0,)))),
    'of a file',
  ),
  'claims, nothing of much': (
    zipped(dict_of(tensor((0, 1 << 40, 1 << 40), (1, 1, 1)))),
    'elements',
  ),
  'many axes': (zipped(dict_of(tensor((1,) * 99, (1,) * 99))), 'axes'),
  'negative size': (zipped(dict_of(tensor((-1,)))), 'numbers from 0'),
  'negative stride': (zipped(dict_of(tensor((3,), (-1,), 2))), 'nonsense'),
  'negative offset': (zipped(dict_of(tensor(offset=-1))), 'nonsense'),
  'negative storage': (zipped(dict_of(tensor(count=-3))), 'numbers from 0'),
  'negative old storage': (old(dict_of(tensor()), count=-3), 'holds -3'),
  'offset beyond': (zipped(dict_of(tensor(offset=1))), 'reaches'),
  'strides beyond': (zipped(dict_of(tensor((2, 2), (2, 1)))), 'reaches'),
  'strides of other axes': (zipped(dict_of(tensor((3,), (1, 1)))), 'nonsense'),
  'storage too small': (
    zipped(dict_of(tensor()), **{'0': bytes(11)}),
    'has 11',
  ),
  'storage too large': (
    zipped(dict_of(tensor()), **{'0': bytes(13)}),
    'has 13',
  ),
  'storage missing': (zipped(dict_of(tensor()), **{'1': bytes(12)}), 'lacks'),
  'two sizes': (
    zipped(b'\x80\x02]' + tensor() + b'a' + tensor(count=2) + b'a.'),
    'two types or sizes',
  ),
  'deep lists': (
    zipped(b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.'),
    'deeper',
  ),
  'deep tuples': (zipped(b'\x80\x02)' + b'\x85' * 10**5 + b'.'), 'deeper'),
  'deep tuple as a key': (
    zipped(b'\x80\x02})' + b'\x85' * 10**5 + b'Ns.'),
    'key that is a tuple',
  ),
  'deep tuple as a type': (
    zipped(system(b'(' + text(b'storage') + b')' + b'\x85' * 10**5 + b'NNNtQ')),
    'else than storage',
  ),
  'deep marks': (zipped(b'\x80\x02' + b'(' * 10**5 + b'.'), 'ends'),
  'a list in itself': (zipped(b'\x80\x02]q\0h\0a.'), 'deeper'),
  'a billion laughs': (
    zipped(b'\x80\x02(]q\0' + 30 * (b'](' + b'h\0' * 10 + b'eq\0') + b't.'),
    'more than',
  ),
  'wide laughs': (
    zipped(b'\x80\x02(]q\0' + 2 * (b'](' + b'h\0' * 9999 + b'eq\0') + b't.'),
    'more than',
  ),
  'a size of a long list again and again': (
    zipped(
      b'\x80\x02(]q\0('
      + b'N' * 10**5
      + b'ectorch\nSize\nq\x01'
      + b'h\x01h\0\x85R' * 10**5
      + b't.'
    ),
    'far more',
  ),
  'arguments again and again': (
    zipped(
      b'\x80\x02(('
      + b'N' * 10**5
      + b'tq\0ctorch\ndevice\nq\x01'
      + b'h\x01h\0R' * 10**5
      + b't.'
    ),
    'far more',
  ),
  'long keys again and again': (
    zipped(
      b'\x80\x02('
      + text(b'a' * 10**6)
      + b'q\0'
      + text(b'a' * 10**6)
      + b'q\x01}'
      + b'h\0Nsh\x01Ns' * 10**5
      + b't.'
    ),
    'key of 1000000 letters',
  ),
  'long storages again and again': (
    zipped(dict_of(tensor(key=b'a' * 10**6))),
    'no name',
  ),
  'memo': (
    zipped(system(b'}' + b'r\xff\xff\xff\xffj\xfe\xff\xff\xff')),
    'recalls',
  ),
  'operations': (zipped(b'\x80\x02' + b'N' * 2000 + b'.'), 'operations'),
  'long number': (
    zipped(system(b'\x8b\xff\xff\xff\x7f')),
    'number of 2147483647',
  ),
  'negative length': (zipped(system(b'T\xff\xff\xff\xff')), 'cut off'),
  'long text': (zipped(system(b'\x8d' + b'\xff' * 7 + b'\x7f')), 'cut off'),
  'long buffer': (zipped(b'\x80\x05\x96' + b'\xff' * 7 + b'\x7f.'), 'cut off'),
  'long frame': (zipped(b'\x80\x04\x95' + b'\xff' * 8 + b'N.'), 'cut off'),
  'endless name': (zipped(system(b'c' + b'a' * 10**5)), 'without end'),
  'cut pickle': (zipped(dict_of(tensor())[:-50]), 'cut off'),
  'empty pickle': (zipped(b''), 'cut off'),
  'more after the pickle': (zipped(dict_of(tensor()) + b'N.'), 'follows'),
  'empty stack': (zipped(system(b'a')), 'takes more'),
  'items of a number': (zipped(system(b'K\1K\1K\1s')), 'fills a int'),
  'old protocol': (zipped(b'\x80\1N.'), 'protocol 1'),
  'no operation': (zipped(system(b'\xff')), 'broken'),
  'zip in a zip': (
    others(('x/inner.pth', zipped(dict_of(tensor())))),
    'unpack',
  ),
  'pickle of a pickle': (
    zipped(system(b'c_pickle\nloads\nC\1.\x85R')),
    '_pickle.loads',
  ),
  'path up': (others(('x/../../y', b''), ('x/data.pkl', b'')), 'leads out'),
  'path from the root': (others(('/etc/passwd', b'')), 'leads out'),
  'path of Windows': (
    others(('x/..#y', b'')).replace(b'..#y', b'..\\y'),
    'leads out',
  ),
  'bomb': (bomb(), 'would become'),
  'overlap': (overlapping(), 'overlap'),
  'twice': (
    others(('x/data.pkl', b'a'), ('x/data.pk2', b'b')).replace(b'pk2', b'pkl'),
    'two members',
  ),
  'another name': (
    others(('x/data.pkl', b'a')).replace(b'x/data.pkl', b'x/evil.pkl', 1),
    'another',
  ),
  'npz of objects': (
    others(('a.npy', npy("'|O'", '(1,)', pickle.dumps([1])))),
    'objects',
  ),
  'npz that claims': (
    others(('a.npy', npy("'<f4'", f'({BILLION},)'))),
    'has 0',
  ),
  'npz of wide halves': (
    others(('a.npy', npy("'>f16'", '(1,)', bytes(16)))),
    "type '>f16'",
  ),
  'npz of endless numbers': (
    others(('a.npy', npy("'<f4'", f'(0x{"f" * 9000},)'))),
    'elements',
  ),
  'npz of negatives': (others(('a.npy', npy("'<f4'", '(-1,)'))), 'from 0'),
  'npz of code': (others(('a.npy', npy('print(1)', '()'))), 'no array'),
  'npz in depth': (others(('a.npy', npy('-' * 9000 + '1', '()'))), 'no array'),
  'npz of records': (
    others(('a.npy', npy("[('a', '<f4')]", '(1,)'))),
    'records',
  ),
  'npz with too much': (
    others(('a.npy', npy("'<f4'", '(1,)', bytes(8)))),
    'has 8',
  ),
  'npz of a wrong sum': (
    others(('a.npy', npy("'|u1'", '(4,)', b'good'))).replace(b'good', b'evil'),
    'checksum',
  ),
  'npz of no truth': (others(('a.npy', npy("'|b1'", '(1,)', b'\2'))), 'true'),
  'safetensors that claims': (
    safe(
      f'{{"a":{{"dtype":"F32","shape":[{BILLION}],'
      f'"data_offsets":[0,{4 * BILLION}]}}}}'
    ),
    'cut off',
  ),
  'safetensors that overlaps': (
    safe(
      '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
      '"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}',
      bytes(6),
    ),
    'begin where',
  ),
  'safetensors with a hole': (
    safe('{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}', bytes(4)),
    'begin where',
  ),
  'safetensors with a tail': (
    safe('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', bytes(4)),
    'no array',
  ),
  'safetensors of negatives': (
    safe('{"a":{"dtype":"U8","shape":[-2,-1],"data_offsets":[0,2]}}', bytes(2)),
    'from 0',
  ),
  'safetensors backwards': (
    safe('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,-2]}}', bytes(2)),
    'begin where',
  ),
  'safetensors twice': (
    safe('{"a":1,"a":1}'),
    'twice',
  ),
  'safetensors of another shape': (
    safe('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
    'would have 8',
  ),
  'safetensors of no type': (
    safe('{"a":{"dtype":"F5","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "type 'F5'",
  ),
  'safetensors in depth': (safe('{"a":' + '[' * 10**5), 'no JSON'),
  'safetensors of a long header': (
    struct.pack('<Q', 1 << 40) + b'{}',
    'claims',
  ),
  'safetensors without places': (safe('{"a":{"dtype":"F32"}}'), 'where'),
  'safetensors of long numbers': (
    safe(
      '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % ('9' * 4000),
      bytes(4),
    ),
    'elements',
  ),
  'one array': (npy("'<f4'", '(1,)', bytes(4)), 'savez'),
  'a web page': (b'<!doctype html>', 'web page'),
  'a pointer': (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs'),
  'HDF5': (b'\x89HDF\r\n\x1a\n', 'HDF5'),
  'nothing': (b'', 'empty'),
  'noise': (b'noise', 'no known format'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(tmp_path, name, monkeypatch):
  raw, reason = REFUSED[name]
  ran = []
  if name == 'operations':
    monkeypatch.setattr(pickles, 'MOST_OPERATIONS', 1000)
  monkeypatch.setattr(os, 'system', ran.append)
  path = tmp_path / 'weights.pth'
  path.write_bytes(raw)
  small = len(raw) < 1 << 16  # Counting is slow; of these, a claim is harm.
  if small:
    tracemalloc.start()
  try:
    with pytest.raises(WeightsError, match=reason) as error:
      read(path)
    assert not small or tracemalloc.get_traced_memory()[1] < MOST_MEMORY
  finally:
    tracemalloc.stop()
  assert str(path) in str(error.value) and len(str(error.value)) < 600
  assert not ran


def test_a_payload_that_works_elsewhere(tmp_path):
  """The same file makes another when it is unpickled, and none here."""
  touched = tmp_path / 'touched'

  class Payload:
    def __reduce__(self):
      return os.system, (f'touch {touched}',)

  pickled = pickle.dumps({'w': Payload()}, 2)
  path = tmp_path / 'weights.pth'
  for raw in (zipped(pickled), old(pickled), pickled):
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match='system'):
      read(path)
  assert not touched.exists()
  pickle.loads(pickled)
  assert touched.exists()


def test_the_frame_of_these_tests_is_sound(tmp_path):
  """What is refused above is refused for what was changed."""
  path = tmp_path / 'weights.pth'
  for raw in (
    zipped(dict_of(tensor())),
    old(dict_of(tensor())),
    others(('w.npy', npy("'<f4'", '(3,)', bytes(12)))),
    safe('{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}', bytes(12)),
  ):
    path.write_bytes(raw)
    assert read(path)['w'].tolist() == [0, 0, 0]


def test_what_is_no_file(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path, reason in (
    (tmp_path, 'not a file'),
    (tmp_path / 'pipe', 'not a file'),
    (tmp_path / 'none.pth', 'No such file'),
    ('/dev/zero', 'not a file'),
  ):
    with pytest.raises(WeightsError, match=reason):
      read(path)


def valid(tmp_path) -> dict[str, bytes]:
  numbers = {'a': np.arange(12.0).reshape(3, 4), 'b': np.ones(2, np.int8)}
  place = io.BytesIO()
  np.savez_compressed(place, **numbers)
  safetensors.write(tmp_path / 'x', numbers, {'from': 'here'})
  pickled = dict_of(tensor((3,), (1,)))
  return {
    'torch': zipped(pickled, **{'0': np.arange(3, dtype='f4').tobytes()}),
    'old': old(pickled, raw=np.arange(3, dtype='f4').tobytes()),
    'npz': place.getvalue(),
    'safetensors': (tmp_path / 'x').read_bytes(),
  }


@pytest.mark.parametrize('kind', ['torch', 'old', 'npz', 'safetensors'])
def test_flipped_bytes(tmp_path, kind):
  """An error, or arrays; where there are checksums, the right ones."""
  raw, draw = valid(tmp_path)[kind], random.Random(0)
  path = tmp_path / 'weights'
  path.write_bytes(raw)
  right = read(path)
  refused = 0
  for _ in range(500):
    broken = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 8))):
      broken[draw.randrange(len(raw))] = draw.randrange(256)
    path.write_bytes(broken)
    try:
      found = read(path)
    except WeightsError:
      refused += 1
      continue
    assert sum(array.nbytes for array in found.values()) < 1 << 21
    if kind in ('torch', 'npz'):
      assert found.keys() == right.keys()
      assert all(np.array_equal(found[name], right[name]) for name in right)
  assert refused > 50
