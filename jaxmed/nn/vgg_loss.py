"""MUNIT's perceptual loss: what VGG16 sees, less what tells domains apart.

  |IN(V(x)) - IN(V(y))|^2, a mean over places and channels

with V the stage relu5_3 and IN an instance norm without weights, which takes
each channel's mean and deviation away: they carry most of the style. After
Huang et al., ECCV 2018 (github.com/NVlabs/MUNIT).
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.method import Images
from jaxmed.nn.norms import instance_norm
from jaxmed.nn.trunk import normalised

STAGE = 'relu5_3'
# Of ImageNet in BGR and [0, 255], which Caffe's networks subtract.
CAFFE_MEAN = np.array([103.939, 116.779, 123.680], np.float32)


# What a network wants of images in [0, 1]: the original's weights were made
# with Caffe, torchvision's are not.
INPUTS = {
  'caffe': lambda rgb: 255 * rgb[..., ::-1] - CAFFE_MEAN.reshape(1, 1, 1, 3),
  'torchvision': normalised,
}
LEAST = 32  # px: below, relu5_3 has one place, and the norm leaves nothing.


class VggLoss(nn.Module):
  """The loss of each image; it has the network's variables."""

  network: nn.Module
  input: str = 'caffe'

  def setup(self):
    nn.share_scope(self, self.network)

  def __call__(self, x: Images, y: Images) -> Float[Array, ' b']:
    """Of images in [0, 1], gray or RGB."""
    # In turns, so that every device keeps the examples it has.
    both = jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])
    rgb = jnp.broadcast_to(both, (*both.shape[:-1], 3))
    seen = self.network(INPUTS[self.input](rgb))[STAGE].astype(jnp.float32)
    pairs = instance_norm(seen).reshape(-1, 2, *seen.shape[1:])
    return jnp.square(pairs[:, 0] - pairs[:, 1]).mean(axis=(1, 2, 3))
