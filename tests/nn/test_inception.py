"""Inception-v3 of FID against the same network written out in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.nn.embedding import embed
from jaxmed.nn.inception import Inception
from jaxmed.nn.trunk import Trunk, trunk
from jaxmed.weights.names import from_foreign, to_foreign

SIDE = 91
RNG = np.random.default_rng(0)


def abstract(network, side=75):
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), image)


def filled(network, key=0):
  """Variables whose norms' statistics are not the first ones."""
  rng = np.random.default_rng(key)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'var':
      return np.float32(0.5) + rng.random(leaf.shape, np.float32)
    if name in ('mean', 'bias'):
      return 0.1 * rng.standard_normal(leaf.shape, np.float32)
    if name == 'scale':
      return 1 + 0.1 * rng.standard_normal(leaf.shape, np.float32)
    spread = np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
    return spread * rng.standard_normal(leaf.shape, np.float32)

  return jax.tree_util.tree_map_with_path(draw, abstract(network))


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_are_as_many_as_the_original_has():
  whole = abstract(Inception(classes=1008))
  assert count(whole['params']) == 23_850_960
  assert count(whole['params'].pop('fc')) == 2_065_392
  assert count(whole['params']) == 21_785_568


def theirs(torch, weights, images, last=''):
  """The stages down to `last`, by name; images in [0, 1], NCHW."""
  f, w = torch.nn.functional, weights

  def unit(x, name, padding=0, stride=1):
    x = f.conv2d(x, w[f'{name}.conv.weight'], None, stride, padding)
    norm = [
      w[f'{name}.bn.{leaf}']
      for leaf in ('running_mean', 'running_var', 'weight', 'bias')
    ]
    return f.relu(f.batch_norm(x, *norm, eps=0.001))

  mean = lambda x: f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
  halve = lambda x: f.max_pool2d(x, 3, 2)
  join = lambda *x: torch.cat(x, 1)

  def a(x, n):
    five = unit(unit(x, f'{n}.branch5x5_1'), f'{n}.branch5x5_2', 2)
    three = unit(unit(x, f'{n}.branch3x3dbl_1'), f'{n}.branch3x3dbl_2', 1)
    three = unit(three, f'{n}.branch3x3dbl_3', 1)
    pool = unit(mean(x), f'{n}.branch_pool')
    return join(unit(x, f'{n}.branch1x1'), five, three, pool)

  def b(x, n):
    three = unit(unit(x, f'{n}.branch3x3dbl_1'), f'{n}.branch3x3dbl_2', 1)
    three = unit(three, f'{n}.branch3x3dbl_3', stride=2)
    return join(unit(x, f'{n}.branch3x3', stride=2), three, halve(x))

  def c(x, n):
    y = unit(unit(x, f'{n}.branch7x7_1'), f'{n}.branch7x7_2', (0, 3))
    y = unit(y, f'{n}.branch7x7_3', (3, 0))
    z = unit(x, f'{n}.branch7x7dbl_1')
    for i, padding in enumerate(((3, 0), (0, 3), (3, 0), (0, 3))):
      z = unit(z, f'{n}.branch7x7dbl_{i + 2}', padding)
    pool = unit(mean(x), f'{n}.branch_pool')
    return join(unit(x, f'{n}.branch1x1'), y, z, pool)

  def d(x, n):
    y = unit(unit(x, f'{n}.branch3x3_1'), f'{n}.branch3x3_2', stride=2)
    z = unit(unit(x, f'{n}.branch7x7x3_1'), f'{n}.branch7x7x3_2', (0, 3))
    z = unit(z, f'{n}.branch7x7x3_3', (3, 0))
    return join(y, unit(z, f'{n}.branch7x7x3_4', stride=2), halve(x))

  def e(x, n, pool):
    y = unit(x, f'{n}.branch3x3_1')
    y = join(
      unit(y, f'{n}.branch3x3_2a', (0, 1)), unit(y, f'{n}.branch3x3_2b', (1, 0))
    )
    z = unit(unit(x, f'{n}.branch3x3dbl_1'), f'{n}.branch3x3dbl_2', 1)
    z = join(
      unit(z, f'{n}.branch3x3dbl_3a', (0, 1)),
      unit(z, f'{n}.branch3x3dbl_3b', (1, 0)),
    )
    pooled = unit(pool(x), f'{n}.branch_pool')
    return join(unit(x, f'{n}.branch1x1'), y, z, pooled)

  x = unit(2 * images - 1, 'Conv2d_1a_3x3', stride=2)
  x = unit(unit(x, 'Conv2d_2a_3x3'), 'Conv2d_2b_3x3', 1)
  found = {'pool1': halve(x)}
  if last == 'pool1':
    return found
  x = unit(unit(found['pool1'], 'Conv2d_3b_1x1'), 'Conv2d_4a_3x3')
  x = found['pool2'] = halve(x)
  for n in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
    x = a(x, n)
  found['mixed5'], x = x, b(x, 'Mixed_6a')
  for n in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'):
    x = c(x, n)
  found['mixed6'], x = x, e(d(x, 'Mixed_7a'), 'Mixed_7b', mean)
  found['mixed7'] = e(x, 'Mixed_7c', lambda x: f.max_pool2d(x, 3, 1, 1))
  return found


