"""Layers with an equalised learning rate, after Karras et al. 2018.

Weights are drawn from N(0, 1) and scaled when they are used, by one over the
root of how many inputs are added up. Adam, whose steps know no scale, then
moves all layers alike. A layer with `rate` learns that many times as fast: its
weights begin larger by as much, and it and its bias are scaled by `rate` too.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.ops.convolve import convolve


def leaky(x: Float[Array, '...']) -> Float[Array, '...']:
  """A leaky ReLU that keeps the variance of what it gets."""
  return jax.nn.leaky_relu(x, 0.2) * math.sqrt(2)


def normal(deviation: float = 1.0) -> nn.initializers.Initializer:
  return nn.initializers.normal(deviation)


class Dense(nn.Module):
  features: int
  rate: float = 1.0
  bias: float = 0.0  # At the beginning.
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Float[Array, 'b n']) -> Float[Array, 'b f']:
    dtype, inputs = self.dtype or x.dtype, x.shape[-1]
    kernel = self.param(
      'kernel', normal(1 / self.rate), (inputs, self.features)
    )
    bias = self.param(
      'bias', nn.initializers.constant(self.bias / self.rate), (self.features,)
    )
    kernel = (kernel * (self.rate / math.sqrt(inputs))).astype(dtype)
    return x.astype(dtype) @ kernel + (bias * self.rate).astype(dtype)[None]


class Conv(nn.Module):
  """Padded to keep the size where nothing else is said."""

  features: int
  window: int
  stride: int = 1
  pad: int | None = None
  bias: bool = True
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b y x f']:
    dtype = self.dtype or x.dtype
    shape = self.window, self.window, x.shape[-1], self.features
    kernel = self.param('kernel', normal(), shape)
    kernel = (kernel / math.sqrt(math.prod(shape[:3]))).astype(dtype)
    y = convolve(x.astype(dtype), kernel, self.stride, self.pad)
    if self.bias:
      bias = self.param('bias', nn.initializers.zeros, shape[-1:])
      y += bias.astype(dtype)[None, None, None]
    return y
