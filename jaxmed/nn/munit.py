"""MUNIT's networks: one domain's encoders and decoder, and its discriminator.

Every convolution is reflected at the border. Paths keep the original's order
of layers, so that a short table (methods/munit.py) maps its names.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.nn.norms import SampleNorm, adaptive_instance_norm, instance_norm
from jaxmed.nn.precision import wide

STYLE_DOWN = 4  # The style encoder's halvings, whatever the content's.
KAIMING = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
NORMAL = nn.initializers.normal(0.02)
Images = Float[Array, 'b h w c']
Content = Float[Array, 'b i j f']
Style = Float[Array, 'b s']


def _conv(features, size, stride=1, init=KAIMING, dtype=None, name=None):
  """A convolution after reflection at the border."""
  pad = (size - stride + 1) // 2
  layer = nn.Conv(
    features,
    (size, size),
    (stride, stride),
    'VALID',
    dtype=dtype,
    kernel_init=init,
    name=name,
  )
  return lambda x: layer(reflect(x, pad))


def reflect(x: Images, pad: int) -> Images:
  """`pad` more pixels on every side, mirrored at the outermost.

  What jnp.pad(mode='reflect') gives, in half as many operations: there are
  over two hundred of these in a training step, and each is compiled.
  """
  if not pad:
    return x
  for axis in (1, 2):
    length = x.shape[axis]
    part = lambda start, x=x, axis=axis: jnp.flip(
      jax.lax.slice_in_dim(x, start, start + pad, axis=axis), axis
    )
    x = jnp.concatenate([part(1), x, part(length - 1 - pad)], axis)
  return x


class ContentEncoder(nn.Module):
  """An image to its content: a map without the colours' statistics."""

  dim: int
  downsamplings: int
  residual_blocks: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    x = _conv(self.dim, 7, dtype=self.dtype, name='conv_0')(x)
    x = nn.relu(instance_norm(x))
    for i in range(1, self.downsamplings + 1):
      conv = _conv(self.dim * 2**i, 4, 2, dtype=self.dtype, name=f'conv_{i}')
      x = nn.relu(instance_norm(conv(x)))
    norms = (instance_norm,) * 2
    for i in range(self.residual_blocks):
      x = ResidualBlock(self.dtype, name=f'residual_{i}')(x, norms)
    return x


class ResidualBlock(nn.Module):
  """Two convolutions, each with a norm that is given; no activation after."""

  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, norms):
    conv = lambda i: _conv(x.shape[-1], 3, dtype=self.dtype, name=f'conv_{i}')
    y = nn.relu(norms[0](conv(0)(x)))
    return x + norms[1](conv(1)(y))


class StyleEncoder(nn.Module):
  """An image to a few numbers. No norm: it would erase the style."""

  dim: int
  style_dim: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    x = nn.relu(_conv(self.dim, 7, dtype=self.dtype, name='conv_0')(x))
    for i in range(1, STYLE_DOWN + 1):
      features = self.dim * 2 ** min(i, 2)
      conv = _conv(features, 4, 2, dtype=self.dtype, name=f'conv_{i}')
      x = nn.relu(conv(x))
    x = x.mean((1, 2), keepdims=True)
    x = _conv(self.style_dim, 1, dtype=self.dtype, name='head')(x)
    return wide(x[:, 0, 0])


class StyleMap(nn.Module):
  """A style to the shift and scale of every adaptive norm."""

  dim: int
  features: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, style):
    dense = lambda n, i: nn.Dense(
      n, dtype=self.dtype, kernel_init=KAIMING, name=f'dense_{i}'
    )
    x = nn.relu(dense(self.dim, 0)(style))
    x = nn.relu(dense(self.dim, 1)(x))
    return dense(self.features, 2)(x)


class Decoder(nn.Module):
  """Content, and a style's norms, to an image in [-1, 1]."""

  channels: int
  downsamplings: int
  residual_blocks: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, norms):
    features = x.shape[-1]
    # In the order of the layers, for each first the shift, then the scale.
    norms = norms.reshape(len(x), self.residual_blocks, 2, 2, features)
    for i in range(self.residual_blocks):
      pair = [
        lambda y, n=norms[:, i, j]: adaptive_instance_norm(y, n[:, 0], n[:, 1])
        for j in range(2)
      ]
      x = ResidualBlock(self.dtype, name=f'residual_{i}')(x, pair)
    for i in range(self.downsamplings):
      features //= 2
      x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
      x = _conv(features, 5, dtype=self.dtype, name=f'conv_{i}')(x)
      x = SampleNorm(
        scale_init=nn.initializers.uniform(1.0),
        name=f'norm_{i}',
      )(x)
      x = nn.relu(x)
    x = _conv(self.channels, 7, dtype=self.dtype, name='head')(x)
    return jnp.tanh(wide(x))


class Generator(nn.Module):
  """Both encoders and the decoder of one domain."""

  channels: int
  dim: int
  mlp_dim: int
  style_dim: int
  downsamplings: int
  residual_blocks: int
  dtype: jnp.dtype | None = None

  def setup(self):
    depth = self.downsamplings, self.residual_blocks, self.dtype
    self.style_encoder = StyleEncoder(self.dim, self.style_dim, self.dtype)
    self.content_encoder = ContentEncoder(self.dim, *depth)
    self.decoder = Decoder(self.channels, *depth)
    norms = 2 * self.residual_blocks
    width = self.dim * 2**self.downsamplings
    self.style_map = StyleMap(self.mlp_dim, 2 * norms * width, self.dtype)

  def __call__(self, x):
    return self.decode(self.content(x), self.style(x))

  def content(self, x: Images) -> Content:
    return self.content_encoder(x)

  def style(self, x: Images) -> Style:
    return self.style_encoder(x)

  def norms(self, style: Style) -> Float[Array, 'b n']:
    return self.style_map(style)

  def decode(self, content: Content, style: Style) -> Images:
    return self.decoder(content, self.style_map(style))


class Discriminator(nn.Module):
  """Logits of patches, at several scales of the image."""

  dim: int
  layers: int
  scales: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Images) -> list[Float[Array, 'b i j 1']]:
    logits = []
    for i in range(self.scales):
      scale = _Scale(self.dim, self.layers, self.dtype, name=f'scale_{i}')
      logits.append(scale(x))
      if i + 1 < self.scales:
        x = nn.avg_pool(
          x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False
        )
    return logits


class _Scale(nn.Module):
  dim: int
  layers: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    for i in range(self.layers):
      conv = _conv(self.dim * 2**i, 4, 2, NORMAL, self.dtype, f'conv_{i}')
      x = nn.leaky_relu(conv(x), 0.2)
    x = _conv(1, 1, 1, NORMAL, self.dtype, 'head')(x)
    return wide(x)
