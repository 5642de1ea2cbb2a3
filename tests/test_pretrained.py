"""Pretrained parts: from the store, from a file, or random if asked for."""

import hashlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxmed import pretrained
from jaxmed.errors import UserError
from jaxmed.method import Info
from jaxmed.nn.trunk import trunk
from jaxmed.pretrained import FitError
from jaxmed.weights import npz, store
from jaxmed.weights.names import to_foreign

INFO = Info((32, 32, 3), 4, {})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXMED_WEIGHTS', str(tmp_path / 'store'))
  return tmp_path / 'store'


def model(**fields):
  given = {'trunk': 'small', 'weights': 'imagenet', 'weights_seed': 3}
  return ConfigDict(given | fields)


def checkpoint(classes: int = 10) -> dict[str, np.ndarray]:
  """Of the network `small`, in PyTorch's names, with a classifier."""
  network = trunk('small', classes=classes)
  image = np.zeros((1, 32, 32, 3), np.float32)
  variables = network.init(jax.random.key(1), image)
  return to_foreign(network.table(), variables)


def kept(name: str, network: str = 'small', **arrays) -> store.Facts:
  facts = store.Facts(name, network, 'https://x/y', 'ab' * 32, 'MIT')
  return store.save(facts, checkpoint() | arrays)


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_stored_weights_give_the_features_that_they_gave_before():
  kept('small')
  variables, facts = pretrained.load('trunk', model(), INFO)
  assert facts == {
    'network': 'small',
    'weights': 'imagenet',
    'source': 'https://x/y',
    'sha256': 'ab' * 32,
    'licence': 'MIT',
    'verified': '',
  }
  x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
  whole = trunk('small', classes=10)
  theirs = whole.apply(whole.init(jax.random.key(1), x), x)
  ours = trunk('small').apply(variables, x)
  for stage, features in ours.items():
    np.testing.assert_array_equal(features, theirs[stage])


