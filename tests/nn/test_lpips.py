"""LPIPS: what it promises beside the golden case, and its heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.nn import lpips
from jaxmed.weights.names import to_foreign

RNG = np.random.default_rng(0)
X, Y = RNG.random((2, 2, 28, 25, 3), np.float32)
# The published heads' sums, vgg's as the specification has them.
SUMS = {
  'alex': (2.34953, 16.14303, 39.26844, 27.19718, 20.31718),
  'vgg': (6.92599, 8.85833, 17.51501, 51.52132, 47.03486),
  'squeeze': (
    5.69010,
    1.18528,
    16.32657,
    71.01262,
    37.37072,
    24.26287,
    17.59055,
  ),
}
# Of the trunk down to the last stage, and of the heads.
COUNTS = {
  'alex': (2_469_696, 1_152),
  'vgg': (14_714_688, 1_472),
  'squeeze': (722_496, 2_240),
}


@functools.cache
def made(kind: str, dtype=None):
  """A network with a random trunk, and its variables."""
  network = lpips.Lpips(kind, dtype)
  image = jnp.zeros((1, 32, 32, 3))
  return network, jax.jit(network.init)(jax.random.key(0), image, image)


@functools.cache
def compiled(kind: str, method='__call__', dtype=None):
  network, variables = made(kind, dtype)
  run = jax.jit(functools.partial(network.apply, method=method))
  return functools.partial(run, variables)


@pytest.mark.parametrize('kind', lpips.KINDS)
def test_heads_are_the_published_ones(kind):
  heads = lpips.published_heads(kind)
  sums = [float(w.astype(float).sum()) for w in heads]
  np.testing.assert_allclose(sums, SUMS[kind], atol=1e-5)
  assert all((w >= 0).all() and w.dtype == np.float32 for w in heads)


@pytest.mark.parametrize('kind', lpips.KINDS)
def test_parameters_are_as_many_as_the_original_has(kind):
  network = lpips.Lpips(kind)
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  held = jax.eval_shape(network.init, jax.random.key(0), image, image)
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  trunk = count(held['params'].pop('network'))
  assert (trunk, count(held)) == COUNTS[kind]


def theirs(kind: str, x, y):
  """The original's formulation in PyTorch, image by image."""
  torch = pytest.importorskip('torch')
  _, variables = made(kind)
  table = lpips.network(kind).table()
  held = to_foreign(table, {'params': variables['params']['network']})
  weights = {name: torch.tensor(array) for name, array in held.items()}
  conv = lambda h, name, **more: torch.nn.functional.conv2d(
    h, weights[f'{name}.weight'], weights[f'{name}.bias'], **more
  )

  def features(images):
    """Of SqueezeNet, in torchvision's numbers."""
    h = torch.tensor(images.transpose(0, 3, 1, 2)) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    h = (h - shift) / torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    h = torch.relu(conv(h, 'features.0', stride=2))
    found = [h]
    for i in (3, 4, 6, 7, 9, 10, 11, 12):
      if i in (3, 6, 9):
        h = torch.nn.functional.max_pool2d(h, 3, 2, ceil_mode=True)
      name = f'features.{i}'
      h = torch.relu(conv(h, f'{name}.squeeze'))
      one = torch.relu(conv(h, f'{name}.expand1x1'))
      three = torch.relu(conv(h, f'{name}.expand3x3', padding=1))
      h = torch.cat([one, three], 1)
      if i not in (3, 6):
        found.append(h)
    return [
      f / (torch.sqrt((f**2).sum(1, keepdim=True)) + 1e-10) for f in found
    ]

  total = 0
  for a, b, head in zip(
    features(x), features(y), lpips.published_heads(kind), strict=True
  ):
    weighed = (a - b) ** 2 * torch.tensor(head)[:, None, None]
    total = total + weighed.sum(1).mean((1, 2))
  return total.numpy()


def test_equals_the_original_formulation():
  found = compiled('squeeze')(X, Y)
  np.testing.assert_allclose(found, theirs('squeeze', X, Y), rtol=1e-5)


def test_a_pair_depends_on_no_other_and_order_does_not_matter():
  run = compiled('squeeze')
  whole, twice = np.asarray(run(X, Y)), np.array([1, 1])
  np.testing.assert_allclose(run(X[twice], Y[twice]), whole[twice], rtol=1e-5)
  np.testing.assert_allclose(run(Y, X), whole, rtol=1e-5)
  assert (whole > 0).all()
  np.testing.assert_array_equal(run(X, X), 0)


