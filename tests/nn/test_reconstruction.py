"""Scores by name, of plain functions and of a network that is given."""

import jax
import numpy as np
import pytest

from jaxmed import pretrained
from jaxmed.configs import fanogan, munit
from jaxmed.errors import UserError
from jaxmed.method import Info
from jaxmed.nn import lpips
from jaxmed.nn.reconstruction import Comparison
from jaxmed.ops.compare import compare, compare_maps

RNG = np.random.default_rng(0)
X, Y = RNG.random((2, 2, 32, 32, 3), np.float32)
INFO = Info((32, 32, 3), 2, {})


def config(names=('ssim', 'lpips', 'l1'), maps=('lpips', 'residual')):
  config = munit.get_config('tiny')
  config.score.names, config.score.maps = names, maps
  config.model.lpips_weights = 'random'
  return config


def test_plain_scores_need_nothing():
  comparison = Comparison(config(('ssim', 'l1'), ('residual',)), INFO)
  assert comparison.needs == ()
  scores, maps = comparison({}, X, Y)
  assert list(scores) == ['ssim', 'l1']
  expected = compare(X, Y, ('ssim', 'l1'))
  jax.tree.map(np.testing.assert_array_equal, scores, expected)
  expected = compare_maps(X, Y, ('residual',))
  jax.tree.map(np.testing.assert_array_equal, maps, expected)


def test_lpips_is_of_the_part_that_is_loaded():
  comparison = Comparison(config(), INFO)
  assert comparison.needs == ('lpips',)
  held, facts = pretrained.load('lpips', config().model, INFO)
  assert facts['network'] == 'squeezenet1_1' and facts['weights'] == 'random'
  scores, maps = jax.jit(comparison)({'lpips': held}, X, Y)
  assert set(scores) == {'ssim', 'lpips', 'l1'}
  network = lpips.Lpips('squeeze')
  total = jax.jit(network.apply)(held, X, Y)
  np.testing.assert_allclose(scores['lpips'], total, rtol=1e-5)
  assert maps['lpips'].shape == (2, 32, 32)


def test_a_map_alone_needs_the_network_too():
  assert Comparison(config(('ssim',), ('lpips',)), INFO).needs == ('lpips',)


def test_what_is_not_known_lists_the_methods_own():
  asked = fanogan.get_config('tiny')
  asked.score.names = ('izi_e',)
  with pytest.raises(UserError, match="score of fanogan 'izi_e'.*'izi_f'"):
    Comparison(asked, INFO, own=('izi_f',))
  with pytest.raises(UserError, match="map of munit 'lpip'.*'lpips'"):
    Comparison(config(maps=('lpip',)), INFO)


def test_small_images_are_refused_before_anything_is_trained():
  with pytest.raises(UserError, match='images of 17 px at least'):
    Comparison(config(), Info((16, 16, 3), 2, {}))


def test_a_methods_own_maps_are_left_to_it():
  given = config(('l1',), ('residual', 'mask'))
  _, maps = Comparison(given, INFO, own_maps=('mask',))({}, X, Y)
  assert list(maps) == ['residual']
  with pytest.raises(UserError, match="No map of munit 'mask'"):
    Comparison(given, INFO)
