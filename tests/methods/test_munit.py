"""MUNIT's own promises; the golden case compares it with the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmed.configs.munit import get_config
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import munit
from jaxmed.nn.vgg_loss import VggLoss
from jaxmed.weights.names import from_foreign, to_foreign

ROWS = 4


def tiny(**changes):
  config = get_config('tiny')
  config.train.batch = ROWS
  config.update_from_flattened_dict(changes)
  return config


def info(config):
  side = config.data.size
  return Info((side, side, 3), ROWS, {'a': 8, 'b': 8})


def quickly(function):
  """Compiled with little care: it runs only once or twice."""
  options = {'xla_backend_optimization_level': 0}
  return jax.jit(function, compiler_options=options)


def started(method) -> State:
  init = method.phases[0].init
  return quickly(lambda key: init(key, State()))(jax.random.key(0))


def batches(seed=0, rows=ROWS):
  rng = np.random.default_rng(seed)
  draw = lambda: rng.integers(0, 256, (rows, 32, 32, 3), np.uint8)
  batch = lambda first: Batch(
    jnp.asarray(draw()), jnp.arange(first, first + rows), jnp.zeros(rows, int)
  )
  return {'a': batch(0), 'b': batch(100)}


def padded(whole):
  """The same with its last row declared padding, and something else in it."""
  return jax.tree.map(
    lambda b: b.replace(row=b.row.at[-1].set(-1), image=b.image.at[-1].set(7)),
    whole,
    is_leaf=lambda b: isinstance(b, Batch),
  )


@pytest.fixture(scope='module')
def trained():
  """A tiny method, its first state, its compiled step, and a step's result."""
  method = munit.build(tiny(), info(tiny()))
  state, step = started(method), quickly(method.phases[0].step)
  return method, state, step, step(state, batches(), jax.random.key(1))


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_are_as_many_as_the_original_has():
  config = get_config('camelyon16')
  method = munit.build(config, Info((512, 512, 3), 1, {'a': 1, 'b': 1}))
  params = jax.eval_shape(
    lambda key: method.phases[0].init(key, State()).params, jax.random.key(0)
  )
  generator = params['generator']['a']
  assert {k: count(v) for k, v in generator.items()} == {
    'style_encoder': 2_764_936,
    'content_encoder': 5_385_856,
    'decoder': 5_754_627,
    'style_map': 1_120_768,
  }
  assert count(generator) == 15_026_187
  scales = params['discriminator']['b']
  assert [count(scale) for scale in scales.values()] == [2_757_057] * 3
  assert count(params) == 46_594_716


def test_first_draws_are_as_told():
  config = tiny()
  config.model.dim, config.model.discriminator.dim = 16, 16

  def draw(key):
    drawn = []
    for tied in (True, False):
      config.model.tied_init = tied
      networks = munit.Munit(
        config.model, config.train.weights, {'a': 3, 'b': 3}
      )
      drawn.append(networks.init(key, 32, 32))
    return drawn

  tied, apart = quickly(draw)(jax.random.key(0))
  same = lambda part, p: jax.tree.all(
    jax.tree.map(np.array_equal, p[part]['a'], p[part]['b'])
  )
  assert same('generator', tied) and not same('discriminator', tied)
  assert not same('generator', apart)
  block = apart['generator']['a']['content_encoder']['residual_0']['conv_0']
  width = 16 * 2**config.model.downsamplings
  assert np.std(block['kernel']) == pytest.approx(
    np.sqrt(2 / (9 * width)), rel=0.05
  )
  assert not np.any(block['bias'])
  scale = apart['generator']['a']['decoder']['norm_0']['scale']
  assert 0 <= scale.min() < 0.3 < 0.7 < scale.max() <= 1
  critic = apart['discriminator']['a']['scale_0']['conv_1']['kernel']
  assert np.std(critic) == pytest.approx(0.02, rel=0.1)


def test_a_step_moves_both_parts_and_names_every_loss(trained):
  _, state, _, (after, scalars) = trained
  for part in ('generator', 'discriminator'):
    moved = jax.tree.map(
      lambda x, y: np.any(x != y), state.params[part], after.params[part]
    )
    assert np.mean(jax.tree.leaves(moved)) == 0  # The rate warms up from 0.
    assert scalars[f'{part}/gradient_norm'] > 0
  terms = {
    f'{term}/{d}'
    for term in ('image', 'style', 'content', 'cycle', 'gan', 'discriminator')
    for d in 'ab'
  }
  assert terms <= set(scalars)
  assert all(np.isfinite(value) for value in scalars.values())
  weights = tiny().train.weights
  total = sum(
    weights[name[:-2]] * scalars[name]
    for name in terms
    if not name.startswith('discriminator')
  )
  np.testing.assert_allclose(scalars['generator/loss'], total, rtol=1e-5)


