"""A layer that makes maps larger; see jaxmed.ops.transposed."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.ops.transposed import Pads, transposed


class Transposed(nn.Module):
  """A transposed convolution, square, of checkpoints of torch or TensorFlow."""

  features: int
  window: int
  stride: int = 1
  pads: Pads = ((0, 0), (0, 0))  # Of the convolution that it transposes.
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w i']) -> Float[Array, 'b y x o']:
    shape = (self.window, self.window, self.features, x.shape[-1])
    kernel, bias = self.param('kernel', self.kernel_init, shape), None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, shape[2:3])
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    x = transposed(x, kernel, self.stride, self.pads)
    return x if bias is None else x + bias[None, None, None]
