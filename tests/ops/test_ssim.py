"""SSIM against scikit-image in float64, and where it could break."""

import jax
import numpy as np
import pytest

from jaxmed import errors
from jaxmed.ops import ssim

metrics = pytest.importorskip('skimage.metrics')


def expected(x, y, data_range=1.0, sample=False, full=False):
  return [
    metrics.structural_similarity(
      a.astype(np.float64),
      b.astype(np.float64),
      channel_axis=-1,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=sample,
      data_range=data_range,
      full=full,
    )
    for a, b in zip(x, y, strict=True)
  ]


def pair(kind, shape=(2, 43, 37, 3)):
  """Images whose flat parts lie at different heights: float32's weak spot."""
  rng = np.random.default_rng(0)
  noise = rng.standard_normal((2, *shape))
  base = {
    'noise': 0.5 + 0.5 * noise[0],
    'bright': 0.97 + 0.003 * noise[0],
    'dark': 0.02 + 0.003 * noise[0],
    'edges': np.arange(shape[1])[:, None, None] // 14 % 2 + 0.003 * noise[0],
    'flat': np.full(shape, 0.941),
  }[kind]
  other = 0.96 * base + 0.004 * noise[1] * (kind != 'flat')
  return tuple(np.clip(v, 0, 1).astype(np.float32) for v in (base, other))


KINDS = ('noise', 'bright', 'dark', 'edges', 'flat')
mean = jax.jit(ssim.ssim)
valid_map = jax.jit(ssim.ssim_map)


@pytest.mark.parametrize('kind', KINDS)
def test_equals_skimage(kind):
  x, y = pair(kind)
  maps = np.stack([m for _, m in expected(x, y, full=True)])
  found = valid_map(x, y)
  np.testing.assert_allclose(found, maps[:, 5:-5, 5:-5], atol=1e-5)
  np.testing.assert_allclose(mean(x, y), expected(x, y), atol=1e-5)


def test_gray_range_border_and_sample_covariance():
  x, y = (2 * image[..., :1] - 1 for image in pair('dark'))
  np.testing.assert_allclose(mean(x, y, 2.0), expected(x, y, 2.0), atol=1e-5)
  sampled = ssim.ssim(x, y, 2.0, sample_covariance=True)
  np.testing.assert_allclose(sampled, expected(x, y, 2.0, True), atol=1e-5)
  assert np.abs(sampled - mean(x, y, 2.0)).max() > 1e-4
  bordered = ssim.ssim_map(x, y, 2.0, border='symmetric')
  maps = np.stack([m for _, m in expected(x, y, 2.0, full=True)])
  np.testing.assert_allclose(bordered, maps, atol=1e-5)


@pytest.mark.parametrize('size', [(11, 11), (11, 40), (12, 13), (75, 20)])
def test_any_size_that_holds_a_window(size):
  x, y = pair('noise', (1, *size, 2))
  np.testing.assert_allclose(ssim.ssim(x, y), expected(x, y), atol=1e-5)


def test_gradient_is_that_of_finite_differences_and_finite_at_flat_images():
  x, y = pair('noise', (1, 14, 15, 1))
  for function in (ssim.ssim, ssim.structure):
    run = jax.jit(function)
    slope = jax.jit(jax.grad(lambda a, b, f=function: f(a, b).sum()))
    gradient = slope(x, y)
    direction = 1e-3 * np.sign(gradient)
    ends = [float(run(x + np.float32(s) * direction, y)[0]) for s in (1, -1)]
    found = np.vdot(gradient, direction)
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2, rtol=0.02)
    flat = np.full_like(x, 0.5)
    for a, b in ((flat, flat), (flat, 0.5 * flat), (flat, x), (x, x)):
      assert np.isfinite(slope(a, b)).all()


def test_negative_contrast_has_a_finite_gradient():
  x, _ = pair('noise', (1, 24, 24, 1))

  def similarity(image):
    return ssim.ms_ssim(image, 1 - x, betas=(0.5, 0.5)).sum()

  value, gradient = jax.jit(jax.value_and_grad(similarity))(x)
  assert value == 0
  assert np.isfinite(gradient).all()


def test_structure_is_one_for_any_positive_scale_and_offset():
  x, _ = pair('noise', (1, 20, 20, 1))
  np.testing.assert_allclose(ssim.structure(x, 0.5 * x + 0.2), 1, atol=2e-3)
  assert float(ssim.structure(x, 1 - x)[0]) < -0.9


def test_identical_images_are_one():
  for kind in KINDS:
    x, _ = pair(kind)
    np.testing.assert_allclose(mean(x, x), 1, atol=1e-6)


def test_too_small_and_unequal_images_are_errors():
  small = np.zeros((1, 10, 40, 3), np.float32)
  with pytest.raises(errors.UserError, match='11 x 11 px.*10 x 40'):
    jax.eval_shape(ssim.ssim, small, small)
  with pytest.raises(errors.UserError, match='one shape'):
    ssim.ssim(small, small[..., :1])


def test_a_sharded_batch_stays_sharded():
  mesh = jax.make_mesh((2,), ('data',))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  x, y = pair('noise')
  found = mean(jax.device_put(x, rows), jax.device_put(y, rows))
  assert found.sharding.is_equivalent_to(rows, 1)
  np.testing.assert_allclose(found, expected(x, y), atol=1e-5)
