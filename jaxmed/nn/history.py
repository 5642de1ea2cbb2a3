"""Images that a generator has made before, for its discriminator to see.

Shrivastava et al., Learning from Simulated and Unsupervised Images through
Adversarial Training, CVPR 2017; as CycleGAN has it: while there is room, an
image is kept and shown; then, with a chance of a half, it takes the place of
a kept one, which is shown instead.

Every place of a batch has its own share of the images, so that each device
keeps those it has made. One image is kept as long on average as if all were
together, and in batches of one it is the same.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

Images = Float[Array, 'b h w c']


@struct.dataclass
class History:
  """Kept images of each place of the batch, and how many they are."""

  images: Float[Array, 'b n h w c']
  count: Int[Array, ' b']

  @classmethod
  def empty(
    cls, size: int, batch: int, image: tuple[int, int, int]
  ) -> 'History':
    """Room for `size` images, rounded up to a multiple of the batch."""
    each = -(-size // batch)
    return cls(jnp.zeros((batch, each, *image)), jnp.zeros((batch,), jnp.int32))

  def exchange(
    self, keys: Key[Array, ' b'], made: Images, valid: Bool[Array, ' b']
  ) -> tuple['History', Images]:
    """The history with the images that were made, and those to be shown.

    What is not valid is not kept.
    """
    each = self.images.shape[1]
    if not each:
      return self, made
    draw = jax.vmap(lambda key: jax.random.split(key))(keys)
    swap = jax.vmap(jax.random.bernoulli)(draw[:, 0])
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, each))
    full = self.count >= each
    slot = jnp.where(full, drawn(draw[:, 1]), self.count)
    at = slot[:, None] == jnp.arange(each)[None]
    # A sum of one image and nothing else, which no device has to fetch.
    kept = jnp.where(_wide(at), self.images, 0).sum(axis=1)
    shown = jnp.where(_wide(full & swap & valid), kept, made)
    write = at & ((~full | swap) & valid)[:, None]
    images = jnp.where(_wide(write), made[:, None], self.images)
    count = self.count + (~full & valid)
    return History(images, count), shown


def _wide(chosen: Bool[Array, '...']) -> Bool[Array, '...']:
  """For all pixels of the images that are chosen."""
  return chosen[..., None, None, None]
