"""The networks of ALAD: encoder, generator, and three discriminators.

The original's are for 32 px. Other powers of two have more or fewer layers;
widths double with every halving up to four times the first.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.errors import unknown
from jaxmed.nn.norms import BatchNorm
from jaxmed.nn.precision import wide
from jaxmed.nn.torchlike import convolution
from jaxmed.nn.transposed import Transposed
from jaxmed.ops.transposed import same_pads

HEAD = 4  # Side of the smallest map, px.
WIDEST = 4  # Times the first width.
SPREAD = nn.initializers.normal(0.01)
JOINTS = ('height', 'channels')  # How D_xx lays two images together.
Map = Float[Array, 'b h w c']
Codes = Float[Array, 'b z']
Logits = Float[Array, 'b']
Valid = Bool[Array, 'b'] | None


def widths(first: int, side: int) -> tuple[int, ...]:
  """Of every map of an image, from the largest down."""
  halvings = (side // HEAD).bit_length() - 1
  return tuple(first * min(2**i, WIDEST) for i in range(halvings))


def _conv(features, window, stride, size, **more):
  """TensorFlow's SAME convolution of maps of that size, with a bias."""
  return nn.Conv(
    features,
    (window, window),
    stride,
    padding=same_pads(size, window, stride),
    kernel_init=SPREAD,
    **more,
  )


def _halved(x: Map, features: int, dtype, name: str) -> Map:
  return _conv(features, 4, 2, x.shape[1:3], dtype=dtype, name=name)(x)


def _batch_norm(name: str, train: bool, valid: Valid):
  """That of tf.layers."""
  norm = BatchNorm(momentum=0.01, epsilon=1e-3, name=name)
  return functools.partial(norm, train=train, valid=valid)


class Encoder(nn.Module):
  """Images to codes; images that are not valid are in no statistic."""

  widths: tuple[int, ...]
  codes: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Map, train: bool = False, valid: Valid = None) -> Codes:
    for i, width in enumerate(self.widths, start=1):
      x = _halved(x, width, self.dtype, f'conv_{i}')
      x = _leaky(_batch_norm(f'norm_{i}', train, valid)(x))
    head = nn.Conv(
      self.codes,
      (HEAD, HEAD),
      padding='VALID',
      kernel_init=SPREAD,
      dtype=self.dtype,
      name='head',
    )
    return wide(head(x)[:, 0, 0])


class Generator(nn.Module):
  """Codes to images in [-1, 1]."""

  widths: tuple[int, ...]
  channels: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, z: Codes, train: bool = False, valid: Valid = None) -> Map:
    up = functools.partial(
      Transposed,
      window=4,
      use_bias=True,
      kernel_init=SPREAD,
      dtype=self.dtype,
    )
    double = functools.partial(up, stride=2, pads=((1, 1), (1, 1)))
    x = z[:, None, None]
    for i, width in enumerate(reversed(self.widths), start=1):
      x = (up if i == 1 else double)(width, name=f'conv_{i}')(x)
      x = nn.relu(_batch_norm(f'norm_{i}', train, valid)(x))
    x = double(self.channels, name=f'conv_{len(self.widths) + 1}')(x)
    return jnp.tanh(wide(x))


class OfPairs(nn.Module):
  """D_xz: whether an image goes with a code."""

  widths: tuple[int, ...]
  dropout: float
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self, x: Map, z: Codes, train: bool = False, valid: Valid = None
  ) -> Logits:
    point = functools.partial(
      convolution, window=1, bias=True, kernel_init=SPREAD, dtype=self.dtype
    )
    drop = lambda x: nn.Dropout(self.dropout)(x, deterministic=not train)
    for i, width in enumerate(self.widths, start=1):
      x = _halved(x, width, self.dtype, f'x_{i}')
      if i > 1:
        x = _batch_norm(f'x_norm_{i}', train, valid)(x)
      x = _leaky(x)
    x, z = x.reshape(len(x), 1, 1, -1), z[:, None, None]
    middle = WIDEST * self.widths[0]
    for i in (1, 2):
      z = drop(_leaky(point(middle, name=f'z_{i}')(z)))
    y = jnp.concatenate([x, z.astype(x.dtype)], axis=-1)
    y = drop(_leaky(point(2 * middle, name='y_1')(y)))
    return wide(point(1, name='head')(y)[:, 0, 0, 0])


class OfImages(nn.Module):
  """D_xx: whether two images are the same; and the features that say so."""

  width: int  # Of its first layer.
  dropout: float
  joint: str = 'height'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self, x: Map, y: Map, train: bool = False
  ) -> tuple[Logits, Float[Array, 'b f']]:
    if self.joint not in JOINTS:
      raise unknown('model.joint', self.joint, JOINTS)
    x = jnp.concatenate([x, y], axis=1 if self.joint == 'height' else -1)
    for i in (1, 2):
      conv = _conv(
        i * self.width,
        5,
        2,
        x.shape[1:3],
        dtype=self.dtype,
        name=f'conv_{i}',
      )
      x = _leaky(conv(x))
      x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = x.reshape(len(x), -1)
    head = nn.Dense(1, kernel_init=SPREAD, dtype=self.dtype, name='head')
    return wide(head(x)[:, 0]), wide(x)


class OfCodes(nn.Module):
  """D_zz: whether two codes are the same."""

  widths: tuple[int, int]
  dropout: float
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, z: Codes, y: Codes, train: bool = False) -> Logits:
    dense = functools.partial(nn.Dense, kernel_init=SPREAD, dtype=self.dtype)
    x = jnp.concatenate([z, y], axis=-1)
    for i, width in enumerate(self.widths, start=1):
      x = _leaky(dense(width, name=f'dense_{i}')(x))
      x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return wide(dense(1, name='head')(x)[:, 0])


def _leaky(x):
  return nn.leaky_relu(x, 0.2)
