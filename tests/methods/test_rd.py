import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage

from jaxmed import methods, pretrained
from jaxmed.configs import rd as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import rd
from jaxmed.nn.reverse import Reverse

INFO = Info(image=(32, 32, 3), batch=8, examples={'normal': 24})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
BATCH = Batch(IMAGES, np.arange(8, dtype=np.int32), np.zeros(8, np.int32))


def _start(config):
  """A method and the state it begins with."""
  method = methods.build(config, INFO)
  teacher, _ = pretrained.load('teacher', config.model, INFO)
  given = State(frozen={'teacher': teacher})
  return method, jax.jit(method.phases[0].init)(jax.random.key(0), given)


@pytest.fixture(scope='module')
def begun():
  method, state = _start(configs.get_config('tiny'))
  return method, state, jax.jit(method.phases[0].step), jax.jit(method.score)


def _teach(state, images):
  pair = Reverse(configs.get_config('tiny').model, 'float32', INFO.image)
  return pair, jax.jit(pair.look)(state, images)


def _flat_loss(teacher, student):
  """By the equation, in NumPy and double precision."""
  total = 0
  for f, g in zip(teacher, student, strict=True):
    f, g = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (f, g))
    norms = np.linalg.norm(f, axis=1) * np.linalg.norm(g, axis=1)
    total += (1 - (f * g).sum(axis=1) / np.maximum(norms, 1e-16)).mean()
  return total


def test_a_step_goes_down_and_moves_only_the_student(begun):
  _, state, step, _ = begun
  seen = []
  after = state
  for number in range(4):
    after, scalars = step(after, {'normal': BATCH}, jax.random.key(number))
    seen.append(float(scalars['student/loss']))
  assert seen[-1] < seen[0]
  stages = sum(float(scalars[f'student/stage{i}']) for i in (1, 2, 3))
  np.testing.assert_allclose(stages, seen[-1], rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
  assert set(after.params) == set(after.opt) == {'student'}
  for name in ('params', 'batch_stats'):
    before, moved = (jax.tree.leaves(getattr(s, name)) for s in (state, after))
    assert all(np.any(a != b) for a, b in zip(before, moved, strict=True))


def test_the_loss_is_that_of_its_equation(begun):
  _, state, step, _ = begun
  pair, teacher = _teach(state, BATCH.unit)
  learn = jax.jit(lambda p, s, t: pair.learn(p, s, t, None)[0])
  student = learn(
    state.params['student'], state.batch_stats['student'], teacher
  )
  _, scalars = step(state, {'normal': BATCH}, jax.random.key(0))
  expected = _flat_loss(teacher, student)
  np.testing.assert_allclose(scalars['student/loss'], expected, rtol=1e-4)
  pixel = rd.losses('pixel', teacher, student, np.ones(8, bool))
  for f, g, found in zip(teacher, student, pixel, strict=True):
    each = [x.reshape(-1, x.shape[-1]) for x in (f, g)]
    # A pixel is an image of its own.
    np.testing.assert_allclose(
      found, _flat_loss([each[0]], [each[1]]), rtol=1e-4
    )


def test_padding_has_no_part_in_a_step(begun):
  _, state, step, _ = begun
  row = np.where(np.arange(8) < 5, np.arange(8), -1).astype(np.int32)
  found = []
  for fill in (0, 255):
    images = np.where((row >= 0)[:, None, None, None], IMAGES, np.uint8(fill))
    batch = Batch(images, row, np.zeros(8, np.int32))
    found.append(step(state, {'normal': batch}, jax.random.key(0)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    found[0][0].batch_stats,
    found[1][0].batch_stats,
  )
  for name, value in found[0][1].items():
    np.testing.assert_allclose(value, found[1][1][name], rtol=1e-3)


def test_eight_devices_have_the_batch_statistics_of_one(begun):
  _, state, step, _ = begun
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  batch = jax.device_put(BATCH, place('data'))
  spread = jax.device_put(state, place())
  one, scalars = step(state, {'normal': BATCH}, jax.random.key(0))
  eight, others = step(spread, {'normal': batch}, jax.random.key(0))
  for name, value in scalars.items():
    np.testing.assert_allclose(others[name], value, rtol=1e-3, err_msg=name)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    one.batch_stats,
    eight.batch_stats,
  )


@pytest.mark.parametrize('combine', ['add', 'multiply'])
def test_scores_are_of_the_smoothed_map(begun, combine):
  method, state, _, score = begun
  if combine == 'multiply':
    config = configs.get_config('tiny')
    config.model.combine = combine
    score = jax.jit(methods.build(config, INFO).score)
  found = score(state, BATCH, jax.random.key(0))
  config = configs.get_config('tiny')
  pair, teacher = _teach(state, BATCH.unit)
  student = jax.jit(pair.answer)(state, teacher)
  whole = 0.0 if combine == 'add' else 1.0
  for f, g in zip(teacher, student, strict=True):
    f, g = np.asarray(f, np.float64), np.asarray(g, np.float64)
    norms = np.linalg.norm(f, axis=-1) * np.linalg.norm(g, axis=-1)
    away = 1 - (f * g).sum(-1) / np.maximum(norms, 1e-16)
    at = np.linspace(0, away.shape[1] - 1, 32)  # Corners on corners.
    grid = np.stack(np.meshgrid(at, at, indexing='ij'))
    up = [ndimage.map_coordinates(x, grid, order=1) for x in away]
    whole = whole + np.array(up) if combine == 'add' else whole * np.array(up)
  smooth = np.array([ndimage.gaussian_filter(x, 4) for x in whole])
  np.testing.assert_allclose(found.pixel['cosine'], smooth, rtol=1e-3)
  expected = {
    'cosine_max': smooth.max((1, 2)),
    'cosine_mean': smooth.mean((1, 2)),
  }
  assert list(found.image) == list(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found.image[name], value, rtol=1e-3)


def test_half_precision_keeps_losses_and_parameters_single(begun):
  config = configs.get_config('tiny')
  config.train.precision = 'bfloat16'
  method = methods.build(config, INFO)
  _, state, step, _ = begun
  after, scalars = jax.jit(method.phases[0].step)(
    state, {'normal': BATCH}, jax.random.key(0)
  )
  _, single = step(state, {'normal': BATCH}, jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(after.params)} == {
    jnp.dtype('float32')
  }
  assert scalars['student/loss'].dtype == np.float32
  np.testing.assert_allclose(
    scalars['student/loss'], single['student/loss'], rtol=0.05
  )


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'loss': 'pixels'}, "Did you mean 'pixel'"),
    ({'combine': 'mul'}, "No mode of maps .* 'mul'"),
    ({'teacher': 'resnet'}, "No teacher 'resnet'"),
    ({'shortcut': 5}, 'model.shortcut is 5'),
  ],
)
def test_what_cannot_be_is_said(changes, says):
  config = configs.get_config('tiny')
  config.model.update(changes)
  with pytest.raises(UserError, match=says):
    methods.build(config, INFO)


def test_the_papers_constants():
  config = configs.get_config('paper')
  assert (config.train.rate, config.train.batch) == (5e-3, 16)
  assert (config.train.beta1, config.train.beta2) == (0.5, 0.999)
  assert (config.data.size, config.model.sigma) == (256, 4)
  assert (config.model.loss, config.model.combine) == ('flatten', 'add')
