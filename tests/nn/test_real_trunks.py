"""The two trunks whose real weights are at hand, on real images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxmed.nn import resnet50v2
from jaxmed.nn.norms import BatchNorm
from jaxmed.nn.resnet50v2 import ResNet50V2
from jaxmed.nn.squeezenet import SqueezeNet
from jaxmed.nn.torchlike import convolution
from jaxmed.nn.trunk import Trunk
from jaxmed.weights.names import from_foreign, to_foreign

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)


def real(network, path):
  """The network's variables out of a file."""
  with np.load(path) as file:
    weights = dict(file)
  image = jnp.zeros((1, 64, 64, 3))
  target = jax.eval_shape(network.init, jax.random.key(0), image)
  return from_foreign(network.table(), weights, target), weights


def picture(path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB'), np.float32) / 255


def test_squeezenets_features_are_as_far_apart_as_is_known(shared):
  """LPIPS of the authors' example images, out of trunk and heads."""
  network = SqueezeNet()
  variables, _ = real(
    SqueezeNet(classes=1000), shared('data/weights/squeezenet1_1.npz')
  )
  del variables['params']['classifier']
  names = ('ex_ref', 'ex_p0', 'ex_p1')
  x = np.stack([picture(shared(f'data/lpips_images/{n}.png')) for n in names])
  features = jax.jit(network.apply)(variables, (2 * x - 1 - SHIFT) / SCALE)
  with np.load(shared('data/weights/lpips_heads_v0.1.npz')) as file:
    heads = [file[f'squeeze.lin{i}.model.1.weight'].ravel() for i in range(7)]
  stages = [s for s in network.stages if s not in ('fire2', 'fire4')]
  distance = 0
  for stage, head in zip(stages, heads, strict=True):
    here = np.asarray(features[stage])
    unit = here / (np.linalg.norm(here, axis=-1, keepdims=True) + 1e-10)
    distance += (np.square(unit[1:] - unit[:1]) @ head).mean((1, 2))
  np.testing.assert_allclose(distance, [0.711, 0.148], atol=1e-3)


def agreement(network, variables, x) -> dict[str, tuple[float, float]]:
  """How well the statistics that norms expect are those of images.

  Of each norm: the correlation of means over channels, and the median of the
  logarithm of the variances' ratio.
  """
  seen = {}

  def look(method, arguments, keywords, context):
    if isinstance(context.module, BatchNorm):
      here = arguments[0]
      moments = here.mean((0, 1, 2)), here.var((0, 1, 2))
      seen['/'.join(context.module.path)] = moments
    return method(*arguments, **keywords)

  @jax.jit
  def run(variables, x):
    with nn.intercept_methods(look):
      network.apply(variables, x)
    return seen

  found = {}
  for path, (mean, variance) in run(variables, x).items():
    expected = functools.reduce(
      lambda tree, step: tree[step], path.split('/'), variables['batch_stats']
    )
    ratio = np.log((variance + 1e-9) / (expected['var'] + 1e-9))
    correlation = np.corrcoef(mean, expected['mean'])[0, 1]
    found[path] = correlation, float(np.median(ratio))
  return found


@pytest.fixture
def histology(shared):
  folder = shared('data/histology/oral/normal')
  return np.stack([picture(p) for p in sorted(folder.glob('*.jpg'))[:6]])


@pytest.fixture
def gluon(shared):
  return shared('data/weights/resnet50v2_stages123.npz')


def deep(network, file, x) -> np.ndarray:
  """Agreement in the stages, where means vary over channels."""
  found = agreement(network, real(network, file)[0], x)
  return np.array([v for k, v in found.items() if k.startswith('stage')])


def plausible(found) -> bool:
  correlation, ratio = found.T
  good = np.median(correlation) > 0.8 and correlation.min() > 0.2
  return good and np.abs(ratio).max() < 1.5


def test_gluons_statistics_are_those_of_real_images(gluon, histology):
  """In every layer, so that nothing before it can be wrong."""
  network = Trunk(ResNet50V2())
  found = deep(network, gluon, histology)
  assert len(found) == 3 * (3 + 4 + 6)
  assert plausible(found)
  variables, weights = real(network, gluon)
  # Whole, but for the norm of a fourth stage.
  names = {k for k in weights if 'v24_batchnorm2' not in k}
  assert set(to_foreign(network.table(), variables)) == names
  # It was trained on images of about mean 0 and deviation 1.
  image = variables['batch_stats']['bn_image']
  assert np.abs(image['mean']).max() < 0.3
  assert image['var'].min() > 0.5 and image['var'].max() < 2


class Wrong(resnet50v2.Block):
  """A block that is wrong in one way."""

  how = ''

  @nn.compact
  def __call__(self, x, train=False, valid=None):
    conv = lambda name, x, *sizes: convolution(*sizes, name=name)(x)
    norm = lambda name, x: BatchNorm(name=name)(x, train, valid)
    strides = 1, self.stride
    if self.how == 'stride':
      strides = self.stride, 1
    y = nn.relu(norm('bn1', x))
    if self.project:
      x = x if self.how == 'shortcut' else y
      x = conv('shortcut', x, self.features, 1, self.stride)
    y = conv('conv1', y, self.features // 4, 1, strides[0])
    y = nn.relu(norm('bn2', y))
    y = norm('bn3', conv('conv2', y, self.features // 4, 3, strides[1]))
    y = y if self.how == 'linear' else nn.relu(y)
    x = x + conv('conv3', y, self.features, 1)
    return nn.relu(x) if self.how == 'rectified' else x


@pytest.mark.slow
@pytest.mark.parametrize('how', ['shortcut', 'linear', 'rectified'])
def test_a_wrong_block_would_be_noticed(gluon, histology, how, monkeypatch):
  monkeypatch.setattr(
    resnet50v2, 'Block', type('Wrong', (Wrong,), {'how': how})
  )
  assert not plausible(deep(Trunk(ResNet50V2()), gluon, histology))


@pytest.mark.slow
def test_other_inputs_would_be_noticed(gluon, histology):
  assert not plausible(deep(ResNet50V2(), gluon, histology))
  assert not plausible(deep(Trunk(ResNet50V2()), gluon, 255 * histology))


@pytest.mark.slow
def test_variances_speak_for_a_stride_on_the_3x3(gluon, histology, monkeypatch):
  off = lambda: np.abs(deep(Trunk(ResNet50V2()), gluon, histology)[:, 1])
  right = off()
  monkeypatch.setattr(Wrong, 'how', 'stride')
  monkeypatch.setattr(resnet50v2, 'Block', Wrong)
  assert np.median(right) < 0.8 * np.median(off())
