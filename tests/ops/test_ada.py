"""ADA's changes, against brute force, and how often they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed import errors
from jaxmed.ops import ada

GRAY = np.ones(3) / np.sqrt(3)
move, paint = jax.jit(ada.move), jax.jit(ada.paint)
keys_of = lambda count: jax.random.split(jax.random.key(7), count)


@pytest.fixture(scope='module')
def augment():
  return jax.jit(ada.augment)


def _images(count=4, side=16, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  shape = count, side, side, channels
  return rng.uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize('channels', [1, 3])
def test_nothing_changes_without_probability(augment, channels):
  images = _images(channels=channels)
  found = augment(images, jax.random.key(0), 0.0)
  np.testing.assert_array_equal(found, images)


def test_an_image_has_draws_of_its_own(augment):
  images = np.repeat(_images(1), 4, axis=0)
  found = augment(images, jax.random.key(0), 1.0)
  assert np.isfinite(found).all()
  for i in range(1, 4):
    assert np.abs(found[0] - found[i]).max() > 0.1
  others = np.concatenate([images[:1], _images(3, seed=1)])
  beside = augment(others, jax.random.key(0), 1.0)
  np.testing.assert_allclose(beside[0], found[0], atol=1e-6)


def _place(*factors):
  g = np.eye(3)
  for factor in factors:
    g = g @ factor
  return g.astype(np.float32)


FLIP = np.diag([-1.0, 1, 1])
TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
SHIFT = np.array([[1.0, 0, -3], [0, 1, 2], [0, 0, 1]])  # Right 3, up 2.


@pytest.mark.parametrize('side', [15, 16])
def test_blits_move_pixels_and_nothing_else(side):
  image = _images(1, side)[0]
  same = lambda g, wanted: np.testing.assert_array_equal(
    move(image, g, True), wanted
  )
  same(_place(FLIP), image[:, ::-1])
  for turns in range(4):
    same(_place(*[TURN] * turns), np.rot90(image, turns))
  mirrored = np.pad(image, ((0, 2), (3, 0), (0, 0)), mode='reflect')
  same(_place(SHIFT), mirrored[2:, : -3 or None])
  same(_place(FLIP, TURN), np.rot90(image[:, ::-1], 1))


def test_all_blits_that_are_drawn_are_permutations():
  """Of every fifth key, those without geometry."""
  side = 16
  image = np.arange(side * side, dtype=np.float32).reshape(side, side, 1)
  # Where no pixel is shifted out, all of them are there once.
  draw = jax.jit(jax.vmap(lambda key: ada.draw_place(key, 0.3, side)))
  places, blits = draw(keys_of(200))
  still = np.asarray(blits) & (np.asarray(places)[:, :2, 2] == 0).all(axis=1)
  assert 10 < still.sum() < 190
  moved = jax.jit(jax.vmap(ada.move, (None, 0, None)))(
    image, places[still], True
  )
  kinds = {bytes(np.asarray(one)) for one in moved}
  assert len(kinds) > 3
  for one in moved:
    assert set(np.ravel(one)) == set(image.ravel())


def test_resampling_changes_nothing_where_the_matrix_does_not():
  image = _images(1, 17)[0]
  found = move(image, jnp.eye(3), False)
  np.testing.assert_allclose(found, image, atol=1e-5)


def _wave(x, y):
  return np.sin(0.3 * x + 0.1) + np.cos(0.25 * y - 0.05 * x)


@pytest.mark.parametrize(
  'place',
  [
    _place(np.diag([1.25, 1.25, 1])),
    _place([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]),
    _place(np.diag([1.2, 0.8, 1]), [[1, 0, 1.3], [0, 1, -0.4], [0, 0, 1]]),
  ],
)
def test_smooth_images_are_looked_up_at_their_places(place):
  side = 32
  along = np.arange(side) - (side - 1) / 2
  x, y = np.meshgrid(along, along)
  image = _wave(x, y)[..., None].astype(np.float32)
  at_x, at_y, _ = np.einsum(
    'ij,jkl->ikl', place, np.stack([x, y, np.ones_like(x)])
  )
  found = np.asarray(move(image, place, False))[..., 0]
  inside = np.maximum(abs(at_x), abs(at_y)) < (side - 1) / 2 - 3
  assert inside.sum() > 150
  off = np.abs(found - _wave(at_x, at_y))[inside]
  assert off.max() < 0.02


def test_resampling_as_the_original_does_it_inside():
  """Mirror, enlarge, look up, reduce: by PyTorch's parts."""
  torch = pytest.importorskip('torch')
  side, pad = 24, 24
  image = _images(1, side)[0]
  angle, scale = 0.7, 1.1
  turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  place = np.eye(3, dtype=np.float32)
  place[:2, :2] = np.array(turn) / scale
  place[:2, 2] = 0.7, -1.6
  taps = torch.tensor(np.array(ada.SYMLET) / np.sum(ada.SYMLET)).float()

  def filtered(x, taps):
    across = taps[None, None, None].repeat(3, 1, 1, 1)
    x = torch.nn.functional.conv2d(x, across, groups=3)
    return torch.nn.functional.conv2d(x, across.transpose(2, 3), groups=3)

  wide = np.pad(image, ((pad - 1,) * 2, (pad - 1,) * 2, (0, 0)), 'reflect')
  wide = torch.tensor(wide).permute(2, 0, 1)[None]
  count = wide.shape[-1]
  zeros = torch.zeros(1, 3, 2 * count, 2 * count)
  zeros[..., ::2, ::2] = wide
  padded = torch.nn.functional.pad(zeros, (6, 5, 6, 5))
  large = filtered(padded, taps.flip(0)) * 4
  # Value k of `large` lies at pixel k / 2.
  grid = torch.arange(-5, 2 * side + 5).float() / 2 - (side - 1) / 2
  y, x = torch.meshgrid(grid, grid, indexing='ij')
  at = torch.tensor(place)[:2] @ torch.stack(
    [x.ravel(), y.ravel(), torch.ones(x.numel())]
  )
  at = 2 * (at + (side - 1) / 2 + pad - 1) / (2 * count - 1) * 2 - 1
  at = at.T.reshape(1, len(grid), len(grid), 2)
  fine = torch.nn.functional.grid_sample(large, at, align_corners=True)
  wanted = filtered(fine, taps)[..., ::2, ::2][0].permute(1, 2, 0).numpy()
  found = move(image, place, False)
  middle = slice(7, -7)
  np.testing.assert_allclose(
    found[middle, middle], wanted[:side, :side][middle, middle], atol=1e-4
  )