def test_padding_counts_for_nothing(trained):
  _, state, step, _ = trained
  one, other = padded(batches()), padded(batches())
  other['a'] = other['a'].replace(image=other['a'].image.at[-1].set(200))
  results = [step(state, b, jax.random.key(1)) for b in (one, other)]
  jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_mean_is_over_what_is_not_padding(trained):
  _, state, step, _ = trained
  same = jax.tree.map(lambda x: x[jnp.zeros(ROWS, int)], batches())
  _, four = step(state, same, jax.random.key(1))
  _, three = step(state, padded(same), jax.random.key(1))
  for name, value in four.items():
    np.testing.assert_allclose(value, three[name], rtol=1e-4, err_msg=name)


def test_the_second_step_moves_what_the_rate_allows(trained):
  _, state, step, (after, _) = trained
  later, _ = step(after, batches(), jax.random.key(2))
  change = jax.tree.map(
    lambda x, y: np.abs(x - y).max(), state.params, later.params
  )
  largest = max(jax.tree.leaves(change))
  config = tiny().train
  assert 0 < largest <= 2 * config.rate / config.warmup


@pytest.mark.slow
def test_bfloat16_computes_and_float32_keeps(trained):
  config = tiny(**{'train.precision': 'bfloat16'})
  method, key = munit.build(config, info(config)), jax.random.key(1)
  shapes = jax.eval_shape(method.phases[0].step, trained[1], batches(), key)
  kept = (shapes[0].params, shapes[1])
  assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype('float32')}
  seen = [
    quickly(m.score)(trained[1], batches()['a'], key).panels['reconstruction']
    for m in (trained[0], method)
  ]
  np.testing.assert_allclose(*seen, atol=0.05)
  assert not np.allclose(*seen, atol=1e-4)


def test_steps_of_the_rate_tick_before_the_update():
  config = get_config('camelyon16').train
  config.decay_steps = 3
  rates = [munit.make_schedule(config)(i) for i in range(6)]
  np.testing.assert_allclose(
    rates, 1e-4 * np.array([1, 1, 0.5, 0.5, 0.5, 0.25])
  )


def test_the_cosine_warms_up_and_ends_at_its_last():
  config = get_config('phantom').train
  rate = munit.make_schedule(config)
  assert rate(0) == 0
  assert rate(20) == pytest.approx(1e-3)
  assert rate(400) == pytest.approx(5e-5)


def test_scores_are_means_over_routes(trained):
  state, batch = trained[1], batches()['a']
  both = state.params['generator']  # Equal at first, as they are tied.
  both = both | {'b': jax.tree.map(lambda x: jnp.roll(x, 1), both['b'])}
  state = state.put(params={'generator': both})
  found = {}
  for routes in (('ab',), ('bb',), ('ab', 'bb')):
    config = tiny(**{'score.routes': routes})
    method = munit.build(config, info(config))
    found[routes] = quickly(method.score)(state, batch, jax.random.key(0))
  both = found['ab', 'bb']
  for kind in ('image', 'pixel'):
    for name, value in getattr(both, kind).items():
      one, other = (getattr(found[r,], kind)[name] for r in ('ab', 'bb'))
      np.testing.assert_allclose(value, (one + other) / 2, rtol=1e-5)
      assert not np.allclose(one, other)
  assert set(both.panels) == {'reconstruction', 'by bb'}
  assert both.panels['reconstruction'].min() >= 0
  assert both.panels['reconstruction'].max() <= 1


def test_a_score_is_the_translation_of_the_paper(trained):
  networks = munit.Munit(tiny().model, tiny().train.weights, {'a': 3, 'b': 3})
  both, x = trained[1].params['generator'], 2 * batches()['a'].unit - 1

  def by_hand(both, x):
    a, b = networks.generator['a'], networks.generator['b']
    content = a.apply({'params': both['a']}, x, method='content')
    style = b.apply({'params': both['b']}, x, method='style')
    return b.apply({'params': both['b']}, content, style, method='decode')

  seen = quickly(trained[0].score)(
    trained[1], batches()['a'], jax.random.key(0)
  ).panels['reconstruction']
  y = quickly(by_hand)(both, x)
  np.testing.assert_allclose(seen, (y + 1) / 2, atol=1e-5)


