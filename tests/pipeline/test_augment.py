import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmed.errors import UserError
from jaxmed.method import Batch, Phase
from jaxmed.pipeline import augment
from tests.datasets.pictures import picture

KEY = jax.random.key(5)


def _batch(count: int = 8, channels: int = 3) -> Batch:
  image = np.stack([picture(i, 8, channels) for i in range(count)])
  row = np.arange(count, dtype=np.int32)
  return Batch(image, row, np.zeros(count, np.int32), image[..., 0] > 128)


def _augmented(batch, *names, key=KEY):
  return jax.jit(lambda b, k: augment.augment(b, k, names))(batch, key)


def test_moves_keep_bytes_and_masks_follow():
  batch = _batch(32)
  moved = _augmented(batch, 'flip', 'flip_vertical', 'rot90')
  assert moved.image.dtype == jnp.uint8
  np.testing.assert_array_equal(moved.mask, moved.image[..., 0] > 128)
  changed = (np.asarray(moved.image) != batch.image).any((1, 2, 3))
  assert 0.6 < changed.mean() < 1  # One in eight stays as it is.
  np.testing.assert_array_equal(
    np.sort(moved.image.reshape(32, -1)), np.sort(batch.image.reshape(32, -1))
  )


@pytest.mark.parametrize(
  ('name', 'views'),
  [
    ('flip', lambda x: [x, x[:, ::-1]]),
    ('flip_vertical', lambda x: [x, x[::-1]]),
    ('rot90', lambda x: [np.rot90(x, k) for k in range(4)]),
  ],
)
def test_each_move_makes_all_its_views_and_no_other(name, views):
  batch = _batch(64)
  seen = set()
  for before, after in zip(
    batch.image, _augmented(batch, name).image, strict=True
  ):
    equal = [np.array_equal(view, after) for view in views(before)]
    assert sum(equal) == 1
    seen.add(equal.index(True))
  assert seen == set(range(len(equal)))


@pytest.mark.parametrize(
  'name', ['brightness', 'contrast', 'saturation', 'hue', 'colour']
)
def test_colours_change_each_image_for_itself_and_no_mask(name):
  image = np.repeat(picture(1, 8)[None], 8, 0)
  batch = _batch().replace(image=image)
  changed = _augmented(batch, name)
  assert changed.image.dtype == jnp.float32
  assert changed.image.min() >= 0 and changed.image.max() <= 1
  assert len(np.unique(np.asarray(changed.image).reshape(8, -1), axis=0)) == 8
  np.testing.assert_array_equal(changed.mask, batch.mask)
  assert 0.005 < abs(changed.unit - batch.unit).mean() < 0.4


def test_gray_images_have_no_hue():
  _augmented(_batch(channels=1), 'brightness', 'contrast')
  with pytest.raises(UserError, match='images are gray'):
    _augmented(_batch(channels=1), 'hue')


def test_an_example_depends_on_its_place_alone():
  batch = _batch()
  other = batch.replace(image=batch.image[::-1].copy())
  half = jax.tree.map(lambda x: x[:4], batch)
  names = ('rot90', 'brightness')
  whole = _augmented(batch, *names)
  np.testing.assert_allclose(
    _augmented(half, *names).image, whole.image[:4], atol=1e-6
  )
  mixed = batch.replace(
    image=np.concatenate([batch.image[:4], other.image[4:]])
  )
  np.testing.assert_allclose(
    _augmented(mixed, *names).image[:4], whole.image[:4], atol=1e-6
  )


def test_eight_devices_augment_as_one_does():
  mesh = jax.make_mesh((8, 1), ('data', 'model'), (AxisType.Auto,) * 2)
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  batch, names = _batch(16), ('flip', 'rot90', 'colour')
  eight = _augmented(jax.device_put(batch, sharding), *names)
  one = _augmented(batch, *names)
  np.testing.assert_allclose(eight.image, one.image, atol=1e-5)
  np.testing.assert_array_equal(eight.mask, one.mask)


def _phase(batches: int = 1) -> Phase:
  def step(state, drawn, key):
    return drawn, {'key': jax.random.key_data(key)}

  def lazy(state, drawn, key):
    return drawn, {'lazy': jnp.ones(())}

  return Phase(
    'p',
    lambda key, state: state,
    step,
    ('a', 'b'),
    5,
    batches,
    every=((4, lazy),),
  )


def test_every_step_of_a_phase_is_wrapped():
  batch = _batch(32)
  phase = augment.wrap(_phase(), ('rot90',))
  assert (phase.name, phase.steps, phase.cohorts) == ('p', 5, ('a', 'b'))
  both = {'a': batch, 'b': batch}
  (_, step), (_, lazy) = phase.due(4)
  drawn, _ = jax.jit(step)(None, both, KEY)
  lazily, scalars = jax.jit(lazy)(None, both, KEY)
  assert 'lazy' in scalars
  np.testing.assert_array_equal(lazily['a'].image, drawn['a'].image)
  assert (drawn['a'].image != batch.image).any()
  assert (drawn['a'].image != drawn['b'].image).any()


def test_stacked_batches_are_augmented_each_for_itself():
  batch = _batch(32)
  stack = jax.tree.map(lambda x: np.stack([x] * 3), batch)
  phase = augment.wrap(_phase(batches=3), ('rot90', 'flip'))
  drawn, _ = jax.jit(phase.step)(None, {'a': stack}, KEY)
  image = np.asarray(drawn['a'].image)
  assert image.shape == stack.image.shape
  assert (image[0] != image[1]).any() and (image[1] != image[2]).any()
  np.testing.assert_array_equal(drawn['a'].mask, image[..., 0] > 128)


def test_nothing_asked_is_nothing_changed():
  phase = _phase()
  assert augment.wrap(phase, ()) is phase


def test_a_misspelt_name_is_answered_with_the_closest():
  with pytest.raises(UserError, match="Did you mean 'flip'"):
    augment.wrap(_phase(), ('flp',))
