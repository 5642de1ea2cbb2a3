"""StyleGAN2's networks: mapping, synthesis, discriminator.

A mapping network makes w of noise z. The synthesis network draws an image from
a constant, at 4, 8, 16 ... pixels; in every layer w scales the channels that a
convolution sees, and a map of noise is added. At every size an image is added
to that of the size before. The discriminator halves a picture by residual
blocks, and sees how much a few pictures differ from one another.

Layers have the names of a widely used port to PyTorch
(github.com/rosinality/stylegan2-pytorch), whose checkpoints load by TABLE.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxmed.errors import UserError
from jaxmed.method import Images, PyTree, RandomKey
from jaxmed.nn.equalised import Conv, Dense, leaky, normal
from jaxmed.nn.precision import wide
from jaxmed.ops import fir
from jaxmed.ops.convolve import convolve
from jaxmed.ops.transposed import transposed
from jaxmed.weights.names import TORCH, Layout, Table

HEAD = 4  # Side of the first map, px.
EPSILON = 1e-8
FORMS = ('scaled', 'grouped')
Map = Float[Array, 'b h w c']
Codes = Float[Array, 'b z']  # Of z, or of w.
Styles = Float[Array, 'b l z']  # A w for every layer.
Noises = Sequence[Float[Array, '#b h w 1']]

# (1, out, in, k, k), which the convention has made (in, k, k, out, 1).
MODULATED = Layout(
  lambda x: x[..., 0].transpose(1, 2, 0, 3),
  lambda x: x.transpose(2, 0, 1, 3)[..., None],
)
_CHANNELS_LAST = Layout(
  lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2)
)
_VECTOR = Layout(lambda x: x.reshape(-1), lambda x: x.reshape(1, -1, 1, 1))


def _styled(theirs: str, ours: str):
  """Names of a modulated layer with noise, or of one that gives RGB."""
  rows = [
    (f'{theirs}.conv.weight', f'{ours}/conv/kernel'),
    (f'{theirs}.conv.modulation.{{leaf}}', f'{ours}/conv/modulation/{{leaf}}'),
  ]
  if 'rgb' in theirs:
    return [*rows, (f'{theirs}.bias', f'{ours}/bias')]
  return [
    *rows,
    (f'{theirs}.noise.weight', f'{ours}/noise_strength'),
    (f'{theirs}.activate.bias', f'{ours}/bias'),
  ]


_DRAWN, _JUDGED = 'generator/synthesis', 'discriminator'
TABLE = Table(
  TORCH,
  (
    ('g.style.{i}.{leaf}', 'generator/mapping/style_{i}/{leaf}'),
    ('g.input.input', f'{_DRAWN}/input'),
    ('g.noises.{noise}', 'generator/{noise}'),
    *_styled('g.conv1', f'{_DRAWN}/conv1'),
    *_styled('g.convs.{i}', f'{_DRAWN}/convs_{{i}}'),
    *_styled('g.to_rgb1', f'{_DRAWN}/to_rgb1'),
    *_styled('g.to_rgbs.{i}', f'{_DRAWN}/to_rgbs_{{i}}'),
    ('d.convs.0.0.weight', f'{_JUDGED}/convs_0/kernel'),
    ('d.convs.0.1.bias', f'{_JUDGED}/convs_0/bias'),
    ('d.convs.{i}.conv1.0.weight', f'{_JUDGED}/convs_{{i}}/conv1/kernel'),
    ('d.convs.{i}.conv1.1.bias', f'{_JUDGED}/convs_{{i}}/conv1/bias'),
    ('d.convs.{i}.conv2.1.weight', f'{_JUDGED}/convs_{{i}}/conv2/kernel'),
    ('d.convs.{i}.conv2.2.bias', f'{_JUDGED}/convs_{{i}}/conv2/bias'),
    ('d.convs.{i}.skip.1.weight', f'{_JUDGED}/convs_{{i}}/skip/kernel'),
    ('d.final_conv.0.weight', f'{_JUDGED}/final_conv/kernel'),
    ('d.final_conv.1.bias', f'{_JUDGED}/final_conv/bias'),
    ('d.final_linear.{i}.{leaf}', f'{_JUDGED}/final_linear_{{i}}/{{leaf}}'),
    ('encoder.{layer}.{leaf}', 'encoder/{layer}/{leaf}'),  # Ours alone.
  ),
  # Filters, which are fixed; and what training alone needs.
  ignore=(r'(.*\.)?kernel', r'(g_ema|g_optim|d_optim|args)\..*', 'latent_avg'),
  layouts=(
    (r'synthesis/.*/conv/kernel$', MODULATED),
    (r'to_rgb[^/]*/bias$', _VECTOR),
    (r'synthesis/input$|generator/noise_\d+$', _CHANNELS_LAST),
  ),
)


def widths_of(size: int, base: int, widest: int = 512) -> tuple[int, ...]:
  """Channels at 4, 8 ... `size` pixels; config E's base is 8192, F's 16384."""
  if size < 2 * HEAD or size.bit_count() != 1:
    raise UserError(
      f'StyleGAN2 makes square images of 8, 16, 32 ... pixels, not of {size};'
      ' set --config.data.size.'
    )
  sides = [2**n for n in range(HEAD.bit_length() - 1, size.bit_length())]
  return tuple(max(1, min(2 * base // side, widest)) for side in sides)


def form_of(backend: str) -> str:
  """The faster form of a modulated convolution.

  On a CPU by benchmarks/stylegan2_step.py. Elsewhere a grouped convolution
  reads a kernel of its own for each image, and few libraries are good at it.
  """
  del backend
  return 'scaled'


class Mapping(nn.Module):
  """z to w, as many numbers each."""

  width: int
  layers: int = 8
  rate: float = 0.01

  @nn.compact
  def __call__(self, z: Float[Array, 'b z']) -> Float[Array, 'b z']:
    x = z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + EPSILON)
    for i in range(1, self.layers + 1):
      x = leaky(Dense(self.width, self.rate, name=f'style_{i}')(x))
    return x


class ModulatedConv(nn.Module):
  """A convolution whose input channels every image scales by its own w.

  `demodulate` divides each output channel by what that does to its deviation.
  `form` scaled: the inputs are scaled, then the outputs, and all images share
  a kernel. grouped: the kernels are, one for each image. Both are the same.
  """

  features: int
  window: int
  resample: str = ''  # Or up, down: to the double, or half.
  demodulate: bool = True
  form: str = 'scaled'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Map, w: Float[Array, 'b z']) -> Map:
    dtype = self.dtype or x.dtype
    x, inputs = x.astype(dtype), x.shape[-1]
    style = Dense(inputs, bias=1.0, dtype=self.dtype, name='modulation')(w)
    shape = self.window, self.window, inputs, self.features
    kernel = self.param('kernel', normal(), shape)
    kernel = kernel / math.sqrt(math.prod(shape[:3]))
    wide = style.astype(kernel.dtype)
    if self.demodulate:
      energy = jnp.square(wide) @ jnp.square(kernel).sum((0, 1))
      after = jax.lax.rsqrt(energy + EPSILON)
    else:
      after = jnp.ones((1, self.features), kernel.dtype)
    if self.form == 'grouped':
      kernels = kernel[None] * wide[:, None, None, :, None]
      kernels = kernels * after[:, None, None, None]
      one = lambda x, kernel: self._resampled(x[None], kernel)[0]
      return jax.vmap(one)(x, kernels.astype(dtype))
    x = x * style[:, None, None]
    y = self._resampled(x, kernel.astype(dtype))
    return y * after[:, None, None].astype(dtype) if self.demodulate else y

  def _resampled(self, x, kernel):
    if self.resample == 'up':
      grown = transposed(x, kernel.swapaxes(2, 3), 2)
      return fir.blur(grown, (1, 1), gain=4)
    if self.resample == 'down':
      return convolve(fir.blur(x, (2, 2)), kernel, stride=2, pad=0)
    return convolve(x, kernel)


class StyledConv(nn.Module):
  features: int
  up: bool = False
  form: str = 'scaled'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, w, noise):
    conv = ModulatedConv(
      self.features,
      3,
      resample='up' if self.up else '',
      form=self.form,
      dtype=self.dtype,
      name='conv',
    )
    x = conv(x, w)
    strength = self.param('noise_strength', nn.initializers.zeros, (1,))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = x + (strength[0] * noise).astype(x.dtype)
    return leaky(x + bias.astype(x.dtype)[None, None, None])


class ToRGB(nn.Module):
  """The image of a size, added to that of half the size."""

  channels: int
  form: str = 'scaled'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, w, below=None):
    conv = ModulatedConv(
      self.channels,
      1,
      demodulate=False,
      form=self.form,
      dtype=self.dtype,
      name='conv',
    )
    bias = self.param('bias', nn.initializers.zeros, (self.channels,))
    image = wide(conv(x, w)) + bias[None, None, None]
    return image if below is None else image + fir.upsample(below)


class Synthesis(nn.Module):
  """A w for every layer, and noise, to images in about [-1, 1]."""

  widths: tuple[int, ...]  # Of 4, 8 ... pixels.
  channels: int = 3
  form: str = 'scaled'
  dtype: jnp.dtype | None = None

  @property
  def layers(self) -> int:
    """How many w an image has."""
    return 2 * len(self.widths)

  @property
  def noise_sides(self) -> tuple[int, ...]:
    """Of the maps of noise: one of 4 px, two of every other size."""
    return tuple(2 ** ((i + 5) // 2) for i in range(self.layers - 1))

  @nn.compact
  def __call__(self, w: Float[Array, 'b l z'], noises: Noises) -> Map:
    kind = {'form': self.form, 'dtype': self.dtype}
    first = self.widths[0]
    x = self.param('input', normal(), (1, HEAD, HEAD, first))
    x = jnp.broadcast_to(x, (len(w), *x.shape[1:]))
    x = StyledConv(first, name='conv1', **kind)(x, w[:, 0], noises[0])
    image = ToRGB(self.channels, name='to_rgb1', **kind)(x, w[:, 1])
    for i, width in enumerate(self.widths[1:]):
      at = 2 * i + 1  # RGB shares its w with the next size's first layer.
      up = StyledConv(width, up=True, name=f'convs_{2 * i}', **kind)
      x = up(x, w[:, at], noises[at])
      conv = StyledConv(width, name=f'convs_{at}', **kind)
      x = conv(x, w[:, at + 1], noises[at + 1])
      rgb = ToRGB(self.channels, name=f'to_rgbs_{i}', **kind)
      image = rgb(x, w[:, at + 2], image)
    return image


class Drawing:
  """What a mapping and a synthesis network do together."""

  def __init__(self, mapping: Mapping, synthesis: Synthesis):
    self.mapping, self.synthesis = mapping, synthesis
    self.z = mapping.width

  def map(self, params: PyTree, z: Codes) -> Codes:
    return self.mapping.apply({'params': params['mapping']}, z)

  def each_layer(self, w: Codes) -> Styles:
    """The same w for every layer."""
    shape = len(w), self.synthesis.layers, self.z
    return jnp.broadcast_to(w[:, None], shape)

  def mixed(self, w: Codes, other: Codes, first: Int[Array, '']) -> Styles:
    """`w` for the first layers, the other for the rest."""
    number = jnp.arange(self.synthesis.layers)[None, :, None]
    return jnp.where(number < first, w[:, None], other[:, None])

  def draw(self, params: PyTree, w: Styles, noises: Noises) -> Images:
    """Images in about [-1, 1]."""
    return self.synthesis.apply({'params': params['synthesis']}, w, noises)

  def noises(self, key: RandomKey, count: int) -> Noises:
    sides = self.synthesis.noise_sides
    keys = jax.random.split(key, len(sides))
    return tuple(
      jax.random.normal(key, (count, side, side, 1))
      for key, side in zip(keys, sides, strict=True)
    )


class Residual(nn.Module):
  """Two convolutions, which halve, and a shortcut."""

  features: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    conv = Conv(x.shape[-1], 3, dtype=self.dtype, name='conv1')
    half = Conv(
      self.features, 3, stride=2, pad=0, dtype=self.dtype, name='conv2'
    )
    skip = Conv(self.features, 1, bias=False, dtype=self.dtype, name='skip')
    short = skip(fir.downsample(x))
    x = leaky(half(fir.blur(leaky(conv(x)), (2, 2))))
    return (x + short) / math.sqrt(2)


def group_of(batch: int, group: int) -> int:
  """How many images are compared with one another."""
  size = min(group, batch)
  if batch % size:
    raise UserError(
      f'A batch of {batch} does not divide into groups of {size}, in which'
      ' the discriminator compares images; set --config.train.batch to a'
      f' multiple of {size}, or --config.model.group.'
    )
  return size


def deviation(x: Map, group: int) -> Float[Array, ' b']:
  """Of each image: how much the images of its group differ, on the average.

  Image j is in a group with j + b/n, j + 2 b/n ..., of n = min(group, b). All
  is said of the whole batch, so its devices' number changes nothing.
  """
  size = group_of(len(x), group)
  grouped = x.reshape(size, len(x) // size, *x.shape[1:])
  grouped = wide(grouped)
  deviations = jnp.sqrt(jnp.var(grouped, axis=0) + EPSILON)
  return jnp.tile(deviations.mean(axis=(1, 2, 3)), size)


class Discriminator(nn.Module):
  """Images to one number each; higher is more real."""

  widths: tuple[int, ...]  # Of 4, 8 ... pixels.
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Map, group: int) -> Float[Array, ' b']:
    x = self.features(x)
    apart = deviation(x, group)[:, None, None, None].astype(x.dtype)
    apart = jnp.broadcast_to(apart, (*x.shape[:3], 1))
    x = jnp.concatenate((x, apart), axis=-1)
    width = self.widths[0]
    x = leaky(Conv(width, 3, dtype=self.dtype, name='final_conv')(x))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # As the port has it.
    x = leaky(Dense(width, dtype=self.dtype, name='final_linear_0')(x))
    x = Dense(1, dtype=self.dtype, name='final_linear_1')(x)
    return wide(x)[:, 0]

  @nn.nowrap
  def features(self, x):
    """Maps of 4 x 4."""
    *others, last = self.widths
    x = leaky(Conv(last, 1, dtype=self.dtype, name='convs_0')(x))
    for i, width in enumerate(reversed(others), start=1):
      x = Residual(width, self.dtype, name=f'convs_{i}')(x)
    return x