def _by_hand(image, kind, amount):
  """Of every pixel on its own."""
  found = np.empty_like(image)
  for index in np.ndindex(image.shape[:2]):
    colour = image[index]
    gray = GRAY * (colour @ GRAY)
    if kind == 'hue':  # Rodrigues.
      found[index] = (
        colour * np.cos(amount)
        + np.cross(GRAY, colour) * np.sin(amount)
        + gray * (1 - np.cos(amount))
      )
    else:
      found[index] = {
        'saturation': gray + amount * (colour - gray),
        'flip': colour - 2 * gray,
        'contrast': amount * colour,
        'brightness': colour + amount,
      }[kind]
  return found


def _drawn(monkeypatch, kind, amount):
  """The matrix where only one kind of change is drawn, of this amount."""
  order = ['brightness', 'contrast', 'flip', 'hue', 'saturation']
  flips = iter([kind == name for name in order])
  draws = {
    'flip': lambda self, p: jnp.asarray(next(flips)),
    'coin': lambda self: jnp.asarray(True),
    'normal': lambda self: jnp.asarray(amount / ada.BRIGHTNESS),
    'factor': lambda self, deviation: jnp.asarray(amount),
    'angle': lambda self: jnp.asarray(amount),
  }
  for name, draw in draws.items():
    monkeypatch.setattr(ada._Draws, name, draw)
  return ada.draw_colour(jax.random.key(0), 1.0)


@pytest.mark.parametrize(
  'kind, amount',
  [
    ('brightness', 0.3),
    ('contrast', 1.7),
    ('flip', 1.0),
    ('hue', 1.2),
    ('saturation', 2.5),
  ],
)
def test_colours_by_hand(monkeypatch, kind, amount):
  image = _images(1, 6)[0]
  found = paint(image, _drawn(monkeypatch, kind, amount))
  wanted = _by_hand(image, kind, amount)
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_gray_images_have_brightness_contrast_and_flip():
  draw = jax.jit(jax.vmap(lambda key: ada.draw_colour(key, 1.0, 1)))
  matrices = draw(keys_of(50))
  image = _images(1, 4, 1)[0]
  for c in matrices:
    rgb = np.repeat(image, 3, axis=-1)
    wanted = paint(rgb, c).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(paint(image, c), wanted, atol=1e-4)


