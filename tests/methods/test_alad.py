import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxmed import methods
from jaxmed.configs import alad as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import alad as module
from jaxmed.methods.alad import Alad
from jaxmed.nn import spectral
from jaxmed.weights.names import from_foreign, to_foreign

SHAPE = 16, 16, 3
INFO = Info(image=SHAPE, batch=4, examples={'normal': 20})
DICE = np.random.default_rng(0)
X = DICE.uniform(-1, 1, (4, *SHAPE)).astype(np.float32)
Z = DICE.standard_normal((4, 4)).astype(np.float32)
VALID = np.ones(4, bool)
KEY = jax.random.key(3)


def _alad(image=SHAPE, preset='tiny', **model):
  config = configs.get_config(preset)
  config.model.update(model)
  return Alad(config.model, config.train, image)


def _trees(state):
  return {'params': state.params, 'batch_stats': state.batch_stats}


@pytest.fixture(scope='module')
def gan():
  return _alad()


@pytest.fixture(scope='module')
def state(gan):
  return jax.jit(gan.init)(jax.random.key(0), State())


@pytest.fixture(scope='module')
def steps(gan):
  return {
    'discriminator': jax.jit(gan.discriminator_step),
    'generator': jax.jit(gan.generator_step),
  }


def _sizes(**model):
  gan = _alad((32, 32, 3), 'paper', **model)
  state = jax.eval_shape(gan.init, KEY, State())
  return {
    name: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for part in state.params.values()
    for name, tree in part.items()
  }


def test_networks_have_the_originals_parameters():
  assert _sizes() == {
    'encoder': 3_449_572,
    'generator': 3_449_475,
    'xz': 11_859_329,
    'xx': 226_177,
    'zz': 14_977,
  }
  assert _sizes(joint='channels')['xx'] == 222_785


@pytest.mark.parametrize('side', [16, 64, 128])
def test_other_powers_of_two_give_images_of_their_size(side):
  gan = _alad((side, side, 1))
  state = jax.eval_shape(gan.init, KEY, State())
  x = jnp.zeros((2, side, side, 1))
  y, own = jax.eval_shape(lambda s: gan.scores(s.ema, s.batch_stats, x), state)
  assert y.shape == x.shape
  assert {value.shape for value in own.values()} == {(2,)}


@pytest.mark.parametrize('image', [(48, 48, 3), (32, 64, 1), (8, 8, 1)])
def test_other_sizes_are_refused(image):
  size = re.escape(f'{image[0]} x {image[1]}')
  with pytest.raises(UserError, match=f'{size}.*config.data.size'):
    _alad(image)


def test_other_models_are_refused():
  with pytest.raises(UserError, match="Did you mean 'height'"):
    _alad(joint='heigth')
  with pytest.raises(UserError, match='model.width is 6.*multiple of 4'):
    _alad(width=6)


def test_spectral_norm_is_of_all_layers_but_the_last_and_not_the_generators():
  gan = _alad((32, 32, 3))
  state = jax.eval_shape(gan.init, KEY, State())
  rows = {
    '/'.join(path[1:-1])
    for path in flatten_dict(state.batch_stats)
    if path[-1] == 'u'
  }
  assert rows == {
    *(f'encoder/conv_{i}' for i in (1, 2, 3)),
    *(f'xz/x_{i}' for i in (1, 2, 3)),
    *('xz/z_1', 'xz/z_2', 'xz/y_1'),
    *('xx/conv_1', 'xx/conv_2', 'zz/dense_1', 'zz/dense_2'),
  }
  plain = jax.eval_shape(_alad((32, 32, 3), spectral=False).init, KEY, State())
  assert not [p for p in flatten_dict(plain.batch_stats) if p[-1] == 'u']


def test_names_are_the_originals_both_ways():
  gan, config = _alad((32, 32, 3)), configs.get_config('tiny')
  table = module.names(config.model, (32, 32, 3))
  draw = lambda leaf: DICE.standard_normal(leaf.shape).astype(np.float32)
  state = jax.eval_shape(gan.init, KEY, State())
  trees = jax.tree.map(draw, _trees(state))
  foreign = to_foreign(table, trees)
  shapes = {name: array.shape for name, array in foreign.items()}
  encoder = 'encoder_model/encoder/layer_'
  assert shapes[f'{encoder}4/conv/kernel'] == (4, 4, 16, 4)
  assert shapes[f'{encoder}1/conv/u'] == (1, 4)
  assert shapes[f'{encoder}1/batch_normalization/moving_mean'] == (4,)
  assert f'{encoder}4/conv/u' not in shapes
  generator = 'generator_model/generator/layer_1/tconv1/'
  assert shapes[f'{generator}kernel'] == (4, 4, 16, 4)
  xx = 'discriminator_model_xx/discriminator_xx/layer_3/fc/kernel'
  assert shapes[xx] == (16 * 8 * 4, 1)
  averages = {f'{k}/ExponentialMovingAverage': v for k, v in foreign.items()}
  back = from_foreign(table, foreign | averages, trees)
  jax.tree.map(np.testing.assert_array_equal, back, trees)


