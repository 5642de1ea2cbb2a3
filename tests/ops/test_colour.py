"""Stains against plain NumPy, restained images, and images without a stain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.color import hed2rgb, rgb2hed

from jaxmed.datasets import images
from jaxmed.ops import colour

RNG = np.random.default_rng(0)
LIGHT = 240
SIDE = 64
H_AND_E = np.array([[0.56, 0.22], [0.72, 0.80], [0.41, 0.56]])
OTHER = np.array([[0.63, 0.14], [0.71, 0.95], [0.29, 0.25]])


def _amounts(seed=0, side=SIDE, glass=0.2):
  """Haematoxylin in nuclei and eosin around them; glass to the right."""
  rng = np.random.default_rng(seed)
  row, column = np.mgrid[:side, :side]
  nuclei = np.zeros((side, side))
  for y, x in rng.integers(0, side, (side // 4, 2)):
    nuclei += np.exp(-((row - y) ** 2 + (column - x) ** 2) / 18)
  eosin = 0.55 + 0.3 * np.sin(row / 5) * np.cos(column / 7)
  pure = np.minimum(nuclei, 1)
  both = np.stack([2.2 * pure, 1.1 * eosin * (1 - pure)], axis=-1)
  both += 0.02 * rng.standard_normal(both.shape)
  both[:, side - int(glass * side) :] = 0
  return both


def _stained(amounts, stain):
  """As the camera sees them, not yet in whole numbers."""
  stain = stain / np.linalg.norm(stain, axis=0)
  pixels = LIGHT * np.exp(-amounts @ stain.T) - 1
  return np.clip(pixels, 0, 255)


def picture(stain, strength=1.0, **options):
  """Tissue of this stain, in whole numbers."""
  amounts = _amounts(**options) * strength
  return np.round(_stained(amounts, stain)).astype(np.uint8)


IMAGES = np.stack(
  [picture(stain, seed=i) for i, stain in enumerate([H_AND_E, OTHER, H_AND_E])]
)


def numpy_stain(pixels):
  """Macenko's W and M, in float64, as one would write it for one image."""
  density = -np.log((pixels.astype(float) + 1) / LIGHT)
  height, width = density.shape[:2]
  cells = density.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))
  cells = cells.reshape(-1, 3)
  tissue = cells[(cells >= 0.15).all(axis=1)]
  _, vectors = np.linalg.eigh(np.cov(tissue.T))
  plane = vectors[:, 1:]
  plane = plane * np.sign((tissue @ plane).mean(axis=0))
  inside = tissue @ plane
  angles = np.arctan2(inside[:, 0], inside[:, 1])
  sides = [
    plane @ [np.sin(angle), np.cos(angle)]
    for angle in np.percentile(angles, [1, 99])
  ]
  sides.sort(key=lambda side: -side[0])
  matrix = np.stack(sides, axis=1)
  density = density.reshape(-1, 3)
  density = density[(density >= 0.15).any(axis=1)]
  amounts = np.linalg.lstsq(matrix, density.T, rcond=None)[0]
  return matrix, np.percentile(amounts, 99, axis=1)


def numpy_macenko(pixels, target):
  matrix, maxima = numpy_stain(pixels)
  density = -np.log((pixels.astype(float) + 1) / LIGHT).reshape(-1, 3)
  amounts = np.linalg.lstsq(matrix, density.T, rcond=None)[0]
  amounts *= (np.asarray(target.maxima) / maxima)[:, None]
  made = LIGHT * np.exp(-np.asarray(target.matrix, float) @ amounts) - 1
  return np.clip(made / 255, 0, 1).T.reshape(pixels.shape)


def numpy_reinhard(pixels, target):
  """Of one image, step by step as the paper has it."""
  to_lms = np.array(
    [
      [0.3811, 0.5783, 0.0402],
      [0.1967, 0.7244, 0.0782],
      [0.0241, 0.1288, 0.8444],
    ]
  )
  unit = pixels.astype(float).reshape(-1, 3) / 255
  long, middle, short = np.log(np.maximum(unit * 255, 1) @ to_lms.T).T
  lab = np.stack(
    [
      (long + middle + short) / np.sqrt(3),
      (long + middle - 2 * short) / np.sqrt(6),
      (long - middle) / np.sqrt(2),
    ]
  )
  density = -np.log((255 * unit.min(axis=1) + 1) / LIGHT)
  tissue = lab[:, density >= 0.15]
  mean, deviation = tissue.mean(axis=1), tissue.std(axis=1)
  lab = (lab - mean[:, None]) / deviation[:, None]
  lab = lab * np.asarray(target.deviation)[:, None]
  a, b, c = lab + np.asarray(target.mean, float)[:, None]
  a, b, c = a / np.sqrt(3), b / np.sqrt(6), c / np.sqrt(2)
  lms = np.exp(np.stack([a + b + c, a + b - c, a - 2 * b]))
  made = (np.linalg.inv(to_lms) @ lms).T / 255
  share = np.clip(density / 0.15, 0, 1)[:, None]
  made = share * made + (1 - share) * unit
  return np.clip(made, 0, 1).reshape(pixels.shape)


