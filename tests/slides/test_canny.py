import numpy as np
import pytest
from scipy import ndimage
from skimage import feature

from jaxmed.slides import canny


def _images():
  rng = np.random.default_rng(0)
  noise = rng.random((90, 70))
  yield 'noise', noise
  yield 'smooth', ndimage.gaussian_filter(noise, 2) * 3
  square = np.zeros((60, 60))
  square[20:40, 15:50] = 1  # Gradients exactly along the axes, and ties.
  yield 'square', square
  y, x = np.mgrid[0:64, 0:80] / 40
  yield 'diagonal', (x + y > 1.5) * 1.0
  yield 'steps', np.round(ndimage.gaussian_filter(noise, 3) * 20) / 5
  yield 'even', np.full((30, 30), 0.4)
  yield 'line', rng.random((1, 40))
  yield 'two rows', rng.random((2, 40))
  yield 'tiny', rng.random((3, 3))


@pytest.mark.parametrize(('name', 'image'), list(_images()))
def test_edges_are_scikit_images(name, image):
  found = canny.canny(image)
  assert (found == feature.canny(image)).all()
  assert found.any() == (name not in ('even', 'line', 'two rows', 'tiny'))


def test_other_blurs_and_thresholds():
  image = np.random.default_rng(1).random((50, 60))
  for sigma, low, high in ((0.5, 0.25, 0.5), (2.0, 0.125, 0.125)):
    expected = feature.canny(image, sigma, low, high)
    assert expected.any()
    assert (canny.canny(image, sigma, low, high) == expected).all()