@pytest.mark.slow
@pytest.mark.parametrize('part', module.PARTS)
def test_a_step_moves_its_part_and_its_average(state, steps, part):
  after, scalars = steps[part](state, X, Z, KEY, VALID)
  for field in ('params', 'batch_stats', 'ema', 'opt'):
    before, now = getattr(state, field), getattr(after, field)
    for other in before:
      same = jax.tree.map(np.array_equal, before[other], now[other])
      assert jax.tree.all(same) == (other != part), (field, other)
  for network, tree in after.params[part].items():
    same = jax.tree.map(np.array_equal, tree, state.params[part][network])
    assert not jax.tree.all(same), network
  jax.tree.map(  # The tiny preset's average is of both halves.
    lambda average, old, new: np.testing.assert_allclose(
      average, (old + new) / 2, rtol=1e-4, atol=1e-6
    ),
    after.ema[part],
    state.params[part],
    after.params[part],
  )
  terms = [v for k, v in scalars.items() if re.search('(real|fake)$', k)]
  assert len(terms) == 6
  np.testing.assert_allclose(scalars[f'{part}/loss'], sum(terms), rtol=1e-5)


def test_a_step_makes_one_power_iteration_of_its_own_rows(state, steps):
  after, _ = steps['generator'](state, X, Z, KEY, VALID)
  _, expected = spectral.normalise(
    state.params['generator'], state.batch_stats['generator']
  )
  rows = lambda tree: {
    path: leaf for path, leaf in flatten_dict(tree).items() if path[-1] == 'u'
  }
  ours, theirs = rows(after.batch_stats['generator']), rows(expected)
  assert len(ours) == 2
  for path, row in theirs.items():
    np.testing.assert_allclose(ours[path], row, rtol=1e-4, atol=1e-5)


def test_what_is_not_valid_is_left_out(state, steps):
  """The loud stranger in the last place changes nothing."""
  valid = np.array([True, True, True, False])
  other = X.copy()
  other[3] = np.sign(X[3])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  for part, step in steps.items():
    one, a = step(state, X, Z, KEY, valid)
    two, b = step(state, other, Z, KEY, valid)
    jax.tree.map(close, a, b)
    jax.tree.map(close, one.batch_stats, two.batch_stats)
    whole = step(state, other, Z, KEY, VALID)[1]
    assert abs(whole[f'{part}/loss'] - b[f'{part}/loss']) > 1e-6


def test_losses_of_the_pair_are_those_of_the_discriminators_flipped(gan):
  logits = {
    name: DICE.standard_normal(4).astype(np.float32)
    for name in (*module.LOGITS, *module.ZZ)
  }
  plain = gan.losses(logits, VALID)
  flipped = gan.losses({k: -v for k, v in logits.items()}, VALID, True)
  assert plain.keys() == logits.keys()
  for name, value in plain.items():
    np.testing.assert_allclose(value, flipped[name], rtol=1e-5)
    sign = 1 if name.endswith('fake') else -1
    expected = np.log1p(np.exp(sign * logits[name])).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
  without = _alad(cycle_z=False).losses(logits, VALID)
  assert set(plain) - set(without) == set(module.ZZ)


def test_scores_are_made_with_the_averages(gan, state):
  config = configs.get_config('tiny')
  config.score.names = ('features', 'logits', 'l1', 'l2')
  method = methods.build(config, INFO)
  (phase,) = method.phases
  assert (phase.batches, phase.steps) == (2, config.train.steps)
  batch = Batch((X + 1) / 2, np.arange(4), np.zeros(4, np.int32))
  other = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
  run = jax.jit(method.score)
  score = run(state, batch, KEY)
  jax.tree.map(np.testing.assert_array_equal, score, run(other, batch, KEY))

  @jax.jit
  def parts(state):
    call = gan.in_use(state.ema, state.batch_stats)
    y = call('generator', 'generator', call('generator', 'encoder', X))
    judge = lambda y: call('discriminator', 'xx', X, y)
    return y, judge(X)[1], *judge(y)

  y, same, logit, seen = (np.asarray(a) for a in parts(state))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
  close(score.image['features'], np.abs(same - seen).sum(axis=1))
  close(score.image['logits'], np.log1p(np.exp(-logit)))
  close(score.image['l1'], np.abs(X - y).mean(axis=(1, 2, 3)) / 2)
  close(score.panels['reconstruction'], (y + 1) / 2)
  sample = jax.jit(method.sample, static_argnums=2)(state, KEY, 3)
  assert sample.shape == (3, *SHAPE)
  assert 0 <= sample.min() < sample.max() <= 1


def test_bfloat16_keeps_parameters_and_losses_in_float32(state):
  config = configs.get_config('tiny')
  config.train.precision = 'bfloat16'
  gan = Alad(config.model, config.train, SHAPE)
  after, scalars = jax.eval_shape(gan.generator_step, state, X, Z, KEY, VALID)
  leaves = jax.tree.leaves((after.params, after.batch_stats, scalars))
  assert {leaf.dtype.name for leaf in leaves} == {'float32'}
  run = lambda state: gan.scores(state.ema, state.batch_stats, X)
  assert 'bf16' in str(jax.make_jaxpr(run)(state))
