"""DenseNet-121 against PyTorch, in training too, and its names."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.nn.densenet import DenseNet121
from jaxmed.weights.names import NamesError, from_foreign, to_foreign

SMALL = {'blocks': (2, 2), 'growth': 4, 'stem_width': 6}
IMAGES = np.random.default_rng(0).normal(size=(5, 37, 44, 3)).astype('float32')


def _shapes(network):
  image = jnp.zeros((1, 64, 64, 3))
  return jax.eval_shape(network.init, jax.random.key(0), image)


def test_it_has_as_many_parameters_as_published():
  shapes = dict(_shapes(DenseNet121(classes=2))['params'])
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert count(shapes) == 6_955_906
  head = shapes.pop('classifier')
  assert count(shapes) == 6_953_856
  rows = head['kernel'].shape[0] + head['bias'].ndim  # One more: the bias.
  assert count(shapes) + rows == 6_954_881
  assert count(shapes) + 1000 * rows == 7_978_856


@pytest.fixture(scope='module')
def pair():
  """A small one of ours, and the same in PyTorch."""
  torch = pytest.importorskip('torch')
  from tests.nn.densenet_torch import DenseNet

  torch.manual_seed(0)
  theirs = DenseNet(2, SMALL['blocks'], SMALL['growth'], SMALL['stem_width'])
  for name, array in theirs.state_dict().items():
    if 'norm' in name and array.ndim:  # Else all scales are 1, all shifts 0.
      array.uniform_(0.5, 1.5)
  ours = DenseNet121(classes=2, **SMALL)
  given = {k: v.numpy().copy() for k, v in theirs.state_dict().items()}
  variables = from_foreign(ours.table(), given, _shapes(ours))
  return ours, variables, theirs, given


def _torch(images):
  import torch

  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def test_logits_are_pytorchs(pair):
  ours, variables, theirs, _ = pair
  found = jax.jit(ours.apply)(variables, IMAGES)
  want = theirs.eval()(_torch(IMAGES)).detach().numpy()
  np.testing.assert_allclose(found['logits'], want, rtol=1e-4, atol=1e-5)
  assert found['block2'].shape == (5, 5, 5, 15) and found['block2'].min() == 0
  assert set(found) == {*ours.stages, 'logits'}
  assert found['stem'].shape == (5, 10, 11, 6)
  assert found['block1'].shape == (5, 10, 11, 14)


@pytest.mark.parametrize('padded', [False, True])
def test_a_step_of_training_is_pytorchs(pair, padded):
  """Gradients and running statistics; images that only pad have no part."""
  ours, variables, theirs, given = pair
  theirs = copy.deepcopy(theirs).train()
  loss = theirs(_torch(IMAGES)).square().mean()
  loss.backward()
  images, valid = IMAGES, None
  if padded:
    loud = np.full((3, *IMAGES.shape[1:]), 50.0, np.float32)
    images, valid = np.concatenate([IMAGES, loud]), jnp.arange(8) < 5

  @jax.jit
  def step(variables):
    def value(params):
      found, after = ours.apply(
        variables | {'params': params},
        images,
        train=True,
        valid=valid,
        mutable=['batch_stats'],
      )
      return jnp.square(found['logits'][:5]).mean(), after

    return jax.value_and_grad(value, has_aux=True)(variables['params'])

  (value, after), gradient = step(variables)
  assert float(value) == pytest.approx(loss.item(), rel=1e-4)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
  moved = to_foreign(ours.table(), after | {'params': gradient})
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  for name, parameter in theirs.named_parameters():
    want = parameter.grad.numpy()
    np.testing.assert_allclose(
      moved[name],
      want,
      rtol=1e-3,
      atol=1e-6 * largest + 1e-4 * np.abs(want).max(),
    )
  running = [name for name in moved if 'running' in name]
  assert len(running) == 2 * (1 + 2 * 4 + 1 + 1)
  for name in running:
    assert not np.allclose(state[name], given[name], rtol=1e-3)
    np.testing.assert_allclose(moved[name], state[name], rtol=1e-4, atol=1e-5)


def test_names_of_either_file_are_taken_and_the_new_ones_given(pair):
  ours, variables, _, given = pair
  old = {
    name.replace('norm1.', 'norm.1.')
    .replace('norm2.', 'norm.2.')
    .replace('conv1.', 'conv.1.')
    .replace('conv2.', 'conv.2.'): array
    for name, array in given.items()
  }
  assert 'features.denseblock1.denselayer2.norm.1.running_mean' in old
  read = from_foreign(ours.table(), old, _shapes(ours))
  jax.tree.map(np.testing.assert_array_equal, read, variables)
  back = to_foreign(ours.table(), read)
  kept = {k: v for k, v in given.items() if not k.endswith('batches_tracked')}
  assert set(back) == set(kept)
  for name, array in kept.items():
    np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize('last', ['stem', 'block1', 'block2'])
def test_built_to_a_stage_it_ignores_what_is_below(pair, last):
  ours, variables, _, given = pair
  short = DenseNet121(last=last, **SMALL)
  assert short.stages[-1] == last
  read = from_foreign(short.table(), given, _shapes(short))
  want = jax.jit(ours.apply)(variables, IMAGES)
  found = jax.jit(short.apply)(read, IMAGES)
  assert set(found) == set(short.stages)
  for stage, features in found.items():
    np.testing.assert_allclose(features, want[stage], rtol=1e-5, atol=1e-6)
  strange = given | {'features.conv1.weight': given['features.conv0.weight']}
  with pytest.raises(NamesError, match='features.conv1.weight'):
    from_foreign(short.table(), strange, _shapes(short))


def _train(network, variables):
  run = functools.partial(network.apply, train=True, mutable=['batch_stats'])
  return jax.jit(run)(variables, IMAGES)


def test_bfloat16_is_near_and_statistics_stay_in_float32(pair):
  ours, variables, _, _ = pair
  half = ours.clone(dtype=jnp.bfloat16)
  found, after = _train(half, variables)
  want, _ = _train(ours, variables)
  assert found['block2'].dtype == jnp.bfloat16
  assert found['logits'].dtype == jnp.float32
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(after))
  np.testing.assert_allclose(found['logits'], want['logits'], atol=0.1)


def test_the_smallest_image_passes_and_a_smaller_one_is_refused():
  assert DenseNet121().least == 29
  network = DenseNet121(**SMALL)
  of = lambda side: jax.eval_shape(
    network.init_with_output, jax.random.key(0), jnp.zeros((1, side, side, 3))
  )
  assert of(5)[0]['block2'].shape[1:3] == (1, 1)
  with pytest.raises(UserError, match='4 x 4 px.*at least 5 x 5'):
    of(4)
