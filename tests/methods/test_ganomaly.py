import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed import methods
from jaxmed.configs import ganomaly as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods.ganomaly import TABLE, Ganomaly, distances
from jaxmed.nn.ganomaly import Encoder
from jaxmed.weights.names import from_foreign, to_foreign

INFO = Info(image=(16, 16, 3), batch=4, examples={'normal': 20})
DICE = np.random.default_rng(0)
X = DICE.uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
VALID = np.ones(4, bool)
KEY = jax.random.key(3)


def _gan(image=INFO.image, preset='tiny', **model):
  config = configs.get_config(preset)
  config.model.update(model)
  return Ganomaly(config.model, config.train, image)


@pytest.fixture(scope='module')
def gan():
  return _gan()


@pytest.fixture(scope='module')
def state(gan):
  return jax.jit(gan.init)(jax.random.key(0), State())


@pytest.fixture(scope='module')
def step(gan):
  return jax.jit(gan.step)


@pytest.mark.parametrize(
  'side, generator, discriminator',
  [
    (32, 3_206_528, 663_296),
    (64, 10_729_856, 2_765_568),
    (128, 38_359_424, 11_164_416),
    (256, 143_950_208, 44_739_328),
  ],
)
def test_networks_have_the_originals_parameters(side, generator, discriminator):
  gan = _gan((side, side, 3), 'paper')
  state = jax.eval_shape(gan.init, jax.random.key(0), State())
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert {part: size(tree) for part, tree in state.params.items()} == {
    'generator': generator,
    'discriminator': discriminator,
  }


@pytest.mark.parametrize('image', [(48, 48, 3), (32, 64, 1), (8, 8, 1)])
def test_other_sizes_are_refused(image):
  size = re.escape(f'{image[0]} x {image[1]}')
  with pytest.raises(UserError, match=f'{size}.*config.data.size'):
    _gan(image)


def test_an_odd_width_is_refused():
  with pytest.raises(UserError, match='model.width is 5.*even'):
    _gan(width=5)


def test_names_are_the_originals_both_ways():
  gan = _gan((32, 32, 3), width=8, extra=1)
  state = jax.eval_shape(gan.init, jax.random.key(0), State())
  trees = {'params': state.params, 'batch_stats': state.batch_stats}
  draw = lambda leaf: DICE.standard_normal(leaf.shape).astype(np.float32)
  trees = jax.tree.map(draw, trees)
  foreign = to_foreign(TABLE, trees)
  shapes = {name: array.shape for name, array in foreign.items()}
  assert shapes['encoder1.main.initial-conv-3-8.weight'] == (8, 3, 4, 4)
  assert shapes['encoder2.main.extra-layers-0-8-batchnorm.running_var'] == (8,)
  assert shapes['decoder.main.initial-4-32-convt.weight'] == (4, 32, 4, 4)
  assert shapes['decoder.main.extra-layers-0-8-conv.weight'] == (8, 8, 3, 3)
  # Convolution, activation; thrice convolution, norm, activation.
  assert shapes['features.2.weight'] == (8, 8, 3, 3)
  assert shapes['features.9.running_mean'] == (32,)
  assert shapes['classifier.0.weight'] == (1, 32, 4, 4)
  back = from_foreign(TABLE, foreign, trees)
  jax.tree.map(np.testing.assert_array_equal, back, trees)


def test_first_weights_have_the_originals_spread():
  made = Encoder(32, 100).init(KEY, jnp.zeros((1, 32, 32, 3)))
  for layer in ('pyramid-64-128-conv', 'final-128-1-conv'):
    kernel = np.asarray(made['params'][layer]['kernel'])
    assert abs(kernel.mean()) < 2e-3
    assert kernel.std() == pytest.approx(0.02, rel=0.1)
  scale = np.asarray(made['params']['pyramid-128-batchnorm']['scale'])
  assert scale.mean() == pytest.approx(1, abs=0.01)
  assert scale.std() == pytest.approx(0.02, rel=0.3)


def test_a_step_moves_the_statistics_as_often_as_the_original(gan, state, step):
  after, scalars = step(state, X, VALID, KEY)
  assert scalars['discriminator/redrawn'] == 0
  total = (
    scalars['generator/adversarial']
    + 50 * scalars['generator/image']
    + scalars['generator/code']
  )
  np.testing.assert_allclose(scalars['generator/loss'], total, rtol=1e-5)
  both = scalars['discriminator/real'] + scalars['discriminator/fake']
  np.testing.assert_allclose(scalars['discriminator/loss'], both / 2, rtol=1e-5)
  # Once G's: a tenth of the batch's. Four times D's, of x, y, x, y.
  (y, *_), once = jax.jit(gan.draw)(
    state.params['generator'], state.batch_stats['generator'], X
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    after.batch_stats['generator'],
    once,
  )
  judge = jax.jit(gan.judge)
  seen = state.batch_stats['discriminator']
  for images in (X, y, X, y):
    _, seen = judge(state.params['discriminator'], seen, images)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    after.batch_stats['discriminator'],
    seen,
  )


