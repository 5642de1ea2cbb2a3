import re

import jax
import numpy as np
import pytest

from jaxmed import methods
from jaxmed.configs import alocc as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods.alocc import REFINEMENTS, TABLE, Alocc
from jaxmed.nn import alocc as networks
from jaxmed.weights.names import from_foreign, to_foreign

SHAPE = 17, 24, 3  # Halves unevenly, and is no square.
INFO = Info(image=SHAPE, batch=4, examples={'normal': 20})
DICE = np.random.default_rng(0)
X = DICE.uniform(-1, 1, (4, *SHAPE)).astype(np.float32)
Z = np.clip(X + 0.2 * DICE.standard_normal(X.shape), -1, 1).astype(np.float32)
VALID = np.ones(4, bool)
KEY = jax.random.key(3)


def _alocc(image=SHAPE, preset='tiny', **model):
  config = configs.get_config(preset)
  config.model.update(model)
  return Alocc(config.model, config.train, image)


@pytest.fixture(scope='module')
def alocc():
  return _alocc()


@pytest.fixture(scope='module')
def state(alocc):
  return jax.jit(alocc.init)(jax.random.key(0), State())


@pytest.fixture(scope='module')
def steps(alocc):
  run = lambda part: jax.jit(lambda *given: alocc.step(part, *given))
  return {part: run(part) for part in alocc.networks}


@pytest.mark.parametrize(
  'image, refiner, discriminator',
  [((45, 45, 1), 373_217, 271_041), ((256, 256, 3), 375_619, 303_457)],
)
def test_networks_have_the_originals_parameters(image, refiner, discriminator):
  alocc = _alocc(image, 'paper')
  state = jax.eval_shape(alocc.init, KEY, State())
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert {part: size(tree) for part, tree in state.params.items()} == {
    'generator': refiner,
    'discriminator': discriminator,
  }


def test_refined_images_have_their_images_size(alocc, state):
  refined = jax.eval_shape(
    lambda state: alocc.in_use(state, 'generator', X), state
  )
  assert refined.shape == X.shape


@pytest.mark.parametrize('image', [(15, 32, 3), (64, 8, 1)])
def test_images_too_small_are_refused(image):
  size = re.escape(f'{image[0]} x {image[1]}')
  with pytest.raises(UserError, match=f'{size}.*config.data.size to 16'):
    _alocc(image)


def test_an_unknown_refinement_is_refused():
  with pytest.raises(UserError, match="Did you mean 'paper'"):
    _alocc(refinement='papers')


def test_the_released_refinement_is_a_cross_entropy_of_what_it_should_not_be():
  torch = pytest.importorskip('torch')
  label = DICE.uniform(0, 1, X.shape).astype(np.float32)
  theirs = torch.nn.functional.binary_cross_entropy_with_logits(
    torch.tensor(X), torch.tensor(label), reduction='none'
  )
  ours = REFINEMENTS['code'](X, None, label)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
  # With labels below zero, no refined image is the best one.
  worse = REFINEMENTS['code'](-1.0, None, -0.5)
  assert worse < REFINEMENTS['code'](-0.5, None, -0.5)
  assert REFINEMENTS['paper'](0.5, 0.2, None) == pytest.approx(0.09)


def test_presets_choose_the_loss_of_paper_or_code():
  losses = {
    preset: tuple(configs.get_config(preset).model[k] for k in LOSS)
    for preset in ('paper', 'as_code', 'phantom')
  }
  assert losses == {
    'paper': ('paper', 0.4),
    'as_code': ('code', 0.2),
    'phantom': ('paper', 0.4),
  }


LOSS = 'refinement', 'weight'


def test_a_step_moves_its_network_alone(state, steps):
  for part, step in steps.items():
    after, scalars = step(state, X, Z, VALID)
    for field in ('params', 'batch_stats', 'opt'):
      before, now = getattr(state, field), getattr(after, field)
      for other in before:
        same = jax.tree.map(np.array_equal, before[other], now[other])
        assert jax.tree.all(same) == (other != part), (field, other)
    terms = {k: v for k, v in scalars.items() if k.startswith(part)}
    total = (
      terms['discriminator/real'] + terms['discriminator/fake']
      if part == 'discriminator'
      else terms['generator/adversarial'] + 0.4 * terms['generator/refinement']
    )
    np.testing.assert_allclose(terms[f'{part}/loss'], total, rtol=1e-5)


def test_what_is_not_valid_is_left_out(state, steps):
  """The loud stranger in the last place changes nothing."""
  valid = np.array([True, True, True, False])
  x, z = X.copy(), Z.copy()
  x[3], z[3] = np.sign(X[3]), np.sign(Z[3])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  for part, step in steps.items():
    one, a = step(state, X, Z, valid)
    two, b = step(state, x, z, valid)
    jax.tree.map(close, a, b)
    jax.tree.map(close, one.batch_stats, two.batch_stats)
    whole = step(state, x, z, VALID)[1]
    assert abs(whole[f'{part}/loss'] - b[f'{part}/loss']) > 1e-4


