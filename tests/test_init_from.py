"""Training that begins from other weights, on methods in miniature."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jaxmed import init_from
from jaxmed.errors import UserError
from jaxmed.init_from import InitError
from jaxmed.method import State
from jaxmed.training import loop, run, sharding
from jaxmed.training.run import Stopped
from jaxmed.weights import npz
from jaxmed.weights.names import TORCH, Table, to_foreign
from tests.training import miniature
from tests.training.miniature import CONFIG, INFO, adversaries, bank

TABLE = Table(TORCH, (('{part}.{leaf}', '{part}/params/{leaf}'),))
SHORT = types.SimpleNamespace(**vars(CONFIG) | {'steps': 3})


def wide(config, info):
  """A method whose generator is another one, and which lacks an encoder."""
  method = adversaries(config, info)
  first = method.phases[0]

  def init(rng, state):
    state = first.init(rng, state)
    tree = {'params': {'kernel': jnp.zeros((5, 64)), 'bias': jnp.zeros(64)}}
    return state.put(params={'generator': tree})

  phase = dataclasses.replace(first, init=init, steps=1)
  return dataclasses.replace(method, phases=(phase,))


def finish(folder):
  """A finished run, as far as `init_from` looks at it."""
  method = adversaries(SHORT, INFO)
  _, state = miniature.train(None, folder, method=method)
  (folder / 'config.json').write_text('{"method": "adversaries"}')
  ocp.save(folder / 'final', state.replace(opt={}, frozen={}))
  return jax.device_get(state)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp('source')
  return folder, finish(folder)


def begin(folder, source, parts=(), build=adversaries, devices=8):
  """A method and a state to train, and where the state is from."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  method = dataclasses.replace(build(SHORT, INFO), table=TABLE)
  place = sharding.place(mesh, method.sharding)
  config = ConfigDict({'init_from': str(source), 'init_parts': parts})
  method, given, facts = init_from.begin(method, State(), place, config, folder)
  return method, given, facts, place, mesh


def train(folder, source, stop=lambda at: False):
  """What a run has learned in the end, and where it says to be from."""
  method, given, facts, place, mesh = begin(folder, source)
  plans, open_cohorts = loop.plan(method, place, given), miniature.opener(mesh)
  _, state, _ = run.run(
    method, open_cohorts, plans, 0, folder, given, INFO.batch, stop=stop
  )
  return jax.device_get(state), facts


def first_state(*args, **options):
  """What training would begin with, of all phases."""
  method, state, facts, *_ = begin(*args, **options)
  for phase in method.phases:
    state = phase.init(jax.random.key(7), state)
  return state, facts


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_phase_begins_with_the_other_runs_weights(source, tmp_path):
  folder, state = source
  ours, facts = first_state(tmp_path, folder)
  _equal(ours.params, state.params)
  assert set(ours.params) == {'generator', 'critic', 'encoder'}
  zero = lambda x: not np.any(x)
  assert all(map(zero, jax.tree.leaves(ours.opt)))  # Momentum begins anew.
  assert facts == {
    'run': str(folder),
    'method': 'adversaries',
    'parts': ['critic', 'encoder', 'generator'],
  }


def test_named_parts_alone_are_taken(source, tmp_path):
  folder, state = source
  ours, facts = first_state(tmp_path, folder, ('generator',))
  fresh, _ = first_state(tmp_path, '')
  _equal(ours.params['generator'], state.params['generator'])
  _equal(ours.params['critic'], fresh.params['critic'])
  assert facts['parts'] == ['generator']


def test_a_run_that_goes_on_does_not_read_them_again(source, tmp_path):
  """Not even those of a part that only a later phase makes."""
  folder, _ = source
  whole, facts = train(tmp_path / 'whole', folder)
  assert facts
  with pytest.raises(Stopped):
    train(tmp_path / 'stopped', folder, lambda at: at.event == 2)
  resumed, facts = train(tmp_path / 'stopped', tmp_path / 'gone')
  _equal(resumed, whole)
  assert facts is None
  with pytest.raises(UserError, match='gone, which is not there'):
    train(tmp_path / 'new', tmp_path / 'gone')


