"""HealthyGAN: the healthy image that an image would be, and where they differ.

Rahman Siddiquee, Shah, Wu, Chong, Schwedt, Dumkrieger, Nikolova, Li:
HealthyGAN: Learning from Unannotated Medical Images to Detect Anomalies
Associated with Human Disease, SASHIMI 2022. The networks and every constant
follow the authors' code (github.com/mahfuzmohammad/HealthyGAN).

Cohort `mixed` (A) has images that nobody has labelled, sick and healthy ones;
all images of `healthy` (B) are known to be healthy. One generator G makes of
an image x another one, g = tanh, and a mask m = (tanh + 1) / 2, which is 1
where g is to be seen:

  x^ = m g + (1 - m) x, the healthy image     x' = m x + (1 - m) g

Several steps of D, each on a batch of its own, then one of G on the last:

  L_D = mean D(x^_A) - mean D(x_B) + 10 mean (|grad D(x~)| - 1)^2      (1)
  x~  = alpha x_B + (1 - alpha) x^_A, alpha ~ U(0, 1), one of each image
  L_G = - mean D(x^_A) - mean D(x^_B)                                  (2)
        + mean |x_B - g_B| + mean |x_A - x'_A|
        + 0.1 (F(m_A) + F(m_B)) / 2
  F(m) = (mean m)^2 + mean 1 / (|m - 0.5| + 0.01) - 1 / 0.51           (3)

D's value is the mean over its patches, and the gradient that of their sum.
The mean m is over the batch. The score of x is mean |x - x^| / 2, in [0, 1];
norms look at each image by itself, also then.

The rate falls by rate / 100,000 every 1,000 batches of the last 100,000, which
is a thousandth of it in all: surely meant was a fall to nothing, which
`train.decay` offers.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from jaxmed.errors import UserError, unknown
from jaxmed.method import (
  Batch,
  Batches,
  Images,
  Info,
  Method,
  Phase,
  PyTree,
  RandomKey,
  Scalars,
  Score,
  State,
  to_unit,
  turns,
  valid_mean,
)
from jaxmed.nn.fit import fit, start
from jaxmed.nn.healthygan import HALVINGS, Discriminator, Generator, Raw
from jaxmed.nn.pairs import pair, unpair
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.reconstruction import Comparison
from jaxmed.weights.names import TORCH, Table

COHORTS = ('mixed', 'healthy')
OWN = ('mask',)  # A score and a map of this method: the mean mask, the mask.
DECAYS = ('as_code', 'linear_to_zero')
STATISTICS = ('image', 'running')
SMALL = ('square', 'absolute')
CENTRE, EDGE = 0.5, 0.01  # Of equation 3.
Masks = Float[Array, 'b h w 1']
Valid = Bool[Array, 'b']

TABLE = Table(
  TORCH,
  (
    ('G.main.{i}.main.{j}.{leaf}', 'generator/main_{i}/main_{j}/{leaf}'),
    ('G.main.{i}.{leaf}', 'generator/main_{i}/{leaf}'),
    ('D.main.{i}.{leaf}', 'discriminator/main_{i}/{leaf}'),
    ('D.conv1.{leaf}', 'discriminator/conv1/{leaf}'),
  ),
)


class View(NamedTuple):
  """An image as the generator sees it, all in [-1, 1] but the mask."""

  image: Images  # g
  mask: Masks  # m
  healthy: Images  # x^
  swapped: Images  # x'

  @classmethod
  def of(cls, x: Images, raw: Raw) -> 'View':
    image, mask = jnp.tanh(raw.image), (jnp.tanh(raw.mask) + 1) / 2
    healthy = image * mask + x * (1 - mask)
    return cls(image, mask, healthy, x * mask + image * (1 - mask))


class HealthyGan:
  """Both networks, their losses and their steps.

  Steps take the alpha they use, so that they are functions of it. Images are
  in [-1, 1].
  """

  def __init__(self, model: ConfigDict, train: ConfigDict, channels: int):
    dtype = dtype_of(train.precision)
    self.generator = Generator(
      model.generator_dim, model.residual_blocks, channels, dtype
    )
    self.discriminator = Discriminator(
      model.discriminator_dim, model.discriminator_layers, dtype
    )
    self.dtype, self.weights, self.small = dtype, train.weights, train.small
    self.running = model.statistics == 'running'
    self.adam = {
      part: make_optimiser(train, part)
      for part in ('generator', 'discriminator')
    }

  def init(self, key: RandomKey, state: State, shape) -> State:
    keys, image = jax.random.split(key), jnp.zeros((1, *shape))
    made = self.generator.init(keys[0], image)
    judge = self.discriminator.init(keys[1], image)
    state = self.begin(state, 'generator', made['params'])
    state = state.put(batch_stats={'generator': made['batch_stats']})
    return self.begin(state, 'discriminator', judge['params'])

  def begin(self, state: State, part: str, params: PyTree) -> State:
    """Adds a part's parameters and its optimiser's fresh slots."""
    return start(state, part, self.adam[part], params)

  def learn(
    self, params: PyTree, stats: PyTree, x: Images, valid: Bool[Array, '  n *k']
  ) -> tuple[Raw, PyTree]:
    """G(x), and its running statistics after it."""
    raw, after = self.generator.apply(
      {'params': params, 'batch_stats': stats},
      x,
      valid,
      mutable=['batch_stats'],
    )
    return raw, after['batch_stats']

  def raw(self, state: State, x: Images, running: bool = False) -> Raw:
    """G(x) with each image's own statistics, or the running ones."""
    variables = state.variables('generator')
    return self.generator.apply(variables, x, running=running)

  def view(self, state: State, x: Images) -> View:
    """As scored: with the statistics that `model.statistics` says."""
    return View.of(x, self.raw(state, x, self.running))

  def judge(self, params: PyTree, x: Images) -> Float[Array, 'b i j 1']:
    return self.discriminator.apply({'params': params}, x)[1]

  def slopes(self, params: PyTree, real, fake, alpha) -> Float[Array, ' b']:
    """|grad D(x~)| over all pixels of each image."""
    alpha = alpha[:, None, None, None]
    between = alpha * real + (1 - alpha) * fake
    gradient = jax.grad(lambda x: self.judge(params, x).sum())(between)
    return jnp.sqrt(jnp.square(gradient).sum(axis=(1, 2, 3)))

  def discriminator_loss(
    self, params: PyTree, fake: Images, real: Images, alpha, valid: Mapping
  ) -> tuple[Float[Array, ''], Scalars]:
    """Equation 1."""
    judged = unpair(self.judge(params, pair(fake, real)))
    on_fake = valid_mean(judged[0], valid['mixed'])
    on_real = -valid_mean(judged[1], valid['healthy'])
    slopes = self.slopes(params, real, fake, alpha)
    both = valid['healthy'] & valid['mixed']
    penalty = valid_mean(jnp.square(slopes - 1), both)
    scalars = {
      'discriminator/real': on_real,
      'discriminator/fake': on_fake,
      'discriminator/penalty': penalty,
    }
    return on_real + on_fake + self.weights.penalty * penalty, scalars

  def generator_loss(
    self, params: PyTree, judge: PyTree, stats: PyTree, x: Mapping, valid
  ):
    """Equation 2; G's running statistics after it, and its terms."""
    both = jnp.stack([valid[name] for name in COHORTS], axis=1)
    raw, stats = self.learn(params, stats, pair(*map(x.get, COHORTS)), both)
    halves = zip(*map(unpair, raw), strict=True)
    raws = {k: Raw(*half) for k, half in zip(COHORTS, halves, strict=True)}
    views = {name: View.of(x[name], raws[name]) for name in COHORTS}
    healthy = pair(*(views[name].healthy for name in COHORTS))
    judged = dict(zip(COHORTS, unpair(self.judge(judge, healthy)), strict=True))
    fools = {k: -valid_mean(judged[k], valid[k]) for k in COHORTS}
    masks = {
      name: self.mask_terms(view.mask, valid[name])
      for name, view in views.items()
    }
    distance = lambda name, other: valid_mean(
      jnp.abs(x[name] - other), valid[name]
    )
    terms = {
      'generator/fool': fools['mixed'],
      'generator/fool_healthy': fools['healthy'],
      'generator/reconstruction': distance('mixed', views['mixed'].swapped),
      'generator/identity': distance('healthy', views['healthy'].image),
      'generator/mask': sum(
        0.5 * self.weights[term] * value
        for found in masks.values()
        for term, value in found.items()
      ),
    }
    total = fools['mixed'] + fools['healthy']
    for term in ('reconstruction', 'identity', 'mask'):
      total += self.weights[term] * terms[f'generator/{term}']
    for name in COHORTS:
      seen = masks[name] | _range(raws[name].mask, valid[name])
      terms |= {f'mask/{name}_{term}': value for term, value in seen.items()}
    return total, (stats, terms)

  def mask_terms(self, mask: Masks, valid: Valid) -> Scalars:
    """The terms of F, unweighted: that a mask is small, is 0 or 1, is smooth.

    The authors' code has the last one and `absolute`, and uses neither.
    """
    mean = valid_mean(mask, valid)
    from_centre = 1 / (jnp.abs(mask - CENTRE) + EDGE)
    terms = {
      'small': jnp.square(mean) if self.small == 'square' else mean,
      'binary': valid_mean(from_centre, valid) - 1 / (CENTRE + EDGE),
    }
    if self.weights.variation:
      steps = sum(
        jnp.abs(jnp.diff(mask, axis=axis)).sum((1, 2, 3)) for axis in (1, 2)
      )
      terms['variation'] = valid_mean(steps / mask[0].size, valid)
    return terms

  def discriminator_step(
    self, state: State, x: Mapping, alpha: Float[Array, ' b'], valid: Mapping
  ) -> tuple[State, Scalars]:
    raw, stats = self.learn(
      state.params['generator'],
      state.batch_stats['generator'],
      x['mixed'],
      valid['mixed'],
    )
    fake = View.of(x['mixed'], raw).healthy
    loss = lambda params: self.discriminator_loss(
      params, fake, x['healthy'], alpha, valid
    )
    part = 'discriminator'
    state, terms, scalars = fit(state, part, self.adam[part], loss)
    state = state.put(batch_stats={'generator': stats})
    return state, {**scalars, **terms}

  def generator_step(
    self, state: State, x: Mapping, valid: Mapping
  ) -> tuple[State, Scalars]:
    stats = state.batch_stats['generator']
    judge = state.params['discriminator']
    loss = lambda params: self.generator_loss(params, judge, stats, x, valid)
    part = 'generator'
    state, (stats, terms), scalars = fit(state, part, self.adam[part], loss)
    state = state.put(batch_stats={'generator': stats})
    return state, {**scalars, **terms}