def test_equals_the_network_in_pytorch_at_every_stage():
  torch = pytest.importorskip('torch')
  network = trunk('inception_fid')
  variables = filled(network)
  weights = to_foreign(network.table(), variables)
  assert 'Mixed_7b.branch3x3dbl_3a.bn.running_var' in weights
  assert 'Mixed_6b.branch7x7dbl_5.conv.weight' in weights
  images = RNG.random((1, SIDE, SIDE, 3), np.float32)
  found = jax.jit(network.apply)(variables, images)
  tensors = {name: torch.tensor(array) for name, array in weights.items()}
  expected = theirs(torch, tensors, torch.tensor(images.transpose(0, 3, 1, 2)))
  assert list(expected) == list(network.stages)
  for stage, features in expected.items():
    ours = np.moveaxis(np.asarray(found[stage]), -1, 1)
    scale = float(features.abs().max())
    np.testing.assert_allclose(
      ours, features.numpy(), atol=1e-4 * scale, err_msg=stage
    )


def test_a_checkpoint_with_its_classifier_fits_with_and_without():
  whole = Inception(classes=1008)
  checkpoint = to_foreign(whole.table(), filled(whole))
  assert checkpoint['fc.weight'].shape == (1008, 2048)
  for network in (whole, Inception(), Inception(last='pool2')):
    target = abstract(network)
    read = from_foreign(network.table(), checkpoint, target)
    assert count(read) == count(target)


def test_images_too_small_are_refused():
  with pytest.raises(UserError, match='at least 75 x 75'):
    abstract(Inception(), 74)
  with pytest.raises(UserError, match='at least 43 x 43'):
    abstract(Inception(last='mixed6'), 42)
  abstract(Inception(last='mixed6'), 43)


def test_an_embedding_is_of_299_px_and_averaged():
  torch = pytest.importorskip('torch')
  network = Trunk(Inception(last='pool1'))  # The rest is the same for longer.
  variables = filled(network)
  weights = to_foreign(network.table(), variables)
  images = RNG.random((2, 40, 56, 3), np.float32)
  tensors = {name: torch.tensor(array) for name, array in weights.items()}
  seen = torch.nn.functional.interpolate(
    torch.tensor(images.transpose(0, 3, 1, 2)),
    (299, 299),
    mode='bilinear',
    align_corners=False,
  )
  expected = theirs(torch, tensors, seen, 'pool1')['pool1'].mean((2, 3))
  found = embed(network, variables, images)
  assert found.shape == (2, 64)
  np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