@functools.cache
def _jitted(name):
  return jax.jit(getattr(colour, name))


PLAIN = {'macenko': numpy_macenko, 'reinhard': numpy_reinhard}
STANDARD = {'macenko': colour.MACENKO, 'reinhard': colour.REINHARD}


def normalised(name, images, target=None):
  """Always with a target, so that little is compiled."""
  return _jitted(f'normalise_{name}')(images, target or STANDARD[name])


def fitted(name, images):
  return _jitted(f'fit_{name}')(images)


@pytest.mark.parametrize('name', PLAIN)
def test_a_batch_is_normalised_as_numpy_does_one(name):
  made, ok = normalised(name, IMAGES)
  assert ok.all() and made.dtype == jnp.float32
  for pixels, found in zip(IMAGES, made, strict=True):
    expected = PLAIN[name](pixels, STANDARD[name])
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('name', PLAIN)
def test_real_patches_are_normalised_as_numpy_does(name, shared):
  paths = sorted(shared('data/histology/camelyon16_patches').glob('*/*.png'))
  pixels = np.stack([images.decode(p.read_bytes()) for p in paths[::12]])
  made, ok = normalised(name, pixels)
  assert ok.all()
  for before, found in zip(pixels, made, strict=True):
    expected = PLAIN[name](before, STANDARD[name])
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('stain', [H_AND_E, OTHER])
def test_the_stains_that_images_were_made_with_are_found(stain):
  """Of several images together, as of one large one."""
  several = np.stack([picture(stain, seed=i) for i in (3, 4, 5)])
  found = fitted('macenko', several)
  assert found.ok
  usual = stain / np.linalg.norm(stain, axis=0)
  cosines = (np.asarray(found.matrix) * usual).sum(axis=0)
  assert (cosines > np.cos(np.deg2rad(4))).all()
  matrix, maxima = numpy_stain(np.concatenate(list(several)))
  np.testing.assert_allclose(found.matrix, matrix, atol=1e-4)
  np.testing.assert_allclose(found.maxima, maxima, rtol=1e-4)


@pytest.mark.parametrize('name', PLAIN)
def test_restained_it_is_normalised_to_nearly_the_same(name):
  one, other = (
    picture(stain, strength)
    for stain, strength in [(H_AND_E, 1.0), (OTHER, [0.8, 1.2])]
  )
  made, _ = normalised(name, np.stack([one, other, other]))
  before = np.abs(one.astype(float) - other).mean() / 255
  after = np.abs(made[0] - made[1]).mean()
  assert before > 0.05
  assert after < before / (8 if name == 'macenko' else 2)


@pytest.mark.parametrize('name', PLAIN)
def test_made_like_itself_an_image_stays(name):
  same = np.stack([IMAGES[0]] * 3)
  made, _ = normalised(name, same, fitted(name, same))
  apart = np.abs(made[0] * 255 - IMAGES[0])
  if name == 'reinhard':
    assert apart.max() < 0.2
  else:  # Noise that neither stain explains is lost.
    assert apart.mean() < 1


def test_what_is_made_has_the_targets_statistics():
  target = fitted('reinhard', np.stack([IMAGES[1]] * 3))
  made, _ = normalised('reinhard', IMAGES, target)
  found = fitted('reinhard', np.stack([made[0]] * 3))
  np.testing.assert_allclose(found.mean, target.mean, atol=0.02)
  np.testing.assert_allclose(found.deviation, target.deviation, rtol=0.05)


@pytest.mark.parametrize('name', PLAIN)
def test_what_all_were_stained_with_may_be_given(name):
  """As for the tiles of one slide, of which one alone has too little."""
  source = fitted(name, IMAGES)
  tiles = np.concatenate([IMAGES[:1, :8, :8], IMAGES[1:, 20:28, :8]])
  made, ok = jax.jit(getattr(colour, f'normalise_{name}'))(tiles, source=source)
  assert ok.all()
  whole, _ = jax.jit(getattr(colour, f'normalise_{name}'))(
    IMAGES, source=source
  )
  np.testing.assert_allclose(made[0], whole[0, :8, :8], atol=1e-5)
  np.testing.assert_allclose(made[2], whole[2, 20:28, :8], atol=1e-5)
  assert not np.allclose(made, tiles / 255, atol=0.02)


