"""The networks of ALOCC: a refiner of noisy images, and a discriminator.

Layers are called what the original calls them. They take images of any size:
where one halves unevenly, the decoder comes back to what was there.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.nn.norms import BatchNorm
from jaxmed.nn.precision import wide
from jaxmed.nn.transposed import Transposed
from jaxmed.ops.transposed import same_pads

WINDOW = 5
SPREAD = nn.initializers.normal(0.02)
CUT = nn.initializers.truncated_normal(0.02)  # Of the convolutions.
Map = Float[Array, 'b h w c']
Valid = Bool[Array, 'b'] | None


def _norm(name: str, train: bool, valid: Valid):
  """That of tf.contrib in TensorFlow: decay 0.9."""
  return functools.partial(BatchNorm(name=name), train=train, valid=valid)


def _halved(x: Map, features: int, dtype, name: str) -> Map:
  conv = nn.Conv(
    features,
    (WINDOW, WINDOW),
    2,
    padding=same_pads(x.shape[1:3], WINDOW, 2),
    kernel_init=CUT,
    dtype=dtype,
    name=name,
  )
  return conv(x)


class Refiner(nn.Module):
  """Noisy images to clean ones, in [-1, 1]."""

  encoder: int  # Unit of the encoder's widths.
  decoder: int  # Of the decoder's.
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Map, train: bool = False, valid: Valid = None) -> Map:
    channels, sizes = x.shape[-1], []
    for i in range(3):
      sizes.append(x.shape[1:3])
      width = self.encoder * 2 ** (i + 1)
      x = _halved(x, width, self.dtype, f'g_encoder_h{i}_conv')
      x = nn.leaky_relu(_norm(f'g_bn{i + 4}', train, valid)(x), 0.2)
    steps = (
      ('g_decoder_h1', 2 * self.decoder, 'g_bn2'),
      ('g_decoder_h0', self.decoder, 'g_bn3'),
      ('g_decoder_h00', channels, None),
    )
    for (name, width, norm), size in zip(steps, reversed(sizes), strict=True):
      up = Transposed(
        width,
        WINDOW,
        2,
        same_pads(size, WINDOW, 2),
        use_bias=True,
        kernel_init=SPREAD,
        dtype=self.dtype,
        name=name,
      )
      x = up(x)
      if norm:
        x = nn.relu(_norm(norm, train, valid)(x))
    return jnp.tanh(wide(x))


class Discriminator(nn.Module):
  """Images to logits: whether they are what was trained on."""

  width: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(
    self, x: Map, train: bool = False, valid: Valid = None
  ) -> Float[Array, ' b']:
    for i in range(4):
      x = _halved(x, self.width * 2**i, self.dtype, f'd_h{i}_conv')
      if i:
        x = _norm(f'd_bn{i}', train, valid)(x)
      x = nn.leaky_relu(x, 0.2)
    head = nn.Dense(1, kernel_init=SPREAD, dtype=self.dtype, name='d_h3_lin')
    return wide(head(x.reshape(len(x), -1))[:, 0])
