import collections
import io
import json
import os
import pathlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from ml_collections import ConfigDict
from PIL import Image

from jaxmed.configs.defaults import defaults
from jaxmed.configs.defaults import folder as folder_preset
from jaxmed.datasets import folder, images, layouts, records, write
from jaxmed.errors import UserError
from tests.datasets.pictures import jpeg, mask, picture


def _put(path: pathlib.Path, encoded: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encoded)


def _config(root: pathlib.Path, **options) -> ConfigDict:
  config = folder_preset(defaults('none', 'folder'))
  config.data.path = str(root) if root.name else ''
  config.data.dir = str(root.parent / 'prepared')
  config.data.options.update(options)
  return config.data


def _open(root: pathlib.Path, **options) -> records.Records:
  return records.open_records(write.prepare(_config(root, **options)))


def _plain(root: pathlib.Path, normal: int = 30, sick: int = 5) -> None:
  for i in range(normal):
    _put(root / 'normal' / f'p{i // 3}_{i}.jpg', jpeg(i))
  for i in range(sick):
    _put(root / 'OSCC' / f's{i}.jpg', jpeg(100 + i))


def _splits(opened: records.Records) -> dict[str, str]:
  index = opened.index
  keys, splits = index['key'].to_pylist(), index['split'].to_pylist()
  return dict(zip(keys, splits, strict=True))


def test_plain_folders(tmp_path):
  _plain(tmp_path / 'data')
  opened = _open(tmp_path / 'data')
  index = opened.index.to_pylist()
  assert len(index) == 35
  for row in index:
    sick = row['key'].startswith('OSCC/')
    assert row['label'] == int(sick)
    assert row['kind'] == ('OSCC' if sick else '')
    assert row['split'] == 'test' or not sick
    assert row['group'] == row['key']
  normal = {row['split'] for row in index if row['label'] == 0}
  assert normal == {'train', 'validation', 'test'}
  assert {row['domain'] for row in index} == {'a', 'b'}
  for row in (0, 20, 34):
    path = tmp_path / 'data' / index[row]['key']
    assert opened[row]['image'] == path.read_bytes()


def test_some_sick_patients_may_be_trained_on(tmp_path):
  _plain(tmp_path / 'data', sick=40)
  before = _splits(_open(tmp_path / 'data'))
  some, more = (
    _splits(_open(tmp_path / 'data', train_sick=share)) for share in (0.2, 0.5)
  )
  trained = lambda splits: {
    k for k, v in splits.items() if k.startswith('OSCC') and v == 'train'
  }
  assert not trained(before)
  assert 2 <= len(trained(some)) <= 16 and trained(some) < trained(more)
  normals = lambda splits: {
    k: v for k, v in splits.items() if k.startswith('normal')
  }
  assert normals(before) == normals(some) == normals(more)
  with pytest.raises(UserError, match='train_sick is 2'):
    _open(tmp_path / 'data', train_sick=2.0)


def test_a_new_file_moves_no_other(tmp_path):
  _plain(tmp_path / 'data')
  before = _splits(_open(tmp_path / 'data'))
  _plain(tmp_path / 'data', normal=40)
  after = _splits(_open(tmp_path / 'data'))
  assert len(after) == len(before) + 10
  assert {key: after[key] for key in before} == before
  assert _splits(_open(tmp_path / 'data', seed=1)) != after


def test_patients_stay_together_and_with_their_anomalies(tmp_path):
  _plain(tmp_path / 'data', normal=60)
  _put(tmp_path / 'data' / 'OSCC' / 'p3_99.jpg', jpeg(7))
  opened = _open(tmp_path / 'data', group=r'^([ps]\d+)')
  splits = {}
  for row in opened.index.to_pylist():
    splits.setdefault(row['group'], set()).add(row['split'])
  assert all(len(found) == 1 for found in splits.values())
  assert splits['p3'] == {'test'}
  assert len(splits) == 20 + 5


def test_some_of_the_sick_are_for_training_and_validation(tmp_path):
  _plain(tmp_path, normal=20, sick=40)
  without = {row['key']: row for row in _open(tmp_path).index.to_pylist()}
  shares = {'train_sick': 0.5, 'validation_sick': 0.2}
  opened = _open(tmp_path, **shares).index.to_pylist()
  found = collections.Counter(r['split'] for r in opened if r['label'] == 1)
  assert found.total() == 40
  assert 12 <= found['train'] <= 28 and 2 <= found['validation'] <= 16
  for row in opened:  # Normal ones stay where they were.
    if row['label'] == 0:
      assert row['split'] == without[row['key']]['split']
    else:
      assert without[row['key']]['split'] == 'test'
  for wrong in ({'train_sick': -0.1}, shares | {'train_sick': 0.9}):
    with pytest.raises(UserError, match='1 at most together'):
      folder.fingerprint(_config(tmp_path, **wrong))


def test_mvtec_layout(tmp_path):
  root = tmp_path / 'bottle'
  for i in range(20):
    _put(root / 'train/good' / f'{i:03d}.png', _png(picture(i)))
  for i in range(3):
    _put(root / 'test/good' / f'{i:03d}.png', _png(picture(30 + i)))
    _put(root / 'test/crack' / f'{i:03d}.png', _png(picture(40 + i)))
    _put(root / 'ground_truth/crack' / f'{i:03d}_mask.png', mask(i))
  opened = _open(root)
  index = opened.index.to_pylist()
  by_key = {row['key']: row for row in index}
  crack = by_key['test/crack/002.png']
  assert crack['label'] == 1 and crack['kind'] == 'crack'
  assert np.isclose(crack['lesion'], 9 / 256)
  assert opened[crack['row']]['mask'] == mask(2)
  assert by_key['test/good/001.png']['label'] == 0
  assert opened[by_key['test/good/001.png']['row']]['mask'] == b''
  splits = [row['split'] for row in index if row['key'].startswith('train')]
  assert set(splits) == {'train', 'validation'}
  assert opened.has_masks
  with pytest.raises(UserError, match='such as bottle/'):
    folder.fingerprint(_config(tmp_path))


def test_bmad_layout(tmp_path):
  root = tmp_path / 'brain'
  for split in ('train', 'valid', 'test'):
    for i in range(4):
      _put(root / split / 'good/img' / f'{i}.png', _png(picture(i)))
  for split in ('valid', 'test'):
    _put(root / split / 'Ungood/img/9.png', _png(picture(9)))
    _put(root / split / 'Ungood/label/9.png', mask(9))
  index = _open(root).index.to_pylist()
  found = {(row['split'], row['label']): 0 for row in index}
  for row in index:
    found[row['split'], row['label']] += 1
  assert found == {
    ('train', 0): 4,
    ('validation', 0): 4,
    ('validation', 1): 1,
    ('test', 0): 4,
    ('test', 1): 1,
  }
  lesions = [row['lesion'] for row in index if row['label'] == 1]
  assert np.allclose(lesions, 30 / 256)


def test_every_format_keeps_its_bytes_and_depth(tmp_path):
  gray16 = (picture(1, channels=1)[..., 0].astype(np.uint16) * 251) + 3
  colour16 = picture(2).astype(np.uint16) * 255
  planar, palette = io.BytesIO(), io.BytesIO()
  tifffile.imwrite(
    planar,
    np.moveaxis(picture(3), -1, 0),
    planarconfig='separate',
    photometric='rgb',
  )
  Image.fromarray(picture(4)).convert('P').save(palette, 'PNG')
  files = {
    'gray16.png': (imagecodecs.png_encode(gray16), gray16[..., None]),
    'colour16.tif': (_tiff(colour16), colour16),
    'gray16.TIFF': (_tiff(gray16), gray16[..., None]),
    'planar.tif': (planar.getvalue(), picture(3)),
    'alpha.png': (
      _png(np.concatenate([picture(5), picture(6)[..., :1]], -1)),
      picture(5),
    ),
    'colour.png': (_png(picture(7)), picture(7)),
    'palette.png': (
      palette.getvalue(),
      np.asarray(Image.open(palette).convert('RGB')),
    ),
  }
  for name, (encoded, _) in files.items():
    _put(tmp_path / 'data/normal' / name, encoded)
  opened = _open(tmp_path / 'data', train=1.0, validation=0.0)
  assert opened.bits == 16 and len(opened) == len(files)
  assert opened.about['channels'] is None
  assert opened.about['formats'] == ['png', 'tiff']
  for row in range(len(opened)):
    example = opened[row]
    encoded, pixels = files[example['key'].removeprefix('normal/')]
    assert example['image'] == encoded
    np.testing.assert_array_equal(images.decode(encoded), pixels)


