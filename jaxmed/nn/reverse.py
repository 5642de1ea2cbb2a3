"""The student of reverse distillation, and the teacher it looks back at.

The teacher is a trunk whose three stages halve in size and double in width.
The one-class bottleneck takes all three to the size of the last and on, by
blocks like the teacher's own, to half of it; the decoder is the teacher
mirrored, with 2 x 2 transposed convolutions where that has strides, and gives
the three stages back. Names are those of the authors' code, parts `bn` and
`decoder` of its checkpoints.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from jaxmed.errors import UserError, unknown
from jaxmed.method import Images, PyTree, RandomKey, State
from jaxmed.nn.norms import BatchNorm
from jaxmed.nn.precision import dtype_of, wide
from jaxmed.nn.torchlike import HE, LEFT_ALONE
from jaxmed.nn.trunk import trunk
from jaxmed.ops.convolve import convolve
from jaxmed.weights.names import TORCH, Table

Stages = Sequence[Float[Array, 'b _h _w _c']]  # The finest first.
Valid = Bool[Array, 'b'] | None


@dataclasses.dataclass(frozen=True)
class Like:
  """What a student takes over from its teacher.

  Attributes:
    stages: of the trunk, that are distilled.
    widths: their channels.
    reduction: how much smaller than the image the bottleneck's map is.
    inner: channels of a block's 3 x 3, as a share of those that come out; 0
      for blocks of two 3 x 3.
    decoder: blocks of its stages, the coarsest first.
    bottleneck: blocks of the bottleneck.
  """

  stages: tuple[str, str, str]
  widths: tuple[int, int, int]
  reduction: int
  inner: float
  decoder: tuple[int, ...]
  bottleneck: int


_LAYERS = ('layer1', 'layer2', 'layer3')
_STAGES = ('stage1', 'stage2', 'stage3')
_WIDE = (256, 512, 1024)
TEACHERS = {
  'resnet18': Like(_LAYERS, (64, 128, 256), 32, 0, (2, 2, 2), 2),
  'resnet50': Like(_LAYERS, _WIDE, 32, 1 / 4, (3, 4, 6), 3),
  'wide_resnet50_2': Like(_LAYERS, _WIDE, 32, 1 / 2, (3, 4, 6), 3),
  # Ours: the authors have none for these.
  'resnet50v2': Like(_STAGES, _WIDE, 32, 1 / 4, (3, 4, 6), 3),
  'small': Like(_STAGES, (32, 64, 128), 16, 0, (1, 1, 1), 1),
  'tiny': Like(_STAGES, (4, 8, 16), 16, 0, (1, 1, 1), 1),
}


class Conv(nn.Module):
  """A convolution as PyTorch pads it, without bias."""

  features: int
  window: int
  stride: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x):
    shape = self.window, self.window, x.shape[-1], self.features
    kernel = self.param('kernel', HE, shape)
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    return convolve(x, kernel, self.stride)


class Double(nn.Module):
  """A transposed 2 x 2 convolution of stride 2, without bias.

  Windows do not overlap: pixel (2 i + a, 2 j + b) is kernel [a, b] times pixel
  (i, j), so it is one product whose results are laid side by side.
  """

  features: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x):
    kernel = self.param(
      'kernel', LEFT_ALONE, (2, 2, self.features, x.shape[-1])
    )
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    batch, height, width, _ = x.shape
    y = x @ kernel.reshape(4 * self.features, -1).T
    y = y.reshape(batch, height, width, 2, 2, self.features).swapaxes(2, 3)
    return y.reshape(batch, 2 * height, 2 * width, self.features)


class Block(nn.Module):
  """A residual block that keeps the size, halves it or doubles it.

  Attributes:
    features: that come out.
    inner: channels of the 3 x 3 between two of 1 x 1; 0 for two of 3 x 3.
    size: '', 'half' or 'double'.
    window: of the shortcut's convolution, where the size is halved.
  """

  features: int
  inner: int = 0
  size: str = ''
  window: int = 1
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train=False, valid=None):
    norm = lambda name, x: BatchNorm(name=name)(x, train, valid)
    conv = lambda name, *sizes: Conv(*sizes, dtype=self.dtype, name=name)

    def resized(name, features, window):
      if self.size == 'double':
        return Double(features, self.dtype, name=name)
      return conv(name, features, window, 2 if self.size else 1)

    if self.inner:
      y = nn.relu(norm('bn1', conv('conv1', self.inner, 1)(x)))
      y = nn.relu(norm('bn2', resized('conv2', self.inner, 3)(y)))
      y = norm('bn3', conv('conv3', self.features, 1)(y))
    else:
      y = nn.relu(norm('bn1', resized('conv1', self.features, 3)(x)))
      y = norm('bn2', conv('conv2', self.features, 3)(y))
    if self.size:
      short = resized('shortcut', self.features, self.window)(x)
      x = norm('shortcut_norm', short)
    return nn.relu(x.astype(y.dtype) + y)


class Bottleneck(nn.Module):
  """Three stages of the teacher to one map of half the last one's size."""

  like: Like
  shortcut: int = 1  # Window of its projection: RD's 1, FW-RD's 3.
  dtype: Any = None

  @nn.compact
  def __call__(self, stages: Stages, train: bool = False, valid: Valid = None):
    def half(number, x, features):
      x = Conv(features, 3, 2, self.dtype, name=f'conv{number}')(x)
      return nn.relu(BatchNorm(name=f'bn{number}')(x, train, valid))

    one, two, three = stages
    _, middle, last = self.like.widths
    one = half(2, half(1, one, middle), last)
    two = half(3, two, last)
    x = jnp.concatenate([one, two, three.astype(one.dtype)], axis=-1)
    for i in range(self.like.bottleneck):
      size = '' if i else 'half'
      width = 2 * last
      inner = round(self.like.inner * width)
      block = Block(
        width, inner, size, self.shortcut, self.dtype, name=f'layer_{i}'
      )
      x = block(x, train, valid)
    return x


