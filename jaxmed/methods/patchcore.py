"""PatchCore: a core of all patches of healthy images, and how far one is.

Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022;
constants follow the authors' code (github.com/amazon-science/
patchcore-inspection). Nothing is trained: one pass over the healthy images.

  p(x)   = at every place of the first layer's grid, the 3 x 3 neighbourhoods
           of every layer's features, each averaged to `pretrain_dim` numbers,
           then all together to `target_dim`
  bank   = p of all healthy images at all places
  core   = a greedy k-centre of the bank, chosen in a random projection
  score  = max over places of d(p, core), the mean distance to the nearest
           `neighbours` rows
  map    = d at every place, bilinear to the image's size, then a Gaussian

The code's d is the SQUARED distance (its index takes no root); the paper's is
the distance (`model.squared`). The paper also weighs the image's score,

  (1 - exp |p - m| / sum_{n in N(m)} exp |p - n|) d(p),

with m the row nearest to the worst patch p and N(m) its `reweight` nearest
rows in the core; the code leaves it out, and so do we unless asked.

With `model.unit_length` the features of each layer are made of length one at
every place first, for trunks without norms.
"""

import functools
import math

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
from jaxmed.nn.norms import unit_length
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.trunk import Trunk, deepest, trunk
from jaxmed.ops import nearest, resize
from jaxmed.ops.maps import anomaly_map

SAMPLERS = ('approximate', 'greedy')
Layers = list[Float[Array, 'b _h _w _c']]  # The finest first.