def test_exported_and_imported_is_the_same_to_the_bit(trained):
  table, params = munit.names(tiny().model), trained[1].params
  checkpoint = to_foreign(table, {'params': params})
  assert checkpoint['gen_b.dec.model.2.norm.gamma'].shape == (8,)
  assert checkpoint['dis_a.cnns.0.2.weight'].shape == (1, 8, 1, 1)
  checkpoint['gen_a.dec.model.0.model.0.model.1.norm.running_mean'] = np.ones(
    16
  )
  back = from_foreign(table, checkpoint, {'params': params})['params']
  jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    (
      {'train.weights.vgg': 1.0, 'data.size': 16},
      'of images of 16 px VGG16 leaves nothing',
    ),
    ({'train.weights.vgg': 1.0, 'model.vgg': 'vgg'}, "Did you mean 'vgg16'"),
    (
      {'train.weights.vgg': 1.0, 'model.vgg_input': 'torch'},
      "Did you mean 'torchvision'",
    ),
    ({'score.names': ('lpips_vgg',)}, "Did you mean 'lpips'"),
    (
      {'score.names': ('lpips',), 'model.lpips': 'vgg16'},
      "network of LPIPS 'vgg16'. Did you mean 'vgg'",
    ),
    (
      {'score.maps': ('lpips',), 'data.size': 16},
      'needs images of 17 px at least',
    ),
    ({'score.names': ('sim',)}, "Did you mean 'ssim'"),
    ({'score.maps': ('sim',)}, "Did you mean 'ssim'"),
    ({'score.routes': ('ac',)}, "route in score.routes 'ac'"),
    ({'score.routes': ()}, 'score.routes is empty'),
    ({'model.gan': 'nsgan'}, 'Known: lsgan'),
    ({'train.schedule': 'cosin'}, "Did you mean 'cosine'"),
    ({'train.precision': 'float16'}, 'Known: bfloat16, float32'),
    ({'data.size': 30}, 'multiple of 4'),
    ({'data.size': 8}, 'at least 16 px'),
    ({'model.discriminator.scales': 5}, 'at least 49 px'),
  ],
)
def test_what_cannot_be_is_said_at_once(changes, says):
  config = tiny(**changes)
  with pytest.raises(UserError, match=says):
    munit.build(config, info(config))


class OneStage(nn.Module):
  """In place of VGG-16, which takes a minute to compile a gradient of."""

  last: str
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    return {self.last: nn.relu(nn.Conv(8, (4, 4), 4)(x))}


@pytest.mark.slow
def test_the_perceptual_term_compares_a_translation_with_its_source(
  monkeypatch,
):
  """And G learns by it: the network is an argument, not a constant."""
  monkeypatch.setitem(munit.NETWORKS, 'vgg16', OneStage)
  config = tiny(**{'train.weights.vgg': 2.0})
  method = munit.build(config, info(config))
  assert method.needs == ('vgg',)
  networks = munit.Munit(
    config.model, config.train.weights, {'a': 3, 'b': 3}, None
  )
  small, seen = OneStage('relu5_3'), jnp.zeros((1, 32, 32, 3))
  vgg = quickly(small.init)(jax.random.key(2), seen)
  params = quickly(lambda key: networks.init(key, 32, 32))(jax.random.key(0))
  images = {d: 2 * b.unit - 1 for d, b in batches(rows=1).items()}
  styles = {d: jnp.ones((1, networks.style_dim)) for d in 'ab'}
  valid = {d: jnp.ones(1, bool) for d in 'ab'}

  rest = params['discriminator'], images, styles, valid

  @quickly
  def run(generators, vgg):
    total, terms = networks.generator_loss(generators, *rest, vgg)
    content = networks.content(generators, 'b', images['b'])
    shown = networks.decode(generators, 'a', content, styles['a'])
    loss = VggLoss(small).apply(vgg, (shown + 1) / 2, (images['b'] + 1) / 2)
    return total, terms, loss[0]

  total, terms, loss = run(params['generator'], vgg)
  assert terms['vgg/a'] == pytest.approx(float(loss), rel=1e-3)
  assert terms['vgg/a'] > 0
  weight = lambda name: config.train.weights[name.partition('/')[0]]
  expected = sum(float(weight(k) * v) for k, v in terms.items())
  assert total == pytest.approx(expected, rel=1e-5)
  assert run(params['generator'], jax.tree.map(jnp.zeros_like, vgg))[2] == 0
  term = lambda p: networks.generator_terms(p, *rest, vgg)['vgg/a']
  slopes = quickly(jax.grad(term))(params['generator'])
  flat = lambda tree: np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
  assert np.abs(flat(slopes['a']['decoder'])).max() > 0


@pytest.mark.parametrize('preset', ['phantom_long', 'folder'])
def test_presets_build(preset):
  config = get_config(preset)
  side = config.data.size
  method = munit.build(config, Info((side, side, 3), 4, {'a': 4, 'b': 4}))
  assert method.phases[0].steps == config.train.steps
  assert config.eval.primary in config.score.names
