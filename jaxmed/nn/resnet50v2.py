"""ResNet-50 with pre-activation (v2), as Gluon has it, to its third stage.

He et al., Identity Mappings in Deep Residual Networks, ECCV 2016: every
convolution comes after a norm and a ReLU, and the sum of a block is left as
it is. Gluon also normalises the image itself with running statistics, and
takes a projected shortcut from what was rectified, not from what came in.
A stage is the sum of its last block, before the next one's norm.

Weights are to be had as part of the ONNX model zoo (Apache-2.0).
"""

from typing import Any

from flax import linen as nn

from jaxmed.errors import UserError
from jaxmed.nn.norms import BatchNorm
from jaxmed.nn.staged import Staged
from jaxmed.nn.torchlike import convolution, max_pool
from jaxmed.weights.names import TORCH, Convention, Table

GLUON = Convention(
  separator='.',  # Which no name has: a field takes all that is left.
  leaves=(('weight', 'kernel'),),
  norm_leaves=(
    ('gamma', 'scale'),
    ('beta', 'bias'),
    ('running_mean', 'mean'),
    ('running_var', 'var'),
  ),
  kernel_axes=TORCH.kernel_axes,
)
PREFIX = 'resnetv24_'
BLOCKS = {'stage1': 3, 'stage2': 4, 'stage3': 6}


class Block(nn.Module):
  """A bottleneck whose norms come first; its stride is on the 3 x 3.

  Attributes:
    features: that come out, four times those inside.
    stride: of the 3 x 3, and of the shortcut.
    project: the shortcut is a convolution.
  """

  features: int
  stride: int = 1
  project: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, x, train=False, valid=None):
    conv = lambda name, x, *sizes: convolution(
      *sizes, dtype=self.dtype, name=name
    )(x)
    norm = lambda name, x: nn.relu(BatchNorm(name=name)(x, train, valid))
    inner = self.features // 4
    y = norm('bn1', x)
    if self.project:
      x = conv('shortcut', y, self.features, 1, self.stride)
    y = norm('bn2', conv('conv1', y, inner, 1))
    y = norm('bn3', conv('conv2', y, inner, 3, self.stride))
    return x + conv('conv3', y, self.features, 1)


class ResNet50V2(Staged):
  """Down to the third stage; there is no classifier."""

  every = ('stem', *BLOCKS)

  def __post_init__(self):
    super().__post_init__()
    if self.classes:
      raise UserError(
        f'A classifier of {self.classes} classes is asked for of ResNet50V2,'
        ' which ends after its third stage; take resnet50 for that.'
      )

  @nn.compact
  def features(self, x, train, valid):
    x = BatchNorm(name='bn_image')(x, train, valid)
    x = convolution(64, 7, 2, dtype=self.dtype, name='conv1')(x)
    x = max_pool(nn.relu(BatchNorm(name='bn1')(x, train, valid)), 3, 2, 1)
    features = {'stem': x}
    for number, stage in enumerate(self.stages[1:]):
      for i in range(BLOCKS[stage]):
        x = Block(
          features=256 * 2**number,
          stride=2 if number and i == 0 else 1,
          project=i == 0,
          dtype=self.dtype,
          name=f'{stage}_{i}',
        )(x, train, valid)
      features[stage] = x
    return features

  def table(self) -> Table:
    """Gluon numbers the layers of a stage, a shortcut after its block's."""
    rows = [
      ('batchnorm0_{leaf}', 'bn_image/{leaf}'),
      ('conv0_{leaf}', 'conv1/{leaf}'),
      ('batchnorm1_{leaf}', 'bn1/{leaf}'),
    ]
    for stage in self.stages[1:]:
      convolutions = 0
      for i in range(BLOCKS[stage]):
        layers = ('conv1', 'conv2', 'conv3', *['shortcut'] * (i == 0))
        rows += [
          (
            f'{stage}_batchnorm{3 * i + j}_{{leaf}}',
            f'{stage}_{i}/bn{j + 1}/{{leaf}}',
          )
          for j in range(3)
        ] + [
          (
            f'{stage}_conv{convolutions + j}_{{leaf}}',
            f'{stage}_{i}/{layer}/{{leaf}}',
          )
          for j, layer in enumerate(layers)
        ]
        convolutions += len(layers)
    # The norm, the pool and the classifier after a fourth stage.
    ignore = [f'{stage}_.*' for stage in (*self.without, 'stage4')]
    ignore += ['batchnorm2_.*', 'dense0_.*']
    return Table(
      GLUON,
      tuple((PREFIX + theirs, ours) for theirs, ours in rows),
      tuple(PREFIX + name for name in ignore),
    )