def build(config: ConfigDict, info: Info) -> Method:
  """Cohorts `mixed` and `healthy`; one phase, D several times, then G."""
  _check(config, info)
  gan = HealthyGan(config.model, config.train, info.image[2])
  critics = config.train.critics
  comparison = Comparison(config, info, gan.dtype, OWN, OWN)

  def init(key: RandomKey, state: State) -> State:
    return gan.init(key, state, info.image)

  def step(state: State, batches: Batches, rng: RandomKey):
    # Written out: a loop would be slow on CPU.
    for turn, one in enumerate(turns(batches, critics)):
      x = {name: one[name].signed for name in COHORTS}
      valid = {name: one[name].valid for name in COHORTS}
      key = jax.random.fold_in(rng, turn)
      alpha = jax.random.uniform(key, (info.batch,))
      state, scalars = gan.discriminator_step(state, x, alpha, valid)
    state, more = gan.generator_step(state, x, valid)
    return state, {**scalars, **more}

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    view = gan.view(state, batch.signed)
    healthy, mask = to_unit(view.healthy), view.mask
    scores, maps = comparison(state.frozen, batch.unit, healthy)
    scores['mask'], maps['mask'] = mask.mean(axis=(1, 2, 3)), mask[..., 0]
    return Score(
      {name: scores[name] for name in config.score.names},
      {name: maps[name] for name in config.score.maps},
      {
        'reconstruction': healthy,
        'generated': to_unit(view.image),
        'changed': mask,
      },
    )

  phase = Phase(
    'healthygan',
    init,
    step,
    COHORTS,
    steps=config.train.steps,
    batches=critics,
  )
  return Method((phase,), score, needs=comparison.needs, table=TABLE)