def _plain(value):
  return np.full((SIDE, SIDE, 3), value, np.uint8)


def _either(one, other):
  which = RNG.random((SIDE, SIDE, 1)) < 0.5
  return np.where(which, one, other).astype(np.uint8)


def _gray_noise():
  gray = RNG.integers(60, 200, (SIDE, SIDE, 1))
  return np.broadcast_to(gray, (SIDE, SIDE, 3)).astype(np.uint8)


def _haematoxylin_alone():
  return picture(H_AND_E, strength=[1, 0])


def _little_tissue():
  pixels = _plain(243)
  pixels[:8, :8] = IMAGES[0][:8, :8]
  return pixels


# (image, whether Reinhard can do something with it)
DEGENERATE = {
  'glass': (_plain(243), False),
  'white': (_plain(255), False),
  'black': (_plain(0), False),
  'one colour': (_plain((180, 60, 140)), False),
  'gray': (_gray_noise(), False),
  'black and white': (_either((0, 0, 0), (255, 255, 255)), False),
  'a single stain': (_haematoxylin_alone(), True),
  'little tissue': (_little_tissue(), False),
  'green and blue': (_either((20, 160, 60), (30, 60, 190)), True),
}


@pytest.mark.parametrize('name', PLAIN)
def test_what_has_no_stain_is_left_alone_and_said(name):
  keys = list(DEGENERATE)
  for start in range(0, len(keys), 2):
    chosen = keys[start : start + 2]
    stack = np.stack([DEGENERATE[k][0] for k in chosen] + [IMAGES[0]] * 2)[:3]
    made, ok = normalised(name, stack)
    assert np.isfinite(made).all() and made.min() >= 0 and made.max() <= 1
    for key, before, after, fine in zip(chosen, stack, made, ok, strict=False):
      assert fine == (DEGENERATE[key][1] and name == 'reinhard'), key
      if not fine:
        np.testing.assert_allclose(
          after, before / np.float32(255), atol=1e-7, err_msg=key
        )
    assert ok[-1]  # A good one beside them is as if it were alone.
    expected = PLAIN[name](IMAGES[0], STANDARD[name])
    np.testing.assert_allclose(made[-1], expected, atol=1e-4)


@pytest.mark.parametrize('name', PLAIN)
def test_what_cannot_be_fitted_says_so(name):
  found = fitted(name, np.stack([_plain(243)] * 3))
  assert not found.ok
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_bytes_words_and_floats_are_the_same_image():
  expected, _ = normalised('reinhard', IMAGES)
  for other in (IMAGES.astype(np.uint16) * 257, IMAGES / np.float32(255)):
    found, _ = normalised('reinhard', other)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_hed_is_scikit_images():
  pixels = np.concatenate([IMAGES[0], IMAGES[1]])
  natural = -np.log(1e-6) / np.log(10)  # Of its densities to ours.
  found = np.asarray(_jitted('to_hed')(pixels)) / natural
  # It has no negative densities.
  np.testing.assert_allclose(np.maximum(found, 0), rgb2hed(pixels), atol=1e-5)
  hed = RNG.random((16, 16, 3)) * 0.1
  np.testing.assert_allclose(
    _jitted('from_hed')(hed.astype(np.float32) * natural),
    hed2rgb(hed),
    atol=1e-5,
  )
  back = _jitted('from_hed')(_jitted('to_hed')(pixels))
  np.testing.assert_allclose(back, pixels / 255, atol=1e-5)


def test_jitter_scales_and_shifts_each_density():
  image = IMAGES[0] / np.float32(255)
  run = jax.jit(colour.jitter_hed, static_argnums=2)
  hed = _jitted('to_hed')
  before = np.asarray(hed(image)).reshape(-1, 3)
  fits = []
  for seed in range(40):
    made = np.asarray(run(jax.random.key(seed), image, 0.2))
    after = np.asarray(hed(made)).reshape(-1, 3)
    inside = ((made > 0.001) & (made < 0.999)).all(axis=-1).ravel()
    fits += [
      np.polyfit(before[inside, i], after[inside, i], 1) for i in range(3)
    ]
  scale, shift = np.array(fits).T
  assert scale.min() >= 0.79 and scale.max() <= 1.21 and scale.std() > 0.08
  assert shift.min() >= -0.21 and shift.max() <= 0.21 and shift.std() > 0.08
  same = run(jax.random.key(0), image, 0.0)
  np.testing.assert_allclose(same, image, atol=1e-5)
