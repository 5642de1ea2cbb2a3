"""The bridge by a Fourier sum, and that everything goes over it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.configs.steganomaly import get_config
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State, row_keys
from jaxmed.methods import cyclegan, steganomaly
from jaxmed.nn import cycle

ROWS, SIDE = 4, 16


def tiny(**changes):
  config = get_config('tiny')
  config.train.batch, config.data.size = ROWS, SIDE
  config.score.names, config.score.maps = ('residual',), ('residual',)
  config.update_from_flattened_dict(changes)
  return config


def built(config, module=steganomaly):
  info = Info((SIDE, SIDE, 3), ROWS, {'a': 8, 'b': 8})
  return module.build(config, info)


def quickly(function):
  """Compiled with little care: it runs only once or twice."""
  options = {'xla_backend_optimization_level': 0}
  return jax.jit(function, compiler_options=options)


def bridge(**changes):
  config = tiny(**{f'model.{k}': v for k, v in changes.items()})
  return steganomaly.make_bridge(config.model)


def keys(rows):
  return row_keys(jax.random.key(5), jnp.asarray(rows))


def power(x) -> np.ndarray:
  """Of every frequency, by its sum over all pixels, written out."""
  side = len(x)
  at = np.arange(side)
  waves = np.exp(-2j * np.pi * np.outer(at, at) / side)
  found = np.zeros((side, side))
  for v in range(side):
    for u in range(side):
      total = 0j
      for row in range(side):
        total += waves[v, row] * np.sum(waves[u] * x[row])
      found[v, u] = abs(total) ** 2
  return found


def cycles(side) -> np.ndarray:
  """Of every frequency, how many cycles a pixel it has."""
  each = np.minimum(np.arange(side), side - np.arange(side)) / side
  return np.hypot(each[:, None], each[None, :])


def test_the_low_pass_takes_the_fast_ripples_and_leaves_the_slow_ones():
  side, sigma = 32, 1.5
  x = np.random.default_rng(0).standard_normal((side, side))
  over = bridge(bridge='gaussian', sigma=sigma)(
    None, jnp.asarray(x[None, :, :, None], jnp.float32)
  )[0, :, :, 0]
  left = power(np.asarray(over)) / power(x)
  speed = cycles(side)
  # Of a Gaussian, exp(-(2 pi f sigma)^2), but for the mirrored border.
  expected = np.exp(-((2 * np.pi * speed * sigma) ** 2))
  for slowest, fastest in ((0.02, 0.06), (0.1, 0.16)):
    band = (slowest < speed) & (speed < fastest)
    assert np.median(left[band]) == pytest.approx(
      np.median(expected[band]), rel=0.25
    )
  high = speed > 0.35
  energy = power(np.asarray(over))[high].sum() / power(x)[high].sum()
  assert energy < 0.01
  assert left[0, 0] == pytest.approx(1, rel=0.05)


def test_a_hidden_signal_does_not_survive_the_low_pass():
  """A faint chequerboard on a slope: what generators write and read."""
  slope = np.linspace(-1, 1, 32)[:, None] * np.ones(32)
  board = 0.05 * (-1.0) ** np.add.outer(np.arange(32), np.arange(32))
  batch = jnp.asarray(np.stack([slope, slope + board])[..., None], jnp.float32)
  over = np.asarray(bridge(bridge='gaussian', sigma=1.0)(None, batch))
  left = np.abs(over[1] - over[0])[..., 0] / 0.05
  assert left[4:-4, 4:-4].max() < 0.01
  assert left.max() < 0.2  # A mirrored corner repeats its pixel.
  assert np.abs(over[0, 4:-4, :, 0] - slope[4:-4]).max() < 1e-3
  through = np.asarray(bridge(bridge='none')(None, batch))
  np.testing.assert_array_equal(through, batch)


def test_noise_is_of_its_size_and_of_the_images_own_row():
  x = jnp.zeros((3, 64, 64, 3))
  over = bridge(bridge='noise', noise=0.2)
  one, other = over(keys([4, 5, 6]), x), over(keys([9, 5, 1]), x)
  assert np.std(one) == pytest.approx(0.2, rel=0.05)
  assert np.mean(one) == pytest.approx(0, abs=0.01)
  np.testing.assert_array_equal(one[1], other[1])
  assert not np.allclose(one[0], one[1]) and not np.allclose(one[0], other[0])
  # A faint signal is drowned at every frequency alike.
  noise = power(np.asarray(one[0, :16, :16, 0]))
  fast = cycles(16) > 0.25
  assert 0.3 < noise[fast].mean() / noise[~fast].mean() < 3


def test_simpler_images_have_few_values_and_no_texture():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.uniform(0, 1, (2, 32, 32, 3)), jnp.float32)
  model = tiny(**{'model.levels': 3}).model
  simple = np.asarray(steganomaly.simplify(model, x))
  assert set(np.unique(simple)) <= {0, 0.5, 1}
  changes = lambda x: np.mean(np.diff(x, axis=1) != 0)
  assert changes(simple) < 0.2 < changes(np.asarray(x))
  model = tiny(**{'model.simplify': 'none'}).model
  np.testing.assert_array_equal(steganomaly.simplify(model, x), x)


class Marked:
  """Cycle's generators in words: what they were given, they note."""

  def __init__(self, config):
    self.seen = []
    self.inner = cycle.Cycle(
      config.model,
      config.train.weights,
      3,
      bridge=lambda keys, x: 10 * x,
    )
    self.inner.make = self.make
    self.inner.judge = lambda _, domain, x: self.note('D', domain, x)

  def note(self, network, domain, x):
    self.seen.append((network, domain, float(jnp.abs(x).max())))
    return x[..., :1]

  def make(self, generators, domain, x):
    self.note('G', domain, x)
    return jnp.full_like(x, 2.0 if domain == 'a' else 3.0)


