"""DenseNet-121: every layer of a block sees what all layers before it made.

Huang et al., Densely Connected Convolutional Networks, CVPR 2017, as
torchvision has it; layers are named as there.

  stem          7 x 7 convolution of stride 2, norm, ReLU, 3 x 3 max pool of 2
  dense layer   norm, ReLU, 1 x 1 convolution to 4 `growth`, norm, ReLU,
                3 x 3 convolution to `growth`; put beside what it was made of
  transition    norm, ReLU, 1 x 1 convolution to half the channels, 2 x 2 mean
  end           norm, ReLU; mean over places; a dense layer

In training, a norm's statistics of a channel are the same in every layer that
sees it. They are computed once, when the channel is made: a layer that would
do it for all that it sees makes the work of a block quadratic in its layers.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.nn.norms import BatchNorm, Moments
from jaxmed.nn.precision import wide
from jaxmed.nn.staged import Staged
from jaxmed.nn.torchlike import NothingLeft, convolution, max_pool
from jaxmed.weights.names import TORCH, Table

BOTTLENECK = 4  # Times `growth`: the width between a layer's convolutions.
# What torchvision draws: He's normal, and its uniform one for dense layers.
HE = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
DENSE = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Seen(NamedTuple):
  """What a layer sees: features, and in training their statistics."""

  x: Float[Array, 'b h w c']
  moments: Moments | None

  @classmethod
  def of(cls, x, train: bool, valid=None) -> 'Seen':
    return cls(x, Moments.of(x, valid) if train else None)

  def beside(self, other: 'Seen') -> 'Seen':
    both = lambda *x: jnp.concatenate(x, axis=-1)
    if self.moments is None:
      return Seen(both(self.x, other.x), None)
    mean, variance = map(both, self.moments[:2], other.moments[:2])
    known = Moments(mean, variance, self.moments.count)
    return Seen(both(self.x, other.x), known)

  def normalised(self, name: str, train: bool):
    """By the norm of this name, which belongs to the module that asks."""
    norm = BatchNorm(name=name)
    return nn.relu(norm(self.x, train, moments=self.moments))


class DenseLayer(nn.Module):
  growth: int
  dtype: Any = None

  @nn.compact
  def __call__(self, seen: Seen, train=False, valid=None):
    conv = functools.partial(convolution, kernel_init=HE, dtype=self.dtype)
    x = seen.normalised('norm1', train)
    x = conv(BOTTLENECK * self.growth, 1, name='conv1')(x)
    x = nn.relu(BatchNorm(name='norm2')(x, train, valid))
    return conv(self.growth, 3, name='conv2')(x)


class DenseBlock(nn.Module):
  layers: int
  growth: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train=False, valid=None) -> Seen:
    seen = Seen.of(x, train, valid)
    for number in range(1, self.layers + 1):
      layer = DenseLayer(self.growth, self.dtype, name=f'denselayer{number}')
      seen = seen.beside(Seen.of(layer(seen, train, valid), train, valid))
    return seen


class Transition(nn.Module):
  dtype: Any = None

  @nn.compact
  def __call__(self, seen: Seen, train=False):
    x = seen.normalised('norm', train)
    if min(x.shape[1:3]) < 2:
      raise NothingLeft
    # The mean before the convolution, not after it: both are linear, and a
    # quarter of the places is left to it.
    x = nn.avg_pool(x, (2, 2), (2, 2))
    half = x.shape[-1] // 2
    return convolution(half, 1, kernel_init=HE, dtype=self.dtype, name='conv')(
      x
    )


class DenseNet121(Staged):
  """The features of the stem and of each dense block.

  `stem` is what the max pool gives, at a quarter of the size; `block1`,
  `block2` and `block3` what the dense blocks give, before the transition that
  halves channels and size; `block4` the last norm and ReLU of the fourth
  block, from which the mean over places and the classifier follow.

  Attributes:
    blocks: layers of each block; with `growth` and `stem_width` for networks
      that are smaller than DenseNet-121.
  """

  blocks: Sequence[int] = (6, 12, 24, 16)
  growth: int = 32
  stem_width: int = 64

  @property
  def every(self) -> tuple[str, ...]:
    numbers = range(1, len(self.blocks) + 1)
    return ('stem', *(f'block{number}' for number in numbers))

  @property
  def least(self) -> int:
    """The transitions halve what is left of a quarter, rounded up."""
    return 4 * 2 ** (len(self.blocks) - 1) - 3

  @nn.compact
  def features(self, x, train, valid):
    x = convolution(
      self.stem_width, 7, 2, kernel_init=HE, dtype=self.dtype, name='conv0'
    )(x)
    x = nn.relu(BatchNorm(name='norm0')(x, train, valid))
    x = max_pool(x, 3, 2, 1)
    found = {'stem': x}
    for number, stage in enumerate(self.stages[1:], start=1):
      block = DenseBlock(
        self.blocks[number - 1],
        self.growth,
        self.dtype,
        name=f'denseblock{number}',
      )
      seen = block(x, train, valid)
      found[stage] = seen.x
      if stage == self.every[-1]:
        found[stage] = x = seen.normalised('norm5', train)
      elif stage != self.stages[-1]:
        transition = Transition(self.dtype, name=f'transition{number}')
        x = transition(seen, train)
    if self.classes:
      dense = nn.Dense(self.classes, kernel_init=DENSE, name='classifier')
      found['logits'] = dense(wide(x).mean((1, 2)))
    return found

  def table(self) -> Table:
    """torchvision's names, and those of the older files that it renames."""
    layer = '{block:denseblock[0-9]+}/{layer:denselayer[0-9]+}/'
    return Table(
      TORCH,
      (
        (
          'features.{block}.{layer}.{part:(norm|conv)[12]}.{leaf}',
          layer + '{part}/{leaf}',
        ),
        (
          'features.{block}.{layer}.{part:norm|conv}.{number:[12]}.{leaf}',
          layer + '{part}{number}/{leaf}',
        ),
        (
          'features.{transition:transition[0-9]+}.{part}.{leaf}',
          '{transition}/{part}/{leaf}',
        ),
        ('features.{part:(conv|norm)[05]}.{leaf}', '{part}/{leaf}'),
        ('classifier.{leaf}', 'classifier/{leaf}'),
      ),
      ignore=self._left_out(),
    )

  def _left_out(self) -> tuple[str, ...]:
    """Expressions for the names of what this instance does not build."""
    names, deepest = [], len(self.blocks)
    built = len(self.stages) - 1  # Blocks.
    names += [f'denseblock{i}' for i in range(built + 1, deepest + 1)]
    names += [f'transition{i}' for i in range(max(built, 1), deepest)]
    names += ['norm5'] if built < deepest else []
    ignore = [rf'features\.{name}\..*' for name in names]
    return (*ignore, *([] if self.classes else [r'classifier\..*']))
