"""Feature trunks by name: a network whose named stages a method looks at.

A trunk takes images in [0, 1], gray or RGB, and does itself what networks of
ImageNet expect of them. Its weights are loaded by jaxmed.pretrained.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.errors import UserError, unknown
from jaxmed.method import Images
from jaxmed.nn.alexnet import AlexNet
from jaxmed.nn.densenet import DenseNet121
from jaxmed.nn.inception import Inception
from jaxmed.nn.precision import wide
from jaxmed.nn.resnet import ResNet18, ResNet50, WideResNet50
from jaxmed.nn.resnet50v2 import ResNet50V2
from jaxmed.nn.squeezenet import SqueezeNet
from jaxmed.nn.staged import DEVIATION, MEAN, Features, Staged
from jaxmed.nn.vgg import VGG16
from jaxmed.weights.names import TORCH, Table

Valid = Bool[Array, 'b']


class Small(Staged):
  """An own network of two convolutions a stage, each stage at half the size.

  It is there to be used with random weights, which keep much of what is in
  an image as long as the network is shallow.
  """

  every = ('stage1', 'stage2', 'stage3')
  width = 32  # Of the first stage; each is twice as wide as the one before.

  @nn.compact
  def features(self, x, train, valid):
    features = {}
    for number, stage in enumerate(self.stages):
      for layer in range(2):
        x = nn.Conv(
          self.width * 2**number,
          (3, 3),
          strides=2 if layer == 0 else 1,
          dtype=self.dtype,
          kernel_init=nn.initializers.he_normal(),
          name=f'{stage}_{layer}',
        )(x)
        x = nn.relu(x)
      features[stage] = x
    if self.classes:
      dense = nn.Dense(self.classes, name='head')
      features['logits'] = dense(wide(x).mean((1, 2)))
    return features

  def table(self) -> Table:
    ignore = tuple(rf'{stage}_\d\..*' for stage in self.without)
    ignore += () if self.classes else (r'head\..*',)
    return Table(TORCH, (('{layer}.{leaf}', '{layer}/{leaf}'),), ignore)


class Tiny(Small):
  """The same, for tests of what is trained beside it."""

  width = 4


NETWORKS = {
  'alexnet': AlexNet,
  'densenet121': DenseNet121,
  'inception_fid': Inception,
  'resnet18': ResNet18,
  'resnet50': ResNet50,
  'resnet50v2': ResNet50V2,
  'small': Small,
  'squeezenet1_1': SqueezeNet,
  'tiny': Tiny,
  'vgg16': VGG16,
  'wide_resnet50_2': WideResNet50,
}


class Trunk(nn.Module):
  """A network behind what its images need; it has the network's variables."""

  network: Staged

  def setup(self):
    nn.share_scope(self, self.network)

  @property
  def stages(self) -> tuple[str, ...]:
    return self.network.stages

  def table(self) -> Table:
    return self.network.table()

  def __call__(
    self, images: Images, train: bool = False, valid: Valid | None = None
  ) -> Features:
    """Features of images in [0, 1], in float32 at least."""
    how = self.network.mean, self.network.deviation
    features = self.network(normalised(images, *how), train, valid)
    return {name: wide(x) for name, x in features.items()}


def normalised(
  images: Images,
  mean: Float[np.ndarray, '3'] = MEAN,
  deviation: Float[np.ndarray, '3'] = DEVIATION,
) -> Images:
  """Images in [0, 1], gray or RGB, as networks of ImageNet expect them."""
  channels = images.shape[-1]
  if channels not in (1, 3):
    raise UserError(
      f'Trunks see gray or RGB images, not {channels} channels; set'
      ' --config.data.channels to 1 or 3.'
    )
  if channels == 1:
    logging.log_first_n(
      logging.INFO, 'Trunks see RGB: gray images are repeated thrice.', 1
    )
  rgb = jnp.broadcast_to(images, (*images.shape[:-1], 3))
  shape = (1, 1, 1, 3)
  return (rgb - mean.reshape(shape)) / deviation.reshape(shape)


def trunk(
  name: str,
  dtype: jnp.dtype | None = None,
  *,
  classes: int = 0,
  last: str = '',
) -> Trunk:
  """The trunk of this name, computing in `dtype`, down to the stage `last`."""
  if name not in NETWORKS:
    raise unknown('trunk', name, NETWORKS)
  return Trunk(NETWORKS[name](dtype=dtype, classes=classes, last=last))


def deepest(name: str, layers: Sequence[str]) -> str:
  """The last of some stages of a network; '' unless all are stages of it."""
  # Of an instance: with some, stages depend on fields.
  every = NETWORKS[name](parent=None).every if name in NETWORKS else ()
  if not layers or not set(layers) <= set(every):
    return ''
  return max(layers, key=every.index)