@pytest.mark.parametrize('identity', [0.0, 5.0])
def test_all_that_leaves_b_goes_over_the_bridge_and_nothing_else(identity):
  config = tiny(**{'train.weights.identity': identity})
  marked, x = Marked(config), jnp.ones((2, 4, 4, 3))
  valid, none = dict.fromkeys('ab', jnp.ones(2, bool)), dict.fromkeys('ab')
  marked.inner.generator_terms(none, none, none, {'a': x, 'b': x}, valid)
  assert marked.seen == [
    ('G', 'a', 10.0),  # b's own, over the bridge.
    ('G', 'b', 1.0),
    ('D', 'a', 2.0),
    ('G', 'a', 30.0),  # What was made of a, on its way back.
    ('D', 'b', 3.0),  # As it was made.
    ('G', 'b', 2.0),
  ]
  marked.seen.clear()
  marked.inner.travel(none, 'aba', none, x)
  assert marked.seen == [('G', 'b', 1.0), ('G', 'a', 30.0)]


@pytest.fixture(scope='module')
def state():
  init = built(tiny()).phases[0].init
  return quickly(lambda key: init(key, State()))(jax.random.key(0))


def image_batch():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8)
  return Batch(jnp.asarray(image), jnp.arange(ROWS), jnp.zeros(ROWS, int))


@pytest.mark.slow
def test_without_bridge_the_score_is_cyclegans(state):
  found = {}
  for name in ('gaussian', 'noise', 'none', 'cyclegan'):
    module = cyclegan if name == 'cyclegan' else steganomaly
    name = 'none' if name == 'cyclegan' else name
    method = built(tiny(**{'model.bridge': name}), module)
    score = quickly(method.score)(state, image_batch(), jax.random.key(0))
    found.setdefault(name, []).append(score.panels['reconstruction'])
  np.testing.assert_array_equal(*found['none'])
  for name in ('gaussian', 'noise'):
    assert np.abs(found[name][0] - found['none'][0]).max() > 1e-4


def test_cohort_b_is_learned_as_simpler(monkeypatch):
  seen = {}

  def update(cycle, optimiser, state, images, keys, valid):
    seen.update(images)
    return state, {}

  monkeypatch.setattr(cycle, 'update', update)
  batch = image_batch()
  method = built(tiny())
  method.phases[0].step(None, {'a': batch, 'b': batch}, jax.random.key(0))
  np.testing.assert_allclose(seen['a'], 2 * batch.unit - 1, atol=1e-6)
  assert len(np.unique(seen['b'])) <= 4


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'model.bridge': 'gauss'}, "Did you mean 'gaussian'"),
    ({'model.simplify': 'level'}, "Did you mean 'levels'"),
    ({'model.levels': 1}, 'leaves nothing'),
    ({'model.sigma': -1.0}, 'cannot be negative'),
    ({'data.size': 18}, 'multiple of 4'),
  ],
)
def test_what_cannot_be_is_said_at_once(changes, says):
  config = tiny(**changes)
  side = config.data.size
  with pytest.raises(UserError, match=says):
    steganomaly.build(config, Info((side, side, 3), ROWS, {'a': 8, 'b': 8}))


def test_presets_are_cyclegans_with_a_bridge():
  for preset in ('phantom', 'paper', 'camelyon16', 'folder', 'slides'):
    config = get_config(preset)
    side = config.data.size
    info = Info((side, side, 3), 4, {'a': 4, 'b': 4})
    method = steganomaly.build(config, info)
    assert method.phases[0].name == 'steganomaly'
    assert config.model.bridge == 'gaussian'
