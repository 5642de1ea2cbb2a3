"""Projection: the latent and the noise that a generator would draw an image of.

Karras et al., Analyzing and improving the image quality of StyleGAN, CVPR 2020,
section 5 and appendix D; the constants are those of the authors' projector.

With an image x, a latent w, a noise map n_l for each layer l, and
t = step / steps:

  y    = G(w + e, n),  e ~ N(0, s^2),  s = 0.05 sigma max(0, 1 - t / 0.75)^2
  L    = d(x, y) + 1e5 R(n) + pixel mean (x - y)^2
  R(n) = sum over maps v, and over their 2 x 2 means down to a side of 8,
         (mean of v rolled by a column times v)^2 + (by a row)^2
  rate = 0.1 (1 - cos(pi min(1, (1 - t) / 0.25))) / 2 min(1, t / 0.05)

Adam starts from the mean of w and from noise that is N(0, 1), and after every
step each map is brought back to mean 0 and variance 1. d is LPIPS in the paper.

The original projects one image at a time. Here every image of a batch has its
own loss, and nothing is averaged over images, so a batch is that many searches
side by side: what is found for one depends on no other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from jaxmed.method import Images, PyTree
from jaxmed.ops import resize

SEEN = 256  # Px: larger images are compared as means over squares.
COARSEST = 8  # Side of the smallest map of which R looks.
SEED = 123  # Of the latents whose mean is the start; the original's.

Latents = Float[Array, 'b d'] | Float[Array, 'b l d']  # One, or one a layer.
Noise = tuple[Float[Array, 'b _h _w 1'], ...]
Scalar = Float[Array, ''] | float
Terms = dict[str, Float[Array, ' b']]
Render = Callable[[Latents, Noise], Images]  # Signed: in [-1, 1], about.
Distance = Callable[[Images], Float[Array, ' b']]


@struct.dataclass
class Found:
  """A search under way.

  Attributes:
    free: what is searched for: `w`, and `noise`.
    moments: Adam's.
    mean, sigma: of the generator's latents.
    target: what `Distance` keeps of the images.
  """

  free: dict[str, PyTree]
  moments: PyTree
  mean: Float[Array, ' d']
  sigma: Float[Array, '']
  target: Any = ()


def rate(
  t: Scalar, peak: float = 0.1, up: float = 0.05, down: float = 0.25
) -> Float[Array, '']:
  """Of Adam: a linear start, a plateau, and half a cosine to nothing."""
  falling = 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.minimum(1.0, (1 - t) / down))
  return peak * falling * jnp.minimum(1.0, t / up)


def jitter(
  t: Scalar, sigma: Scalar, scale: float = 0.05, until: float = 0.75
) -> Float[Array, '']:
  """s, the deviation of what is added to a latent before it is drawn."""
  return sigma * scale * jnp.square(jnp.maximum(0.0, 1 - t / until))


def statistics(w: Float[Array, 'n d']) -> tuple[Float[Array, ' d'], Scalar]:
  """The mean of latents, and sigma: their root mean square distance to it."""
  mean = w.mean(axis=0)
  return mean, jnp.sqrt(jnp.square(w - mean[None]).sum() / len(w))


def noise_penalty(noise: Noise) -> Float[Array, ' b']:
  """R: how far each image's maps are from noise without any structure."""
  return sum(_correlation(level) for v in noise for level in _pyramid(v))


def standardise(noise: Noise, sample: bool = False) -> Noise:
  """Each map of each image with mean 0 and variance 1.

  `sample`: of the variance with n - 1 in place of n, as in rosinality's port.
  """
  return tuple(
    (v - v.mean(axis=(1, 2, 3), keepdims=True))
    / v.std(axis=(1, 2, 3), keepdims=True, ddof=int(sample))
    for v in noise
  )


def reduce(images: Images) -> Images:
  """What is compared: means over squares, so that no side exceeds `SEEN`."""
  factor = max(1, images.shape[1] // SEEN)
  while factor > 1:
    images, factor = resize.halve(images), factor // 2
  return images


def normal(
  keys: Key[Array, ' b'], shape: tuple[int, ...]
) -> Float[Array, '...']:
  """N(0, 1) of a shape, for every key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


class Projector:
  """Steps of a search. `settings` are `score.projection` of a config."""

  def __init__(self, settings: ConfigDict, sample: bool = False):
    self.settings, self.sample = settings, sample
    self.adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)

  def start(
    self,
    w: Latents,
    noise: Noise,
    mean: Float[Array, ' d'],
    sigma: Float[Array, ''],
    target: Any = (),
  ) -> Found:
    free = {'w': w, 'noise': noise}
    return Found(free, self.adam.init(free), mean, sigma, target)

  def rate(self, t: Scalar) -> Float[Array, '']:
    s = self.settings
    return rate(t, s.rate, s.rate_up, s.rate_down)

  def jitter(self, t: Scalar, sigma: Scalar) -> Float[Array, '']:
    return jitter(t, sigma, self.settings.jitter, self.settings.jitter_until)

  def losses(
    self,
    free: dict[str, PyTree],
    e: Latents,
    x: Images,
    render: Render,
    distance: Distance,
  ) -> tuple[Float[Array, ' b'], Terms]:
    """L of every image x in [-1, 1], and its terms."""
    y = reduce(render(free['w'] + e, free['noise']))
    terms = {
      'distance': distance(y),
      'noise': noise_penalty(free['noise']),
      'pixel': jnp.square(reduce(x) - y).mean(axis=(1, 2, 3)),
    }
    s = self.settings
    return (
      terms['distance'] + s.noise * terms['noise'] + s.pixel * terms['pixel'],
      terms,
    )

  def gradient(self, free: dict[str, PyTree], *inputs) -> tuple[PyTree, Terms]:
    """Of every image's own L; the terms have L as `loss`."""

    def total(free):
      loss, terms = self.losses(free, *inputs)
      return loss.sum(), {**terms, 'loss': loss}

    return jax.grad(total, has_aux=True)(free)

  def move(self, found: Found, gradient: PyTree, t: Scalar) -> Found:
    """One step of Adam; the maps are standardised after it."""
    if not self.settings.optimise_noise:
      gradient = {
        **gradient,
        'noise': jax.tree.map(jnp.zeros_like, gradient['noise']),
      }
    updates, moments = self.adam.update(gradient, found.moments)
    size = self.rate(t)
    free = jax.tree.map(lambda v, u: v - size * u, found.free, updates)
    free['noise'] = standardise(free['noise'], self.sample)
    return found.replace(free=free, moments=moments)


def _pyramid(v: Float[Array, 'b h w 1']):
  """A map and its halvings; one of 4 x 4 px is taken as it is."""
  yield v
  while v.shape[1] > COARSEST:
    v = resize.halve(v)
    yield v


def _correlation(v: Float[Array, 'b h w 1']) -> Float[Array, ' b']:
  """With its neighbours on two sides, around the edges."""
  products = (v * jnp.roll(v, 1, axis=axis) for axis in (1, 2))
  return sum(jnp.square(p.mean(axis=(1, 2, 3))) for p in products)