def test_a_stored_name_or_a_file_is_taken_as_well(tmp_path):
  kept('mine')
  npz.write(tmp_path / 'file.npz', checkpoint(classes=3))
  named, facts = pretrained.load('trunk', model(weights='mine'), INFO)
  assert (facts['weights'], facts['sha256']) == ('mine', 'ab' * 32)
  path = tmp_path / 'file.npz'
  filed, facts = pretrained.load('trunk', model(weights=str(path)), INFO)
  assert facts['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
  assert facts['source'] == str(path)
  _equal(named, filed)
  # A field of the part's own goes before that of all.
  fields = {'weights': 'random', 'trunk_weights': 'mine'}
  own, facts = pretrained.load('trunk', model(**fields), INFO)
  assert facts['weights'] == 'mine'
  _equal(own, named)


def test_random_ones_depend_on_their_seed_alone():
  load = lambda **fields: pretrained.load(
    'trunk', model(weights='random', **fields), INFO
  )
  one, facts = load()
  assert facts == {'network': 'small', 'weights': 'random', 'seed': 3}
  _equal(one, load()[0])
  other, _ = load(weights_seed=4)
  assert np.any(
    one['params']['stage1_0']['kernel'] != other['params']['stage1_0']['kernel']
  )


def test_a_network_is_built_as_deep_as_it_is_looked_at():
  kept('small')
  whole, _ = pretrained.load('trunk', model(), INFO)
  fields = model(layers=('stage1', 'stage2'))
  some, _ = pretrained.load('trunk', fields, INFO)
  names = lambda variables: {n.partition('_')[0] for n in variables['params']}
  assert names(whole) == {'stage1', 'stage2', 'stage3'}
  assert names(some) == {'stage1', 'stage2'}
  _equal(some, {'params': {k: whole['params'][k] for k in some['params']}})
  # Numbers of other things may be called so, too.
  other = pretrained.shapes('trunk', model(layers=4), INFO)
  assert names(other) == names(whole)


@pytest.mark.parametrize('weights', ['imagenet', 'random'])
@pytest.mark.parametrize('fields', [{}, {'layers': ('stage1',)}])
def test_shapes_are_known_before_anything_is_read(weights, fields):
  fields = model(weights=weights, **fields)
  abstract = pretrained.shapes('trunk', fields, INFO)
  kept('small')
  loaded, _ = pretrained.load('trunk', fields, INFO)
  shape = lambda x: (x.shape, np.dtype(x.dtype))
  assert jax.tree.map(shape, abstract) == jax.tree.map(shape, loaded)


def test_lpips_gets_its_trunk_from_a_file_and_has_its_heads(shared):
  path = shared('data/weights/squeezenet1_1.npz')
  fields = ConfigDict({'lpips': 'squeeze', 'lpips_weights': str(path)})
  abstract = pretrained.shapes('lpips', fields, INFO)
  variables, facts = pretrained.load('lpips', fields, INFO)
  assert facts['network'] == 'squeezenet1_1'
  assert len([k for k in variables['params'] if k.startswith('head_')]) == 7
  assert jax.tree.structure(variables) == jax.tree.structure(abstract)
  # And gives it back by PyTorch's names, to the bit.
  ours = pretrained.foreign('lpips', fields, INFO)
  with np.load(path) as theirs:
    assert set(ours) == {n for n in theirs if not n.startswith('classifier')}
    for name, array in ours.items():
      np.testing.assert_array_equal(array, theirs[name].astype(np.float32))


def test_missing_weights_say_how_to_get_them():
  fields = model(trunk='resnet18')
  with pytest.raises(UserError) as caught:
    pretrained.load('trunk', fields, INFO)
  said = str(caught.value)
  assert 'jaxmed weights fetch resnet18 ' in said
  assert 'jaxmed weights import resnet18-f37072fd.pth --name resnet18 ' in said
  assert '--config.model.weights=random' in said
  fields = model(trunk='resnet18', weights='random', trunk_weights='imagenet')
  with pytest.raises(UserError, match='--config.model.trunk_weights=random'):
    pretrained.load('trunk', fields, INFO)
  with pytest.raises(UserError) as caught:
    pretrained.load('trunk', model(trunk='resnet50v2'), INFO)
  assert 'import FILE --name resnet50v2' in str(caught.value)
  assert 'fetch' not in str(caught.value)
  with pytest.raises(UserError, match='no public weights of small'):
    pretrained.load('trunk', model(), INFO)


def test_what_is_nowhere_is_said_with_what_there_is(tmp_path):
  kept('mine')
  with pytest.raises(UserError, match='gone.pth.*it has: mine'):
    pretrained.load('trunk', model(weights=str(tmp_path / 'gone.pth')), INFO)
  (tmp_path / 'broken.pth').write_bytes(b'PK\3\4 and no more')
  with pytest.raises(UserError, match='broken.pth'):
    pretrained.load('trunk', model(weights=str(tmp_path / 'broken.pth')), INFO)


def test_weights_of_another_network_are_not_taken():
  kept('mine', network='resnet18')
  with pytest.raises(UserError, match='are of resnet18, and the network is sm'):
    pretrained.load('trunk', model(weights='mine'), INFO)


def test_mismatches_are_listed_by_name_and_shape():
  arrays = checkpoint()
  arrays['stage1_0.bias'] = np.zeros(7, np.float32)
  arrays['stage9.weight'] = arrays.pop('stage2_0.weight')
  with pytest.raises(FitError, match='a.pth does not fit small') as caught:
    pretrained.fit('small', arrays, 'a.pth')
  said = str(caught.value)
  assert '1 of its arrays have no place: stage9.weight (64, 32, 3, 3)' in said
  assert 'not in it: stage2_0/kernel (3, 3, 32, 64)' in said
  assert '1 have other shapes: stage1_0.bias: (7,)' in said


@pytest.mark.parametrize('classes', [1, 2, 1000])
def test_a_classifier_may_be_of_any_classes_or_missing(classes):
  arrays = checkpoint(classes)
  assert set(pretrained.fit('small', arrays, '')) == set(arrays)
  arrays['head.weight'] = arrays['head.weight'][:, 1:]
  with pytest.raises(FitError, match='head.weight'):
    pretrained.fit('small', arrays, '')
  bare = {n: x for n, x in arrays.items() if not n.startswith('head.')}
  assert set(pretrained.fit('small', bare, '')) == set(bare)


def test_many_gpus_leave_a_prefix():
  arrays = checkpoint()
  wrapped = {f'module.{name}': array for name, array in arrays.items()}
  _equal(pretrained.fit('small', wrapped, ''), arrays)
  assert pretrained.fitting(wrapped) == ['small']


def test_another_hash_than_in_training_is_refused():
  then = [{'part': 'trunk', 'sha256': 'ab' * 32}, {'part': 'x'}]
  pretrained.check_same(then, [{'part': 'trunk', 'sha256': 'ab' * 32}])
  pretrained.check_same([], [{'part': 'trunk', 'sha256': 'ab' * 32}])
  with pytest.raises(UserError, match='trunk of this run had other weights'):
    pretrained.check_same(then, [{'part': 'trunk', 'sha256': 'cd' * 32}])
