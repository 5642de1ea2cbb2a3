import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmed import methods
from jaxmed.configs import stylegan2 as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods.stylegan2 import StyleGan2
from jaxmed.nn.stylegan2 import TABLE
from jaxmed.weights.names import from_foreign, to_foreign

SIDE, COUNT = 8, 4
INFO = Info(image=(SIDE, SIDE, 3), batch=COUNT, examples={'normal': 20})
DICE = np.random.default_rng(0)
REAL = DICE.uniform(-1, 1, (COUNT, SIDE, SIDE, 3)).astype(np.float32)
VALID = np.ones(COUNT, bool)


def _config():
  config = configs.get_config('tiny')
  config.data.size = SIDE
  config.train.batch = COUNT
  config.train.average_kimg = COUNT / 1000  # A half-life of one step.
  config.model.widths = (4, 3)
  return config


@pytest.fixture(scope='module')
def gan():
  return StyleGan2(_config().model, _config().train, INFO)


@pytest.fixture(scope='module')
def state(gan):
  return jax.jit(gan.init)(jax.random.key(0), State())


def _noises(gan, count=COUNT):
  return gan.noises(jax.random.key(5), count)


def _styles(gan, state, count=COUNT):
  z = DICE.standard_normal((count, gan.z)).astype(np.float32)
  return gan.each_layer(gan.map(state.params['generator'], z))


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model.w': 48}, 'latent size is 48'),
    ({'model.form': 'group'}, 'group.*grouped'),
    ({'image': (8, 16, 3)}, 'not 8 x 16'),
    ({'batch': 6}, 'batch of 6 .* groups of 4.*config.train.batch'),
    ({'image': (48, 48, 3), 'model.widths': ()}, 'not of 48.*data.size'),
  ],
  ids=str,
)
def test_what_cannot_be_is_refused(changes, message):
  config, info = _config(), dict(image=INFO.image, batch=COUNT)
  for name, value in changes.items():
    if name in info:
      info[name] = value
    else:
      config.model[name.removeprefix('model.')] = value
  with pytest.raises(UserError, match=message):
    methods.build(config, Info(**info, examples={'normal': 20}))


@pytest.mark.parametrize('every', [(16, 6), (4, 4), (0, 4), (0, 0)])
def test_lazy_terms_are_due_by_themselves(every):
  config = _config()
  config.train.update({'r1_every': every[0], 'path_every': every[1]})
  phase = methods.build(config, INFO).phases[0]
  for number in range(97):
    due = [n for n in every if n and number % n == 0]
    assert [apart for apart, _ in phase.due(number)] == [1, *due]


def test_logistic_losses_are_cross_entropies(gan, state):
  fake = -REAL[::-1]
  params = state.params['discriminator']
  judge = jax.jit(gan.judge)
  run = jax.jit(gan.discriminator_loss)
  loss, scalars = run(params, REAL, fake, VALID)
  of_real, of_fake = judge(params, REAL), judge(params, fake)
  entropy = optax.sigmoid_binary_cross_entropy
  expected = entropy(of_real, jnp.ones(COUNT)).mean()
  expected += entropy(of_fake, jnp.zeros(COUNT)).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(scalars['discriminator/fake'], of_fake.mean())
  expected = entropy(of_fake, jnp.ones(COUNT)).mean()
  loss = jax.jit(gan.generator_loss)(params, fake)
  np.testing.assert_allclose(loss, expected, 1e-5)


def test_r1_is_the_slope_of_the_discriminator(gan, state):
  """Against central differences along the gradient itself."""
  params = state.params['discriminator']
  total = jax.jit(lambda x: gan.judge(params, x).sum())
  gradient = jax.jit(jax.grad(lambda x: gan.judge(params, x).sum()))(REAL)
  length = jnp.linalg.norm(gradient)
  step = 1e-2 * gradient / length
  slope = (total(REAL + step) - total(REAL - step)) / 2e-2
  found = jax.jit(gan.r1)(params, REAL, VALID)
  # The sum over the batch of squared lengths, over the count.
  assert float(found) == pytest.approx(float(slope) ** 2 / COUNT, rel=0.02)


def test_path_lengths_are_those_of_the_jacobian(gan, state):
  params, noises = state.params['generator'], _noises(gan, 2)
  w, y = _styles(gan, state, 2), DICE.standard_normal((2, SIDE, SIDE, 3))
  y = y.astype(np.float32)
  found = jax.jit(gan.path_lengths)(params, w, noises, y)
  draw = jax.jit(lambda w: gan.draw(params, w, noises))
  step, slopes = 1e-2, np.zeros(w.shape)
  for layer in range(w.shape[1]):
    for i in range(w.shape[2]):
      by = jnp.zeros_like(w).at[:, layer, i].set(step)
      change = (draw(w + by) - draw(w - by)) / (2 * step)
      slopes[:, layer, i] = (change * y / SIDE).sum(axis=(1, 2, 3))
  expected = np.sqrt(np.square(slopes).sum(-1).mean(-1))
  np.testing.assert_allclose(found, expected, rtol=0.02)


