"""Inception-v3 as FID's original has it.

Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR
2016. The weights that FID is measured with were trained by TensorFlow in 2015
and differ from later ones: 1,008 classes, means at borders are over what lies
inside the image, and the last block takes the largest in place of the mean.
Names are torchvision's, as in the port of these weights to PyTorch
(github.com/mseitzer/pytorch-fid).

Images are 299 x 299 px there, and scaled to [-1, 1].
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxmed.nn.norms import BatchNorm
from jaxmed.nn.staged import Staged, wide
from jaxmed.nn.torchlike import HE, convolution, demand, max_pool
from jaxmed.weights.names import TORCH, Table

SIDE = 299  # Of the images that FID is measured on.
EPSILON = 1e-3


class Conv(NamedTuple):
  """A convolution, its norm and ReLU; without stride it keeps the size."""

  name: str
  features: int
  window: tuple[int, int] = (1, 1)
  stride: int = 1
  keeps: bool = True


class Split(NamedTuple):
  """Convolutions of the same, side by side."""

  convs: tuple[Conv, ...]


def _line(name: str, *steps) -> tuple[Conv, ...]:
  """A chain of convolutions; `steps` are (features, window[, stride])."""
  count = len(steps)
  names = [name] if count == 1 else [f'{name}_{i + 1}' for i in range(count)]
  return tuple(
    Conv(own, features, window, *stride, keeps=not stride)
    for own, (features, window, *stride) in zip(names, steps, strict=True)
  )


ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
MEANS, LARGEST, HALVED = 'means', 'largest', 'halved'  # Pools.


def _a(pool: int):
  return (
    _line('branch1x1', (64, ONE)),
    _line('branch5x5', (48, ONE), (64, FIVE)),
    _line('branch3x3dbl', (64, ONE), (96, THREE), (96, THREE)),
    (MEANS, *_line('branch_pool', (pool, ONE))),
  )


def _c(inner: int):
  twice = (inner, COLUMN), (inner, ROW), (inner, COLUMN), (192, ROW)
  return (
    _line('branch1x1', (192, ONE)),
    _line('branch7x7', (inner, ONE), (inner, ROW), (192, COLUMN)),
    _line('branch7x7dbl', (inner, ONE), *twice),
    (MEANS, *_line('branch_pool', (192, ONE))),
  )


def _e(pool: str):
  split = lambda name: Split(
    (Conv(f'{name}a', 384, (1, 3)), Conv(f'{name}b', 384, (3, 1)))
  )
  return (
    _line('branch1x1', (320, ONE)),
    (Conv('branch3x3_1', 384), split('branch3x3_2')),
    (
      *_line('branch3x3dbl', (448, ONE), (384, THREE)),
      split('branch3x3dbl_3'),
    ),
    (pool, *_line('branch_pool', (192, ONE))),
  )


# Each block's branches, which are joined; a branch is a chain.
BLOCKS = {
  'Mixed_5b': _a(32),
  'Mixed_5c': _a(64),
  'Mixed_5d': _a(64),
  'Mixed_6a': (
    _line('branch3x3', (384, THREE, 2)),
    _line('branch3x3dbl', (64, ONE), (96, THREE), (96, THREE, 2)),
    (HALVED,),
  ),
  'Mixed_6b': _c(128),
  'Mixed_6c': _c(160),
  'Mixed_6d': _c(160),
  'Mixed_6e': _c(192),
  'Mixed_7a': (
    _line('branch3x3', (192, ONE), (320, THREE, 2)),
    _line('branch7x7x3', (192, ONE), (192, ROW), (192, COLUMN), (192, THREE, 2)),
    (HALVED,),
  ),
  'Mixed_7b': _e(MEANS),
  'Mixed_7c': _e(LARGEST),
}
STEM = (
  Conv('Conv2d_1a_3x3', 32, THREE, 2, keeps=False),
  Conv('Conv2d_2a_3x3', 32, THREE, keeps=False),
  Conv('Conv2d_2b_3x3', 64, THREE),
  HALVED,
  Conv('Conv2d_3b_1x1', 80),
  Conv('Conv2d_4a_3x3', 192, THREE, keeps=False),
  HALVED,
)
# A stage, and the last convolution or block on the way to it.
ENDS = {
  'pool1': 'Conv2d_2b_3x3',
  'pool2': 'Conv2d_4a_3x3',
  'mixed5': 'Mixed_5d',
  'mixed6': 'Mixed_6e',
  'mixed7': 'Mixed_7c',
}
ORDER = (*(s.name for s in STEM if s != HALVED), *BLOCKS)


class Unit(nn.Module):
  """What a Conv says."""

  spec: Conv
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train, valid):
    _, features, window, stride, keeps = self.spec
    pads = [side // 2 if keeps else 0 for side in window]
    if window == ONE:
      conv = convolution(features, 1, dtype=self.dtype, name='conv')
    else:
      demand(x, max(w - 2 * p for w, p in zip(window, pads, strict=True)))
      conv = nn.Conv(
        features,
        window,
        stride,
        [(pad, pad) for pad in pads],
        use_bias=False,
        kernel_init=HE,
        dtype=self.dtype,
        name='conv',
      )
    norm = BatchNorm(epsilon=EPSILON, name='bn')
    return nn.relu(norm(conv(x), train, valid))


class Block(nn.Module):
  """What an entry of BLOCKS says."""

  branches: tuple
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train, valid):
    def step(x, what):
      if isinstance(what, Split):
        return jnp.concatenate([step(x, one) for one in what.convs], -1)
      if isinstance(what, Conv):
        return Unit(what, self.dtype, name=what.name)(x, train, valid)
      return _pool(x, what)

    ends = []
    for branch in self.branches:
      y = x
      for what in branch:
        y = step(y, what)
      ends.append(y)
    return jnp.concatenate(ends, -1)


class Inception(Staged):
  """Of 21,785,568 parameters without its classifier.

  `mixed7` is what FID looks at; `pool1`, `pool2` and `mixed6` are the other
  depths at which it is measured, and `mixed5` is the finest block's end.
  """

  every = tuple(ENDS)
  mean = deviation = np.full(3, 0.5, np.float32)

  @property
  def least(self) -> int:
    sides = {'pool1': 11, 'pool2': 27, 'mixed5': 27, 'mixed6': 43, 'mixed7': 75}
    return sides[self.stages[-1]]

  @nn.compact
  def features(self, x, train, valid):
    features, end = {}, {name: stage for stage, name in ENDS.items()}
    stage = None
    for what in STEM:
      if what == HALVED:
        x = _pool(x, what)
        features[stage] = x
        if stage == self.stages[-1]:
          return features
      else:
        x = Unit(what, self.dtype, name=what.name)(x, train, valid)
        stage = end.get(what.name)
    for name, branches in BLOCKS.items():
      x = Block(branches, self.dtype, name=name)(x, train, valid)
      if name in end:
        features[end[name]] = x
        if end[name] == self.stages[-1]:
          break
    if self.classes:
      dense = nn.Dense(self.classes, dtype=self.dtype, name='fc')
      features['logits'] = wide(dense(wide(x).mean((1, 2))))
    return features

  def table(self) -> Table:
    last = ORDER.index(ENDS[self.stages[-1]])
    ignore = [rf'{name}\..*' for name in ORDER[last + 1 :]]
    ignore += [] if self.classes else [r'fc\..*']
    rows = (
      ('fc.{leaf}', 'fc/{leaf}'),
      ('{block}.{branch}.{layer}.{leaf}', '{block}/{branch}/{layer}/{leaf}'),
      ('{block}.{layer}.{leaf}', '{block}/{layer}/{leaf}'),
    )
    return Table(TORCH, rows, tuple(ignore))


def _pool(x, kind: str):
  if kind == HALVED:
    return max_pool(x, 3, 2)
  if kind == LARGEST:
    return max_pool(x, 3, 1, 1)
  border = ((1, 1), (1, 1))
  return nn.avg_pool(x, (3, 3), (1, 1), border, count_include_pad=False)