def make_optimiser(train: ConfigDict, part: str):
  """Adam. All arrays move as one vector, which is less to compile, unless they
  lie spread over the devices.
  """
  schedule = make_schedule(train, part)
  adam = optax.adam(schedule, b1=train.beta1, b2=train.beta2)
  return adam if train.fsdp else optax.flatten(adam)


def make_schedule(train: ConfigDict, part: str) -> optax.Schedule:
  """The rate of a part's update number `count`.

  It falls with the discriminator's updates, of which there are `critics` to
  each of the generator's.
  """
  total = round(train.steps * train.critics)
  begins, every = max(total - train.decay_last, 0), train.decay_every

  def schedule(count):
    number = count
    if part == 'generator':
      number = train.critics * (count + 1) - 1
    if train.decay == 'as_code':
      falls = jnp.maximum(number // every - begins // every, 0)
      return train.rate * (1 - falls / train.decay_last)
    left = jnp.clip((total - number) / train.decay_last, 0, 1)
    return train.rate * left

  return schedule


def _range(raw: Masks, valid: Valid) -> Scalars:
  """The least and the most of masks before their tanh."""
  seen = valid[:, None, None, None]
  return {
    'least': jnp.where(seen, raw, jnp.inf).min(),
    'most': jnp.where(seen, raw, -jnp.inf).max(),
  }


def _check(config: ConfigDict, info: Info) -> None:
  """What must hold of sizes, switches and cohorts, before tracing fails."""
  model, train = config.model, config.train
  for field, value, known in (
    ('train.decay', train.decay, DECAYS),
    ('train.small', train.small, SMALL),
    ('model.statistics', model.statistics, STATISTICS),
  ):
    if value not in known:
      raise unknown(f'{field} of healthygan', value, known)
  for field in ('critics', 'decay_last', 'decay_every'):
    if train[field] < 1:
      raise UserError(
        f'healthygan: train.{field} is {train[field]}; it has to be 1 at least.'
      )
  unit, least = 2**HALVINGS, 2 ** max(model.discriminator_layers, HALVINGS + 1)
  height, width = info.image[:2]
  if height % unit or width % unit or min(height, width) < least:
    raise UserError(
      f'healthygan: images of {height} x {width} px do not fit: sides are'
      f' multiples of {unit}, and {least} at least for'
      f' {model.discriminator_layers} layers of the discriminator; set'
      ' data.size, or model.discriminator_layers lower.'
    )
  _check_cohorts(info)


def _check_cohorts(info: Info) -> None:
  """Labels are not trained with, but where they are known they must fit."""
  normal, sick = info.labels.get('mixed', (0, 0))
  if not sick and normal and normal == info.examples['mixed']:
    raise UserError(
      f'healthygan: all {normal} images of the cohort mixed are labelled'
      ' normal, so there is nothing to learn from; put unlabelled or sick ones'
      ' into training (data.options.train_sick, or train_lesion of the'
      ' phantom) or change --config.data.cohorts.mixed.'
    )
  _, sick = info.labels.get('healthy', (0, 0))
  if sick:
    raise UserError(
      f'healthygan: {sick} images of the cohort healthy are labelled anomalous;'
      " add 'label == 0' to --config.data.cohorts.healthy."
    )