def test_the_penalty_takes_the_mean_that_has_the_batch_in_it(gan):
  lengths = jnp.array([1.0, 3.0])
  penalty, mean = gan.path_penalty(lengths, jnp.array(1.0))
  assert float(mean) == pytest.approx(1.01)
  assert float(penalty) == pytest.approx((0.01**2 + 1.99**2) / 2)


def test_styles_are_mixed_as_often_as_asked(gan, state):
  params = state.params['generator']
  styles = jax.jit(gan.styles, static_argnums=2)
  firsts = []
  for key in jax.random.split(jax.random.key(0), 60):
    mixed, w = styles(key, params, 2)
    same = np.isclose(mixed, w[:, None]).all(axis=-1)
    assert (same == same[:1]).all() and same[0, 0]
    firsts.append(int(same[0].sum()))
    assert same[0, : firsts[-1]].all()  # One w first, then the other.
  layers = gan.synthesis.layers
  assert set(firsts) == set(range(1, layers + 1))
  assert 0.01 < np.mean([first == layers for first in firsts]) < 0.25


def test_truncation_draws_w_to_the_mean(gan, state):
  state = state.put(memory={'w': {'mean': jnp.full(gan.z, 2.0)}})
  w = jnp.zeros((3, gan.z))
  np.testing.assert_allclose(gan.truncated(state, w, 0.7), 0.6, rtol=1e-6)
  np.testing.assert_array_equal(gan.truncated(state, w, 1.0), w)


@pytest.fixture(scope='module')
def method():
  return methods.build(_config(), INFO)


@pytest.fixture(scope='module')
def stepped(method, state):
  """After a step with every term, and its scalars."""
  phase = method.phases[0]
  batch = Batch((REAL + 1) / 2, jnp.arange(COUNT), jnp.zeros(COUNT, int))
  steps = [jax.jit(step) for _, step in phase.due(0)]
  inputs = {'normal': batch}, jax.random.key(1)

  def run(state, *inputs):
    scalars = {}
    for step in steps:
      state, more = step(state, *inputs)
      scalars |= more
    return state, scalars

  broken = state.put(memory={'path': {'mean': jnp.array(np.nan)}})
  return run(state, *inputs), run(broken, *inputs)


@pytest.mark.slow
def test_a_step_moves_what_it_should(gan, state, stepped):
  after, scalars = stepped[0]
  assert {'r1/penalty', 'path/penalty', 'path/mean', 'generator/loss'} <= set(
    scalars
  )
  assert all(np.isfinite(value) for value in scalars.values())
  for part in ('generator', 'discriminator'):
    before, now = state.params[part], after.params[part]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, now)
    assert all(jax.tree.leaves(moved)), moved
  # The average has gone half the way.
  jax.tree.map(
    lambda old, new, average: np.testing.assert_allclose(
      average, (old + new) / 2, rtol=1e-6, atol=1e-6
    ),
    state.params['generator'],
    after.params['generator'],
    after.ema['generator'],
  )
  memory = after.memory
  np.testing.assert_allclose(memory['path']['mean'], scalars['path/mean'])
  assert np.abs(memory['w']['mean']).max() > 0
  jax.tree.map(
    np.testing.assert_array_equal, state.batch_stats, after.batch_stats
  )


@pytest.mark.slow
def test_a_nan_of_path_lengths_has_their_name(stepped):
  scalars = stepped[1][1]
  bad = {name for name, value in scalars.items() if not np.isfinite(value)}
  assert bad and all(name.startswith('path/') for name in bad), bad


def test_samples_are_images_of_the_moving_average(method, state):
  draw = jax.jit(method.sample, static_argnums=2)
  images = draw(state, jax.random.key(0), 3)
  assert images.shape == (3, SIDE, SIDE, 3)
  assert images.min() >= 0 and images.max() <= 1
  others = state.put(params={'generator': None})
  np.testing.assert_array_equal(draw(others, jax.random.key(0), 3), images)


def test_names_go_both_ways(state):
  trees = {'params': state.params, 'batch_stats': state.batch_stats}
  named = to_foreign(TABLE, trees)
  assert named['g.convs.0.conv.weight'].shape == (1, 3, 4, 3, 3)
  assert named['g.noises.noise_2'].shape == (1, 1, SIDE, SIDE)
  assert named['d.convs.1.skip.1.weight'].shape == (4, 3, 1, 1)
  fixed = {
    'g.convs.0.conv.blur.kernel': np.zeros((4, 4)),
    'g_ema.input.input': np.zeros(1),
    'latent_avg': np.zeros(1),
  }
  back = from_foreign(TABLE, named | fixed, trees)
  jax.tree.map(np.testing.assert_array_equal, trees, back)
  assert not any(re.search('kernel$', name) for name in named)
