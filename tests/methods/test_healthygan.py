import csv
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmed import methods
from jaxmed.configs import healthygan as configs
from jaxmed.datasets import write
from jaxmed.datasets.records import open_records
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods.healthygan import (
  COHORTS,
  TABLE,
  HealthyGan,
  View,
  make_schedule,
)
from jaxmed.nn.healthygan import Raw
from jaxmed.weights.names import from_foreign, to_foreign

DICE = np.random.default_rng(0)
SHAPE = (4, 16, 16, 3)
X = {k: DICE.uniform(-1, 1, SHAPE).astype(np.float32) for k in COHORTS}
ALPHA = DICE.uniform(0, 1, 4).astype(np.float32)
VALID = {k: np.ones(4, bool) for k in COHORTS}
INFO = Info(SHAPE[1:], 4, dict.fromkeys(COHORTS, 20))


def _config(preset='tiny'):
  config = configs.get_config(preset)
  config.train.batch = 4
  return config


@pytest.fixture(scope='module')
def gan():
  return HealthyGan(_config().model, _config().train, 3)


@pytest.fixture(scope='module')
def state(gan):
  init = jax.jit(lambda key: gan.init(key, State(), SHAPE[1:]))
  return init(jax.random.key(0))


@pytest.fixture(scope='module')
def steps(gan):
  return jax.jit(gan.discriminator_step), jax.jit(gan.generator_step)


def _shapes(preset, image):
  config = configs.get_config(preset)
  gan = HealthyGan(config.model, config.train, image[2])
  return jax.eval_shape(lambda key: gan.init(key, State(), image), _key())


def _key():
  return jax.random.key(0)


def _size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('preset', ['covidx', 'chestxray14', 'migraine'])
def test_the_papers_networks_have_the_originals_parameters(preset):
  made = _shapes(preset, (256, 256, 3))
  assert _size(made.params['generator']) == 8_417_984
  assert _size(made.params['discriminator']) == 44_721_088
  # The original counts a number of batches for each of 17 norms, too.
  assert _size(made.batch_stats) + 17 == 7_441


def test_networks_begin_as_pytorchs_do(state):
  bound = lambda layer, leaf: float(np.abs(layer[leaf]).max())
  generator = state.params['generator']
  judge = state.params['discriminator']
  # Uniform within 1 / sqrt(fan in); 4 x 4 convolutions to 8 and from 8, 4.
  for layer, fan in (
    (generator['main_0'], 49 * 3),
    (generator['main_3'], 16 * 4),
    (generator['main_10'], 16 * 8),  # Transposed: what goes out.
    (judge['main_2'], 16 * 4),
  ):
    assert 0.9 * fan**-0.5 < bound(layer, 'kernel') <= fan**-0.5
  assert 0 < bound(judge['main_2'], 'bias') <= (16 * 4) ** -0.5
  assert 'bias' not in judge['conv1'] and 'bias' not in generator['main_0']


def test_the_mask_says_where_the_generated_image_is_seen():
  x = X['mixed']
  image = DICE.standard_normal(SHAPE).astype(np.float32)
  for raw, healthy, swapped in ((20.0, np.tanh(image), x), (-20.0, x, None)):
    view = View.of(x, Raw(image, np.full((*SHAPE[:3], 1), raw, np.float32)))
    np.testing.assert_allclose(view.healthy, healthy, atol=1e-6)
    swapped = np.tanh(image) if swapped is None else swapped
    np.testing.assert_allclose(view.swapped, swapped, atol=1e-6)
  half = View.of(x, Raw(image, np.zeros((*SHAPE[:3], 1), np.float32)))
  np.testing.assert_allclose(half.mask, 0.5)
  np.testing.assert_allclose(half.healthy, half.swapped, atol=1e-6)


