import math

import jax
import numpy as np
import pytest

from jaxmed import methods, pretrained
from jaxmed.configs import fwrd as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import fwrd

INFO = Info(image=(32, 32, 3), batch=8, examples={'normal': 35, 'few': 5})
DICE = np.random.default_rng(0)
NORMAL, FEW = DICE.integers(0, 256, (2, 8, 32, 32, 3), np.uint8)


def _batch(images, first=0):
  row = np.arange(first, first + 8, dtype=np.int32)
  return Batch(images, row, np.zeros(8, np.int32))


BATCHES = {'normal': _batch(NORMAL), 'few': _batch(FEW, 100)}


def _begin(**changes):
  config = configs.get_config('tiny')
  config.model.update(changes)
  method = methods.build(config, INFO)
  teacher, _ = pretrained.load('teacher', config.model, INFO)
  given = State(frozen={'teacher': teacher})
  state = jax.jit(method.phases[0].init)(jax.random.key(0), given)
  return method, state


@pytest.fixture(scope='module')
def begun():
  method, state = _begin()
  return method, state, jax.jit(method.phases[0].step)


def _equation(s: float, normal: bool, alpha: float, gamma: float) -> float:
  p = min(max(s if normal else 1 - s, 1e-6), 1)
  weight = alpha if normal else 1 - alpha
  return -weight * (1 - p) ** gamma * math.log(p)


@pytest.mark.parametrize(('alpha', 'gamma'), [(0.1, 2), (0.3, 0), (0.5, 0.5)])
def test_the_loss_is_that_of_its_equation(alpha, gamma):
  s = np.float32([0.9, 0.2, 0.5, 0, 1, 0, 1, -0.1])
  normal = np.array([1, 1, 0, 1, 1, 0, 0, 1], bool)
  loss = lambda s: fwrd.focal(s, normal, alpha, gamma)
  expected = [
    _equation(float(one), bool(kind), alpha, gamma)
    for one, kind in zip(s, normal, strict=True)
  ]
  np.testing.assert_allclose(loss(s), expected, rtol=1e-4, atol=1e-6)
  # A tumour that is answered perfectly, and all else, has a finite slope.
  assert np.isfinite(jax.grad(lambda s: loss(s).sum())(s)).all()


def test_normals_are_drawn_to_the_teacher_and_tumours_pushed_away():
  slope = jax.grad(lambda s, kind: fwrd.focal(s, kind, 0.1, 2.0).sum())
  s = np.float32([0.3, 0.7])
  assert (slope(s, np.array([True, True])) < 0).all()
  assert (slope(s, np.array([False, False])) > 0).all()
  # What is easy counts less than by its logarithm alone.
  easy = fwrd.focal(np.float32([0.9]), np.array([True]), 0.1, 2.0)
  assert easy < 0.011 * -0.1 * math.log(0.9)


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_each_place_has_a_normal_or_one_of_the_few(share):
  shown = []
  for number in range(100):
    batch, normal = fwrd.mixed(*BATCHES.values(), share, jax.random.key(number))
    kinds = np.asarray(normal)
    rows = np.where(kinds, np.arange(8), np.arange(100, 108))
    np.testing.assert_array_equal(batch.row, rows)
    images = np.where(kinds[:, None, None, None], NORMAL, FEW)
    np.testing.assert_array_equal(batch.image, images)
    shown.append(~kinds)
  spread = math.sqrt(share * (1 - share) / 800)
  assert abs(np.mean(shown) - share) <= 4 * spread


@pytest.mark.slow
def test_the_few_have_their_share_of_all_images_unless_told(begun):
  def shown(share):
    method, state = _begin(few_share=share)
    step = jax.jit(method.phases[0].step)
    keys = jax.random.split(jax.random.key(1), 12)
    return sum(float(step(state, BATCHES, k)[1]['student/few']) for k in keys)

  assert shown(1.0) == 96
  own = shown(0.0)  # 5 of 40.
  assert 3 <= own <= 24


def test_a_step_looks_at_images_and_cohorts_and_at_no_label(begun):
  _, state, step = begun
  _, scalars = step(state, BATCHES, jax.random.key(0))
  other = {k: b.replace(label=np.ones(8, np.int32)) for k, b in BATCHES.items()}
  _, again = step(state, other, jax.random.key(0))
  assert {k: float(v) for k, v in scalars.items()} == {
    k: float(v) for k, v in again.items()
  }
  assert 0 < float(scalars['student/similarity_normal']) < 1


@pytest.mark.slow
def test_training_tells_the_few_from_the_normals():
  method, state = _begin(few_share=0.5)
  step = jax.jit(method.phases[0].step, donate_argnums=0)
  dark = {
    'normal': _batch(NORMAL // 2),
    'few': _batch(255 - FEW // 4, 100),
  }
  for number in range(60):
    state, scalars = step(state, dark, jax.random.key(number))
  score = jax.jit(method.score)
  one, other = (
    score(state, dark[name], jax.random.key(0)).image['cosine_mean']
    for name in ('normal', 'few')
  )
  assert np.max(one) < np.min(other)
  assert (
    scalars['student/similarity_few'] < scalars['student/similarity_normal']
  )


def test_a_step_counts_what_it_shows():
  (phase,) = methods.build(configs.get_config('tiny'), INFO).phases
  assert (phase.cohorts, phase.seen) == (('normal', 'few'), 8)


def test_the_papers_constants_and_the_codes():
  paper, code = (
    configs.get_config(name) for name in ('camelyon16', 'camelyon16_code')
  )
  told = lambda c: (c.train.rate, c.model.shortcut, c.data.shots.few)
  assert told(paper) == (1e-5, 1, 500) and told(code) == (1e-6, 3, 0)
  assert paper.train.steps == round(50 * 5500 / 32, -2)
  assert code.train.steps == math.ceil(10 * 6001 / 32)
  for config in (paper, code):
    assert (config.model.alpha, config.model.gamma) == (0.1, 2)
    assert (config.train.beta1, config.train.batch) == (0.5, 32)
    assert config.score.above == 2.01 and config.score.detect_above == 2.0
    for mpp in (0.243, 0.226):  # Of either scanner.
      assert round(config.score.nms_radius / (64 * mpp)) == 6
    assert config.data.options.protocol == 'fwrd' and config.data.size == 256
    assert config.score.scheme == 'ncrf' and config.eval.protocol
    assert config.eval.slide_rule == 'mean_above'
    assert config.eval.primary == 'cosine_mean'


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'alpha': 1.5}, 'config.model.alpha is 1.5; it has to be 0 to 1'),
    ({'gamma': -1.0}, 'config.model.gamma is -1.0; it has to be at least 0'),
    ({'few_share': 2.0}, 'config.model.few_share is 2.0'),
    ({'shortcut': 2}, 'model.shortcut is 2'),
  ],
)
def test_what_cannot_be_is_said(changes, says):
  config = configs.get_config('tiny')
  config.model.update(changes)
  with pytest.raises(UserError, match=says):
    methods.build(config, INFO)
