"""Trunks: their size, names, stages, precision, and what they refuse."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from jaxmed.errors import UserError
from jaxmed.nn import chain
from jaxmed.nn import trunk as trunks
from jaxmed.nn.trunk import NETWORKS, deepest, trunk
from jaxmed.weights.names import NamesError, from_foreign, to_foreign
from tests.golden import filling, rule

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'backbones'
COUNTS = {
  'alexnet': 61_100_840,
  'densenet121': 7_978_856,
  'inception_fid': 23_834_568,
  'resnet18': 11_689_512,
  'resnet50': 25_557_032,
  'squeezenet1_1': 1_235_496,
  'vgg16': 138_357_544,
  'wide_resnet50_2': 68_883_240,
}
# The deepest stage and what becomes of 67 x 97 px there: height, width,
# features.
DEEPEST = {
  'alexnet': ('relu5', 3, 5, 256),
  'densenet121': ('block4', 2, 3, 1024),
  'inception_fid': ('mixed7', 1, 1, 2048),  # Of 75 x 97, its least.
  'resnet18': ('layer4', 3, 4, 512),
  'resnet50': ('layer4', 3, 4, 2048),
  'resnet50v2': ('stage3', 5, 7, 1024),
  'small': ('stage3', 9, 13, 128),
  'squeezenet1_1': ('fire9', 4, 6, 512),
  'tiny': ('stage3', 9, 13, 16),
  'vgg16': ('relu5_3', 4, 6, 512),
  'wide_resnet50_2': ('layer4', 3, 4, 2048),
}


def shapes(network, side=75):
  image = jnp.zeros((1, side, side, 3))
  return jax.eval_shape(network.init, jax.random.key(0), image)


def foreign(network) -> dict[str, tuple[int, ...]]:
  """The original's names and shapes."""
  empty = jax.tree.map(
    lambda x: np.broadcast_to(np.int8(0), x.shape), shapes(network)
  )
  table = network.table()
  return {name: x.shape for name, x in to_foreign(table, empty).items()}


def checkpoint(network, seed=0) -> dict[str, np.ndarray]:
  """Weights by the golden cases' rule, under the original's names."""
  return {
    name: rule.weight('test', seed, name, shape, norm=len(shape) == 1)
    for name, shape in foreign(network).items()
  }


def filled(network, weights=None):
  weights = checkpoint(network) if weights is None else weights
  return from_foreign(network.table(), weights, shapes(network))


@functools.cache
def images(height=33, width=47):
  rng = np.random.default_rng(0)
  return rng.random((2, height, width, 3), np.float32)


def test_every_network_is_tested():
  assert (
    set(DEEPEST)
    == set(NETWORKS)
    == {
      *COUNTS,
      'resnet50v2',
      'small',
      'tiny',
    }
  )


@pytest.mark.parametrize('name', COUNTS)
def test_as_many_parameters_as_published(name):
  tree = shapes(NETWORKS[name](classes=1000))
  assert sum(x.size for x in jax.tree.leaves(tree['params'])) == COUNTS[name]


@pytest.mark.parametrize('name', DEEPEST)
def test_stages_come_in_order_and_only_they(name):
  network = trunk(name)
  height = max(67, network.network.least)
  x = jax.ShapeDtypeStruct((2, height, 97, 3), jnp.float32)
  run = lambda x: network.init_with_output(jax.random.key(0), x)[0]
  features = jax.eval_shape(run, x)
  assert set(features) == set(network.stages)
  sides = [features[stage].shape[1] for stage in network.stages]
  assert sides == sorted(sides, reverse=True)
  stage, *shape = DEEPEST[name]
  assert network.stages[-1] == stage
  assert features[stage].shape == (2, *shape)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_trunk_is_as_deep_as_its_deepest_layer(name):
  every = trunk(name).stages
  assert deepest(name, (every[1], every[0])) == every[1]
  assert deepest(name, (every[0], 'none')) == ''


@pytest.mark.parametrize('name', NETWORKS)
def test_what_lies_below_the_last_stage_has_no_parameters(name):
  """And the table lets exactly the names of these pass."""
  whole = NETWORKS[name](classes=0 if name == 'resnet50v2' else 10)
  names = set(foreign(whole))
  before = set()
  for stage in whole.stages:
    network = NETWORKS[name](last=stage)
    assert network.stages == whole.stages[: len(network.stages)]
    assert network.stages[-1] == stage
    kept = set(foreign(network))
    assert kept > before
    ignored = {n for n in names if network.table().ignores(n)}
    assert ignored == names - kept
    before = kept
  head = names - before
  assert bool(head) == bool(whole.classes)
  assert all(n.startswith(('fc.', 'classifier.', 'head.')) for n in head)


@pytest.mark.parametrize(
  'name', sorted(COUNTS.keys() - {'inception_fid', 'resnet50'})
)
def test_names_and_shapes_are_torchvisions(name):
  state = filling.read(GOLDEN)['state']
  theirs = {
    theirs.removeprefix(f'{name}.'): tuple(shape)
    for theirs, shape, _ in state
    if theirs.startswith(f'{name}.')
  }
  network = NETWORKS[name](classes=1000)
  assert foreign(network) == {
    name: shape for name, shape in theirs.items() if 'num_batches' not in name
  }


