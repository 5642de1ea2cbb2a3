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

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.errors import UserError
from jaxmed.method import Images
from jaxmed.nn.norms import BatchNorm, Moments
from jaxmed.weights.names import TORCH, Table

BOTTLENECK = 4  # Times `growth`: the width between a layer's convolutions.
REDUCTION = 4  # Of the stem, in each direction.
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


def _conv(features, size, dtype, name, stride=1):
  return nn.Conv(
    features,
    (size, size),
    stride,
    padding=size // 2,
    use_bias=False,
    kernel_init=HE,
    dtype=dtype,
    name=name,
  )


class DenseLayer(nn.Module):
  growth: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, seen: Seen, train=False, valid=None):
    x = BatchNorm(name='norm1')(seen.x, train, moments=seen.moments)
    width = BOTTLENECK * self.growth
    x = _conv(width, 1, self.dtype, 'conv1')(nn.relu(x))
    x = nn.relu(BatchNorm(name='norm2')(x, train, valid))
    return _conv(self.growth, 3, self.dtype, 'conv2')(x)


class DenseBlock(nn.Module):
  layers: int
  growth: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, seen: Seen, train=False, valid=None) -> Seen:
    for number in range(1, self.layers + 1):
      layer = DenseLayer(self.growth, self.dtype, name=f'denselayer{number}')
      seen = seen.beside(Seen.of(layer(seen, train, valid), train, valid))
    return seen


class Transition(nn.Module):
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, seen: Seen, train=False):
    norm = BatchNorm(name='norm')
    x = nn.relu(norm(seen.x, train, moments=seen.moments))
    # The mean before the convolution, not after it: both are linear, and a
    # quarter of the places is left to it.
    x = nn.avg_pool(x, (2, 2), (2, 2))
    return _conv(x.shape[-1] // 2, 1, self.dtype, 'conv')(x)


class DenseNet121(nn.Module):
  """Images, already normalised, to the features of named stages.

  `stem` is what the max pool gives, at a quarter of the size; `block1`,
  `block2` and `block3` what the dense blocks give, before the transition that
  halves channels and size; `block4` the last norm and ReLU of the fourth
  block, from which the mean over places and the classifier follow.

  Attributes:
    dtype: to compute in; parameters and statistics stay in float32.
    classes: of the classifier, whose output is 'logits'; 0: there is none.
    last: the deepest stage that is built; '': all.
    blocks: layers of each block; `growth`, `stem_width`: their widths. Others
      than those of DenseNet-121 are for small images and for tests.
  """

  dtype: jnp.dtype | None = None
  classes: int = 0
  last: str = ''
  blocks: Sequence[int] = (6, 12, 24, 16)
  growth: int = 32
  stem_width: int = 64

  @property
  def stages(self) -> tuple[str, ...]:
    names = ['stem', *(f'block{i + 1}' for i in range(len(self.blocks)))]
    if not self.last:
      return tuple(names)
    if self.last not in names:
      raise ValueError(f'No stage {self.last!r}: {", ".join(names)}.')
    return tuple(names[: names.index(self.last) + 1])

  @nn.compact
  def __call__(
    self,
    x: Images,
    train: bool = False,
    valid: Bool[Array, 'b'] | None = None,
  ) -> dict[str, Array]:
    """The features by stage; with `train`, of the batch's own statistics.

    Images that are not `valid` are in no statistic.
    """
    last = len(self.stages) - 1  # As many blocks are built.
    self._refuse_small(x, min(last, len(self.blocks) - 1))
    x = _conv(self.stem_width, 7, self.dtype, 'conv0', stride=2)(x)
    x = nn.relu(BatchNorm(name='norm0')(x, train, valid))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    found = {'stem': x}
    for number, layers in enumerate(self.blocks[:last], start=1):
      block = DenseBlock(
        layers, self.growth, self.dtype, name=f'denseblock{number}'
      )
      seen = block(Seen.of(x, train, valid), train, valid)
      found[f'block{number}'] = seen.x
      if number == len(self.blocks):
        norm = BatchNorm(name='norm5')
        x = nn.relu(norm(seen.x, train, moments=seen.moments))
        found[f'block{number}'] = x
      elif number < last:
        transition = Transition(self.dtype, name=f'transition{number}')
        x = transition(seen, train)
    if self.classes:
      found['logits'] = self._classify(x)
    return found

  def _classify(self, x):
    if self.last not in ('', f'block{len(self.blocks)}'):
      raise ValueError(f'A classifier needs all stages, not {self.last!r}.')
    dense = nn.Dense(self.classes, kernel_init=DENSE, name='classifier')
    return dense(x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2)))

  def _refuse_small(self, x, halvings: int):
    least = REDUCTION * (2**halvings - 1) + 1
    if min(x.shape[1:3]) < least:
      raise UserError(
        f'A DenseNet of {halvings + 1} blocks sees images of {least} px at '
        f'least, not {x.shape[1]} x {x.shape[2]}; set --config.data.size (and '
        '--config.data.resize to enlarge).'
      )

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
    names, last = [], len(self.stages) - 1
    for number in range(1, len(self.blocks) + 1):
      if number > last:
        names.append(f'features.denseblock{number}')
      if last <= number < len(self.blocks):
        names.append(f'features.transition{number}')
    if last < len(self.blocks):
      names.append('features.norm5')
    if not self.classes:
      names.append('classifier')
    return tuple(re.escape(name) + r'\..*' for name in names)