def test_one_device_begins_with_what_eight_have_learned(source, tmp_path):
  folder, state = source
  ours, _ = first_state(tmp_path, folder, devices=1)
  _equal(ours.params, state.params)
  leaves = jax.tree.leaves(ours.params)
  assert all(leaf.sharding.num_devices == 1 for leaf in leaves)


def test_what_differs_is_listed_from_both_sides(source, tmp_path):
  folder, state = source
  with pytest.raises(InitError, match='does not fit') as caught:
    first_state(tmp_path, folder, build=wide)
  kernel = 'params/generator/params/kernel'
  assert f'{kernel} (4, 64)' in caught.value.unused
  assert any('encoder' in name for name in caught.value.unused)
  assert caught.value.missing == (f'{kernel} (5, 64)',)
  hint = '--config.train.init_parts="(\'critic\',)"'
  assert hint in str(caught.value)
  ours, _ = first_state(tmp_path, folder, ('critic',), wide)
  _equal(ours.params['critic'], state.params['critic'])
  with pytest.raises(InitError, match='Give another run') as caught:
    first_state(tmp_path, folder, ('generator',), wide)
  assert caught.value.missing == (f'{kernel} (5, 64)',)


def test_an_average_of_weights_begins_where_they_do(source, tmp_path):
  def averaged(config, info):
    method = adversaries(config, info)
    first = method.phases[0]

    def init(rng, state):
      state = first.init(rng, state)
      return state.put(ema={'generator': state.params['generator']})

    phases = dataclasses.replace(first, init=init), *method.phases[1:]
    return dataclasses.replace(method, phases=phases)

  folder, state = source
  ours, _ = first_state(tmp_path, folder, build=averaged)
  _equal(ours.ema['generator'], state.params['generator'])


def test_a_checkpoint_in_the_originals_names_will_do(source, tmp_path):
  _, state = source
  arrays = to_foreign(TABLE, {'params': state.params})
  npz.write(tmp_path / 'all.npz', arrays)
  ours, facts = first_state(tmp_path, tmp_path / 'all.npz')
  _equal(ours.params, state.params)
  assert facts['file'] == str(tmp_path / 'all.npz') and facts['sha256']
  ours, facts = first_state(tmp_path, tmp_path / 'all.npz', ('critic',))
  _equal(ours.params['critic'], state.params['critic'])
  assert facts['parts'] == ['critic']
  npz.write(tmp_path / 'more.npz', arrays | {'critic.odd': np.ones(2)})
  with pytest.raises(UserError, match='critic.odd'):
    first_state(tmp_path, tmp_path / 'more.npz', ('critic',))
  wrapped = {f'state_dict.{name}': array for name, array in arrays.items()}
  npz.write(tmp_path / 'kept.npz', wrapped)
  ours, _ = first_state(tmp_path, tmp_path / 'kept.npz')
  _equal(ours.params, state.params)
  del arrays['encoder.weight']
  npz.write(tmp_path / 'some.npz', arrays)
  with pytest.raises(UserError, match='encoder/params/kernel'):
    first_state(tmp_path, tmp_path / 'some.npz')


def test_what_cannot_be_is_said(source, tmp_path):
  folder, _ = source
  with pytest.raises(UserError, match="Did you mean 'critic'"):
    first_state(tmp_path, folder, ('critik',))
  with pytest.raises(UserError, match='learns no weights'):
    first_state(tmp_path, folder, build=bank)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='not the folder of a run'):
    first_state(tmp_path, tmp_path / 'empty')
  (tmp_path / 'empty/config.json').write_text('{"method": "x"}')
  with pytest.raises(UserError, match='no final weights'):
    first_state(tmp_path, tmp_path / 'empty')
