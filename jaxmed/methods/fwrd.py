"""FW-RD: reverse distillation that a few tumour patches teach where to fail.

Focal-weighted reverse distillation for lymph node metastases; constants follow
the authors' code (github.com/wollf2008/FW-RD). Teacher, bottleneck and decoder
are those of reverse distillation (jaxmed/methods/rd.py), but the bottleneck's
first shortcut is a 3 x 3 convolution (`model.shortcut`; 1 is RD's, and the
paper's). With S = cos(f_k, g_k) of an image's stage k, of all its numbers in a
row, and healthy images (y = 1) and tumour (y = 0):

  p      = S if y = 1, else 1 - S, not below 1e-6
  a      = alpha if y = 1, else 1 - alpha
  loss   = sum_k mean_b -a (1 - p)^gamma log p
  map    = sum_k up(1 - cos(f_k, g_k)) by pixel, from 0 to 3, then a Gaussian
  score  = cosine_mean of the map, which slides go by, and cosine_max

Equation 2 of the paper lacks the minus and has S by pixel; the code has both
as here. The code does not bound p: a tumour image that the student answers
perfectly makes its loss NaN.

Each place of a batch shows one of the `few` instead of a normal image, with
their share of all images as in the code, or with `model.few_share`. Those that
a step does not show are drawn for nothing, which costs less than batches that
lie differently on the devices.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from jaxmed.errors import UserError
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
from jaxmed.nn.fit import fit, start
from jaxmed.nn.reverse import Reverse, Stages
from jaxmed.ops import cosine
from jaxmed.ops.maps import combined_map

LEAST = 1e-6  # Of p.
PerImage = Float[Array, 'b']


def similarities(teacher: Stages, student: Stages) -> list[PerImage]:
  """S of each stage."""
  return [cosine.of_images(f, g) for f, g in zip(teacher, student, strict=True)]


def focal(
  similarity: PerImage, normal: Bool[Array, ' b'], alpha: float, gamma: float
) -> PerImage:
  """One stage's term of the loss, of each image."""
  p = jnp.clip(jnp.where(normal, similarity, 1 - similarity), LEAST, 1)
  weight = jnp.where(normal, alpha, 1 - alpha)
  # The slope of a root is infinite at nothing.
  rest = jnp.maximum(1 - p, LEAST**2)
  return -weight * rest**gamma * jnp.log(p)


def mixed(
  normal: Batch, few: Batch, share: float, rng: RandomKey
) -> tuple[Batch, Bool[Array, ' b']]:
  """At each place one of the few, or a normal image; and which it is."""
  chosen = jax.random.bernoulli(rng, share, normal.row.shape)

  def pick(one, other):
    at = chosen.reshape(-1, *(1,) * (one.ndim - 1))
    return jnp.where(at, one, other)

  return jax.tree.map(pick, few, normal), ~chosen


def build(config: ConfigDict, info: Info) -> Method:
  model, train = config.model, config.train
  _check(model)
  pair = Reverse(model, train.precision, info.image)
  adam = optax.adam(train.rate, train.beta1, train.beta2)
  few, normals = (info.examples.get(name, 0) for name in ('few', 'normal'))
  share = model.few_share or few / max(few + normals, 1)

  def init(key: RandomKey, state: State) -> State:
    params, stats = pair.init(key)
    state = state.put(batch_stats={'student': stats})
    return start(state, 'student', adam, params)

  def step(state: State, batches: Batches, rng: RandomKey):
    batch, normal = mixed(batches['normal'], batches['few'], share, rng)
    teacher, stats = pair.look(state, batch.unit), state.batch_stats['student']

    def loss(params):
      student, after = pair.learn(params, stats, teacher, batch.valid)
      found = similarities(teacher, student)
      stages = [
        valid_mean(focal(s, normal, model.alpha, model.gamma), batch.valid)
        for s in found
      ]
      return sum(stages), (after, sum(found) / len(found))

    state, (after, similarity), scalars = fit(state, 'student', adam, loss)
    # Of none, 0.
    scalars |= {
      'student/similarity_normal': valid_mean(similarity, normal & batch.valid),
      'student/similarity_few': valid_mean(similarity, ~normal & batch.valid),
      'student/few': jnp.sum(~normal & batch.valid, dtype=jnp.float32),
    }
    return state.put(batch_stats={'student': after}), scalars

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    teacher = pair.look(state, batch.unit)
    student = pair.answer(state, teacher)
    away = [
      1 - cosine.of_pixels(f, g) for f, g in zip(teacher, student, strict=True)
    ]
    pixel = combined_map(away, info.image[:2], sigma=model.sigma)
    image = {
      'cosine_mean': pixel.mean(axis=(1, 2)),
      'cosine_max': pixel.max(axis=(1, 2)),
    }
    return Score(image, {'cosine': pixel})

  phase = Phase(
    'distil',
    init,
    step,
    cohorts=('normal', 'few'),
    steps=train.steps,
    seen=info.batch,
  )
  return Method((phase,), score, needs=('teacher',))


def _check(model: ConfigDict) -> None:
  for name, most in (('alpha', 1.0), ('few_share', 1.0), ('gamma', None)):
    value = model[name]
    if value < 0 or (most is not None and value > most):
      bounds = 'at least 0' if most is None else f'0 to {most:g}'
      raise UserError(f'config.model.{name} is {value}; it has to be {bounds}.')
