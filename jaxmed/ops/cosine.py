"""How far two feature maps point apart, by image or by pixel.

The cosine is PyTorch's: a norm counts as 1e-8 at least, so that of a vector
of zeros the cosine is 0 and its gradient finite.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEAST = 1e-8  # Of a norm.
Map = Float[Array, 'b h w c']


def of_images(x: Map, y: Map) -> Float[Array, ' b']:
  """One cosine an image, of all its numbers in a row."""
  return _cosine(x, y, (1, 2, 3))


def of_pixels(x: Map, y: Map) -> Float[Array, 'b h w']:
  """One cosine a pixel, over its channels."""
  return _cosine(x, y, (3,))


def _cosine(x, y, axes):
  wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
  x, y = x.astype(wide), y.astype(wide)
  inverse = lambda z: jax.lax.rsqrt(
    jnp.maximum(jnp.square(z).sum(axes), LEAST**2)
  )
  return (x * y).sum(axes) * inverse(x) * inverse(y)
