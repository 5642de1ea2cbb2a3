"""Projection, against the originals' loop written for one image in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxmed.method import row_keys
from jaxmed.nn import projection

SETTINGS = {
  'rate': 0.1,
  'rate_up': 0.05,
  'rate_down': 0.25,
  'jitter': 0.05,
  'jitter_until': 0.75,
  'noise': 1e3,
  'pixel': 0.5,
  'optimise_noise': True,
}
STEPS = 20


def _rate(t):
  """The original's, in Python's floats."""
  ramp = 0.5 - 0.5 * math.cos(min(1, (1 - t) / 0.25) * math.pi)
  return 0.1 * ramp * min(1, t / 0.05)


def _penalty(maps):
  """Of one image: every product and mean on its own."""
  total = 0.0
  for v in maps:
    while True:
      side = len(v)
      for down, across in ((0, 1), (1, 0)):
        products = [
          v[i, j] * v[i - down, j - across]
          for i in range(side)
          for j in range(side)
        ]
        total += np.mean(products) ** 2
      if side <= 8:
        break
      v = v.reshape(side // 2, 2, side // 2, 2).mean(axis=(1, 3))
  return total


def _maps(seed, count=2, sides=(4, 8, 16, 32)):
  rng = np.random.default_rng(seed)
  shapes = [(count, side, side, 1) for side in sides]
  return tuple(rng.standard_normal(s).astype(np.float32) for s in shapes)


def _projector(**changed):
  return projection.Projector(ConfigDict(SETTINGS | changed))


def test_rate_starts_and_ends_at_nothing():
  t = np.arange(STEPS + 1) / STEPS
  found = [float(projection.rate(value)) for value in t]
  np.testing.assert_allclose(found, [_rate(v) for v in t], atol=1e-7)
  assert found[0] == 0 and max(found) == pytest.approx(0.1)
  assert found[-1] == pytest.approx(0, abs=1e-8)


def test_jitter_ends_at_three_quarters():
  found = [float(projection.jitter(t, 2.0)) for t in (0, 0.375, 0.75, 0.9)]
  np.testing.assert_allclose(found, [0.1, 0.025, 0, 0], atol=1e-7)


def test_statistics_sum_over_components():
  w = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
  mean, sigma = projection.statistics(jnp.asarray(w))
  np.testing.assert_allclose(mean, w.mean(axis=0), rtol=1e-5, atol=1e-6)
  assert float(sigma) == pytest.approx(np.sqrt(w.var(axis=0).sum()), rel=1e-5)


def test_noise_penalty_of_every_image():
  maps = _maps(0)
  one_by_one = [_penalty([v[i, ..., 0] for v in maps]) for i in range(2)]
  found = projection.noise_penalty(maps)
  np.testing.assert_allclose(found, one_by_one, rtol=1e-4)


def test_noise_penalty_sees_a_picture_in_the_noise():
  plain = _maps(1, 1, (32,))
  smooth = (plain[0] + np.sin(np.arange(32) / 4)[None, :, None, None],)
  smooth = projection.standardise(smooth)
  assert (
    projection.noise_penalty(smooth)[0]
    > 10 * (projection.noise_penalty(plain)[0])
  )


@pytest.mark.parametrize('sample', [False, True])
def test_standardised_one_by_one(sample):
  maps = [3 + 2 * v for v in _maps(2)]
  for before, after in zip(
    maps, projection.standardise(maps, sample), strict=True
  ):
    for one, found in zip(before, after, strict=True):
      wanted = (one - one.mean()) / one.std(ddof=int(sample))
      np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_large_images_are_compared_as_means():
  images = np.random.default_rng(0).random((1, 512, 512, 3), np.float32)
  wanted = images.reshape(1, 256, 2, 256, 2, 3).mean(axis=(2, 4))
  np.testing.assert_allclose(projection.reduce(images), wanted, rtol=1e-5)
  small = jnp.asarray(images[:, :64, :64])
  np.testing.assert_array_equal(projection.reduce(small), small)


def _render(w, noise):
  """A generator of 8 x 8 px: bent, so that no gradient is constant."""
  w = w if w.ndim == 2 else w.mean(axis=1)
  picture = jnp.tanh(w.reshape(-1, 8, 8, 1)) + 0.3 * jnp.square(noise[0])
  return picture + 0.1 * noise[1]


def _torch_search(w, noise, target, jitters, settings):
  """The original's loop for one image, with PyTorch's Adam."""
  torch = pytest.importorskip('torch')
  w = torch.tensor(w, requires_grad=True)
  noise = [torch.tensor(v, requires_grad=True) for v in noise]
  adam = torch.optim.Adam([w, *noise], betas=(0.9, 0.999))
  sigma = 2.0
  for step, e in enumerate(jitters):
    t = step / STEPS
    adam.param_groups[0]['lr'] = _rate(t)
    size = sigma * 0.05 * max(0, 1 - t / 0.75) ** 2
    picture = torch.tanh((w + size * torch.tensor(e)).reshape(8, 8))
    y = picture + 0.3 * noise[0] ** 2 + 0.1 * noise[1]
    x = torch.tensor(target)
    penalty = sum(
      (v * torch.roll(v, 1, axis)).mean() ** 2 for v in noise for axis in (0, 1)
    )
    loss = (
      (y - x).abs().mean()
      + settings['noise'] * penalty
      + settings['pixel'] * ((y - x) ** 2).mean()
    )
    adam.zero_grad()
    loss.backward()
    adam.step()
    with torch.no_grad():
      for v in noise:
        v.sub_(v.mean()).div_(v.std(unbiased=False))
  return w.detach().numpy(), [v.detach().numpy() for v in noise]


def _search(projector, w, noise, target, jitters, steps=6):
  distance = lambda y: jnp.abs(y - target).mean(axis=(1, 2, 3))

  @jax.jit
  def step(found, t, normals):
    e = projector.jitter(t, found.sigma) * normals
    gradient, terms = projector.gradient(
      found.free, e, target, _render, distance
    )
    return projector.move(found, gradient, t), terms

  found = projector.start(w, noise, jnp.zeros(64), jnp.float32(2))
  for number in range(steps):
    found, terms = step(found, number / STEPS, jitters[number])
  return found, terms


def _given(count=3):
  rng = np.random.default_rng(3)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  w, target = normal(count, 64), normal(count, 8, 8, 1)
  return w, _maps(4, count, (8, 8)), target, normal(6, count, 64)


def test_a_batch_is_as_many_searches_as_it_has_images():
  w, noise, target, jitters = _given()
  found, terms = _search(_projector(), w, noise, target, jitters)
  assert terms['loss'].shape == (3,)
  for i in range(3):
    alone_w, alone_noise = _torch_search(
      w[i],
      [v[i, ..., 0] for v in noise],
      target[i, ..., 0],
      jitters[:, i],
      SETTINGS,
    )
    np.testing.assert_allclose(found.free['w'][i], alone_w, atol=2e-4)
    for ours, theirs in zip(found.free['noise'], alone_noise, strict=True):
      np.testing.assert_allclose(ours[i, ..., 0], theirs, atol=2e-3)


def test_noise_stays_if_it_is_not_searched_for():
  w, noise, target, jitters = _given()
  noise = projection.standardise(noise)
  projector = _projector(optimise_noise=False)
  found, _ = _search(projector, w, noise, target, jitters)
  for before, after in zip(noise, found.free['noise'], strict=True):
    np.testing.assert_allclose(after, before, atol=1e-5)
  assert np.abs(found.free['w'] - w).max() > 0.1


def test_a_latent_a_layer_is_searched_for():
  w, noise, target, jitters = _given()
  layers = jnp.repeat(w[:, None], 4, axis=1)
  wider = np.repeat(jitters[:, :, None], 4, axis=2)
  found, _ = _search(_projector(), layers, noise, target, wider)
  assert found.free['w'].shape == (3, 4, 64)
  assert np.abs(found.free['w'] - layers).max() > 0.1


def test_keys_are_of_rows_and_not_of_places():
  key = jax.random.key(0)
  keys = row_keys(key, jnp.array([5, 9]))
  turned = row_keys(key, jnp.array([9, 5]))
  one, other = (projection.normal(k, (2, 2)) for k in (keys, turned))
  np.testing.assert_array_equal(one, other[::-1])
  assert not np.array_equal(one[0], one[1])
