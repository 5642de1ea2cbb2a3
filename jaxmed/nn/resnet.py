"""Residual networks: He et al., CVPR 2016, as torchvision has them.

The stride of a bottleneck is on its 3 x 3 convolution (called v1.5), not on
the first one as in the paper. WideResNet-50-2 (Zagoruyko and Komodakis, BMVC
2016) is ResNet-50 with twice the channels inside each bottleneck.
"""

from typing import Any

from flax import linen as nn

from jaxmed.nn.norms import BatchNorm
from jaxmed.nn.precision import wide
from jaxmed.nn.staged import Staged
from jaxmed.nn.torchlike import convolution, max_pool
from jaxmed.weights.names import TORCH, Table


class BasicBlock(nn.Module):
  """Two 3 x 3 convolutions, and a shortcut.

  Attributes:
    features: that come out.
    stride: of the first convolution.
  """

  features: int
  stride: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train=False, valid=None):
    norm = lambda name, x: BatchNorm(name=name)(x, train, valid)
    conv = lambda name, *sizes: convolution(*sizes, dtype=self.dtype, name=name)
    y = conv('conv1', self.features, 3, self.stride)(x)
    y = conv('conv2', self.features, 3)(nn.relu(norm('bn1', y)))
    y = norm('bn2', y)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = norm(
        'shortcut_norm', conv('shortcut', self.features, 1, self.stride)(x)
      )
    return nn.relu(x.astype(y.dtype) + y)


class Bottleneck(nn.Module):
  """A 3 x 3 convolution between two of 1 x 1, and a shortcut.

  Attributes:
    features: that come out.
    inner: channels of the 3 x 3; 0 for a quarter of `features`.
    stride: of the 3 x 3, and of the shortcut.
    window: of the shortcut's convolution.
  """

  features: int
  inner: int = 0
  stride: int = 1
  window: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train=False, valid=None):
    norm = lambda name, x: BatchNorm(name=name)(x, train, valid)
    conv = lambda name, *sizes: convolution(*sizes, dtype=self.dtype, name=name)
    inner = self.inner or self.features // 4
    y = nn.relu(norm('bn1', conv('conv1', inner, 1)(x)))
    y = nn.relu(norm('bn2', conv('conv2', inner, 3, self.stride)(y)))
    y = norm('bn3', conv('conv3', self.features, 1)(y))
    if self.stride != 1 or x.shape[-1] != self.features:
      short = conv('shortcut', self.features, self.window, self.stride)(x)
      x = norm('shortcut_norm', short)
    return nn.relu(x.astype(y.dtype) + y)


# Names of a block's arrays; of what `stage` fits, blocks are counted from 0.
BLOCK_ROWS = (
  ('{stage:layer[1-4]}.{i}.downsample.0.{leaf}', '{stage}_{i}/shortcut/{leaf}'),
  (
    '{stage:layer[1-4]}.{i}.downsample.1.{leaf}',
    '{stage}_{i}/shortcut_norm/{leaf}',
  ),
  ('{stage:layer[1-4]}.{i}.{layer}.{leaf}', '{stage}_{i}/{layer}/{leaf}'),
)


class ResNet(Staged):
  """A stem, four stages of blocks, each at half the size of the one before.

  `stem` is what comes out of the stem's pool, a quarter of the image's size.
  """

  every = ('stem', 'layer1', 'layer2', 'layer3', 'layer4')
  counts = ()  # Blocks of each stage after the stem.

  def block(self, width: int, **more) -> nn.Module:
    """A block of a stage; widths are 64, 128, 256, 512."""
    raise NotImplementedError

  @nn.compact
  def features(self, x, train, valid):
    x = convolution(64, 7, 2, dtype=self.dtype, name='conv1')(x)
    x = nn.relu(BatchNorm(name='bn1')(x, train, valid))
    x = max_pool(x, 3, 2, 1)
    features = {'stem': x}
    for number, stage in enumerate(self.stages[1:]):
      for i in range(self.counts[number]):
        stride = 2 if number and i == 0 else 1
        block = self.block(
          64 * 2**number, stride=stride, dtype=self.dtype, name=f'{stage}_{i}'
        )
        x = block(x, train, valid)
      features[stage] = x
    if self.classes:
      pooled = wide(x).mean((1, 2))
      dense = nn.Dense(self.classes, name='fc')  # In float32.
      features['logits'] = dense(pooled)
    return features

  def table(self) -> Table:
    ignore = tuple(rf'{stage}\..*' for stage in self.without)
    ignore += () if self.classes else (r'fc\..*',)
    rows = (*BLOCK_ROWS, ('{layer}.{leaf}', '{layer}/{leaf}'))
    return Table(TORCH, rows, ignore)


class ResNet18(ResNet):
  """Of 11,689,512 parameters with 1,000 classes."""

  counts = (2, 2, 2, 2)

  def block(self, width, **more):
    return BasicBlock(width, **more)


class ResNet50(ResNet):
  """Of 25,557,032 parameters with 1,000 classes."""

  counts = (3, 4, 6, 3)

  def block(self, width, **more):
    return Bottleneck(4 * width, width, **more)


class WideResNet50(ResNet):
  """Of 68,883,240 parameters with 1,000 classes."""

  counts = (3, 4, 6, 3)

  def block(self, width, **more):
    return Bottleneck(4 * width, 2 * width, **more)
