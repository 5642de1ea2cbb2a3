import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed import methods
from jaxmed.configs import fanogan as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods.fanogan import TABLE, Fanogan
from jaxmed.nn.fanogan import Encoder
from jaxmed.weights.names import from_foreign, to_foreign

INFO = Info(image=(16, 16, 3), batch=4, examples={'normal': 20})
DICE = np.random.default_rng(0)
X = DICE.uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
Z = DICE.standard_normal((4, 4)).astype(np.float32)
ALPHA = DICE.uniform(0, 1, 4).astype(np.float32)
VALID = np.ones(4, bool)


def _config():
  config = configs.get_config('tiny')
  config.train.batch = 4
  return config


@pytest.fixture(scope='module')
def gan():
  return Fanogan(_config().model, _config().train, INFO.image)


@pytest.fixture(scope='module')
def states(gan):
  """At the beginning of each phase."""
  wgan = jax.jit(gan.init_wgan)(jax.random.key(0), State())
  return wgan, jax.jit(gan.init_encoder)(jax.random.key(1), wgan)


@pytest.fixture(scope='module')
def critic_step(gan):
  return jax.jit(gan.critic_step)


def _sizes(config, image):
  gan = Fanogan(config.model, config.train, image)
  state = jax.eval_shape(
    lambda key: gan.init_encoder(key, gan.init_wgan(key, State())),
    jax.random.key(0),
  )
  return {
    part: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for part, tree in state.params.items()
  }


def test_the_papers_networks_have_the_originals_parameters():
  config = configs.get_config('paper')
  gray, rgb = (_sizes(config, (64, 64, channels)) for channels in (1, 3))
  assert gray == {
    'generator': 8_539_329,
    'critic': 7_490_689,
    'encoder': 8_531_200,
  }
  assert rgb == {
    'generator': 8_540_483,
    'critic': 7_491_841,
    'encoder': 8_532_352,
  }


@pytest.mark.parametrize('side', [16, 32, 128])
def test_other_powers_of_two_give_images_of_their_size(side):
  config = _config()
  gan = Fanogan(config.model, config.train, (side, side, 1))
  state = jax.eval_shape(gan.init_wgan, jax.random.key(0), State())
  fake = jax.eval_shape(gan.generate, state, jnp.zeros((2, 4)))
  assert fake.shape == (2, side, side, 1)


@pytest.mark.parametrize('image', [(48, 48, 3), (32, 64, 1), (8, 8, 1)])
def test_other_sizes_are_refused(image):
  size = re.escape(f'{image[0]} x {image[1]}')
  with pytest.raises(UserError, match=f'{size}.*config.data.size'):
    Fanogan(_config().model, _config().train, image)


def test_first_weights_have_the_originals_spread():
  config = configs.get_config('paper')
  gan = Fanogan(config.model, config.train, (16, 16, 1))
  params = jax.jit(gan.critic.init)(
    jax.random.key(0), jnp.zeros((1, 16, 16, 1))
  )
  params = params['params']
  bound = lambda tree: float(np.abs(tree['kernel']).max())
  block = params['Res2']
  # Uniform in sqrt(3 var); var 4 / (in + out), 2 / (in + out) of shortcuts.
  assert bound(block['Conv1']) == pytest.approx(
    np.sqrt(3 * 4 / (9 * 128 + 9 * 128)), rel=1e-3
  )
  assert bound(block['Conv2']) == pytest.approx(
    np.sqrt(3 * 4 / (9 * 128 + 9 * 256)), rel=1e-3
  )
  assert bound(block['Shortcut']) == pytest.approx(
    np.sqrt(3 * 2 / (128 + 256)), rel=1e-2
  )
  assert bound(params['Input']) == pytest.approx(
    np.sqrt(3 * 2 / (9 * 1 + 9 * 64)), rel=1e-2
  )
  assert 'bias' not in block['Conv1'] and not block['Conv2']['bias'].any()