@pytest.mark.parametrize('name', ['resnet18', 'squeezenet1_1', 'resnet50v2'])
def test_a_checkpoint_comes_back_bit_for_bit(name):
  network = NETWORKS[name]()
  weights = checkpoint(network)
  back = to_foreign(network.table(), filled(network, weights))
  assert set(back) == set(weights)
  for key, array in weights.items():
    np.testing.assert_array_equal(back[key], array)


def test_checkpoints_with_and_without_counts_of_batches():
  network = NETWORKS['resnet18'](last='layer1')
  old = checkpoint(network)
  counts = {
    name.replace('running_mean', 'num_batches_tracked'): np.int64(7)
    for name in old
    if name.endswith('running_mean')
  }
  assert len(counts) == 5
  one, other = filled(network, old), filled(network, old | counts)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_another_networks_checkpoint_is_refused():
  narrow, wide = NETWORKS['resnet50'](), NETWORKS['wide_resnet50_2']()
  with pytest.raises(NamesError) as caught:
    filled(wide, checkpoint(narrow))
  assert len(caught.value.mismatched) > 30 and not caught.value.missing
  with pytest.raises(NamesError) as caught:
    filled(wide, checkpoint(NETWORKS['squeezenet1_1']()))
  assert caught.value.unused and caught.value.missing


def in_torch(weights: dict, counts: tuple[int, ...], x):
  """A residual network in a few lines of PyTorch."""
  torch = pytest.importorskip('torch')
  ops = torch.nn.functional
  weights = {k: torch.from_numpy(v) for k, v in weights.items()}

  def conv(name, x, stride=1):
    kernel = weights[f'{name}.weight']
    pad = kernel.shape[-1] // 2
    return ops.conv2d(x, kernel, stride=stride, padding=pad)

  def norm(name, x):
    of = ('running_mean', 'running_var', 'weight', 'bias')
    return ops.batch_norm(x, *(weights[f'{name}.{leaf}'] for leaf in of))

  def block(name, x, stride):
    y, layers = x, 3 if f'{name}.conv3.weight' in weights else 2
    for i in range(1, layers + 1):
      here = stride if i == layers - 1 else 1
      y = norm(f'{name}.bn{i}', conv(f'{name}.conv{i}', y, here))
      y = y if i == layers else torch.relu(y)
    if f'{name}.downsample.0.weight' in weights:
      x = conv(f'{name}.downsample.0', x, stride)
      x = norm(f'{name}.downsample.1', x)
    return torch.relu(x + y)

  x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
  x = torch.relu(norm('bn1', conv('conv1', x, 2)))
  x = ops.max_pool2d(x, 3, 2, 1)
  for stage, count in enumerate(counts, start=1):
    for i in range(count):
      stride = 2 if stage > 1 and i == 0 else 1
      x = block(f'layer{stage}.{i}', x, stride)
  return x.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize('size', [(33, 47), (1, 1)])
def test_resnet50_is_what_torch_computes_at_odd_sizes(size):
  network, x = NETWORKS['resnet50'](last='layer3'), images(*size)
  weights = checkpoint(network)
  expected = in_torch(weights, (3, 4, 6), x)
  ours = jax.jit(network.apply)(filled(network, weights), x)['layer3']
  error = np.abs(ours - expected).max() / np.abs(expected).max()
  assert ours.shape == expected.shape and error < 1e-4


class Short(chain.Chain):
  """Like AlexNet and VGG, but small."""

  layers = (
    chain.Conv('relu1', 4, 5, 2, 2),
    chain.Pool(3),
    chain.Conv('relu2', 6),
  )
  every = ('relu1', 'relu2')
  side = 3
  hidden = 8
  dense = (1, 4, 6)


@pytest.mark.parametrize('size', [(11, 29), (16, 5)])
def test_a_chain_flattens_channels_first_as_torch_does(size):
  torch = pytest.importorskip('torch')
  torch_nn = torch.nn
  layers = torch_nn.ModuleDict(
    {
      'features': torch_nn.Sequential(
        torch_nn.Conv2d(3, 4, 5, 2, 2),
        torch_nn.ReLU(),
        torch_nn.MaxPool2d(3, 2),
        torch_nn.Conv2d(4, 6, 3, padding=1),
        torch_nn.ReLU(),
      ),
      'classifier': torch_nn.Sequential(
        torch_nn.Dropout(),
        torch_nn.Linear(54, 8),
        torch_nn.ReLU(),
        torch_nn.Dropout(),
        torch_nn.Linear(8, 8),
        torch_nn.ReLU(),
        torch_nn.Linear(8, 5),
      ),
    }
  ).eval()
  x = images(*size)
  maps = layers['features'](torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
  flat = torch_nn.functional.adaptive_avg_pool2d(maps, 3).flatten(1)
  expected = layers['classifier'](flat).detach().numpy()
  network = Short(classes=5)
  weights = {k: v.numpy() for k, v in layers.state_dict().items()}
  found = network.apply(filled(network, weights), x)
  np.testing.assert_allclose(found['logits'], expected, atol=1e-5)


def test_bfloat16_comes_near_and_keeps_its_weights_in_float32():
  weights = filled(NETWORKS['resnet18'](last='layer2'))
  features = [
    jax.jit(trunk('resnet18', dtype, last='layer2').apply)(weights, images())
    for dtype in (None, jnp.bfloat16)
  ]
  for stage, exact in features[0].items():
    near = features[1][stage]
    assert near.dtype == jnp.float32
    error = jnp.abs(near - exact).mean() / jnp.abs(exact).mean()
    assert 1e-4 < error < 0.03, stage
  narrow = trunk('resnet18', jnp.bfloat16, last='stem')
  fresh = jax.eval_shape(narrow.init, jax.random.key(0), images())
  assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}


