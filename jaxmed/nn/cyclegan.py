"""CycleGAN's networks: one domain's generator, and its discriminator.

Modules are named by their place in the original's chain of layers, so that
a short table (jaxmed/nn/cycle.py) maps its names.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.nn.munit import NORMAL, reflect
from jaxmed.nn.norms import instance_norm
from jaxmed.nn.precision import wide
from jaxmed.nn.torchlike import convolution
from jaxmed.nn.transposed import Transposed

DOWN = 2  # Halvings, and doublings, of the generator.
Images = Float[Array, 'b h w c']


class Generator(nn.Module):
  """An image of one domain to one of the other, in [-1, 1].

  A convolution of 7 px, two halvings, residual blocks, two doublings, and a
  convolution of 7 px again. Borders are reflected, but for the halvings'
  and doublings'.
  """

  channels: int
  dim: int
  residual_blocks: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Images) -> Images:
    conv = lambda *sizes, name: _conv(*sizes, self.dtype, name)
    x = conv(self.dim, 7, 1, 0, name='conv_in')(reflect(x, 3))
    x = nn.relu(instance_norm(x))
    for i in range(DOWN):
      features = self.dim * 2 ** (i + 1)
      x = conv(features, 3, 2, 1, name=f'down_{i}')(x)
      x = nn.relu(instance_norm(x))
    for i in range(self.residual_blocks):
      x = ResidualBlock(self.dtype, name=f'residual_{i}')(x)
    for i in range(DOWN):
      up = Transposed(
        self.dim * 2 ** (DOWN - 1 - i),
        window=3,
        stride=2,
        # PyTorch's padding of 1, and one more pixel at the end.
        pads=((1, 0), (1, 0)),
        use_bias=True,
        dtype=self.dtype,
        kernel_init=NORMAL,
        name=f'up_{i}',
      )
      x = nn.relu(instance_norm(up(x)))
    x = conv(self.channels, 7, 1, 0, name='conv_out')(reflect(x, 3))
    return jnp.tanh(wide(x))


class ResidualBlock(nn.Module):
  """Two convolutions with norms; no activation after the sum."""

  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    conv = lambda i: _conv(x.shape[-1], 3, 1, 0, self.dtype, f'conv_{i}')
    y = nn.relu(instance_norm(conv(0)(reflect(x, 1))))
    return x + instance_norm(conv(1)(reflect(y, 1)))


class Discriminator(nn.Module):
  """Logits of patches: of 70 px where there are three layers of stride 2."""

  dim: int
  layers: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Images) -> Float[Array, 'b i j 1']:
    for i in range(self.layers + 1):
      features = self.dim * 2 ** min(i, 3)
      stride = 2 if i < self.layers else 1
      x = _conv(features, 4, stride, 1, self.dtype, f'conv_{i}')(x)
      x = nn.leaky_relu(instance_norm(x) if i else x, 0.2)
    x = _conv(1, 4, 1, 1, self.dtype, 'head')(x)
    return wide(x)


def least(layers: int) -> int:
  """The smallest side of which a discriminator's norms see two pixels."""
  return 3 * 2**layers


def _conv(features, window, stride, pad, dtype, name):
  return convolution(
    features,
    window,
    stride,
    pad,
    bias=True,
    dtype=dtype,
    kernel_init=NORMAL,
    name=name,
  )
