"""Reverse distillation: a student that answers a teacher from its summary.

Deng and Li, Anomaly Detection via Reverse Distillation from One-Class
Embedding, CVPR 2022; constants follow the authors' code (github.com/hq-deng/
RD4AD). The teacher is a trained trunk and stays as it is. Of its stages
f1, f2, f3 a one-class bottleneck makes one map, from which a decoder, the
teacher mirrored, gives them back; it has learned that on healthy images only.

  g      = decoder(bottleneck(f1, f2, f3)), with batch statistics in training
  loss   = sum_k mean_b (1 - cos(f_k, g_k))
           flatten: one cosine an image, of all numbers of the stage
           pixel: one a pixel, over channels, then their mean
  map    = sum_k up(1 - cos(f_k, g_k)) by pixel, up bilinear with corners on
           corners; or the product over k; then a Gaussian
  score  = cosine_max and cosine_mean of the map

The paper's loss is the one by pixel; the code's, and so the default here, is
`flatten` (`model.loss`), and those who tried the other found worse results.
"""

import jax
import optax
from ml_collections import ConfigDict

from jaxmed.errors import unknown
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
from jaxmed.ops.maps import MODES, combined_map

LOSSES = {'flatten': cosine.of_images, 'pixel': cosine.of_pixels}


def losses(
  kind: str, teacher: Stages, student: Stages, valid
) -> list[jax.Array]:
  """The loss of each stage."""
  return [
    valid_mean(1 - LOSSES[kind](f, g), valid)
    for f, g in zip(teacher, student, strict=True)
  ]


def distances(teacher: Stages, student: Stages) -> list[jax.Array]:
  """1 - cosine of each stage's pixels."""
  return [
    1 - cosine.of_pixels(f, g) for f, g in zip(teacher, student, strict=True)
  ]


def build(config: ConfigDict, info: Info) -> Method:
  model, train = config.model, config.train
  if model.loss not in LOSSES:
    raise unknown('loss (config.model.loss)', model.loss, LOSSES)
  if model.combine not in MODES:
    raise unknown('mode of maps (config.model.combine)', model.combine, MODES)
  pair = Reverse(model, train.precision, info.image)
  adam = optax.adam(train.rate, train.beta1, train.beta2)

  def init(key: RandomKey, state: State) -> State:
    params, stats = pair.init(key)
    state = state.put(batch_stats={'student': stats})
    return start(state, 'student', adam, params)

  def step(state: State, batches: Batches, rng: RandomKey):
    del rng
    batch = batches['normal']
    teacher, stats = pair.look(state, batch.unit), state.batch_stats['student']

    def loss(params):
      student, after = pair.learn(params, stats, teacher, batch.valid)
      stages = losses(model.loss, teacher, student, batch.valid)
      return sum(stages), (after, stages)

    state, (after, stages), scalars = fit(state, 'student', adam, loss)
    named = dict(zip(pair.like.stages, stages, strict=True))
    named = {f'student/{name}': value for name, value in named.items()}
    return state.put(batch_stats={'student': after}), {**scalars, **named}

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    teacher = pair.look(state, batch.unit)
    away = distances(teacher, pair.answer(state, teacher))
    pixel = combined_map(away, info.image[:2], model.combine, model.sigma)
    image = {
      'cosine_max': pixel.max(axis=(1, 2)),
      'cosine_mean': pixel.mean(axis=(1, 2)),
    }
    return Score(image, {'cosine': pixel})

  phase = Phase('distil', init, step, steps=train.steps)
  return Method((phase,), score, needs=('teacher',))