def test_the_map_is_of_the_images_size_and_high_where_they_differ():
  y = X.copy()
  y[:, 18:] = Y[:, 18:]
  found = np.asarray(compiled('squeeze', 'spatial')(X, y))
  assert found.shape == X.shape[:3]
  assert found[:, 20:].mean() > 2 * found[:, :6].mean()


def test_gray_is_repeated():
  gray, other = X[..., :1], Y[..., :1]
  three = compiled('squeeze')(gray.repeat(3, -1), other.repeat(3, -1))
  np.testing.assert_allclose(compiled('squeeze')(gray, other), three, rtol=1e-5)


def test_bfloat16_is_near():
  found = compiled('squeeze', dtype=jnp.bfloat16)(X, Y)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, compiled('squeeze')(X, Y), rtol=0.05)


@functools.cache
def slope():
  """Of (variables, x, y), by x."""
  network, _ = made('squeeze')
  total = lambda held, x, y: network.apply(held, x, y).sum()
  return jax.jit(jax.grad(total, argnums=1))


def test_the_slope_is_zero_at_equal_images():
  _, variables = made('squeeze')
  np.testing.assert_array_equal(slope()(variables, X, X), 0)
  assert np.abs(slope()(variables, X, Y)).max() > 0


def test_the_slope_is_finite_where_features_are_all_zero():
  """A bias so low that the first ReLU lets nothing through."""
  _, variables = made('squeeze')
  variables = jax.tree.map(lambda leaf: leaf, variables)
  held = variables['params']['network']['conv1']
  held['bias'] = jnp.full_like(held['bias'], -1e3)
  np.testing.assert_array_equal(slope()(variables, X, Y), 0)


def test_the_slope_is_finite_where_some_vectors_are_zero():
  """Black and white halves: half of the places have no feature at all."""
  _, variables = made('squeeze')
  variables = jax.tree.map(lambda leaf: leaf, variables)
  held = variables['params']['network']['conv1']
  held['kernel'] = jnp.abs(held['kernel'])
  halves = np.zeros_like(X)
  halves[:, 14:] = 1
  found = np.asarray(slope()(variables, halves, Y))
  assert np.isfinite(found).all() and found.any()


@pytest.mark.parametrize('kind', lpips.KINDS)
def test_the_least_image_is_the_least(kind):
  least = lpips.network(kind).least
  network = lpips.Lpips(kind)
  see = functools.partial(network.init_with_output, method='layers')
  image = lambda side: jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  of = lambda side: jax.eval_shape(see, jax.random.key(0), *2 * [image(side)])
  assert all(min(d.shape) >= 1 for d in of(least)[0])
  with pytest.raises(UserError, match=f'{least} px at least'):
    of(least - 1)
  with pytest.raises(UserError, match=f'at least {least} x'):
    trunk = lpips.network(kind)  # Nothing is left of them, indeed.
    jax.eval_shape(trunk.init, jax.random.key(0), image(least - 1))


@pytest.mark.parametrize(
  ('kind', 'one', 'other', 'says'),
  [
    ('squeeze', (1, 32, 32, 3), (1, 32, 31, 3), 'of one shape, but got'),
    ('squeeze', (32, 32, 3), (32, 32, 3), r'batches \[b, h, w, c\]'),
    ('squeeze', (1, 32, 32, 4), (1, 32, 32, 4), 'not 4 channels'),
    ('squeeze', (1, 1, 1, 3), (1, 1, 1, 3), 'images of 17 px at least'),
    ('alex', (1, 40, 30, 3), (1, 40, 30, 3), 'images of 31 px at least'),
    ('vgg16', (1, 32, 32, 3), (1, 32, 32, 3), "Did you mean 'vgg'"),
  ],
)
def test_what_cannot_be_is_said(kind, one, other, says):
  image = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  with pytest.raises(UserError, match=says):
    lpips.check(kind, image(one), image(other))


def test_images_that_stay_are_seen_once():
  network, variables = made('squeeze')
  kept = compiled('squeeze', 'kept')(X)
  against = jax.jit(functools.partial(network.apply, method='against'))
  found = against(variables, kept, Y)
  np.testing.assert_allclose(found, compiled('squeeze')(X, Y), rtol=1e-4)
