"""PaDiM: a Gaussian of healthy features at every place of an image.

Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly
Detection and Localization, ICPR 2020 workshops; the authors published no
code, and constants follow the one that is widely used
(github.com/xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master).
Nothing is trained: one pass over the healthy images.

  x(i,j) = all layers' features at place (i,j) of the finest one's grid, the
           coarser repeated (nearest); of their channels some, drawn once
  m, S   = mean of x(i,j) over the N healthy images, and covariance
           sum (x - m)(x - m)^T / (N - 1) + epsilon I
  d      = sqrt((x - m)^T S^-1 (x - m)), the Mahalanobis distance
  map    = d at every place, bilinear to the image's size, then a Gaussian
  score  = max of the map

With S = L L^T, d = |L^-1 (x - m)|. No image is kept: the sums of products are
updated batch by batch around the running mean (Chan, Golub and LeVeque 1979),
for float32 loses most digits of a plain sum of products whose mean is large.
Sums and L^-1 are triangles of a matrix at each place, kept in half its memory
(ops/triangle.py), and all that is done to them is done in blocks of places.

The code then moves the maps of the whole test set to [0, 1] by one minimum
and one maximum. An image's score would so depend on the other images tested,
and no score here does; within one test set the order is the same. Images are
resized to 256 by Lanczos there, and bicubically by config.data.resize.
"""

import functools
import math
import random
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from jaxmed.errors import UserError, unknown
from jaxmed.method import (
  Batch,
  Batches,
  Info,
  Method,
  Phase,
  RandomKey,
  Score,
  State,
  valid_mean,
)
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.trunk import Trunk, deepest, trunk
from jaxmed.ops import resize, triangle
from jaxmed.ops.maps import anomaly_map

# Distances are differences of large numbers: no TF32, no bfloat16 passes.
_EXACT = jax.lax.Precision.HIGHEST
BLOCK = 64  # Places that are worked on at once, or somewhat more.
DEVICES = 8  # A block divides among these, and among any that a batch does.

Layers = list[Float[Array, 'b _h _w _c']]  # The finest first.
Places = Float[Array, 'blocks block b c']
Memory = Mapping[str, Array]


def draw(count: int, channels: int, seed: int = 1024) -> list[int]:
  """The channels that the code draws, in its order; all of them if count is 0.

  Python promises that a seed gives the same sample in every version.
  """
  if not count:
    return list(range(channels))
  return random.Random(seed).sample(range(channels), count)


def embed(layers: Layers, chosen: list[int]) -> Float[Array, 'b h w c']:
  """x at every place; channels are chosen before the layers are enlarged."""
  grid, chosen = layers[0].shape[1:3], np.array(chosen)
  parts, places, first = [], [], 0
  for layer in layers:
    here = np.flatnonzero(
      (chosen >= first) & (chosen - first < layer.shape[-1])
    )
    part = layer[..., chosen[here] - first]
    parts.append(resize.nearest(part, grid))
    places.append(here)
    first += layer.shape[-1]
  return jnp.concatenate(parts, axis=-1)[
    ..., np.argsort(np.concatenate(places))
  ]


def block_size(places: int, batch: int) -> int:
  """Places of a block: on as many devices as share the batch, whole numbers."""
  unit = math.lcm(batch, DEVICES)
  return unit * max(min(BLOCK, places) // unit, 1)


def in_blocks(x: Float[Array, 'b *places c'], block: int) -> Places:
  """Places in blocks, before images; the last block is filled with zeros."""
  x = x.reshape(len(x), -1, x.shape[-1])
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0)))
  return jnp.moveaxis(x.reshape(len(x), -1, block, x.shape[-1]), 0, 2)


