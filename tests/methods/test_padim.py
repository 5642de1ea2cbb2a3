import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage
from sklearn.covariance import EmpiricalCovariance

from jaxmed import methods, pretrained
from jaxmed.configs import padim as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import padim
from jaxmed.nn.trunk import trunk
from jaxmed.ops import triangle
from jaxmed.training import loop, sharding

INFO = Info(image=(32, 32, 3), batch=8, examples={'normal': 45})
IMAGES = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), np.uint8)
GRID, CHANNELS = (16, 16), 20


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _learn(x, valid, batch=8, block=8):
  """The moments of x [n, h, w, c], which comes in batches."""
  places = x.shape[1] * x.shape[2]
  memory, absorb = (
    padim.empty(places, x.shape[-1], block),
    jax.jit(padim.absorb),
  )
  for i in range(0, len(x), batch):
    some = padim.in_blocks(x[i : i + batch], block)
    memory = absorb(memory, some, valid[i : i + batch])
  return memory


_factorise = jax.jit(padim.factorise, static_argnames=('places', 'epsilon'))
_distances = jax.jit(padim.distances)


def _covariances(memory, places):
  """As whole matrices in float64, without epsilon."""
  channels = memory['mean'].shape[-1]
  lower = np.asarray(triangle.unpack(memory['scatter'], channels), np.float64)
  lower = lower.reshape(-1, channels, channels)[:places]
  both = lower + np.tril(lower, -1).transpose(0, 2, 1)
  return both / (int(memory['images']) - 1)


def test_moments_are_sklearns_and_padding_counts_for_nothing():
  x, valid = _normal(48, 3, 5, 6) + 2, np.arange(48) % 7 != 3
  x[~valid] = np.nan
  memory = _learn(x, valid)
  kept = x[valid].reshape(valid.sum(), 15, 6).astype(np.float64)
  assert memory['images'] == valid.sum()
  mean = memory['mean'].reshape(-1, 6)[:15]
  np.testing.assert_allclose(mean, kept.mean(axis=0), rtol=1e-5)
  n = len(kept)
  for place, found in enumerate(_covariances(memory, 15)):
    fitted = EmpiricalCovariance().fit(kept[:, place])
    true = fitted.covariance_ * n / (n - 1)  # Theirs divides by N.
    np.testing.assert_allclose(found, true, rtol=1e-4, atol=1e-6)


def test_sums_keep_their_digits_where_the_mean_is_large():
  x = _normal(2000, 1, 2, 5) + np.float32(1000)
  found = _covariances(_learn(x, np.ones(2000, bool)), 2)
  flat = x.reshape(2000, 2, 5)
  true = [np.cov(flat[:, p].astype(np.float64).T) for p in range(2)]
  np.testing.assert_allclose(found, true, atol=1e-5)
  # What plain sums of float32 products would have lost.
  sums = flat[:, 0].T @ flat[:, 0] - 2000 * np.outer(*[flat[:, 0].mean(0)] * 2)
  assert np.abs(sums / 1999 - true[0]).max() > 1e-2


def test_the_order_of_images_and_the_size_of_batches_do_not_matter():
  x, valid = _normal(48, 2, 4, 7), np.ones(48, bool)
  one, other = _learn(x, valid), _learn(x[::-1], valid, batch=16)
  np.testing.assert_allclose(one['mean'], other['mean'], atol=1e-6)
  np.testing.assert_allclose(one['scatter'], other['scatter'], atol=1e-4)


def test_blocks_of_places_are_the_whole():
  x, new, valid = _normal(40, 5, 7, 9), _normal(8, 5, 7, 9, seed=1), np.ones(40)
  found = []
  for block in (8, 40):
    memory = _learn(x, valid.astype(bool), block=block)
    after = _factorise(memory, places=35, epsilon=0.01)
    assert after['failed'] == 0
    found.append(_distances(after, padim.in_blocks(new, block))[:, :35])
  np.testing.assert_allclose(*found, rtol=1e-5)