def test_slopes_are_the_length_of_the_critics_gradient(gan, states):
  params = states[0].params['critic']
  fake = jnp.tanh(X[::-1])
  slopes = jax.jit(gan.slopes)(params, X, fake, ALPHA)
  between = X + ALPHA[:, None, None, None] * (fake - X)
  value = jax.jit(lambda x: gan.judge(params, x)[0])
  direction = jax.grad(lambda x: value(x).sum())(between)
  direction /= slopes[:, None, None, None]
  # Along its own direction each image's value climbs by its slope.
  rise = value(between + 1e-2 * direction) - value(between - 1e-2 * direction)
  np.testing.assert_allclose(rise / 2e-2, slopes, rtol=2e-2)


def test_a_critic_step_moves_the_critic_alone(states, critic_step):
  state = states[0]
  after, scalars = critic_step(state, X, Z, ALPHA, VALID)
  assert jax.tree.all(
    jax.tree.map(np.array_equal, after.batch_stats, state.batch_stats)
  )
  for part, moves in (('critic', True), ('generator', False)):
    same = jax.tree.map(np.array_equal, after.params[part], state.params[part])
    assert jax.tree.all(same) != moves
  # Biases that move real and fake alike have no gradient, not its rounding.
  for path in (('Output',), ('Res2', 'Conv2'), ('Res2', 'Shortcut')):
    moments = after.opt['critic'].square
    for step in path:
      moments = moments[step]
    assert not np.asarray(moments['bias']).any(), path
  loss = -scalars['critic/gap'] + 10 * scalars['critic/penalty']
  np.testing.assert_allclose(scalars['critic/loss'], loss, rtol=1e-5)


def test_critic_and_encoder_steps_leave_out_what_is_not_valid(
  gan, states, critic_step
):
  """The loud stranger in the last place changes nothing."""
  valid = np.array([True, True, True, False])
  other = X.copy()
  other[3] = np.sign(X[3])
  encoder_step = jax.jit(gan.encoder_step)
  runs = [
    (
      critic_step(states[0], x, Z, ALPHA, valid)[1],
      *encoder_step(states[1], x, valid),
    )
    for x in (X, other)
  ]
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, *(run[0] for run in runs))
  jax.tree.map(close, *(run[2] for run in runs))
  one, two = (run[1].batch_stats['encoder'] for run in runs)
  jax.tree.map(close, one, two)
  whole = encoder_step(states[1], other, VALID)[1]
  assert abs(whole['encoder/loss'] - runs[1][2]['encoder/loss']) > 1e-3