@pytest.mark.parametrize('small', ['square', 'absolute'])
def test_a_mask_is_to_be_small_and_sharp_and_smooth(small):
  config = _config()
  config.train.small, config.train.weights.variation = small, 1.0
  gan = HealthyGan(config.model, config.train, 3)
  mask = DICE.uniform(0, 1, (4, 6, 5, 1)).astype(np.float32)
  valid = np.array([True, True, False, True])
  found = gan.mask_terms(mask, valid)
  kept = mask[valid]
  mean = kept.mean()
  steps = (
    np.abs(np.diff(kept, axis=1)).sum() + np.abs(np.diff(kept, axis=2)).sum()
  )
  expected = {
    'small': mean**2 if small == 'square' else mean,
    'binary': (1 / (np.abs(kept - 0.5) + 0.01)).mean() - 1 / 0.51,
    'variation': steps / kept.size,
  }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
  sharp = gan.mask_terms(np.zeros_like(mask), valid)
  np.testing.assert_allclose([*sharp.values()], 0, atol=1e-6)


def test_the_rate_falls_by_a_thousandth_as_in_the_code_or_to_nothing():
  train = configs.get_config('covidx').train
  code = make_schedule(train, 'discriminator')
  last = 400_000 - 1
  assert float(code(0)) == float(code(300_999)) == pytest.approx(1e-4)
  assert float(code(301_000)) == pytest.approx(1e-4 * (1 - 1e-5), rel=1e-7)
  assert float(code(last)) == pytest.approx(1e-4 * (1 - 99e-5), rel=1e-6)
  train.decay = 'linear_to_zero'
  linear = make_schedule(train, 'discriminator')
  assert float(linear(300_000)) == pytest.approx(1e-4)
  assert float(linear(350_000)) == pytest.approx(0.5e-4)
  assert float(linear(last)) == pytest.approx(1e-9, rel=1e-3)
  # The generator's updates are every second batch's.
  theirs = make_schedule(train, 'generator')
  for step in (0, 160_000, 199_999):
    assert float(theirs(step)) == float(linear(2 * step + 1))


def test_a_step_of_one_moves_the_other_not(gan, state, steps):
  discriminate, generate = steps
  after, scalars = discriminate(state, X, ALPHA, VALID)
  same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))
  assert same(after.params['generator'], state.params['generator'])
  assert not same(after.params['discriminator'], state.params['discriminator'])
  assert not same(after.batch_stats, state.batch_stats)
  total = (
    scalars['discriminator/real']
    + scalars['discriminator/fake']
    + 10 * scalars['discriminator/penalty']
  )
  np.testing.assert_allclose(scalars['discriminator/loss'], total, rtol=1e-5)
  final, scalars = generate(after, X, VALID)
  assert same(final.params['discriminator'], after.params['discriminator'])
  assert not same(final.params['generator'], after.params['generator'])
  weighted = (
    scalars['generator/fool']
    + scalars['generator/fool_healthy']
    + scalars['generator/reconstruction']
    + scalars['generator/identity']
    + 0.1 * scalars['generator/mask']
  )
  np.testing.assert_allclose(scalars['generator/loss'], weighted, rtol=1e-5)


def test_steps_leave_out_what_is_not_valid(state, steps):
  """The loud stranger in the last place changes nothing."""
  valid = {k: np.array([True, True, True, False]) for k in COHORTS}
  loud = {k: np.concatenate([x[:3], np.sign(x[3:])]) for k, x in X.items()}
  discriminate, generate = steps
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  runs = [
    (discriminate(state, x, ALPHA, valid), generate(state, x, valid))
    for x in (X, loud)
  ]
  for one, other in zip(*runs, strict=True):
    jax.tree.map(close, one[1], other[1])
    jax.tree.map(close, one[0].batch_stats, other[0].batch_stats)
  whole = generate(state, loud, VALID)[1]
  assert abs(whole['generator/loss'] - runs[1][1][1]['generator/loss']) > 1e-4


def test_slopes_are_the_length_of_the_gradient_between(gan, state):
  params = state.params['discriminator']
  real, fake = X['healthy'], X['mixed']
  slopes = jax.jit(gan.slopes)(params, real, fake, ALPHA)
  alpha = ALPHA[:, None, None, None]
  between = alpha * real + (1 - alpha) * fake
  value = jax.jit(lambda x: gan.judge(params, x).sum((1, 2, 3)))
  direction = jax.grad(lambda x: value(x).sum())(between)
  direction /= slopes[:, None, None, None]
  rise = value(between + 1e-2 * direction) - value(between - 1e-2 * direction)
  np.testing.assert_allclose(rise / 2e-2, slopes, rtol=2e-2)


