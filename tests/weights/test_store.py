"""Weights stored on this machine: whole, dated, and looked at when read."""

import dataclasses
import hashlib

import ml_dtypes
import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.weights import fetch, npz, registry, safetensors, store
from jaxmed.weights.source import WeightsError
from jaxmed.weights.store import Facts, StoreError
from tests.weights import publisher, test_checkpoint

FACTS = Facts('toy', 'small', 'https://x/y.pth', 'ab' * 32, 'MIT', 'Nobody')


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXMED_WEIGHTS', str(tmp_path / 'store'))
  return tmp_path / 'store'


def arrays():
  rng = np.random.default_rng(0)
  return {
    'b.weight': rng.standard_normal((3, 4)).astype(np.float32),
    'a.weight': rng.standard_normal((3, 4)).astype(np.float16),
    'c': rng.standard_normal(5).astype(ml_dtypes.bfloat16),
    'count': np.int64(7),
  }


def test_arrays_come_back_with_what_is_known_of_them(folder):
  given = arrays()
  facts = store.save(FACTS, given)
  found, known = store.load('toy')
  assert known == facts
  assert dataclasses.replace(known, digest='') == FACTS
  assert set(found) == set(given)
  for name, array in given.items():
    np.testing.assert_array_equal(found[name], array)
  assert found['a.weight'].dtype == found['c'].dtype == np.float32
  assert found['count'].dtype == np.int64
  assert [p.name for p in folder.iterdir()] == ['toy.safetensors']
  assert store.names() == ['toy'] and store.has('toy')


def test_the_folder_is_that_of_the_environment(monkeypatch, tmp_path):
  monkeypatch.delenv('JAXMED_WEIGHTS')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert store.folder() == tmp_path / '.cache/jaxmed/weights'
  monkeypatch.setenv('JAXMED_WEIGHTS', '~/mine')
  assert store.folder() == tmp_path / 'mine'


def test_any_other_number_is_noticed(folder):
  store.save(FACTS, arrays())
  path = folder / 'toy.safetensors'
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(StoreError, match='is damaged'):
    store.load('toy')


@pytest.mark.parametrize('keep', [0, 5, 300])
def test_a_file_that_was_cut_is_named(folder, keep):
  store.save(FACTS, arrays())
  path = folder / 'toy.safetensors'
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(WeightsError, match='toy.safetensors'):
    store.load('toy')


def test_names_types_and_shapes_count_too():
  given = arrays()
  digests = {
    store.digest(given),
    store.digest(given | {'count': np.int32(7)}),
    store.digest(given | {'b.weight': given['b.weight'].T}),
    store.digest(given | {'b.weight': given['b.weight'].reshape(4, 3)}),
    store.digest({k.upper(): v for k, v in given.items()}),
  }
  assert len(digests) == 5
  again = dict(reversed(given.items()))
  assert store.digest(again) == store.digest(given)


def test_a_file_of_somebody_else_is_not_taken(folder):
  folder.mkdir()
  plain = {'a': np.zeros(3, np.float32)}
  safetensors.write(folder / 'foreign.safetensors', plain)
  with pytest.raises(StoreError, match='import FILE --name foreign'):
    store.load('foreign')


def test_nothing_is_left_of_what_cannot_be_written(folder):
  store.save(FACTS, arrays())
  before = (folder / 'toy.safetensors').read_bytes()
  with pytest.raises(UserError):
    store.save(FACTS, arrays() | {'text': np.array(['no number'])})
  assert [p.name for p in folder.iterdir()] == ['toy.safetensors']
  assert (folder / 'toy.safetensors').read_bytes() == before


@pytest.mark.parametrize(
  'name',
  ['', '../x', 'a/b', '.x', '-x', 'a b', 'random', 'imagenet', 'x' * 300],
)
def test_names_that_would_lead_elsewhere_are_refused(name):
  with pytest.raises(StoreError, match='cannot be a name'):
    store.save(dataclasses.replace(FACTS, name=name), arrays())
  assert not store.has(name)


def test_an_unknown_name_gets_the_nearest():
  store.save(FACTS, arrays())
  with pytest.raises(UserError, match="Did you mean 'toy'"):
    store.load('toi')


def test_a_checkpoint_of_tensorflow_is_kept_by_any_of_its_names(tmp_path):
  index = test_checkpoint.write(tmp_path, {'w': np.ones(3, np.float32)})
  kept = [
    fetch.keep(path, 'mine', 'small', dict).sha256
    for path in (tmp_path / 'model.ckpt', index)
  ]
  assert kept[0] == kept[1] == store.sha256_of(index)
  np.testing.assert_array_equal(store.load('mine')[0]['w'], np.ones(3))


def test_a_file_is_kept_with_its_hash_and_what_is_published(
  tmp_path, monkeypatch
):
  given = publisher.toy(tmp_path / 'toy.npz')
  sha256 = hashlib.sha256((tmp_path / 'toy.npz').read_bytes()).hexdigest()
  facts = fetch.keep(tmp_path / 'toy.npz', 'mine', 'small', dict)
  assert (facts.sha256, facts.network) == (sha256, 'small')
  assert facts.source == str(tmp_path / 'toy.npz')
  assert (facts.verified, facts.licence) == ('names and shapes', '')
  assert set(store.load('mine')[0]) == set(given)
  # The same file under the name of what it is published as.
  entry = registry.Entry(
    'toy', 'small', 'https://x/toy.npz', sha256, 1, 'MIT', 'Nobody'
  )
  monkeypatch.setitem(registry.REGISTRY, 'toy', entry)
  facts = fetch.keep(tmp_path / 'toy.npz', 'toy', 'small')
  assert (facts.verified, facts.source) == ('SHA-256', entry.url)
  assert facts.licence == 'MIT'
  # And another one under that name.
  npz.write(tmp_path / 'other.npz', {'a': np.zeros(3, np.float32)})
  facts = fetch.keep(tmp_path / 'other.npz', 'toy', 'small', dict)
  assert facts.verified == 'names and shapes'
  assert facts.source == str(tmp_path / 'other.npz')
  assert not facts.licence  # Nobody knows.
  said = fetch.keep(tmp_path / 'other.npz', 'toy', '', None, 'a DVD', 'CC0')
  assert (said.source, said.licence, said.verified) == ('a DVD', 'CC0', '')
