import errno
import fcntl
import json
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxmed.datasets import crew, records, shards, write
from jaxmed.errors import UserError
from tests.datasets import pictures


@pytest.fixture(autouse=True)
def builder(monkeypatch):
  known = write.builder
  monkeypatch.setattr(
    write,
    'builder',
    lambda name: pictures if name == pictures.NAME else known(name),
  )


def _config(folder, **more) -> ConfigDict:
  config = {'name': 'pictures', 'dir': str(folder), 'options': {}}
  return ConfigDict(config | more)


def _content(directory: pathlib.Path) -> dict[str, bytes]:
  files = [path for path in directory.rglob('*') if path.is_file()]
  return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def test_it_is_an_ordinary_tfds_data_set(tmp_path):
  import tensorflow_datasets as tfds

  directory = write.prepare(_config(tmp_path))
  found = tfds.builder_from_directory(directory)
  skip = {'image': tfds.decode.SkipDecoding()}
  assert found.info.citation == 'None.'
  assert str(found.info.version) == '1.2.0'
  for split, numbers in {'train': (0, 2), 'test': (1,)}.items():
    source = found.as_data_source(split, decoders=skip)
    expected = [
      example
      for number in numbers
      for example in pictures.examples(number, {})
      if isinstance(example, dict)
    ]
    assert len(source) == len(expected)
    for got, wanted in zip(source, expected, strict=True):
      assert got['image'] == wanted['image']
      assert got['mask'] == wanted['mask']
      assert got['key'].decode() == wanted['key']
      assert got['label'] == wanted['label'] and got['width'] == 16
      assert np.isclose(got['tissue'], wanted['tissue'])


def test_the_index_describes_the_records_in_their_order(tmp_path):
  opened = records.open_records(write.prepare(_config(tmp_path, shards=4)))
  keys = [f'{shard}/{i}' for shard in (0, 2, 3, 1) for i in range(5)]
  assert opened.index['key'].to_pylist() == keys
  assert opened.index['row'].to_pylist() == list(range(20))
  assert [opened[i]['key'] for i in range(20)] == keys
  for row in (0, 7, 19):
    shard, i = map(int, keys[row].split('/'))
    assert opened[row]['image'] == pictures.jpeg(10 * shard + i)
  assert opened.select("split == 'test'").tolist() == list(range(15, 20))
  shuffled = [19, 3, 11, 3]
  assert [one.image for one in opened.read(shuffled)] == [
    opened[row]['image'] for row in shuffled
  ]


def test_slides_are_found_after_the_folder_got_its_name(tmp_path):
  opened = records.open_records(write.prepare(_config(tmp_path)))
  paths = opened.slides['path'].to_pylist()
  assert paths == [f'slides/slide{i}.tif' for i in range(3)]


def test_failures_are_listed_and_counted(tmp_path):
  directory = write.prepare(_config(tmp_path))
  (line,) = (directory / 'failures.jsonl').read_text().splitlines()
  failure = json.loads(line)
  assert failure['stage'] == 'prepare' and failure['x'] == 5
  assert records.open_records(directory).about['failures'] == 1


def test_a_prepared_data_set_is_returned_as_it_is(tmp_path):
  first = write.prepare(_config(tmp_path))
  before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
  assert write.prepare(_config(tmp_path)) == first
  assert {p: p.stat().st_mtime_ns for p in first.iterdir()} == before
  assert write.prepare(_config(tmp_path, shards=2)) != first


def test_a_shard_that_fails_costs_only_itself(tmp_path):
  whole = write.prepare(_config(tmp_path / 'whole'))
  trouble = tmp_path / 'trouble'
  trouble.write_text('the reader broke')
  config = _config(tmp_path / 'broken', trouble=str(trouble))
  with pytest.raises(OSError, match='the reader broke'):
    write.prepare(config)
  directory = write.location(config)
  unfinished = directory.with_name(f'{directory.name}.unfinished')
  assert not directory.exists()
  (first,) = unfinished.glob('*train.array_record-00000-of-00002')
  written = first.stat().st_mtime_ns
  assert not list(unfinished.glob('*train.array_record-00001-of-00002'))
  trouble.unlink()
  again = write.prepare(config)
  assert (again / first.name).stat().st_mtime_ns == written
  assert _content(again) == _content(whole)


@pytest.mark.parametrize('helpers', [False, True])
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(tmp_path, helpers):
  trouble = tmp_path / 'trouble'
  trouble.write_text('kill')
  config = _config(tmp_path / 'killed', trouble=str(trouble), shards=5)
  if helpers:  # A helper is killed here, not the process that it helps.
    trouble.with_suffix('.any').touch()  # Whichever shard it takes.
    code = f"""
crew.PATIENCE = 0
def wait(job, report):
  while not pathlib.Path({f'{trouble}.met'!r}).exists():
    time.sleep(0.05)
  time.sleep(0.5)
shards.write_shard = wait
"""
  else:
    code = 'crew.PATIENCE = 600'  # No helper takes it, however long it lasts.
  script = f"""
import pathlib, time
from ml_collections import ConfigDict
from jaxmed.datasets import crew, shards, write
from tests.datasets import pictures
write.builder = lambda name: pictures
{code}
write.prepare(ConfigDict({config.to_dict()!r}))
"""
  killed = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True
  )
  if helpers:
    assert killed.returncode == 1 and 'memory ran out' in killed.stderr
  else:
    assert killed.returncode == -9
  trouble.unlink()
  whole = write.prepare(_config(tmp_path / 'whole', shards=5))
  assert _content(write.prepare(config)) == _content(whole)