P, DRAWS = 0.4, 4000


def _near(share, probability):
  """Within four deviations."""
  deviation = np.sqrt(probability * (1 - probability) / DRAWS)
  assert abs(np.mean(share) - probability) < 4 * deviation


def test_every_change_is_drawn_as_often_as_it_says():
  draw = jax.jit(jax.vmap(lambda key: ada.draw_place(key, P, 1000)))
  places, blits = (np.asarray(x) for x in draw(keys_of(DRAWS)))
  # Two scalings, a shift, and a rotation at either place or both.
  _near(blits, (1 - P) ** 4)
  only = places[blits]
  signs = np.linalg.det(only[:, :2, :2])
  share = (signs < 0).mean()
  assert abs(share - P / 2) < 4 * np.sqrt(0.25 / len(only))
  shifted = np.abs(only[:, :2, 2]).sum(axis=1) > 0
  assert abs(shifted.mean() - P) < 4 * np.sqrt(0.25 / len(only))
  assert np.abs(only[:, :2, 2]).max() <= 125
  turned = np.abs(only[:, 0, 1]) + (only[:, 1, 1] < 0)
  # A quarter of the turns is none.
  assert abs((turned > 0).mean() - 0.75 * P) < 4 * np.sqrt(0.25 / len(only))


def test_every_colour_is_drawn_as_often_as_it_says():
  draw = jax.jit(jax.vmap(lambda key: ada.draw_colour(key, P)))
  matrices = np.asarray(draw(keys_of(DRAWS)))
  _near(matrices[:, 0, 3] != 0, P)
  gray = (matrices[:, :3, :3] @ GRAY) @ GRAY  # Contrast, negative if flipped.
  _near(np.abs(np.abs(gray) - 1) > 1e-5, P)
  _near(gray < 0, P / 2)
  # Neither hue nor saturation: across gray all is contrast's.
  across = np.array([1, -1, 0]) / np.sqrt(2)
  kept = (matrices[:, :3, :3] @ across) @ across
  _near(np.abs(kept - np.abs(gray)) < 1e-5, (1 - P) ** 2)


def test_gradients_are_finite_and_those_of_a_difference():
  images = _images(2, 8)
  weight = _images(2, 8, seed=1)
  key = jax.random.key(3)
  both = jax.jit(
    jax.value_and_grad(lambda x: (weight * ada.augment(x, key, 0.9)).sum())
  )
  loss, gradient = lambda x: both(x)[0], both(images)[1]
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
  step = _images(2, 8, seed=2)
  # It is linear in the image: a long step is as good as a short one.
  wanted = (loss(images + step) - loss(images - step)) / 2
  np.testing.assert_allclose((gradient * step).sum(), wanted, rtol=1e-3)


def test_strength_follows_the_sign():
  up = ada.adapt(0.1, 0.7, 32 * 4)
  assert float(up) == pytest.approx(0.1 + 128 / 500_000)
  assert float(ada.adapt(0.1, 0.5, 128)) == pytest.approx(0.1 - 128 / 500_000)
  assert float(ada.adapt(0.1, 0.6, 128)) == pytest.approx(0.1)
  assert float(ada.adapt(0.0, 0.0, 128)) == 0
  assert float(ada.adapt(1.0, 1.0, 128)) == 1
  p = jnp.zeros(())
  for _ in range(10):
    p = ada.adapt(p, 1.0, 50_000)
  assert float(p) == pytest.approx(1.0)


@pytest.mark.parametrize('shape', [(1, 8, 16, 3), (1, 8, 8, 2)])
def test_images_it_cannot_change(shape):
  with pytest.raises(errors.UserError, match='square images, gray or RGB'):
    ada.augment(jnp.zeros(shape), jax.random.key(0), 0.5)


def test_strength_changes_every_fourth_step():
  kept, strengths = ada.fresh(), []
  for sign in (1.0, 1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 1.0):
    kept = ada.follow(kept, sign, 100)
    strengths.append(float(kept['strength']))
  # A mean of .625, then one of 0.
  step = 400 / 500_000
  wanted = [0, 0, 0, step, step, step, step, 0, 0]
  np.testing.assert_allclose(strengths, wanted, atol=1e-9)