def test_training_moves_statistics_by_valid_images_alone():
  network = trunk('resnet18', last='layer1')
  weights = filled(network.network)
  step = jax.jit(
    functools.partial(network.apply, train=True, mutable='batch_stats')
  )
  odd = np.concatenate([images(), np.full_like(images()[:1], 1e3)])
  valid = jnp.array([True, True, False])
  _, alone = step(weights, images())
  features, beside = step(weights, odd, valid=valid)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
    alone,
    beside,
  )
  before = weights['batch_stats']['bn1']['mean']
  assert np.abs(beside['batch_stats']['bn1']['mean'] - before).max() > 1e-3
  asleep = jax.jit(network.apply)(weights, images())
  assert np.abs(features['layer1'][:2] - asleep['layer1']).max() > 1e-2


def test_dropout_draws_in_training_only():
  network = NETWORKS['squeezenet1_1'](classes=3)
  weights, x = filled(network), images()

  @functools.partial(jax.jit, static_argnums=1)
  def run(seed, train):
    keys = {'dropout': jax.random.key(seed)}
    return network.apply(weights, x, train, rngs=keys)['logits']

  np.testing.assert_array_equal(run(0, False), run(1, False))
  assert np.abs(run(0, True) - run(1, True)).max() > 0


def test_a_trunk_normalises_as_imagenets_networks_expect():
  network = NETWORKS['small']()
  variables = jax.jit(network.init)(jax.random.key(0), images())
  mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  normal = ((images() - mean) / deviation).astype(np.float32)
  expected = jax.jit(network.apply)(variables, normal)
  # Of the same variables.
  found = jax.jit(trunk('small').apply)(variables, images())
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected
  )


def test_gray_images_are_repeated_and_this_is_said_once(caplog, monkeypatch):
  monkeypatch.setattr(logging, '_log_counter_per_token', {})
  caplog.set_level('INFO')
  network, gray = trunk('small'), images()[..., :1]
  variables = jax.jit(network.init)(jax.random.key(0), gray)
  for _ in range(2):
    found = jax.jit(network.apply)(variables, gray)
  expected = jax.jit(network.apply)(variables, gray.repeat(3, axis=-1))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert caplog.text.count('gray images are repeated') == 1


def test_two_channels_are_refused():
  with pytest.raises(UserError, match='not 2 channels'):
    trunks.normalised(jnp.zeros((1, 8, 8, 2)))


@pytest.mark.parametrize(
  'name, classes, least',
  [
    ('alexnet', 0, 31),
    ('alexnet', 5, 63),
    ('vgg16', 0, 16),
    ('vgg16', 5, 32),
    ('squeezenet1_1', 5, 17),
    ('densenet121', 5, 29),
  ],
)
def test_images_too_small_end_in_one_sentence(name, classes, least):
  network = trunk(name, classes=classes)
  run = lambda side: jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, side, 99, 3))
  )
  run(least)
  expected = f'{least - 1} x 99 px.*at least {least} x {least} px'
  with pytest.raises(UserError, match=expected) as caught:
    run(least - 1)
  assert caught.value.__suppress_context__


@pytest.mark.parametrize('name', ['resnet18', 'resnet50v2', 'small'])
def test_one_pixel_is_enough_where_everything_is_padded(name):
  features = jax.eval_shape(
    trunk(name).init_with_output, jax.random.key(0), jnp.zeros((1, 1, 1, 1))
  )[0]
  assert features[trunk(name).stages[-1]].shape[1:3] == (1, 1)


def test_what_cannot_be_built_is_refused():
  with pytest.raises(UserError, match="Did you mean 'layer3'"):
    trunk('resnet18', last='layer-3')
  with pytest.raises(UserError, match='needs the whole network'):
    trunk('resnet18', classes=2, last='layer3')
  with pytest.raises(UserError, match='ends after its third stage'):
    trunk('resnet50v2', classes=2)
  with pytest.raises(UserError, match="No trunk 'resnet19'. Did you mean"):
    trunk('resnet19')
