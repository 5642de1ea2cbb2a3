"""ALOCC: a refiner of images, and a discriminator that it refines them for.

Sabokrou, Khalooei, Fathy, Adeli, Adversarially Learned One-Class Classifier
for Novelty Detection, CVPR 2018. Networks and constants follow the authors'
code (github.com/khalooei/ALOCC-CVPR2018), which is for gray images; here also
RGB, of any size from 16 px on.

With images x in [-1, 1], noisy ones z = x + sigma N(0, 1) (kept within the
range), a refiner R, and a discriminator D:

  L_D = BCE(D(x), 1) + BCE(D(R(z)), 0)
  L_R = BCE(D(R(z)), 1) + weight * refinement
  refinement = mean (R(z) - x)^2                `paper`, weight 0.4
             = mean BCE(R(z) as a logit, z)     `code`, weight 0.2
score
  refined(x) = 1 - D(R(x)), the published one
  direct(x)  = 1 - D(x), which the paper compares it with
  and those of jaxmed.nn.reconstruction

A step is one of D and two of R. The released loss takes the output of the
tanh for a logit and the noisy image for its label; its authors say that the
release is not the final version. They normalise with the statistics of each
batch in tests, too; ours are the running ones, so that a score depends on no
neighbour.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
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
  valid_mean,
)
from jaxmed.nn import optimisers
from jaxmed.nn.alocc import Discriminator, Refiner
from jaxmed.nn.fit import fit, start
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.reconstruction import Comparison
from jaxmed.weights.names import TF, Table

OWN = ('refined', 'direct')  # Scores of this method.
LEAST = 16  # Side of an image that can be halved four times, px.


def _squared(refined: Images, clean: Images, noisy: Images):
  del noisy
  return jnp.square(refined - clean)


def _released(refined: Images, clean: Images, noisy: Images):
  """The cross-entropy of a logit and a label, that may be below zero."""
  del clean
  return jax.nn.softplus(refined) - refined * noisy


REFINEMENTS = {'paper': _squared, 'code': _released}

_LAYER = '{layer:g_(encoder|decoder)_h\\d+(_conv)?}'
TABLE = Table(
  TF,
  (
    (f'generator/{_LAYER}/w', 'generator/{layer}/kernel'),
    (f'generator/{_LAYER}/biases', 'generator/{layer}/bias'),
    ('generator/{norm:g_bn\\d}/{leaf}', 'generator/{norm}/{leaf}'),
    ('discriminator/d_h3_lin/Matrix', 'discriminator/d_h3_lin/kernel'),
    ('discriminator/d_h3_lin/bias', 'discriminator/d_h3_lin/bias'),
    ('discriminator/{layer:d_h\\d_conv}/w', 'discriminator/{layer}/kernel'),
    ('discriminator/{layer:d_h\\d_conv}/biases', 'discriminator/{layer}/bias'),
    ('discriminator/{norm:d_bn\\d}/{leaf}', 'discriminator/{norm}/{leaf}'),
  ),
  ignore=(r'.*/RMSProp(_\d)?',),
)


class Alocc:
  """Both networks, their losses and their steps; R is called generator."""

  def __init__(
    self, model: ConfigDict, train: ConfigDict, image: tuple[int, int, int]
  ):
    height, width, _ = image
    if min(height, width) < LEAST:
      raise UserError(
        f'ALOCC halves images four times, which {height} x {width} px are '
        f'too small for; set --config.data.size to {LEAST} at least.'
      )
    if model.refinement not in REFINEMENTS:
      raise unknown('model.refinement', model.refinement, REFINEMENTS)
    self.dtype = dtype_of(train.precision)
    self.image, self.weight = image, model.weight
    self.refinement = REFINEMENTS[model.refinement]
    self.networks = {
      'generator': Refiner(model.width, model.decoder, self.dtype),
      'discriminator': Discriminator(model.width, self.dtype),
    }
    self.rmsprop = optimisers.rmsprop(train.rate)

  def init(self, key: RandomKey, state: State) -> State:
    image = jnp.zeros((1, *self.image))
    for part, network in self.networks.items():
      key, once = jax.random.split(key)
      made = network.init(once, image)
      state = start(state, part, self.rmsprop, made['params'])
      state = state.put(batch_stats={part: made['batch_stats']})
    return state

  def trained(self, part: str, params: PyTree, stats: PyTree, x: Images, valid):
    """A network with the statistics of its batch, and the running ones."""
    found, after = self.networks[part].apply(
      {'params': params, 'batch_stats': stats},
      x,
      train=True,
      valid=valid,
      mutable=['batch_stats'],
    )
    return found, after['batch_stats']

  def in_use(self, state: State, part: str, x: Images):
    """A network with its running statistics."""
    return self.networks[part].apply(state.variables(part), x)

  def discriminator_losses(
    self, real: Float[Array, ' b'], fake: Float[Array, ' b'], valid
  ) -> dict[str, Float[Array, '']]:
    """The terms of L_D, of logits."""
    return {
      'real': valid_mean(jax.nn.softplus(-real), valid),
      'fake': valid_mean(jax.nn.softplus(fake), valid),
    }

  def generator_losses(
    self, fake: Float[Array, ' b'], refined: Images, x: Images, z: Images, valid
  ) -> dict[str, Float[Array, '']]:
    """The terms of L_R, the second without its weight."""
    return {
      'adversarial': valid_mean(jax.nn.softplus(-fake), valid),
      'refinement': valid_mean(self.refinement(refined, x, z), valid),
    }

  def discriminator_loss(self, params: PyTree, state: State, x, z, valid):
    """L_D; and its statistics and its terms."""
    stats = state.batch_stats
    refined, _ = self.trained(
      'generator', state.params['generator'], stats['generator'], z, valid
    )
    seen, logits = stats['discriminator'], []
    for images in (x, refined):
      logit, seen = self.trained('discriminator', params, seen, images, valid)
      logits.append(logit)
    terms = self.discriminator_losses(*logits, valid)
    return sum(terms.values()), (seen, terms)

  def generator_loss(self, params: PyTree, state: State, x, z, valid):
    """L_R; and its statistics and its terms."""
    stats, judge = state.batch_stats, state.params['discriminator']
    refined, after = self.trained(
      'generator', params, stats['generator'], z, valid
    )
    fake, _ = self.trained(
      'discriminator', judge, stats['discriminator'], refined, valid
    )
    terms = self.generator_losses(fake, refined, x, z, valid)
    total = terms['adversarial'] + self.weight * terms['refinement']
    return total, (after, terms)

  def step(
    self, part: str, state: State, x: Images, z: Images, valid
  ) -> tuple[State, Scalars]:
    """Of one of both."""
    losses = {
      'discriminator': self.discriminator_loss,
      'generator': self.generator_loss,
    }
    loss = lambda params: losses[part](params, state, x, z, valid)
    after, (stats, terms), scalars = fit(state, part, self.rmsprop, loss)
    terms = {f'{part}/{name}': term for name, term in terms.items()}
    return after.put(batch_stats={part: stats}), {**scalars, **terms}

  def scores(
    self, state: State, x: Images
  ) -> tuple[Images, dict[str, Float[Array, ' b']]]:
    """R(x), and this method's own scores."""
    refined = self.in_use(state, 'generator', x)
    seen = {'refined': refined, 'direct': x}
    # 1 - sigmoid(logit), as it keeps its digits where D is sure.
    return refined, {
      name: jax.nn.sigmoid(-self.in_use(state, 'discriminator', images))
      for name, images in seen.items()
    }


def build(config: ConfigDict, info: Info) -> Method:
  alocc = Alocc(config.model, config.train, info.image)
  comparison = Comparison(config, info, alocc.dtype, OWN)
  sigma, refinements = config.train.noise, config.train.refinements

  def step(state: State, batches: Batches, rng: RandomKey):
    batch, scalars = batches['normal'], {}
    x = batch.signed
    z = jnp.clip(x + sigma * jax.random.normal(rng, x.shape), -1, 1)
    for part in ('discriminator', *('generator',) * refinements):
      state, more = alocc.step(part, state, x, z, batch.valid)
      scalars |= more
    return state, scalars

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    refined, own = alocc.scores(state, batch.signed)
    seen = to_unit(refined)
    others, maps = comparison(state.frozen, batch.unit, seen)
    scores = {name: (own | others)[name] for name in config.score.names}
    return Score(scores, maps, {'reconstruction': seen})

  phase = Phase('train', alocc.init, step, steps=config.train.steps)
  return Method((phase,), score, needs=comparison.needs, table=TABLE)
