"""HealthyGAN's networks: an image to a healthy one and a mask, and a judge.

Layers keep the numbers they have in the original (`main_6`), so that a short
table maps its names.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.nn.norms import InstanceNorm
from jaxmed.nn.precision import wide
from jaxmed.nn.torchlike import LEFT_ALONE, convolution
from jaxmed.nn.transposed import Transposed

HALVINGS = 2  # Of the generator.
LEAKY = 0.01
Images = Float[Array, 'b h w c']
# PyTorch's ConvTranspose2d(in, out, 4, 2, 1).
DOUBLING = {
  'window': 4,
  'stride': 2,
  'pads': ((1, 1), (1, 1)),
  'kernel_init': LEFT_ALONE,
}


class Raw(NamedTuple):
  """What the generator gives, before any tanh."""

  image: Images
  mask: Float[Array, 'b h w 1']


class Generator(nn.Module):
  """Images in [-1, 1] to others of their size, and where to show these.

  `valid` says which images the norms' running statistics learn from, and if it
  has two axes, that images lie in turns; with `running` these are used in place
  of each image's own.
  """

  dim: int
  blocks: int
  channels: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self,
    x: Images,
    valid: Bool[Array, '  n *k'] | None = None,
    running: bool = False,
  ) -> Raw:
    number = 0

    def named(layer, *given, **more):
      return layer(*given, dtype=self.dtype, name=f'main_{number}', **more)

    def normal(x):
      norm = InstanceNorm(name=f'main_{number + 1}')
      return nn.relu(norm(x, valid, running))

    def conv(x, features, window, stride=1, pad=None):
      layer = named(
        convolution, features, window, stride, pad, kernel_init=LEFT_ALONE
      )
      return layer(x)

    x = normal(conv(x, self.dim, 7))
    for _ in range(HALVINGS):
      number += 3  # A convolution, a norm, a ReLU.
      x = normal(conv(x, 2 * x.shape[-1], 4, 2, 1))
    number += 3
    for _ in range(self.blocks):
      x = named(Residual)(x, valid, running)
      number += 1
    for _ in range(HALVINGS):
      x = normal(named(Transposed, x.shape[-1] // 2, **DOUBLING)(x))
      number += 3
    x = conv(x, self.channels + 1, 7)
    x = wide(x)
    return Raw(x[..., :-1], x[..., -1:])


class Residual(nn.Module):
  """Two convolutions with norms; no activation after the sum."""

  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, valid, running):
    y = x
    for number in (0, 3):
      conv = convolution(
        x.shape[-1],
        3,
        kernel_init=LEFT_ALONE,
        dtype=self.dtype,
        name=f'main_{number}',
      )
      norm = InstanceNorm(name=f'main_{number + 1}')
      y = norm(conv(y), valid, running)
      y = y if number else nn.relu(y)
    return x + y


class Discriminator(nn.Module):
  """Images to the scores of their patches, and the features below these."""

  dim: int
  layers: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self, x: Images
  ) -> tuple[Float[Array, 'b i j f'], Float[Array, 'b i j 1']]:
    for number in range(self.layers):
      conv = convolution(
        self.dim * 2**number,
        4,
        2,
        1,
        bias=True,
        kernel_init=LEFT_ALONE,
        bias_init=_bias_init(16 * x.shape[-1]),
        dtype=self.dtype,
        name=f'main_{2 * number}',
      )
      x = nn.leaky_relu(conv(x), LEAKY)
    head = convolution(
      1, 3, kernel_init=LEFT_ALONE, dtype=self.dtype, name='conv1'
    )
    return x, wide(head(x))


def _bias_init(fan_in: int) -> nn.initializers.Initializer:
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )
