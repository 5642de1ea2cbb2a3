"""The networks of GANomaly: encoders, a decoder and a discriminator.

Layers of encoders and decoder are called what the original calls them, which
says their widths: `pyramid-64-128-conv`. The discriminator is one more
encoder, whose layers are numbered, activations too: `features.2`.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.nn.norms import BatchNorm, around_one
from jaxmed.nn.precision import wide
from jaxmed.nn.torchlike import convolution
from jaxmed.nn.transposed import Transposed

HEAD = 4  # Side of the smallest map, px.
SPREAD = nn.initializers.normal(0.02)
Map = Float[Array, 'b h w c']
Valid = Bool[Array, 'b'] | None
Layer = Callable[[Array], Array]


def batch_norm(name: str, train: bool, valid: Valid) -> Layer:
  norm = BatchNorm(scale_init=around_one, name=name)
  return functools.partial(norm, train=train, valid=valid)


class Encoder(nn.Module):
  """Images to codes; images that are not valid are in no statistic."""

  width: int  # Of the largest map; it doubles with every halving.
  codes: int
  extra: int = 0  # Layers of one size more, after the first.
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self, x: Map, train: bool = False, valid: Valid = None
  ) -> Float[Array, 'b z']:
    conv = functools.partial(convolution, dtype=self.dtype, kernel_init=SPREAD)
    width = self.width
    name = f'initial-conv-{x.shape[-1]}-{width}'
    x = _leaky(conv(width, 4, 2, 1, name=name)(x))
    for i in range(self.extra):
      name = f'extra-layers-{i}-{width}'
      x = conv(width, 3, name=f'{name}-conv')(x)
      x = _leaky(batch_norm(f'{name}-batchnorm', train, valid)(x))
    while x.shape[1] > HEAD:
      width *= 2
      x = conv(width, 4, 2, 1, name=f'pyramid-{width // 2}-{width}-conv')(x)
      x = _leaky(batch_norm(f'pyramid-{width}-batchnorm', train, valid)(x))
    # Its name ends in 1 whatever the number of codes.
    x = conv(self.codes, HEAD, 1, 0, name=f'final-{width}-1-conv')(x)
    return wide(x.reshape(len(x), -1))


class Decoder(nn.Module):
  """Codes to images in [-1, 1]."""

  width: int
  side: int  # Of the image.
  channels: int
  extra: int = 0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self, z: Float[Array, 'b z'], train: bool = False, valid: Valid = None
  ) -> Map:
    up = functools.partial(
      Transposed, window=4, dtype=self.dtype, kernel_init=SPREAD
    )
    double = functools.partial(up, stride=2, pads=((1, 1), (1, 1)))
    norm = lambda name: batch_norm(f'{name}-batchnorm', train, valid)
    width = self.width * self.side // (2 * HEAD)
    x = z[:, None, None]
    x = up(width, name=f'initial-{z.shape[-1]}-{width}-convt')(x)
    x = nn.relu(norm(f'initial-{width}')(x))
    while x.shape[1] < self.side // 2:
      width //= 2
      x = double(width, name=f'pyramid-{2 * width}-{width}-convt')(x)
      x = nn.relu(norm(f'pyramid-{width}')(x))
    for i in range(self.extra):
      name = f'extra-layers-{i}-{width}'
      conv = convolution(
        width, 3, dtype=self.dtype, kernel_init=SPREAD, name=f'{name}-conv'
      )
      x = nn.relu(norm(name)(conv(x)))
    x = double(self.channels, name=f'final-{width}-{self.channels}-convt')(x)
    return jnp.tanh(wide(x))


class Generator(nn.Module):
  """An image, its reconstruction, and the codes of both."""

  width: int
  codes: int
  image: tuple[int, int, int]
  extra: int = 0
  dtype: jnp.dtype | None = None

  def setup(self):
    side, _, channels = self.image
    encoder = functools.partial(
      Encoder, self.width, self.codes, self.extra, self.dtype
    )
    self.encoder1 = encoder()
    self.decoder = Decoder(self.width, side, channels, self.extra, self.dtype)
    self.encoder2 = encoder()

  def __call__(self, x: Map, train: bool = False, valid: Valid = None):
    z = self.encoder1(x, train, valid)
    y = self.decoder(z, train, valid)
    return y, z, self.encoder2(y, train, valid)


class Discriminator(nn.Module):
  """Images to logits, and the features they are made of."""

  width: int
  extra: int = 0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Map, train: bool = False, valid: Valid = None):
    conv = functools.partial(convolution, dtype=self.dtype, kernel_init=SPREAD)
    width = self.width
    x = _leaky(conv(width, 4, 2, 1, name='features_0')(x))
    number = 2  # Of convolution, norm and activation, which has no weights.
    for layer in range(self.extra + _halvings(x)):
      if layer < self.extra:
        x = conv(width, 3, name=f'features_{number}')(x)
      else:
        width *= 2
        x = conv(width, 4, 2, 1, name=f'features_{number}')(x)
      norm = batch_norm(f'features_{number + 1}', train, valid)
      x, number = _leaky(norm(x)), number + 3
    logit = conv(1, HEAD, 1, 0, name='classifier')(x)
    return wide(logit[:, 0, 0, 0]), wide(x)


def _halvings(x: Map) -> int:
  """Until it is as small as it gets."""
  return (x.shape[1] // HEAD).bit_length() - 1


def _leaky(x):
  return nn.leaky_relu(x, 0.2)