@pytest.mark.parametrize('critics', [1, 2])
def test_a_step_takes_a_batch_for_each_critic(critics):
  config = _config()
  config.train.critics = critics
  config.score.maps = ('mask', 'squared')
  method = methods.build(config, INFO)
  (phase,) = method.phases
  assert (phase.batches, phase.cohorts) == (critics, COHORTS)
  front = (critics,) if critics > 1 else ()
  image = np.zeros((*front, *SHAPE), np.uint8)
  zeros = np.zeros((*front, 4), np.int32)
  batches = dict.fromkeys(COHORTS, Batch(image, zeros, zeros))
  begun = jax.eval_shape(phase.init, _key(), State())
  after, scalars = jax.eval_shape(phase.step, begun, batches, _key())
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, begun)
  assert {'mask/mixed_small', 'mask/healthy_most'} <= set(scalars)
  one = Batch(
    *(np.zeros(s, d) for s, d in ((SHAPE, 'u1'), (4, 'i4'), (4, 'i4')))
  )
  score = jax.eval_shape(method.score, after, one, _key())
  assert set(score.image) == {'residual', 'mask'}
  assert {k: v.shape for k, v in score.pixel.items()} == {
    'mask': SHAPE[:3],
    'squared': SHAPE[:3],
  }
  assert score.panels['changed'].shape == (*SHAPE[:3], 1)
  assert score.panels['reconstruction'].shape == SHAPE


def test_the_score_is_the_originals_and_statistics_can_be_the_running_ones(
  gan, state
):
  config = _config()
  batch = Batch((X['mixed'] + 1) / 2, np.arange(4), np.zeros(4, np.int32))
  own = jax.jit(methods.build(config, INFO).score)(state, batch, _key())
  view = jax.jit(gan.view)(state, X['mixed'])
  expected = np.abs(X['mixed'] - view.healthy).mean((1, 2, 3)) / 2
  np.testing.assert_allclose(own.image['residual'], expected, rtol=1e-4)
  np.testing.assert_allclose(
    own.image['mask'], own.pixel['mask'].mean((1, 2)), rtol=1e-5
  )
  config.model.statistics = 'running'
  score = jax.jit(methods.build(config, INFO).score)
  running = score(state, batch, _key())
  assert np.abs(running.pixel['mask'] - own.pixel['mask']).max() > 1e-3


def test_names_are_the_originals_both_ways(state):
  trees = {'params': state.params, 'batch_stats': state.batch_stats}
  foreign = to_foreign(TABLE, trees)
  assert foreign['G.main.9.main.3.weight'].shape == (16, 16, 3, 3)
  assert foreign['G.main.10.weight'].shape == (16, 8, 4, 4)
  assert {'G.main.1.running_var', 'D.main.4.bias', 'D.conv1.weight'} <= set(
    foreign
  )
  foreign['G.main.1.num_batches_tracked'] = np.zeros((), np.int64)
  back = from_foreign(TABLE, foreign, trees)
  jax.tree.map(np.testing.assert_array_equal, back, trees)


def test_bfloat16_keeps_parameters_and_losses_in_float32(state):
  config = _config()
  config.train.precision = 'bfloat16'
  gan = HealthyGan(config.model, config.train, 3)
  after, more = jax.eval_shape(gan.generator_step, state, X, VALID)
  leaves = jax.tree.leaves((after.params, after.batch_stats, more))
  assert {leaf.dtype.name for leaf in leaves} == {'float32'}
  judged = jax.make_jaxpr(gan.judge)(state.params['discriminator'], X['mixed'])
  assert 'bf16' in str(judged)


@pytest.mark.parametrize(
  ('field', 'value', 'says'),
  [
    ('train.decay', 'linear', "No train.decay of healthygan 'linear'"),
    ('train.small', 'abs', 'absolute'),
    ('train.precision', 'float16', 'bfloat16'),
    ('train.critics', 0, 'train.critics is 0'),
    ('train.decay_every', 0, 'train.decay_every is 0'),
    ('model.statistics', 'eval', 'running'),
    ('model.discriminator_layers', 5, '32 at least for 5 layers'),
    ('score.names', ('masks',), "Did you mean 'mask'"),
    ('score.maps', ('masks',), "Did you mean 'mask'"),
  ],
)
def test_what_cannot_be_is_refused(field, value, says):
  config = _config()
  group, name = field.split('.')
  with config.unlocked():
    config[group][name] = value
  with pytest.raises(UserError, match=re.escape(says)):
    methods.build(config, INFO)


@pytest.mark.parametrize('image', [(18, 16, 3), (4, 4, 3)])
def test_sides_that_cannot_be_halved_are_refused(image):
  with pytest.raises(UserError, match='multiples of 4'):
    methods.build(_config(), Info(image, 4, INFO.examples))


@pytest.mark.parametrize(
  ('labels', 'says'),
  [
    ({'mixed': (20, 0)}, 'all 20 images of the cohort mixed are labelled'),
    ({'healthy': (19, 1)}, '1 images of the cohort healthy'),
  ],
)
def test_cohorts_that_defeat_the_purpose_are_refused(labels, says):
  with pytest.raises(UserError, match=says):
    methods.build(_config(), Info(INFO.image, 4, INFO.examples, labels))
  unknown = {'mixed': (0, 0), 'healthy': (20, 0)}
  methods.build(_config(), Info(INFO.image, 4, INFO.examples, unknown))


def _draw(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def _cohorts(config, tmp_path):
  config.data.dir = str(tmp_path / 'prepared')
  records = open_records(write.prepare(config.data, progress=False))
  index = records.index
  names = lambda query: {
    index['key'][int(row)].as_py() for row in records.select(query)
  }
  queries = dict(config.data.cohorts) | {
    'validation': config.data.validation,
    'test': config.data.test,
  }
  return {name: names(query) for name, query in queries.items()}


def test_a_papers_data_set_is_a_folder_with_a_table(tmp_path):
  rows = [
    (f'{number:02d}.png', label, split, kind)
    for number, (label, split, kind) in enumerate(
      [
        *[(-1, 'train', 'mixed')] * 3,
        (1, 'train', 'mixed'),  # What is known of it is not looked at.
        (0, 'train', 'mixed'),
        *[(0, 'train', '')] * 4,
        *[(0, 'validation', '')] * 2,
        (0, 'test', ''),
        (1, 'test', 'covid'),
      ]
    )
  ]
  folder = tmp_path / 'images'
  for name, *_ in rows:
    _draw(folder / name, 100)
  with (folder / 'labels.csv').open('w', newline='') as file:
    csv.writer(file).writerows([('path', 'label', 'split', 'kind'), *rows])
  config = configs.get_config('covidx')
  config.data.path = str(folder)
  found = _cohorts(config, tmp_path)
  named = lambda first, last: {f'{n:02d}.png' for n in range(first, last)}
  assert found == {
    'mixed': named(0, 5),
    'healthy': named(5, 9),
    'validation': named(9, 11),
    'test': named(11, 13),
  }


def test_a_papers_data_set_that_is_not_there_is_asked_for(tmp_path):
  config = configs.get_config('migraine')
  with pytest.raises(UserError, match='needs --config.data.path'):
    write.location(config.data)
  config.data.path = str(tmp_path)
  with pytest.raises(UserError, match='table .*labels.csv'):
    write.location(config.data)


def test_of_a_folder_no_image_is_in_two_places_and_the_sick_are_mixed(tmp_path):
  for number in range(40):
    _draw(tmp_path / f'images/normal/{number}.png', number)
    _draw(tmp_path / f'images/sick/{number}.png', 100 + number)
  config = configs.get_config('folder')
  config.data.path = str(tmp_path / 'images')
  found = _cohorts(config, tmp_path)
  sick = lambda names: {name for name in names if name.startswith('sick')}
  assert 8 < len(sick(found['mixed'])) < 32
  assert found['mixed'] - sick(found['mixed'])
  assert not sick(found['healthy']) and not sick(found['validation'])
  assert sick(found['test'])
  assert sum(map(len, found.values())) == len(set.union(*found.values())) == 80


def test_the_phantoms_mixed_slides_are_those_with_lesions_for_training():
  config = configs.get_config('phantom')
  assert config.data.options.train_lesion == 4
  for query in config.data.cohorts.values():
    assert re.findall(r"'train_\d+_A'", query) == [
      f"'train_{n:03d}_A'" for n in (3, 4, 5, 6)
    ]
  assert 'label' not in config.data.cohorts.mixed
