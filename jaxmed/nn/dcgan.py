"""DCGAN's networks: one layer for each doubling or halving.

Radford et al., Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks, ICLR 2016, in the sizes of PyTorch's example
(windows of 4 px), which takes 64 px; here any power of two from 16 on.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.nn.munit import NORMAL
from jaxmed.nn.norms import BatchNorm, around_one
from jaxmed.nn.precision import wide
from jaxmed.nn.torchlike import convolution
from jaxmed.nn.transposed import Transposed

HEAD = 4  # Side of the smallest map, px.
Images = Float[Array, 'b h w c']


class Generator(nn.Module):
  """Noise to images in [-1, 1]."""

  widths: tuple[int, ...]  # Of every map, the smallest last.
  channels: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, z: Float[Array, 'b z'], train: bool = False) -> Images:
    x = z[:, None, None]
    *features, first = self.widths
    for i, width in enumerate((first, *reversed(features))):
      x = _grow(width, i > 0, self.dtype, f'up_{i}')(x)
      norm = BatchNorm(scale_init=around_one, name=f'norm_{i}')
      x = nn.relu(norm(x, train))
    x = _grow(self.channels, True, self.dtype, 'up_out')(x)
    return jnp.tanh(wide(x))


class Discriminator(nn.Module):
  """Images to one logit each, and the features it is made of.

  Images that are not valid are in no statistic.
  """

  widths: tuple[int, ...]  # Of every map, the largest first.
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self,
    x: Images,
    train: bool = False,
    valid: Bool[Array, ' b'] | None = None,
  ) -> tuple[Float[Array, ' b'], Float[Array, 'b f']]:
    for i, width in enumerate(self.widths):
      x = _convolution(width, 2, 1, self.dtype, f'down_{i}')(x)
      if i:
        norm = BatchNorm(scale_init=around_one, name=f'norm_{i}')
        x = norm(x, train, valid)
      x = nn.leaky_relu(x, 0.2)
    logit = _convolution(1, 1, 0, self.dtype, 'head')(x)[:, 0, 0, 0]
    features = x.reshape(len(x), -1)
    return wide(logit), wide(features)


def _grow(features, doubles, dtype, name):
  """Twice the size, or from 1 px to HEAD."""
  pad, stride = (1, 2) if doubles else (0, 1)
  pads = (pad, pad), (pad, pad)
  return Transposed(
    features, HEAD, stride, pads, dtype=dtype, kernel_init=NORMAL, name=name
  )


def _convolution(features, stride, pad, dtype, name):
  return convolution(
    features, HEAD, stride, pad, dtype=dtype, kernel_init=NORMAL, name=name
  )