def test_running_statistics_move_by_a_tenth(alocc, state, steps):
  after, _ = steps['generator'](state, X, Z, VALID)
  params = state.params['generator']['g_encoder_h0_conv']
  x = jax.lax.conv_general_dilated(
    Z,
    params['kernel'],
    (2, 2),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  moved = after.batch_stats['generator']['g_bn4']
  x = np.asarray(x).reshape(-1, x.shape[-1])
  np.testing.assert_allclose(
    moved['mean'], 0.1 * x.mean(0), rtol=1e-3, atol=1e-6
  )
  np.testing.assert_allclose(
    moved['var'], 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-4
  )


def test_a_step_is_one_of_d_and_two_of_r_and_scores_are_chances(state, alocc):
  config = configs.get_config('tiny')
  config.score.names = ('refined', 'direct', 'l2')
  method = methods.build(config, INFO)
  (phase,) = method.phases
  batch = Batch((X + 1) / 2, np.arange(4), np.zeros(4, np.int32))
  text = str(jax.make_jaxpr(phase.step)(state, {'normal': batch}, KEY))
  config.train.refinements = 1
  (once,) = methods.build(config, INFO).phases
  shorter = str(jax.make_jaxpr(once.step)(state, {'normal': batch}, KEY))
  assert text.count('tanh') == 3 and shorter.count('tanh') == 2

  score = jax.jit(method.score)(state, batch, KEY)
  refined = jax.jit(lambda state: alocc.in_use(state, 'generator', X))(state)
  for name, images in (('refined', refined), ('direct', X)):
    logit = alocc.in_use(state, 'discriminator', images)
    chance = 1 / (1 + np.exp(-np.asarray(logit, np.float64)))
    np.testing.assert_allclose(score.image[name], 1 - chance, rtol=1e-4)
  np.testing.assert_allclose(
    score.panels['reconstruction'], (refined + 1) / 2, rtol=1e-4, atol=1e-6
  )
  assert score.pixel['residual'].shape == X.shape[:3]


def test_a_sure_discriminators_scores_still_differ(alocc, state, monkeypatch):
  sure = np.array([30.0, 31.0, 32.0, 33.0], np.float32)
  monkeypatch.setattr(
    Alocc,
    'in_use',
    lambda self, state, part, x: X if part == 'generator' else sure,
  )
  _, own = alocc.scores(state, X)
  assert (np.diff(own['refined']) < 0).all()


def test_names_are_the_originals_both_ways(state):
  draw = lambda leaf: DICE.standard_normal(leaf.shape).astype(np.float32)
  trees = {'params': state.params, 'batch_stats': state.batch_stats}
  trees = jax.tree.map(draw, trees)
  foreign = to_foreign(TABLE, trees)
  shapes = {name: array.shape for name, array in foreign.items()}
  assert shapes['generator/g_decoder_h00/w'] == (5, 5, 3, 4)
  assert shapes['generator/g_bn4/moving_variance'] == (8,)
  assert shapes['discriminator/d_h3_lin/Matrix'] == (2 * 2 * 32, 1)
  slots = {f'{name}/RMSProp': x for name, x in foreign.items()}
  back = from_foreign(TABLE, foreign | slots, trees)
  jax.tree.map(np.testing.assert_array_equal, back, trees)


@pytest.mark.slow
def test_first_weights_have_the_originals_spread():
  made = networks.Refiner(8, 8).init(KEY, np.zeros((1, 16, 16, 3), np.float32))
  for name in ('g_encoder_h2_conv', 'g_decoder_h1'):
    layer = made['params'][name]
    assert np.asarray(layer['kernel']).std() == pytest.approx(0.02, rel=0.15)
    assert not layer['bias'].any()
  assert np.abs(made['params']['g_encoder_h2_conv']['kernel']).max() <= 0.046


def test_bfloat16_keeps_parameters_and_losses_in_float32(state):
  config = configs.get_config('tiny')
  config.train.precision = 'bfloat16'
  alocc = Alocc(config.model, config.train, SHAPE)
  for part in alocc.networks:
    run = lambda state, part=part: alocc.step(part, state, X, Z, VALID)
    after, scalars = jax.eval_shape(run, state)
    leaves = jax.tree.leaves((after.params, after.batch_stats, scalars))
    assert {leaf.dtype.name for leaf in leaves} == {'float32'}
    assert 'bf16' in str(jax.make_jaxpr(run)(state))