def test_distances_are_mahalanobis_with_the_root():
  x, new = _normal(40, 2, 3, 6), _normal(8, 2, 3, 6, seed=1)
  after = _factorise(_learn(x, np.ones(40, bool)), places=6, epsilon=0.01)
  found = _distances(after, padim.in_blocks(new, 8))[:, :6]
  flat, new = x.reshape(40, 6, 6).astype(np.float64), new.reshape(8, 6, 6)
  for place in range(6):
    away = new[:, place] - flat[:, place].mean(axis=0)
    covariance = np.cov(flat[:, place].T) + 0.01 * np.eye(6)
    square = np.einsum('bi,ij,bj->b', away, np.linalg.inv(covariance), away)
    np.testing.assert_allclose(found[:, place], np.sqrt(square), rtol=1e-4)


def test_channels_are_chosen_in_the_drawn_order_and_aligned_by_repeating():
  layers = [_normal(2, 8, 8, 3), _normal(2, 4, 4, 5), _normal(2, 2, 2, 4)]
  whole = np.concatenate(
    [x.repeat(8 // len(x[0]), 1).repeat(8 // len(x[0]), 2) for x in layers], -1
  )
  chosen = padim.draw(7, 12)
  assert sorted(set(chosen)) != chosen and len(set(chosen)) == 7
  np.testing.assert_array_equal(padim.embed(layers, chosen), whole[..., chosen])
  assert padim.draw(0, 5) == [0, 1, 2, 3, 4]
  assert padim.draw(7, 12) != padim.draw(7, 12, seed=1)


@pytest.mark.parametrize('batch', [1, 6, 8, 30, 64, 128])
@pytest.mark.parametrize('places', [1, 16, 100, 3136])
def test_a_block_divides_among_the_devices_of_a_batch(batch, places):
  block = padim.block_size(places, batch)
  assert block % batch == 0 and block % 8 == 0
  assert block <= max(64, 8 * batch)


def _batches():
  """45 images in batches of 8; what pads them is the loudest of all."""
  row = np.where(np.arange(48) < 45, np.arange(48), -1).astype(np.int32)
  loud = np.uint8([0, 255] * 16)[:, None]
  images = np.where((row >= 0)[:, None, None, None], IMAGES, loud)
  label = np.zeros(8, np.int32)
  return [
    Batch(images[i : i + 8], row[i : i + 8], label) for i in range(0, 48, 8)
  ]


def _run(config, batches, devices=1):
  """The method, its last state, and the scalars of every event."""
  mesh = sharding.make_mesh(jax.devices()[:devices])
  method = methods.build(config, INFO)
  variables, _ = pretrained.load('trunk', config.model, INFO)
  given = State(frozen={'trunk': variables})
  given = jax.device_put(given, sharding.replicated(mesh))
  plans = loop.plan(method, sharding.place(mesh, method.sharding), given)
  rows = sharding.batch_sharding(mesh, 8)
  cohorts = lambda phase, skip: (
    {'normal': jax.device_put(batch, rows)} for batch in batches[skip:]
  )
  start = loop.At(), given
  seen = []
  for event in loop.train(method, cohorts, plans, 0, start):
    seen.append(jax.device_get(event[2]))
  return method, event[1], seen


@pytest.fixture(scope='module')
def done():
  return _run(configs.get_config('tiny'), _batches())


def test_a_run_is_the_method_written_out_in_numpy(done):
  method, state, seen = done
  assert seen[-2]['images'] == 45 and seen[0]['feature_norm'] > 0
  assert sorted(state.memory) == ['factor', 'failed', 'mean']
  config = configs.get_config('tiny').model
  network, variables = trunk('small'), state.frozen['trunk']
  stages = jax.jit(network.apply)(variables, IMAGES[:45] / np.float32(255))
  layers = [stages[name] for name in config.layers]
  chosen = padim.draw(CHANNELS, 32 + 64 + 128)
  x = np.asarray(padim.embed(layers, chosen)).reshape(45, -1, CHANNELS)
  x = x.astype(np.float64)
  new = x[:8]
  inverse = np.linalg.inv(
    [np.cov(x[:, p].T) + 0.01 * np.eye(CHANNELS) for p in range(x.shape[1])]
  )
  away = new - x.mean(axis=0)
  away = np.sqrt(np.einsum('bpi,pij,bpj->bp', away, inverse, away))
  away = jnp.asarray(away.reshape(8, *GRID, 1), jnp.float32)
  large = jax.image.resize(away, (8, 32, 32, 1), 'bilinear')[..., 0]
  smooth = ndimage.gaussian_filter(np.float64(large), (0, 4, 4))
  score = jax.jit(method.score)(state, _batches()[0], jax.random.key(0))
  np.testing.assert_allclose(score.pixel['mahalanobis'], smooth, rtol=1e-3)
  np.testing.assert_allclose(
    score.image['mahalanobis'], smooth.max(axis=(1, 2)), rtol=1e-3
  )


def test_eight_devices_learn_what_one_learns(done):
  _, eight, _ = _run(configs.get_config('tiny'), _batches(), devices=8)
  ways = eight.memory['factor'].sharding.shard_shape(
    eight.memory['factor'].shape
  )
  assert ways[1] * 8 == eight.memory['factor'].shape[1]
  one = done[1].memory
  np.testing.assert_allclose(one['mean'], eight.memory['mean'], atol=1e-5)
  np.testing.assert_allclose(
    one['factor'], eight.memory['factor'], rtol=1e-3, atol=1e-4
  )


def test_devices_exchange_features_and_never_covariances():
  config, channels = configs.get_config('tiny'), 48
  config.model.channels = channels
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  place = lambda x, *spec: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
  )
  memory = jax.eval_shape(lambda: padim.empty(256, channels, 64))
  memory = {
    name: place(x, *((None, 'data') if x.ndim else ()))
    for name, x in memory.items()
  }
  x = place(jax.ShapeDtypeStruct((8, 256, channels), jnp.float32), 'data')
  valid = place(jax.ShapeDtypeStruct((8,), bool), 'data')
  after = jax.tree.map(lambda x: x.sharding, memory)
  absorb = lambda memory, x, valid: padim.absorb(
    memory, padim.in_blocks(x, 64), valid
  )
  score = lambda memory, x: padim.distances(memory, padim.in_blocks(x, 64))
  factors = {'mean': memory['mean'], 'factor': memory['scatter']}
  programs = (
    jax.jit(absorb, out_shardings=after).lower(memory, x, valid),
    jax.jit(score).lower(factors, x),
  )
  for program in programs:
    text = program.compile().as_text()
    assert ' all-to-all(' in text
    moved = [
      line.split('(')[0]
      for line in text.splitlines()
      if ' all-reduce(' in line or ' all-gather(' in line
    ]
    large = (f'{channels},{channels}]', '49,24]')  # A matrix, or half of one.
    assert not [line for line in moved if any(s in line for s in large)]


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'layers': ('stage4',)}, "No stage of small 'stage4'"),
    ({'channels': 225}, '225 channels .* of the 224 of stage1, stage2, stage3'),
    ({'channels': -1}, 'between 1 and 224'),
    ({'epsilon': -1.0}, 'config.model.epsilon above 0'),
    ({'epsilon': 0.0, 'channels': 45}, '45 channels over 45 images'),
  ],
)
def test_what_cannot_be_is_said(changes, says):
  config = configs.get_config('tiny')
  config.model.update(changes)
  with pytest.raises(UserError, match=says):
    methods.build(config, INFO)


def test_one_image_has_no_covariance():
  info = Info(image=(32, 32, 3), batch=8, examples={'normal': 1})
  with pytest.raises(UserError, match='one normal image'):
    methods.build(configs.get_config('tiny'), info)


def test_a_covariance_that_is_not_positive_definite_is_said():
  config = configs.get_config('tiny')
  config.model.epsilon = 0.0
  same = [
    batch.replace(image=np.repeat(IMAGES[i : i + 1], 8, axis=0))
    for i, batch in enumerate(_batches())
  ]  # 45 images would do for 20 channels, but 6 of them differ.
  says = r'not positive definite at 256 of 256 places .*config.model.epsilon'
  with pytest.raises(UserError, match=says):
    _run(config, same)