class Decoder(nn.Module):
  """From the bottleneck back to the teacher's stages, the finest first."""

  like: Like
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train: bool = False, valid: Valid = None):
    stages = []
    for number, width in enumerate(reversed(self.like.widths)):
      inner = round(self.like.inner * width)
      for i in range(self.like.decoder[number]):
        size = '' if i else 'double'
        name = f'layer{number + 1}_{i}'
        block = Block(width, inner, size, dtype=self.dtype, name=name)
        x = block(x, train, valid)
      stages.append(x)
    return stages[::-1]


class Student(nn.Module):
  """What is trained: bottleneck and decoder."""

  like: Like
  shortcut: int = 1
  dtype: Any = None

  def setup(self):
    self.bottleneck = Bottleneck(self.like, self.shortcut, self.dtype)
    self.decoder = Decoder(self.like, self.dtype)

  def __call__(self, stages: Stages, train: bool = False, valid: Valid = None):
    return self.decoder(self.bottleneck(stages, train, valid), train, valid)


def _rows(theirs: str, ours: str, shortcut: str):
  """Names of the arrays of blocks."""
  return (
    (f'{theirs}.{shortcut}.0.{{leaf}}', f'{ours}/shortcut/{{leaf}}'),
    (f'{theirs}.{shortcut}.1.{{leaf}}', f'{ours}/shortcut_norm/{{leaf}}'),
    (f'{theirs}.{{m}}.{{leaf}}', f'{ours}/{{m}}/{{leaf}}'),
  )


# Of a checkpoint {bn: ..., decoder: ...}. Its bn has a last convolution and
# norm that the authors' forward never comes to.
TABLE = Table(
  TORCH,
  (
    *_rows('bn.bn_layer.{i}', 'student/bottleneck/layer_{i}', 'downsample'),
    ('bn.{m:(conv|bn)[123]}.{leaf}', 'student/bottleneck/{m}/{leaf}'),
    *_rows(
      'decoder.{stage:layer[123]}.{i}',
      'student/decoder/{stage}_{i}',
      'upsample',
    ),
  ),
  ignore=(r'bn\.(conv|bn)4\..*',),
)


class Reverse:
  """A frozen teacher and the student that answers it.

  The teacher is `State.frozen['teacher']`; the student is the part `student`.
  """

  def __init__(
    self, model: ConfigDict, precision: str, image: tuple[int, int, int]
  ):
    if model.teacher not in TEACHERS:
      raise unknown('teacher', model.teacher, TEACHERS)
    if model.shortcut not in (1, 3):
      raise UserError(
        f'model.shortcut is {model.shortcut}, the window of a convolution; it'
        ' has to be 1 (RD) or 3 (FW-RD).'
      )
    like = TEACHERS[model.teacher]
    height, width, _ = image
    if height % like.reduction or width % like.reduction:
      raise UserError(
        f'Under the teacher {model.teacher} the bottleneck is 1/'
        f'{like.reduction} of the image, which {height} x {width} px cannot'
        f' be; set --config.data.size to a multiple of {like.reduction}.'
      )
    dtype = dtype_of(precision)
    self.like = like
    self.teacher = trunk(model.teacher, dtype, last=like.stages[-1])
    self.student = Student(like, model.shortcut, dtype)

  def look(self, state: State, images: Images) -> Stages:
    """What the teacher sees in images in [0, 1].

    Rectified, as the student's answers are: it is nothing new for teachers
    that rectify, and lets a pre-activation network be one.
    """
    stages = self.teacher.apply(state.frozen['teacher'], images)
    chosen = [nn.relu(stages[name]) for name in self.like.stages]
    return jax.lax.stop_gradient(chosen)

  def init(self, key: RandomKey) -> tuple[PyTree, PyTree]:
    """Parameters and running statistics of a new student."""
    # Of the smallest image, the last stage is of 2 x 2.
    stages = [
      jnp.zeros((1, side, side, width))
      for side, width in zip((8, 4, 2), self.like.widths, strict=True)
    ]
    made = self.student.init(key, stages)
    return made['params'], made['batch_stats']

  def learn(self, params: PyTree, stats: PyTree, stages: Stages, valid: Valid):
    """The student's stages in training, and the statistics after it."""
    answers, after = self.student.apply(
      {'params': params, 'batch_stats': stats},
      stages,
      train=True,
      valid=valid,
      mutable=['batch_stats'],
    )
    return [wide(x) for x in answers], after['batch_stats']

  def answer(self, state: State, stages: Stages) -> Stages:
    """The student's stages."""
    found = self.student.apply(state.variables('student'), stages)
    return [wide(x) for x in found]
