import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxmed.errors import UserError
from jaxmed.nn import stylegan2
from jaxmed.nn.stylegan2 import (
  Discriminator,
  Mapping,
  ModulatedConv,
  Synthesis,
  deviation,
  form_of,
  widths_of,
)
from jaxmed.training.sharding import make_mesh

DICE = np.random.default_rng(0)
# Published and counted: of the generator and the discriminator.
SIZES = {
  (64, 8192): (23_819_544, 23_407_361),
  (64, 16384): (27_032_600, 26_488_833),
  (256, 8192): (24_767_458, 24_001_089),
  (256, 16384): (30_034_338, 28_864_129),
  (512, 8192): (24_860_935, 24_030_753),
  (512, 16384): (30_276_583, 28_982_849),
  (1024, 8192): (24_900_764, 24_038_161),
  (1024, 16384): (30_370_060, 29_012_513),
}

QUICK = {(64, 8192), (512, 16384)}  # Tracing is slow.


def _normal(*shape):
  return DICE.standard_normal(shape).astype(np.float32)


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _noises(synthesis, count=1):
  return tuple(jnp.zeros((count, s, s, 1)) for s in synthesis.noise_sides)


@pytest.mark.parametrize(
  'size, base',
  [
    pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK))
    for case in SIZES
  ],
)
def test_networks_have_the_originals_parameters(size, base):
  widths, key = widths_of(size, base), jax.random.key(0)
  mapping, synthesis = Mapping(512), Synthesis(widths)
  assert synthesis.layers == 2 * np.log2(size) - 2
  w = jnp.zeros((1, synthesis.layers, 512))
  mapped = jax.eval_shape(mapping.init, key, jnp.zeros((1, 512)))
  drawn = jax.eval_shape(synthesis.init, key, w, _noises(synthesis))
  judged = jax.eval_shape(
    lambda key, x: Discriminator(widths).init(key, x, 4),
    key,
    jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
  )
  assert _count(mapped) == 2_101_248
  counts = _count(mapped) + _count(drawn), _count(judged)
  assert counts == SIZES[size, base]
  if size == 512:
    assert _count(_noises(synthesis)) == 699_024


def test_sizes_from_8_to_1024():
  assert widths_of(8, 8192) == (512, 512)
  assert widths_of(1024, 8192)[-3:] == (64, 32, 16)
  assert widths_of(1024, 16384)[-3:] == (128, 64, 32)


@pytest.mark.parametrize('size', [4, 48, 100, 0])
def test_other_sizes_are_refused(size):
  with pytest.raises(UserError, match=f'not of {size}; set --config.data.size'):
    widths_of(size, 8192)


@pytest.mark.parametrize(
  'kind',
  [
    {'window': 3},
    {'window': 3, 'resample': 'up'},
    {'window': 3, 'resample': 'down'},
    {'window': 1, 'demodulate': False},
  ],
  ids=str,
)
def test_both_forms_are_the_same_function(kind):
  x, w = _normal(3, 6, 5, 4), _normal(3, 8)
  weights = None

  def total(params, form):
    y = ModulatedConv(2, form=form, **kind).apply(params, x, w)
    return (y * weights).sum(), y

  params = ModulatedConv(2, **kind).init(jax.random.key(0), x, w)
  shape = jax.eval_shape(ModulatedConv(2, **kind).apply, params, x, w).shape
  weights = _normal(*shape)
  one, other = (
    jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(params, form)
    for form in stylegan2.FORMS
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
    one,
    other,
  )


def test_demodulation_gives_every_channel_unit_variance():
  """Of inputs of unit variance, whatever the styles are."""
  x, w = _normal(2, 64, 64, 8), 5 * _normal(2, 8)
  layer = ModulatedConv(6, 3)
  params = layer.init(jax.random.key(0), x, w)
  y = layer.apply(params, x, w)[:, 1:-1, 1:-1]
  np.testing.assert_allclose(y.std(axis=(1, 2)), 1, rtol=0.1)


def test_a_default_form_is_a_form():
  assert {form_of(b) for b in ('cpu', 'gpu', 'tpu')} <= set(stylegan2.FORMS)


@pytest.mark.slow
def test_an_image_depends_on_its_own_w_and_noise_alone():
  synthesis = Synthesis((4, 3))
  w, noises = _normal(2, 4, 8), tuple(_normal(2, s, s, 1) for s in (4, 8, 8))
  params = synthesis.init(jax.random.key(0), w, noises)
  params = jax.tree.map(lambda leaf: leaf + 0.3, params)
  draw = jax.jit(synthesis.apply)
  both = draw(params, w, noises)
  for i in range(2):
    own = tuple(noise[i : i + 1] for noise in noises)
    alone = draw(params, w[i : i + 1], own)
    np.testing.assert_allclose(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)
  # Every w and every map of noise has its place.
  for layer in range(synthesis.layers):
    changed = draw(params, w * np.r_[1, 1][:, None, None], noises)
    moved = w.copy()
    moved[:, layer] += 1
    assert np.abs(draw(params, moved, noises) - changed).max() > 1e-3
  for i in range(3):
    moved = tuple(n + (j == i) * DICE.random() for j, n in enumerate(noises))
    assert np.abs(draw(params, w, moved) - both).max() > 1e-3


def _deviation(x, group):
  """Image by image: the group of j has every b/n-th image."""
  size = min(group, len(x))
  apart = len(x) // size
  found = []
  for j in range(len(x)):
    mine = x[j % apart :: apart]
    found.append(np.sqrt(mine.var(axis=0) + 1e-8).mean())
  return found


@pytest.mark.parametrize('batch, group', [(8, 4), (6, 3), (2, 4), (1, 4)])
def test_deviation_is_of_every_nth_image(batch, group):
  x = _normal(batch, 4, 4, 3) * np.arange(1, batch + 1)[:, None, None, None]
  found = deviation(x.astype(np.float32), group)
  np.testing.assert_allclose(found, _deviation(x, group), rtol=1e-5)


@pytest.mark.slow
def test_groups_on_eight_devices_are_those_on_one():
  widths, x = (4, 3), _normal(16, 8, 8, 3)
  network = Discriminator(widths)
  params = network.init(jax.random.key(0), x, 4)
  judge = jax.jit(network.apply, static_argnums=2)
  sharding = NamedSharding(make_mesh(), PartitionSpec('data'))
  one, eight = (
    judge(params, x, 4),
    judge(params, jax.device_put(x, sharding), 4),
  )
  assert len(jax.devices()) == 8 and len(eight.devices()) == 8
  np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-5)
  # And they matter: in another order the groups are others.
  order = np.r_[0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
  assert np.abs(judge(params, x[order], 4) - one[order]).max() > 1e-4


def test_a_batch_of_no_whole_groups_is_refused():
  with pytest.raises(UserError, match='batch of 6 .* groups of 4.*multiple'):
    deviation(_normal(6, 4, 4, 2), 4)
