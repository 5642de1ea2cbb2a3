"""MUNIT's perceptual loss against the original's formulation in PyTorch."""

import jax
import numpy as np
import pytest

from jaxmed.nn.trunk import NETWORKS
from jaxmed.nn.vgg_loss import LEAST, VggLoss
from jaxmed.weights.names import to_foreign

RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def vgg():
  """A random VGG16 down to relu5_3, and its variables."""
  network = NETWORKS['vgg16'](last='relu5_3')
  return network, network.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))


def theirs(network, variables, x, y, caffe):
  """Both images in [0, 1], NHWC."""
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  weights = to_foreign(network.table(), variables)

  def features(images):
    h = torch.tensor(images.transpose(0, 3, 1, 2))
    if caffe:
      h = 255 * h[:, [2, 1, 0]]
      h = h - torch.tensor([103.939, 116.779, 123.680])[:, None, None]
    else:
      mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
      h = (h - mean) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for i in range(30):
      if f'features.{i}.weight' in weights:
        kernel, bias = (
          torch.tensor(weights[f'features.{i}.{leaf}'])
          for leaf in ('weight', 'bias')
        )
        h = functional.conv2d(h, kernel, bias, padding=1)
      elif i in (4, 9, 16, 23):
        h = functional.max_pool2d(h, 2)
      else:
        h = functional.relu(h)
    return functional.instance_norm(h)

  both = features(x), features(y)
  return ((both[0] - both[1]) ** 2).mean((1, 2, 3)).numpy()


@pytest.mark.parametrize('given', ['caffe', 'torchvision'])
def test_equals_the_original(vgg, given):
  network, variables = vgg
  x, y = RNG.random((2, 2, 48, 40, 3), np.float32)
  loss = jax.jit(VggLoss(network, given).apply)(variables, x, y)
  expected = theirs(network, variables, x, y, given == 'caffe')
  np.testing.assert_allclose(loss, expected, rtol=2e-4)


def test_gray_is_three_times_gray_and_the_least_image_still_differs(vgg):
  network, variables = vgg
  x, y = RNG.random((2, 1, LEAST, LEAST, 1), np.float32)
  loss = jax.jit(VggLoss(network).apply)
  one = loss(variables, x, y)
  three = loss(variables, x.repeat(3, axis=3), y.repeat(3, axis=3))
  np.testing.assert_allclose(one, three, rtol=1e-5)
  assert one[0] > 1e-3
  assert loss(variables, x, x)[0] == 0
