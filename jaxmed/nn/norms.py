"""Normalisations: over one example, and PyTorch's over a batch.

Statistics are computed in float32 at least, whatever the images come in, so
that the same networks run in bfloat16.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.nn.precision import wide

Features = Float[Array, 'b h w c']
SPACE = (1, 2)
EXAMPLE = (1, 2, 3)


def around_one(key, shape, dtype=jnp.float32):
  """First scales, N(1, 0.02^2), as DCGAN's are drawn."""
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def unit_length(
  features: Float[Array, '*places c'],
) -> Float[Array, '*places c']:
  """Vectors of length one; where all is zero, so is the gradient."""
  squares = jnp.square(features).sum(axis=-1, keepdims=True)
  some = squares > 0
  # The root's slope at 0 is infinite, and infinity times the 0 of a branch
  # that isn't taken is NaN: the root must not see it at all.
  norm = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)
  return features / (norm + 1e-10)  # Added to the root, as LPIPS has it.


def instance_norm(x: Features, epsilon: float = 1e-5) -> Features:
  """Each channel of each image to mean 0, variance 1; nothing learned."""
  exact = wide(x)
  centred = exact - exact.mean(SPACE, keepdims=True)
  variance = jnp.square(centred).mean(SPACE, keepdims=True)
  return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def adaptive_instance_norm(
  x: Features, shift: Float[Array, 'b c'], scale: Float[Array, 'b c']
) -> Features:
  """Instance norm, then a scale (as it is, no 1 +) and shift of each image."""
  shift, scale = shift[:, None, None], scale[:, None, None]
  return (instance_norm(x) * scale + shift).astype(x.dtype)


class SampleNorm(nn.Module):
  """What MUNIT calls layer norm: over a whole example.

  Mean and deviation are over height, width and channels; the deviation is the
  unbiased one, and epsilon is added to it, not to the variance. Scale and
  bias are learned for each channel.
  """

  epsilon: float = 1e-5
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Features) -> Features:
    scale = self.param('scale', self.scale_init, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    exact = wide(x)
    centred = exact - exact.mean(EXAMPLE, keepdims=True)
    squares = jnp.square(centred).sum(EXAMPLE, keepdims=True)
    # The floor keeps the root's gradient finite where all is one value.
    variance = jnp.maximum(squares / (x[0].size - 1), 1e-24)
    normal = centred / (jnp.sqrt(variance) + self.epsilon)
    scale, bias = scale[None, None, None], bias[None, None, None]
    return (normal * scale + bias).astype(x.dtype)


class InstanceNorm(nn.Module):
  """PyTorch's with `affine` and `track_running_stats`.

  Each image is normalised by itself. Where the collection batch_stats may
  change, running statistics learn from the `valid` images: means, and
  variances of the unbiased estimate. Nothing looks at them but `running`.
  """

  momentum: float = 0.1  # The weight of what is new.
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self,
    x: Features,
    valid: Bool[Array, '  n *k'] | None = None,
    running: bool = False,
  ) -> Features:
    width = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, width)
    bias = self.param('bias', nn.initializers.zeros, width)
    kept = (
      self.variable('batch_stats', 'mean', jnp.zeros, width),
      self.variable('batch_stats', 'var', jnp.ones, width),
    )
    exact = wide(x)
    row = lambda x: x[None, None, None]
    if running:
      mean, variance = (row(statistic.value) for statistic in kept)
    else:
      mean = exact.mean(SPACE, keepdims=True)
      variance = jnp.square(exact - mean).mean(SPACE, keepdims=True)
      if self.is_mutable_collection('batch_stats'):
        pixels = x.shape[1] * x.shape[2]
        unbiased = variance * (pixels / max(pixels - 1, 1))
        self._learn(kept, (mean, unbiased), valid)
    factor = jax.lax.rsqrt(variance + self.epsilon) * row(scale)
    return ((exact - mean) * factor + row(bias)).astype(x.dtype)

  def _learn(self, kept, found, valid) -> None:
    """A batch of n images in turns of k is k batches, one after the other."""
    if self.is_initializing():
      return
    for statistic, new in zip(kept, found, strict=True):
      new = jax.lax.stop_gradient(new[:, 0, 0])
      weight = jnp.ones((len(new), 1)) if valid is None else valid
      weight = weight.reshape(len(weight), -1).astype(new.dtype)
      new = new.reshape(*weight.shape, -1)
      total = jnp.maximum(weight.sum(0), 1)
      means = (new * weight[..., None]).sum(0) / total[:, None]
      for mean in means:
        statistic.value += self.momentum * (mean - statistic.value)


class Moments(NamedTuple):
  """Of each channel of a batch, and of how many pixels they are."""

  mean: Float[Array, ' c']
  variance: Float[Array, ' c']  # Biased.
  count: Float[Array, '']

  @classmethod
  def of(cls, x: Features, valid: Bool[Array, ' b'] | None = None) -> 'Moments':
    """Of the valid images of a batch."""
    x = wide(x)
    height, width = x.shape[1:3]
    if valid is None:
      images, total = len(x), lambda x: x.sum((0, 1, 2))
    else:
      images = jnp.maximum(valid.sum(dtype=x.dtype), 1)
      every = valid[:, None, None, None]
      total = lambda x: jnp.where(every, x, 0).sum((0, 1, 2))
    count = jnp.asarray(images * height * width, x.dtype)
    mean = total(x) / count
    centred = x - mean[None, None, None]
    return cls(mean, total(jnp.square(centred)) / count, count)


class BatchNorm(nn.Module):
  """PyTorch's: running variances are of the unbiased estimate.

  Flax's own keeps the biased one. In training, only `valid` images of the
  batch are looked at; otherwise the running statistics are used.
  """

  momentum: float = 0.1  # The weight of what is new.
  epsilon: float = 1e-5
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(
    self,
    x: Features,
    train: bool = False,
    valid: Bool[Array, ' b'] | None = None,
    moments: Moments | None = None,
  ) -> Features:
    """`moments` are the batch's where they are known already."""
    width = x.shape[-1:]
    scale = self.param('scale', self.scale_init, width)
    bias = self.param('bias', nn.initializers.zeros, width)
    running = (
      self.variable('batch_stats', 'mean', jnp.zeros, width),
      self.variable('batch_stats', 'var', jnp.ones, width),
    )
    exact = wide(x)
    mean, variance = (statistic.value for statistic in running)
    if train:
      mean, variance, count = moments or Moments.of(x, valid)
      if not self.is_initializing():
        unbiased = variance * (count / jnp.maximum(count - 1, 1))
        for statistic, new in zip(running, (mean, unbiased), strict=True):
          old = statistic.value
          statistic.value = old + self.momentum * (new - old)
    row = lambda x: x[None, None, None]
    factor = jax.lax.rsqrt(variance + self.epsilon) * scale
    return ((exact - row(mean)) * row(factor) + row(bias)).astype(x.dtype)