def empty(places: int, channels: int, block: int) -> Memory:
  """The moments of no image."""
  lead = -(-places // block), block
  return {
    'images': jnp.int32(0),
    'mean': jnp.zeros((*lead, channels)),
    'scatter': jnp.zeros((*lead, *triangle.shape(channels))),
  }


def absorb(memory: Memory, x: Places, valid: Bool[Array, ' b']) -> Memory:
  """The moments with the valid images of a batch added."""
  before, some = memory['images'], valid.sum()
  after = before + some
  share = some / jnp.maximum(after, 1)
  counts = valid[None, :, None]

  def one(mean, scatter, x):
    centre = jnp.where(counts, x, 0).sum(axis=1) / jnp.maximum(some, 1)
    away = jnp.where(counts, x - centre[:, None], 0)
    moved = centre - mean
    # One row more, of the means' distance: what the sums lack.
    rest = jnp.sqrt(share * before) * moved[:, None]
    rows = jnp.concatenate([away, rest], axis=1)
    more = jnp.einsum('pbc,pbd->pcd', rows, rows, precision=_EXACT)
    return mean + share * moved, scatter + triangle.pack(more)

  def visit(number, moments):
    new = one(*(part[number] for part in moments), x[number])
    pairs = zip(moments, new, strict=True)
    return tuple(part.at[number].set(values) for part, values in pairs)

  moments = memory['mean'], memory['scatter']
  mean, scatter = jax.lax.fori_loop(0, len(x), visit, moments)
  return {'images': after, 'mean': mean, 'scatter': scatter}


def factorise(memory: Memory, places: int, epsilon: float) -> Memory:
  """The moments with L^-1 at each place, and at how many there is none.

  There is none where a pivot is as small as float32's rounding of the largest
  variance, or where a number is not finite.
  """
  blocks, block, channels = memory['mean'].shape
  # Places that only fill the last block have no covariance.
  real = (jnp.arange(blocks * block) < places).reshape(blocks, block)
  rounding = math.sqrt(channels) * jnp.finfo(jnp.float32).eps

  def one(scatter, real):
    lower = triangle.unpack(scatter, channels) / (memory['images'] - 1)
    lower += (
      jnp.where(real, epsilon, 1.0)[:, None, None] * jnp.eye(channels)[None]
    )
    variance = jnp.diagonal(lower, axis1=1, axis2=2).max(axis=1)
    inverse = triangle.inverse_root(lower)
    pivot = 1 / jnp.square(jnp.diagonal(inverse, axis1=1, axis2=2)).max(axis=1)
    sound = pivot > rounding * variance  # Not so of a NaN.
    return triangle.pack(inverse), (real & ~sound).sum()

  def visit(number, carry):
    factor, failed = carry
    inverse, more = one(factor[number], real[number])
    return factor.at[number].set(inverse), failed + more

  start = memory['scatter'], jnp.int32(0)
  factor, failed = jax.lax.fori_loop(0, blocks, visit, start)
  return {'mean': memory['mean'], 'factor': factor, 'failed': failed}


def distances(memory: Memory, x: Places) -> Float[Array, 'b places']:
  """d, of the places that only fill the last block too."""

  def one(block):
    mean, factor, x = block
    z = triangle.times(factor, x - mean[:, None])
    return jnp.sqrt(jnp.square(z).sum(axis=-1))

  away = jax.lax.map(one, (memory['mean'], memory['factor'], x))
  return jnp.moveaxis(away, 2, 0).reshape(x.shape[2], -1)


def build(config: ConfigDict, info: Info) -> Method:
  model = config.model
  network = trunk(
    model.trunk,
    dtype_of(config.train.precision),
    last=deepest(model.trunk, model.layers),
  )
  height, width, available = _check(model, network, info)
  chosen = draw(model.channels, available, model.channel_seed)
  places = height * width
  block = block_size(places, info.batch)

  def features(state: State, batch: Batch):
    stages = network.apply(state.frozen['trunk'], batch.unit)
    return embed([stages[name] for name in model.layers], chosen)

  def init(rng: RandomKey, state: State):
    del rng
    return state.put(memory=empty(places, len(chosen), block))

  def step(state: State, batches: Batches, rng: RandomKey):
    del rng
    batch = batches['normal']
    x = features(state, batch)
    memory = absorb(state.memory, in_blocks(x, block), batch.valid)
    norm = jnp.sqrt(jnp.square(x).sum(axis=-1))
    scalars = {
      'images': memory['images'].astype(jnp.float32),
      'feature_norm': valid_mean(norm, batch.valid),
    }
    return state.put(memory=memory), scalars

  def finish(rng: RandomKey, state: State):
    del rng
    return state.replace(memory=factorise(state.memory, places, model.epsilon))

  def check(state: State):
    if failed := int(state.memory['failed']):
      raise UserError(
        f'The covariance of features is not positive definite at {failed} of'
        f' {places} places with epsilon {model.epsilon:g}; give a larger'
        f' --config.model.epsilon, or fewer --config.model.channels than'
        f' {len(chosen)}, and --fresh.'
      )

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    x = in_blocks(features(state, batch), block)
    away = distances(state.memory, x)[:, :places]
    away = away.reshape(-1, height, width)
    pixel = anomaly_map(away, info.image[:2], model.sigma)
    return Score(
      {'mahalanobis': pixel.max(axis=(1, 2))}, {'mahalanobis': pixel}
    )

  phase = Phase('moments', init, step, finish=finish, check=check)
  return Method(
    (phase,),
    score,
    needs=('trunk',),
    sharding=(('memory/(mean|scatter|factor)', PartitionSpec(None, 'data')),),
  )


def _check(
  model: ConfigDict, network: Trunk, info: Info
) -> tuple[int, int, int]:
  """What is configured can be done; gives the grid and all channels."""
  for name in model.layers:
    if name not in network.stages:
      raise unknown(f'stage of {model.trunk}', name, network.stages)
  run = functools.partial(network.init_with_output, jax.random.key(0))
  stages, _ = jax.eval_shape(run, jnp.zeros((1, *info.image)))
  layers = [stages[name].shape for name in model.layers]
  available = sum(shape[-1] for shape in layers)
  if not 0 <= model.channels <= available:
    raise UserError(
      f'{model.channels} channels are asked for of the {available} of'
      f' {", ".join(model.layers)}; set --config.model.channels between 1 and'
      f' {available}, or 0 for all.'
    )
  images = info.examples.get('normal', 0)
  count = model.channels or available
  if images == 1:
    raise UserError(
      'There is one normal image, and a covariance needs two or more; choose'
      ' more with --config.data.cohorts.normal.'
    )
  if model.epsilon < 0 or (model.epsilon == 0 and 0 < images <= count):
    raise UserError(
      f'With epsilon {model.epsilon:g} the covariance of {count} channels over'
      f' {images} images is not positive definite; set --config.model.epsilon'
      ' above 0 (0.01).'
    )
  return *layers[0][1:3], available
