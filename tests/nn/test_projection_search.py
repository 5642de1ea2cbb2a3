"""Projections of a small StyleGAN2 whose weights are drawn, not learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed import methods
from jaxmed.configs import stylegan2 as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State

INFO = Info((16, 16, 3), 4, {'normal': 4})
KEY = jax.random.key(5)
ROWS = np.array([3, 8, 1, 6], np.int32)


def _method(steps=12, **changed):
  config = configs.get_config('tiny')
  config.score.steps = steps
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changed.items()}
  )
  return methods.build(config, INFO)


def _state(method) -> State:
  """As it is before training, but drawn without compiling anything."""
  rng, state = np.random.default_rng(0), State()
  for phase in method.phases:
    state = jax.eval_shape(phase.init, KEY, state)

  def drawn(path, leaf):
    slow = 'mapping' in jax.tree_util.keystr(path)  # Its rate is 1/100.
    values = (50 if slow else 0.5) * rng.standard_normal(leaf.shape)
    return jnp.asarray(values, leaf.dtype)

  return jax.tree_util.tree_map_with_path(drawn, state)


def _batch(rows=ROWS, seed=0, size=16):
  rng = np.random.default_rng(seed)
  shape = len(rows), size, size, 3
  images = rng.integers(0, 256, shape, np.uint8)
  return Batch(images, jnp.asarray(rows), jnp.zeros(len(rows), jnp.int32))


@functools.cache
def _searching(**changed):
  """search(batch) of a method: its scores, and what was found."""
  method = _method(**changed)
  state, search = _state(method), method.search
  init, step, score = map(jax.jit, (search.init, search.step, method.score))

  def run(batch, steps=search.steps):
    found = init(KEY, state, batch)
    for number in range(steps):
      found = step(KEY, state, batch, found, jnp.int32(number))
    return score(state, batch, KEY, found), found

  return run


@pytest.mark.slow
def test_a_search_comes_nearer():
  search = _searching()
  before, after = search(_batch(), 0)[0], search(_batch())[0]
  assert (after.image['distance'] < 0.97 * before.image['distance']).all()
  np.testing.assert_allclose(before.image['w_distance'], 0, atol=1e-6)
  assert (after.image['w_distance'] > 0.05).all()
  drawn = after.panels['projection']
  assert drawn.min() >= 0 and drawn.max() <= 1
  unit = _batch().unit
  np.testing.assert_allclose(
    after.image['residual'], np.abs(unit - drawn).mean((1, 2, 3)), rtol=1e-5
  )


def test_an_image_is_projected_as_its_row_says_and_not_its_neighbours():
  search, batch = _searching(), _batch()
  scores, found = search(batch)
  order = np.array([2, 0, 3, 1])
  turned = jax.tree.map(lambda x: x[order], batch)
  again, _ = search(turned)
  for name, value in scores.image.items():
    np.testing.assert_allclose(
      again.image[name], value[order], rtol=1e-3, err_msg=name
    )
  others = _batch(np.array([3, -1, -1, -1], np.int32), seed=1)
  image = np.array(others.image)
  image[0] = batch.image[0]
  alone, _ = search(others.replace(image=image))
  for name, value in scores.image.items():
    np.testing.assert_allclose(
      alone.image[name][0], value[0], rtol=1e-3, err_msg=name
    )
  for v in found.free['noise']:
    np.testing.assert_allclose(v.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(v.std(axis=(1, 2, 3)), 1, rtol=1e-4)


def test_a_latent_for_every_layer():
  method = _method(score__space='w+')
  state = _state(method)
  found = jax.eval_shape(method.search.init, KEY, state, _batch())
  assert found.free['w'].shape == (4, 6, 8)
  step = jax.eval_shape(method.search.step, KEY, state, _batch(), found, 0)
  assert step.free['w'].shape == (4, 6, 8)
  score = jax.eval_shape(method.score, state, _batch(), KEY, step)
  assert score.image['w_distance'].shape == (4,)


@pytest.mark.slow
def test_an_encoder_gives_the_start():
  method = _method(model__encoder=True, train__encoder_steps=3)
  assert [phase.name for phase in method.phases] == ['gan', 'encoder']
  state = _state(method)
  encode = jax.jit(method.phases[1].step)
  losses, batches = [], {'normal': _batch()}
  init = jax.jit(method.search.init)
  fresh = init(KEY, state, _batch())
  statistics = {'mean': fresh.mean, 'sigma': fresh.sigma}
  state = state.put(memory={'encoder': statistics})
  state = state.replace(opt=jax.tree.map(jnp.zeros_like, state.opt))
  for _ in range(15):
    state, scalars = encode(state, batches, KEY)  # The same images.
    losses.append(float(scalars['encoder/loss']))
  assert losses[-1] < 0.7 * losses[0]
  found = init(KEY, state, _batch())
  apart = jnp.abs(found.free['w'] - found.mean[None]).max(axis=1)
  assert (apart > 0.05 * found.sigma).all() and np.ptp(apart) > 0


def test_lpips_is_needed_where_the_loss_or_a_score_is():
  assert _method(score__projection__loss='l1').needs == ()
  larger = Info((64, 64, 3), 4, {'normal': 4})
  config = configs.get_config('phantom')
  config.score.projection.loss = 'lpips'
  assert methods.build(config, larger).needs == ('lpips',)
  config.score.projection.loss = 'l1'
  config.score.names = ('lpips',)
  assert methods.build(config, larger).needs == ('lpips',)


def test_without_its_scores_there_is_no_search():
  config = configs.get_config('tiny')
  config.score.names, config.score.maps = ('critic',), ()
  method = methods.build(config, INFO)
  assert method.search is None and method.needs == ()


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'score__space': 'z'}, 'space'),
    ({'score__projection__loss': 'l2'}, 'loss'),
    ({'steps': 0}, '0 steps'),
  ],
)
def test_settings_it_does_not_know(changed, message):
  with pytest.raises(UserError, match=message):
    _method(**changed)


def test_images_of_another_size_are_refused():
  method = _method()
  with pytest.raises(UserError, match='16 x 16 x 3.*32 x 32 x 3'):
    jax.eval_shape(method.search.init, KEY, _state(method), _batch(size=32))
