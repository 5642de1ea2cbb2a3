"""Inception-v3 as FID's original has it.

Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR
2016. The weights that FID is measured with were trained by TensorFlow in 2015
and differ from later ones: 1,008 classes, means at borders are over what lies
inside the image, and the last block takes the largest in place of the mean.
Names are torchvision's, as in the port of these weights to PyTorch
(github.com/mseitzer/pytorch-fid).

Images are 299 x 299 px there, and scaled to [-1, 1]. FID itself is of
jaxmed.nn.embedding's rows.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxmed.nn.norms import BatchNorm
from jaxmed.nn.precision import wide
from jaxmed.nn.staged import Staged
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


class Mixed(NamedTuple):
  """A block: chains of convolutions side by side, whose ends are joined."""

  name: str
  branches: tuple[tuple, ...]


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
  def split(name: str) -> Split:
    return Split((Conv(f'{name}a', 384, (1, 3)), Conv(f'{name}b', 384, (3, 1))))

  return (
    _line('branch1x1', (320, ONE)),
    (Conv('branch3x3_1', 384), split('branch3x3_2')),
    (
      *_line('branch3x3dbl', (448, ONE), (384, THREE)),
      split('branch3x3dbl_3'),
    ),
    (pool, *_line('branch_pool', (192, ONE))),
  )


# What each stage adds to the one before; its end is what the stage gives.
STAGES = {
  'pool1': (
    Conv('Conv2d_1a_3x3', 32, THREE, 2, keeps=False),
    Conv('Conv2d_2a_3x3', 32, THREE, keeps=False),
    Conv('Conv2d_2b_3x3', 64, THREE),
    HALVED,
  ),
  'pool2': (
    Conv('Conv2d_3b_1x1', 80),
    Conv('Conv2d_4a_3x3', 192, THREE, keeps=False),
    HALVED,
  ),
  'mixed5': (
    Mixed('Mixed_5b', _a(32)),
    Mixed('Mixed_5c', _a(64)),
    Mixed('Mixed_5d', _a(64)),
  ),
  'mixed6': (
    Mixed(
      'Mixed_6a',
      (
        _line('branch3x3', (384, THREE, 2)),
        _line('branch3x3dbl', (64, ONE), (96, THREE), (96, THREE, 2)),
        (HALVED,),
      ),
    ),
    Mixed('Mixed_6b', _c(128)),
    Mixed('Mixed_6c', _c(160)),
    Mixed('Mixed_6d', _c(160)),
    Mixed('Mixed_6e', _c(192)),
  ),
  'mixed7': (
    Mixed(
      'Mixed_7a',
      (
        _line('branch3x3', (192, ONE), (320, THREE, 2)),
        _line(
          'branch7x7x3', (192, ONE), (192, ROW), (192, COLUMN), (192, THREE, 2)
        ),
        (HALVED,),
      ),
    ),
    Mixed('Mixed_7b', _e(MEANS)),
    Mixed('Mixed_7c', _e(LARGEST)),
  ),
}


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
  """What a Mixed says."""

  spec: Mixed
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train, valid):
    def step(x, what):
      if isinstance(what, Split):
        return jnp.concatenate([step(x, one) for one in what.convs], -1)
      if isinstance(what, Conv):
        return Unit(what, self.dtype, name=what.name)(x, train, valid)
      return _pool(x, what)

    ends = [functools.reduce(step, chain, x) for chain in self.spec.branches]
    return jnp.concatenate(ends, -1)


class Inception(Staged):
  """Of 21,785,568 parameters without its classifier.

  `mixed7`, averaged over places, is what FID looks at; `pool1`, `pool2` and
  `mixed6` are the other depths at which it is measured, and `mixed5` is the
  finest block's end.
  """

  every = tuple(STAGES)
  mean = deviation = np.full(3, 0.5, np.float32)

  @property
  def least(self) -> int:
    sides = {'pool1': 11, 'pool2': 27, 'mixed5': 27, 'mixed6': 43, 'mixed7': 75}
    return sides[self.stages[-1]]

  @nn.compact
  def features(self, x, train, valid):
    def step(x, what):
      if what == HALVED:
        return _pool(x, what)
      kind = Unit if isinstance(what, Conv) else Block
      return kind(what, self.dtype, name=what.name)(x, train, valid)

    features = {}
    for stage in self.stages:
      x = features[stage] = functools.reduce(step, STAGES[stage], x)
    if self.classes:
      dense = nn.Dense(self.classes, dtype=self.dtype, name='fc')
      features['logits'] = wide(dense(wide(x).mean((1, 2))))
    return features

  def table(self) -> Table:
    left_out = [what for stage in self.without for what in STAGES[stage]]
    ignore = [rf'{what.name}\..*' for what in left_out if what != HALVED]
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
