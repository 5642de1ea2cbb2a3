"""The networks of f-AnoGAN: residual, of one block for each halving."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.nn.precision import wide

HEAD = 4  # Side of the smallest map, px.
WIDEST = 8  # Times `dim`.
# Uniform, of variance 4 / (in + out); 2 / (in + out) where nothing is
# rectified before: shortcuts, the first layer, dense layers.
HE = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')
GLOROT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
Norm = Callable[[str], Callable[[Array], Array]]  # By the layer's name.


def batch_norm(train: bool, dtype, valid=None) -> Norm:
  """TensorFlow's: biased variance, also in the moving average."""

  def layer(name):
    norm = nn.BatchNorm(
      use_running_average=not train,
      momentum=0.99,
      epsilon=1e-3,
      dtype=dtype,
      use_fast_variance=False,
      name=name,
    )
    mask = None if valid is None else valid[:, None, None, None]
    return lambda x: norm(x, mask=mask)

  return layer


class LayerNorm(nn.Module):
  """Over all of an image; scale and offset of each channel.

  The variance takes the mean as a constant, as TensorFlow's moments do. That
  changes no gradient, but it changes the gradient of the penalty's gradient.
  """

  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    dtype, shape = self.dtype or x.dtype, (1, 1, 1, x.shape[-1])
    scale = self.param('scale', nn.initializers.ones, shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, shape[-1:])
    x = wide(x)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    from_mean = x - jax.lax.stop_gradient(mean)
    variance = jnp.square(from_mean).mean(axis=(1, 2, 3), keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    return (x * scale.reshape(shape) + bias.reshape(shape)).astype(dtype)


def upsample(x: Float[Array, 'b h w c']) -> Float[Array, 'b 2*h 2*w c']:
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample(x: Float[Array, 'b h w c']) -> Float[Array, 'b h/2 w/2 c']:
  return nn.avg_pool(x, (2, 2), (2, 2))


class Block(nn.Module):
  """norm, ReLU, convolution, twice; and a shortcut. It resamples by two."""

  features: int
  up: bool
  norm: Norm
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    conv = functools.partial(nn.Conv, dtype=self.dtype)
    middle = self.features if self.up else x.shape[-1]
    shortcut = conv(self.features, (1, 1), kernel_init=GLOROT, name='Shortcut')
    # A 1x1 convolution before the copies, not of each copy: the same numbers.
    short = upsample(shortcut(x)) if self.up else shortcut(downsample(x))
    x = nn.relu(self.norm('BN1')(x))
    x = upsample(x) if self.up else x
    x = conv(middle, (3, 3), use_bias=False, kernel_init=HE, name='Conv1')(x)
    x = nn.relu(self.norm('BN2')(x))
    x = conv(self.features, (3, 3), kernel_init=HE, name='Conv2')(x)
    return short + (x if self.up else downsample(x))


class Generator(nn.Module):
  """Noise to images in [-1, 1]."""

  widths: tuple[int, ...]  # Of every scale, the image's own first.
  channels: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, z, train=False):
    norm = batch_norm(train, self.dtype)
    head = self.widths[-1]
    dense = nn.Dense(
      head * HEAD**2, dtype=self.dtype, kernel_init=GLOROT, name='Input'
    )
    x = _channels_last(dense(z).reshape(-1, head, HEAD, HEAD))
    for i, width in enumerate(reversed(self.widths[:-1]), start=1):
      x = Block(width, True, norm, self.dtype, name=f'Res{i}')(x)
    x = nn.relu(norm('OutputN')(x))
    x = nn.Conv(
      self.channels, (3, 3), dtype=self.dtype, kernel_init=HE, name='Output'
    )(x)
    return jnp.tanh(wide(x))


class Critic(nn.Module):
  """Images to one number each, and the features it is made of."""

  widths: tuple[int, ...]
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    norm = lambda name: LayerNorm(self.dtype, name=name)
    features = _down(self.widths, norm, self.dtype, x)
    dense = nn.Dense(1, dtype=self.dtype, kernel_init=GLOROT, name='Output')
    value = dense(features)[:, 0]
    return wide(value), wide(features)


class Encoder(nn.Module):
  """Images to codes; images that are not valid are in no statistic."""

  widths: tuple[int, ...]
  codes: int
  tanh: bool = True
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, train=False, valid=None):
    norm = batch_norm(train, self.dtype, valid)
    features = _down(self.widths, norm, self.dtype, x)
    dense = nn.Dense(
      self.codes, dtype=self.dtype, kernel_init=GLOROT, name='Output'
    )
    z = wide(dense(features))
    return jnp.tanh(z) if self.tanh else z


def _down(widths, norm, dtype, x):
  """What critic and encoder share: an image to a vector."""
  first = nn.Conv(
    widths[0], (3, 3), dtype=dtype, kernel_init=GLOROT, name='Input'
  )
  x = first(x)
  for i, width in enumerate(widths[1:], start=1):
    x = Block(width, False, norm, dtype, name=f'Res{i}')(x)
  # Flattened as the original does, channels first, so that weights and
  # features are the same. It is the smallest map; moving it costs nothing.
  return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def _channels_last(x):
  return x.transpose(0, 2, 3, 1)