def test_helpers_write_the_same_bytes(tmp_path, monkeypatch):
  alone = write.prepare(_config(tmp_path / 'alone', shards=6))
  monkeypatch.setattr(crew, 'PATIENCE', 0.0)
  monkeypatch.setattr(crew, 'cores', lambda: 3)
  here, write_shard = [], shards.write_shard

  def slow(
    job, report
  ):  # So that helpers, who start slowly, get something to do.
    here.append(job)
    while not list(job.part.parent.iterdir()):
      time.sleep(0.05)
    return write_shard(job)

  monkeypatch.setattr(shards, 'write_shard', slow)
  together = write.prepare(_config(tmp_path / 'together', shards=6))
  assert len(here) < 6
  assert _content(together) == _content(alone)


def test_an_error_in_a_helper_is_raised_here():
  job = shards.Job(
    write.Shard('one', 'train', _raise_user_error), 'd', 0, 1, pathlib.Path('.')
  )
  with crew._Helper() as helper, pytest.raises(UserError, match='mend me'):
    helper.run(job, lambda count: None)


def _raise_user_error():
  raise UserError('mend me')


def test_a_second_preparation_waits_for_the_first(tmp_path):
  config = _config(tmp_path)
  directory = write.location(config)
  directory.parent.mkdir(parents=True)
  lock = directory.with_name(f'{directory.name}.lock')
  second = threading.Thread(target=write.prepare, args=(config,))
  with lock.open('w') as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    second.start()
    second.join(0.5)
    assert second.is_alive() and not directory.exists()
  second.join(60)
  assert directory.exists()


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(
    pictures, 'expected_bytes', lambda config: 10**18, raising=False
  )
  with pytest.raises(UserError, match='1000000000.00 GB.*data.dir'):
    write.prepare(_config(tmp_path))
  assert not list(tmp_path.rglob('*.array_record*'))


def test_a_disk_that_fills_up_is_one_sentence(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(shards, 'write_shard', full)
  with pytest.raises(UserError, match='is full. Make room'):
    write.prepare(_config(tmp_path))


def test_a_group_in_two_splits_is_refused(tmp_path):
  with pytest.raises(UserError, match="'same' is in the splits test and train"):
    write.prepare(_config(tmp_path, group='same'))


def test_a_key_that_is_there_twice_is_refused(tmp_path):
  with pytest.raises(UserError, match="first 'same'"):
    write.prepare(_config(tmp_path, key='same'))


def test_a_misspelt_data_set_is_answered_with_the_closest():
  with pytest.raises(UserError, match="Did you mean 'folder'"):
    write.builder('foldr')
  with pytest.raises(UserError, match='No data set'):
    write.builder('records')  # A module, but none that builds.


def test_where_it_is_prepared(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXMED_DATA', str(tmp_path / 'environment'))
  assert (tmp_path / 'environment') in write.location(_config('')).parents
  given = write.location(_config(tmp_path / 'given'))
  assert (tmp_path / 'given') in given.parents


def test_an_unfinished_folder_is_no_data_set(tmp_path):
  with pytest.raises(UserError, match='not a prepared data set'):
    records.open_records(tmp_path)


def test_tensorflow_is_never_imported(tmp_path):
  script = f"""
import sys
import jaxmed.datasets
assert 'tensorflow_datasets' not in sys.modules, 'import is not cheap'
assert 'jax' not in sys.modules, 'import is not cheap'
from ml_collections import ConfigDict
from jaxmed.datasets import records, write
from tests.datasets import pictures
write.builder = lambda name: pictures
assert 'tensorflow_datasets' not in sys.modules, 'import is not cheap'
directory = write.prepare(ConfigDict({_config(tmp_path).to_dict()!r}))
assert len(records.open_records(directory)[3]['image']) > 100
import tensorflow_datasets as tfds
skip = {{'image': tfds.decode.SkipDecoding()}}
found = tfds.builder_from_directory(directory)
assert len(found.as_data_source('test', decoders=skip)[0]['image']) > 100
assert 'tensorflow' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', script], check=True)


def test_threads_that_read_import_nothing(tmp_path):
  """Two that import TFDS at once were seen to wait for each other."""
  directory = write.prepare(_config(tmp_path))
  script = f"""
import sys
import threading
from concurrent import futures
from jaxmed.datasets import records
class Refuse:
  def find_spec(self, name, *_):
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere and name.split('.')[0] != 'numpy':
      raise AssertionError(f'a thread imports {{name}}')
opened = records.open_records({str(directory)!r})
sys.meta_path.insert(0, Refuse())
with futures.ThreadPoolExecutor(2) as threads:
  found = list(threads.map(opened.read, [[row] for row in range(4)]))
assert all(len(one.image) > 100 for [one] in found)
"""
  subprocess.run([sys.executable, '-c', script], check=True)
