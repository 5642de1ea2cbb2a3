"""Normalisations that look at one example alone, never at its batch.

Statistics are computed in float32 at least, whatever the images come in, so
that the same networks run in bfloat16.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Features = Float[Array, 'b h w c']
SPACE = (1, 2)
EXAMPLE = (1, 2, 3)


def instance_norm(x: Features, epsilon: float = 1e-5) -> Features:
  """Each channel of each image to mean 0, variance 1; nothing learned."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  centred = wide - wide.mean(SPACE, keepdims=True)
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
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(EXAMPLE, keepdims=True)
    squares = jnp.square(centred).sum(EXAMPLE, keepdims=True)
    # The floor keeps the root's gradient finite where all is one value.
    variance = jnp.maximum(squares / (x[0].size - 1), 1e-24)
    normal = centred / (jnp.sqrt(variance) + self.epsilon)
    scale, bias = scale[None, None, None], bias[None, None, None]
    return (normal * scale + bias).astype(x.dtype)