def test_a_generator_step_moves_its_averages_by_a_hundredth(gan, states):
  state = states[0]
  after, _ = jax.jit(gan.generator_step)(state, Z)
  same = jax.tree.map(
    np.array_equal, after.params['critic'], state.params['critic']
  )
  assert jax.tree.all(same)
  head = state.params['generator']['Input']
  x = Z @ np.asarray(head['kernel']) + np.asarray(head['bias'])
  x = x.reshape(4, -1, 4, 4)  # Channels first, as the original folds.
  moved = after.batch_stats['generator']['Res1']['BN1']
  np.testing.assert_allclose(
    moved['mean'], 0.01 * x.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(  # The biased variance.
    moved['var'], 0.99 + 0.01 * x.var(axis=(0, 2, 3)), rtol=1e-5
  )


def test_the_encoder_phase_moves_the_encoder_alone(gan, states):
  state = states[1]
  assert list(state.opt) == ['encoder']
  after, scalars = jax.jit(gan.encoder_step)(state, X, VALID)
  for field in ('params', 'batch_stats'):
    before, now = getattr(state, field), getattr(after, field)
    for part in before:
      same = jax.tree.map(np.array_equal, before[part], now[part])
      assert jax.tree.all(same) == (part != 'encoder'), (field, part)
  total = scalars['encoder/image'] + scalars['encoder/features']
  np.testing.assert_allclose(scalars['encoder/loss'], total, rtol=1e-5)


def test_phases_take_their_batches_and_the_score_has_its_names():
  config = _config()
  method = methods.build(config, INFO)
  wgan, encoder = method.phases
  assert (wgan.name, wgan.batches, wgan.steps) == ('wgan', 2, 6)
  assert (encoder.name, encoder.batches, encoder.steps) == ('encoder', 1, 6)
  image = DICE.integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
  row = np.arange(8, dtype=np.int32).reshape(2, 4)
  many = Batch(image, row, np.zeros((2, 4), np.int32))
  one = jax.tree.map(lambda x: x[0], many)
  key = jax.random.key(0)
  shape = jax.eval_shape

  state = shape(wgan.init, key, State())
  state, scalars = shape(wgan.step, state, {'normal': many}, key)
  assert {'critic/loss', 'critic/penalty', 'generator/loss'} <= set(scalars)
  state = shape(encoder.init, key, state)
  state, _ = shape(encoder.step, state, {'normal': one}, key)
  score = shape(method.score, state, one, key)
  assert set(score.image) == set(config.score.names)
  assert score.pixel['residual'].shape == (4, 16, 16)
  assert score.panels['reconstruction'].shape == (4, 16, 16, 3)
  count = lambda state: method.sample(state, key, 5)
  assert shape(count, state).shape == (5, 16, 16, 3)


def test_a_critic_that_learns_once_a_step_draws_one_batch():
  config = _config()
  config.train.critics = 1
  wgan = methods.build(config, INFO).phases[0]
  assert wgan.batches == 1
  batch = Batch((X + 1) / 2, np.arange(4), np.zeros(4, np.int32))
  key = jax.random.key(0)
  state = jax.eval_shape(wgan.init, key, State())
  _, scalars = jax.eval_shape(wgan.step, state, {'normal': batch}, key)
  assert {'critic/loss', 'generator/loss'} <= set(scalars)


def test_izi_f_is_the_sum_of_its_terms_and_samples_are_in_range(states):
  config = _config()
  config.score.names = ('izi_f', 'izi', 'features', 'residual', 'l2')
  config.model.kappa = 0.5
  method = methods.build(config, INFO)
  unit = (X + 1) / 2
  batch = Batch(unit, np.arange(4), np.zeros(4, np.int32))
  score = jax.jit(method.score)(states[1], batch, jax.random.key(0))
  image = {k: np.asarray(v) for k, v in score.image.items()}
  np.testing.assert_allclose(
    image['izi_f'], image['izi'] + 0.5 * image['features'], rtol=1e-5
  )
  # In [-1, 1] an error is twice that in [0, 1].
  np.testing.assert_allclose(image['izi'], 4 * image['l2'], rtol=1e-4)
  np.testing.assert_allclose(
    image['residual'], score.pixel['residual'].mean((1, 2)), rtol=1e-5
  )
  sample = jax.jit(method.sample, static_argnums=2)(
    states[1], jax.random.key(0), 3
  )
  assert 0 <= sample.min() < sample.max() <= 1


def test_an_unknown_score_is_refused():
  config = _config()
  config.score.names = ('izif',)
  with pytest.raises(UserError, match="Did you mean 'izi'|'izi_f'"):
    methods.build(config, INFO)


def test_codes_end_in_tanh_unless_told(states):
  variables = {
    'params': states[1].params['encoder'],
    'batch_stats': states[1].batch_stats['encoder'],
  }
  widths = (2, 4, 8)
  linear = Encoder(widths, 4, tanh=False).apply(variables, X)
  bounded = Encoder(widths, 4).apply(variables, X)
  np.testing.assert_allclose(np.tanh(linear), bounded, rtol=1e-6)


def test_names_are_the_originals_both_ways(states):
  trees = {'params': states[1].params, 'batch_stats': states[1].batch_stats}
  foreign = to_foreign(TABLE, trees)
  assert 'Generator/Generator.Res1.BN1/moving_variance' in foreign
  assert 'Discriminator/Discriminator.Res2.BN1.offset' in foreign
  assert foreign['Encoder/Encoder.Output/Encoder.Output.W'].shape == (128, 4)
  back = from_foreign(TABLE, foreign, trees)
  jax.tree.map(np.testing.assert_array_equal, back, trees)


def test_bfloat16_keeps_parameters_and_losses_in_float32(states):
  config = _config()
  config.train.precision = 'bfloat16'
  gan = Fanogan(config.model, config.train, INFO.image)
  after, scalars = jax.eval_shape(
    gan.critic_step, states[0], X, Z, ALPHA, VALID
  )
  leaves = jax.tree.leaves((after.params, after.batch_stats, scalars))
  assert {leaf.dtype.name for leaf in leaves} == {'float32'}
  judged = jax.make_jaxpr(gan.judge)(states[0].params['critic'], X)
  assert 'bf16' in str(judged)