def test_broken_files_are_listed_and_left_out(tmp_path):
  root = tmp_path / 'data'
  _plain(root, normal=10, sick=2)
  whole = _png(picture(1, size=64))
  pressed = _tiff(picture(1, size=64), compression='jpeg')
  broken = {
    'normal/truncated.png': whole[: len(whole) // 2],
    'normal/truncated.jpg': jpeg(1, size=64)[:-200],
    'normal/empty.png': b'',
    'normal/text.png': b'this is no image',
    'normal/one.png': _png(picture(1, size=1)),
    'normal/float.tif': _tiff(np.zeros((9, 9), np.float32)),
    'normal/header.jpg': b'\xff\xd8\xff\xe0',
    'normal/pressed.tif': pressed[: len(pressed) * 9 // 10],
    'OSCC/s9.png': _png(picture(3)),
  }
  for name, encoded in broken.items():
    _put(root / name, encoded)
  _put(root / 'masks/OSCC/s9.png', mask(1, size=8))
  (root / 'normal/dangling.png').symlink_to('gone.png')
  broken['normal/dangling.png'] = b''
  config = _config(root)
  directory = write.prepare(config)
  lines = (directory / 'failures.jsonl').read_text().splitlines()
  failures = {f['item']: f['error'] for f in map(json.loads, lines)}
  assert set(failures) == set(broken)
  assert 'only 1 x 1 px' in failures['normal/one.png']
  assert 'is empty' in failures['normal/empty.png']
  assert 'float32' in failures['normal/float.tif']
  assert 'bytes are missing' in failures['normal/pressed.tif']
  assert 'mask s9.png is 8 x 8 px' in failures['OSCC/s9.png']
  assert len(records.open_records(directory)) == 12


def test_runs_among_the_images_are_passed_over(tmp_path):
  root = tmp_path / 'data'
  _plain(root)
  before = len(_open(root))
  for place in ('runs/one', 'normal/two'):
    _put(root / place / 'maps/a_overlay.png', _png(picture(1)))
    for name in ('config.json', 'provenance.json'):
      (root / place / name).write_text('{}')
  assert len(_open(root)) == before


def test_links_are_followed_once(tmp_path):
  root = tmp_path / 'data'
  _plain(root, normal=9, sick=3)
  _put(tmp_path / 'elsewhere/more.png', _png(picture(1)))
  (root / 'normal/linked').symlink_to(tmp_path / 'elsewhere')
  (root / 'normal/round').symlink_to(root / 'normal')
  keys = set(_splits(_open(root)))
  assert 'normal/linked/more.png' in keys and len(keys) == 13


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
  root = tmp_path / 'data'
  _plain(root)
  (root / 'normal/closed').mkdir()
  scan = os.scandir

  def refuse(path):
    if os.fspath(path).endswith('closed'):
      raise PermissionError(13, 'Permission denied', path)
    return scan(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  with pytest.raises(UserError, match='closed cannot be read'):
    _open(root)


def test_a_name_in_another_encoding_is_said(tmp_path):
  root = tmp_path / 'data'
  _plain(root)
  _put(root / 'normal' / os.fsdecode(b'Gr\xf6sse.jpg'), jpeg(1))
  with pytest.raises(UserError, match='is not in UTF-8; rename'):
    write.prepare(_config(root))


def test_the_only_patient_for_training_stays_there(tmp_path):
  found = [
    layouts.Found(f'normal/p{i}_{j}.jpg', label=0, group=f'p{i}')
    for i in range(2)
    for j in range(3)
  ]
  splits = []
  for seed in range(200):
    options = folder.OPTIONS | {'seed': seed}
    done = {one.split for one in folder.divide(found, options)}
    lots = [folder.chance(seed, 'split', f'p{i}') for i in range(2)]
    if min(lots) < options['train']:
      assert 'train' in done and 'validation' in done, (seed, lots)
      splits.append(done)
  assert len(splits) > 100


def test_a_header_that_promises_too_much_is_not_believed():
  encoded = bytearray(_png(picture(0)))
  encoded[16:24] = (2**20).to_bytes(4) * 2
  with pytest.raises(images.ImageError, match='more than an image may have'):
    images.decode(bytes(encoded))


def test_a_table_of_labels(tmp_path):
  root = tmp_path / 'data'
  rows = ['path,label,group,split,kind,mask']
  for i in range(12):
    _put(root / f'{i}.jpg', jpeg(i))
    split = ('train', 'val', 'test')[i % 3]
    rows.append(f'{i}.jpg,{"normal" if i < 9 else "1"},p{i},{split},,')
  _put(root / 'm.png', mask(4))
  rows[-1] = '11.jpg,tumour,p11,test,,m.png'
  (root / 'labels.csv').write_text('\n'.join(rows))
  index = _open(root, labels='labels.csv').index.to_pylist()
  by_key = {row['key']: row for row in index}
  assert by_key['11.jpg']['kind'] == 'tumour'
  assert by_key['11.jpg']['lesion'] > 0 and by_key['11.jpg']['label'] == 1
  assert by_key['1.jpg']['split'] == 'validation'
  assert by_key['1.jpg']['group'] == 'p1'


@pytest.mark.parametrize(
  ('rows', 'complaint'),
  [
    (['path,lable', 'a.jpg,0'], "Did you mean 'label'"),
    (['path,kind', 'a.jpg,x'], 'path and label are needed'),
    (['path,label', 'b.jpg,0'], 'line 2: there is no file'),
    (['path,label', 'a.jpg,7'], "line 2: the label is '7'"),
    (['path,label,split', 'a.jpg,0,trian'], "Did you mean 'train'"),
    (['path,label,split', 'a.jpg,0,train', 'a.jpg,0,'], 'for some images'),
  ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, rows, complaint):
  _put(tmp_path / 'data/a.jpg', jpeg(0))
  (tmp_path / 'data/labels.csv').write_text('\n'.join(rows))
  with pytest.raises(UserError) as raised:
    layouts.find(tmp_path / 'data', 'labels.csv')
  assert complaint in str(raised.value)


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
  root = tmp_path / 'data'
  with pytest.raises(UserError, match='needs --config.data.path'):
    folder.fingerprint(_config(pathlib.Path('')))
  with pytest.raises(UserError, match='There is no folder'):
    write.prepare(_config(root))
  root.mkdir()
  with pytest.raises(UserError, match='holds no images'):
    write.prepare(_config(root))
  _put(root / 'tumour/a.jpg', jpeg(0))
  with pytest.raises(UserError, match='1 images and no normal ones'):
    write.prepare(_config(root))
  _put(root / 'normal/a.jpg', jpeg(1))
  with pytest.raises(UserError, match='is left for training'):
    write.prepare(_config(root, train=1e-9))
  with pytest.raises(UserError, match='finds no patient'):
    write.prepare(_config(root, group=r'^(p\d+)'))
  with pytest.raises(UserError, match='with a group in it'):
    write.prepare(_config(root, group='^a'))
  with pytest.raises(UserError, match='at most 1'):
    write.prepare(_config(root, train=0.9, validation=0.3))
  with pytest.raises(UserError, match="Did you mean 'train'"):
    folder.shards(_config(root, trian=1), tmp_path)


def test_a_folder_of_broken_files_is_an_error(tmp_path):
  for i in range(5):
    _put(tmp_path / 'data/normal' / f'{i}.png', b'no')
  with pytest.raises(UserError, match='no images that can be read'):
    write.prepare(_config(tmp_path / 'data', train=1.0, validation=0.0))


def test_real_images(shared, tmp_path):
  root = shared('data/histology/camelyon16_patches')
  config = _config(root)
  config.dir = str(tmp_path)
  opened = records.open_records(write.prepare(config))
  assert len(opened) == 89 and opened.about['channels'] == 3
  assert len(opened.select("kind == 'tumor' and split == 'test'")) == 44


def _png(pixels: np.ndarray) -> bytes:
  return imagecodecs.png_encode(np.ascontiguousarray(pixels))


def _tiff(pixels: np.ndarray, **options) -> bytes:
  file = io.BytesIO()
  tifffile.imwrite(file, pixels, **options)
  return file.getvalue()