def patchify(
  x: Float[Array, 'b h w c'], size: int = 3, stride: int = 1
) -> Float[Array, 'b y x c k k']:
  """The neighbourhood of every place; beyond the border lie zeros.

  As in the original, an even `size` leaves one place less each way.
  """
  border = ((size - 1) // 2,) * 2
  padded = jnp.pad(x, ((0, 0), border, border, (0, 0)))
  height, width = ((n - size) // stride * stride + 1 for n in padded.shape[1:3])
  cells = [
    padded[:, i : i + height : stride, j : j + width : stride]
    for i in range(size)
    for j in range(size)
  ]
  patches = jnp.stack(cells, axis=-1)
  return patches.reshape(*patches.shape[:-1], size, size)


def adaptive_average(
  x: Float[Array, '*b n'], width: int
) -> Float[Array, '*b m']:
  """Means of the bins [floor(i n / m), ceil((i + 1) n / m)).

  The bins repeat after n / gcd(n, m) numbers, so one small matrix does.
  """
  common = math.gcd(x.shape[-1], width)
  n, m = x.shape[-1] // common, width // common
  matrix = np.zeros((n, m), np.float32)
  for i in range(m):
    first, last = i * n // m, -(-(i + 1) * n // m)
    matrix[first:last, i] = 1 / (last - first)
  groups = x.reshape(*x.shape[:-1], common, n)
  means = jnp.einsum(
    '...gn,nm->...gm', groups, matrix, precision=jax.lax.Precision.HIGHEST
  )
  return means.reshape(*x.shape[:-1], width)


def preprocess(
  layers: Layers, size: int, width: int
) -> Float[Array, 'b h w layers width']:
  """Every layer's patches, averaged, on the grid of the first layer's.

  The original moves every number of a patch to the grid and averages then.
  Both are linear, one over places and one over numbers, so they may be
  exchanged, and little is left to move.
  """

  def one(x):
    patches = patchify(x, size)
    return adaptive_average(patches.reshape(*patches.shape[:3], -1), width)

  means = [one(x) for x in layers]
  grid = means[0].shape[1:3]
  same = lambda x: x if x.shape[1:3] == grid else resize.bilinear(x, grid)
  return jnp.stack([same(x) for x in means], axis=3)


def embed(
  layers: Layers, size: int, width: int, target: int
) -> Float[Array, 'b h w target']:
  """p(x)."""
  together = preprocess(layers, size, width)
  return adaptive_average(together.reshape(*together.shape[:3], -1), target)


def select(
  bank: Float[Array, '*n c'],
  full: Bool[Array, '*n'],
  rows: int,
  count: int,
  model: ConfigDict,
  key: RandomKey,
) -> Float[Array, 'k c']:
  """The core of a bank, `rows` of which are full."""
  keys = jax.random.split(key)
  points, starts = bank, None
  if model.projection and model.projection != bank.shape[-1]:
    matrix = nearest.projection(keys[0], bank.shape[-1], model.projection)
    points = nearest.project(bank, matrix)
  if model.sampler == 'approximate':
    starts = nearest.draw(keys[1], full, min(model.starts, rows))
  return nearest.rows(bank, nearest.coreset(points, full, count, starts))


def reweighted(
  patches: Float[Array, 'b n c'],
  scores: Float[Array, 'b n'],
  which: Float[Array, 'b n'],
  core: Float[Array, 'k c'],
  neighbours: int,
) -> Float[Array, ' b']:
  """The paper's score of an image; `which` row is nearest to each patch."""
  worst = scores.argmax(axis=1)
  pick = jax.vmap(lambda x, i: x[i])
  patch, row = pick(patches, worst), pick(which, worst)
  _, around = nearest.nearest(core[row], core, neighbours)
  away = lambda rows: jnp.sqrt(
    jnp.square(patch[:, None] - core[rows]).sum(axis=-1)
  )
  share = jnp.exp(
    away(row[:, None])[:, 0] - jax.nn.logsumexp(away(around), axis=1)
  )
  return (1 - share) * scores.max(axis=1)


def build(config: ConfigDict, info: Info) -> Method:
  model = config.model
  network = trunk(
    model.trunk,
    dtype_of(config.train.precision),
    last=deepest(model.trunk, model.layers),
  )
  height, width = _check(model, network, info)
  images = info.examples.get('normal', 0)
  count = _count(model, images, height * width) if images else 0
  _refuse_large(model, images, height * width)

  def features(state: State, batch: Batch):
    stages = network.apply(state.frozen['trunk'], batch.unit)
    layers = [stages[name] for name in model.layers]
    if model.unit_length:
      layers = [unit_length(layer) for layer in layers]
    sizes = model.patch, model.pretrain_dim, model.target_dim
    return embed(layers, *sizes)

  def init(rng: RandomKey, state: State):
    del rng
    shape = info.batches('normal'), info.batch
    bank = jnp.zeros((*shape, height * width, model.target_dim))
    memory = {
      'bank': bank,
      'full': jnp.zeros(shape, bool),
      'next': jnp.int32(0),
    }
    return state.put(memory=memory)

  def step(state: State, batches: Batches, rng: RandomKey):
    del rng
    batch, memory = batches['normal'], state.memory
    here, patches = memory['next'], features(state, batch)
    patches = patches.reshape(info.batch, height * width, -1)
    full = memory['full'].at[here].set(batch.valid)
    bank = memory['bank'].at[here].set(patches)
    norm = jnp.sqrt(jnp.square(patches).sum(axis=-1))
    scalars = {
      'images': full.sum(dtype=jnp.float32),
      'patch_norm': valid_mean(norm, batch.valid),
    }
    memory = {'bank': bank, 'full': full, 'next': here + 1}
    return state.put(memory=memory), scalars

  def finish(rng: RandomKey, state: State):
    bank, full = state.memory['bank'], state.memory['full']
    full = jnp.broadcast_to(full[..., None], bank.shape[:-1])
    core = select(bank, full, images * height * width, count, model, rng)
    return state.replace(memory={'core': core})

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    patches, core = features(state, batch), state.memory['core']
    away, which = nearest.nearest(
      patches,
      core,
      model.neighbours,
      root=not model.squared,
      chunk=model.chunk,
    )
    away = away.mean(axis=-1)
    flat = lambda x: x.reshape(len(x), height * width, *x.shape[3:])
    image = {'nearest': away.max(axis=(1, 2))}
    if model.reweight:
      args = flat(patches), flat(away), flat(which)[..., 0]
      image['reweighted'] = reweighted(*args, core, model.reweight)
    pixel = anomaly_map(away, info.image[:2], model.sigma)
    return Score(image, {'nearest': pixel})

  phase = Phase('bank', init, step, finish=finish)
  return Method(
    (phase,),
    score,
    needs=('trunk',),
    sharding=(('memory/(bank|full)', PartitionSpec(None, 'data')),),
  )


def _check(model: ConfigDict, network: Trunk, info: Info) -> tuple[int, int]:
  """What is configured can be done; gives the grid's height and width."""
  if model.sampler not in SAMPLERS:
    raise unknown('model.sampler', model.sampler, SAMPLERS)
  for name in model.layers:
    if name not in network.stages:
      raise unknown(f'stage of {model.trunk}', name, network.stages)
  run = functools.partial(network.init_with_output, jax.random.key(0))
  stages, _ = jax.eval_shape(run, jnp.zeros((1, *info.image)))
  patches = lambda x: patchify(x, model.patch)
  grids = [
    jax.eval_shape(patches, stages[name]).shape[1:3]
    for name in model.layers
    if model.patch > 0
  ]
  if not grids or min(min(grid) for grid in grids) < 1:
    raise UserError(
      f'Patches of {model.patch} do not fit into all maps of the layers; set'
      ' --config.model.patch to a small odd number, such as 3.'
    )
  return grids[0]


def _count(model: ConfigDict, images: int, places: int) -> int:
  """How many rows the core gets."""
  rows = images * places
  count = model.coreset_size or int(rows * model.coreset_share)
  if not 1 <= count <= rows:
    raise UserError(
      f'A coreset of {count} is asked for of a bank of {rows} patches'
      f' ({images} images of {places}); set --config.model.coreset_size'
      f' between 1 and {rows}, or 0 and --config.model.coreset_share.'
    )
  for name in ('neighbours', 'reweight'):
    if model[name] > count:
      raise UserError(
        f'{model[name]} nearest rows of a coreset of {count} are asked for;'
        f' set --config.model.{name} to {count} or less.'
      )
  return count


def _refuse_large(model: ConfigDict, images: int, places: int) -> None:
  """A bank that no memory holds would be told of only once it is asked for."""
  size = 4e-9 * images * places * model.target_dim
  if size > (most := model.get('bank_gb', math.inf)):
    raise UserError(
      f'The bank of {images} images would take {size:.2g} GB, and'
      f' --config.model.bank_gb allows {most:g}; choose fewer images with'
      ' --config.data.cohorts.normal, a smaller --config.model.target_dim, or'
      ' allow more.'
    )