def test_what_is_not_valid_is_left_out(state, step):
  """The loud stranger in the last place changes nothing."""
  valid = np.array([True, True, True, False])
  other = X.copy()
  other[3] = np.sign(X[3])
  (one, a), (two, b) = (step(state, x, valid, KEY) for x in (X, other))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, a, b)
  jax.tree.map(close, one.batch_stats, two.batch_stats)
  whole = step(state, other, VALID, KEY)[1]
  assert abs(whole['generator/loss'] - b['generator/loss']) > 1e-3


def test_a_discriminator_that_wins_begins_anew(gan, state):
  params = state.params['discriminator']
  redraw = jax.jit(gan.redraw)
  same, won = redraw(KEY, params, 2e-5)
  assert not won
  jax.tree.map(np.testing.assert_array_equal, same, params)
  fresh, won = redraw(KEY, params, 5e-6)
  assert won
  first = gan.discriminator.init(KEY, X[:1])['params']
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
  jax.tree.map(close, fresh, first)
  assert np.abs(fresh['classifier']['kernel']).max() > 0


def test_scores_are_distances_of_codes(gan, state):
  config = configs.get_config('tiny')
  config.score.names = ('latent', 'latent_l1', 'l1')
  method = methods.build(config, INFO)
  batch = Batch((X + 1) / 2, np.arange(4), np.zeros(4, np.int32))
  score = jax.jit(method.score)(state, batch, KEY)
  y, z, again = jax.jit(gan.reconstruct)(state, X)
  assert set(score.image) == {'latent', 'latent_l1', 'l1'}
  apart = np.asarray(z) - np.asarray(again)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4)
  close(score.image['latent'], (apart**2).mean(axis=1))
  close(score.image['latent_l1'], np.abs(apart).sum(axis=1))
  close(score.image['l1'], np.abs(X - y).mean(axis=(1, 2, 3)) / 2)
  assert score.pixel['residual'].shape == (4, 16, 16)
  close(score.panels['reconstruction'], (y + 1) / 2)


def test_scores_may_have_the_statistics_of_their_batch(state):
  config = configs.get_config('tiny')
  config.model.statistics = 'batch'
  score = jax.jit(methods.build(config, INFO).score)
  one = Batch((X + 1) / 2, np.arange(4), np.zeros(4, np.int32))
  found = score(state, one, KEY).image['latent']
  padded = one.image.copy()
  padded[3] = 0.5
  row = np.array([0, 1, 2, -1])
  without = [
    score(state, one.replace(image=image, row=row), KEY).image['latent'][:3]
    for image in (one.image, padded)
  ]
  np.testing.assert_allclose(*without, rtol=1e-5)  # Padding has no say.
  assert np.abs(without[0] - found[:3]).max() > 1e-4 * found.max()
  running = jax.jit(methods.build(configs.get_config('tiny'), INFO).score)
  assert not np.allclose(running(state, one, KEY).image['latent'], found)


def test_an_unknown_way_of_scoring_is_refused():
  with pytest.raises(UserError, match="Did you mean 'running'"):
    _gan(statistics='runing')


def test_distances_of_equal_codes_are_none():
  z = jnp.ones((2, 3))
  assert all(not value.any() for value in distances(z, z).values())


def test_an_unknown_score_is_refused():
  config = configs.get_config('tiny')
  config.score.names = ('latents',)
  with pytest.raises(UserError, match="Did you mean 'latent'"):
    methods.build(config, INFO)


def test_bfloat16_keeps_parameters_and_losses_in_float32(state):
  config = configs.get_config('tiny')
  config.train.precision = 'bfloat16'
  gan = Ganomaly(config.model, config.train, INFO.image)
  after, scalars = jax.eval_shape(gan.step, state, X, VALID, KEY)
  leaves = jax.tree.leaves((after.params, after.batch_stats, scalars))
  assert {leaf.dtype.name for leaf in leaves} == {'float32'}
  assert 'bf16' in str(jax.make_jaxpr(gan.reconstruct)(state, X))
