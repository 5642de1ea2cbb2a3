"""Feature trunks by name: a network whose named stages a method looks at.

A trunk takes images in [0, 1], gray or RGB, and does itself what networks of
ImageNet expect of them. Its weights are loaded by jaxmed.pretrained.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.errors import UserError, unknown
from jaxmed.method import Images

# Of ImageNet's training images, in [0, 1]; what its networks subtract and
# divide by.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

Features = dict[str, Float[Array, 'b _h _w _c']]  # Of each stage.


class Small(nn.Module):
  """An own network of two convolutions a stage, each stage at half the size.

  It is there to be used with random weights, which keep much of what is in
  an image as long as the network is shallow.
  """

  dtype: jnp.dtype | None = None
  stages = ('stage1', 'stage2', 'stage3')

  @nn.compact
  def __call__(self, x):
    features = {}
    for number, stage in enumerate(self.stages):
      for layer in range(2):
        x = nn.Conv(
          32 * 2**number,
          (3, 3),
          strides=2 if layer == 0 else 1,
          dtype=self.dtype,
          kernel_init=nn.initializers.he_normal(),
          name=f'{stage}_{layer}',
        )(x)
        x = nn.relu(x)
      features[stage] = x
    return features


NETWORKS = {'small': Small}


class Trunk(nn.Module):
  """A network behind what its images need."""

  network: nn.Module

  @property
  def stages(self) -> tuple[str, ...]:
    return self.network.stages

  def __call__(self, images: Images) -> Features:
    channels = images.shape[-1]
    if channels not in (1, 3):
      raise UserError(
        f'Trunks see gray or RGB images, not {channels} channels; set'
        ' --config.data.channels to 1 or 3.'
      )
    rgb = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    shape = (1, 1, 1, 3)
    x = (rgb - MEAN.reshape(shape)) / DEVIATION.reshape(shape)
    features = self.network(x)
    return {k: v.astype(jnp.float32) for k, v in features.items()}


def trunk(name: str, dtype: jnp.dtype | None = None) -> Trunk:
  """The trunk of this name, computing in `dtype`."""
  if name not in NETWORKS:
    raise UserError(
      f'{unknown("trunk", name, NETWORKS)} Networks trained on ImageNet are'
      ' not in this version; --config.model.trunk=small'
      ' --config.model.weights=random uses an untrained one.'
    )
  return Trunk(NETWORKS[name](dtype=dtype))
