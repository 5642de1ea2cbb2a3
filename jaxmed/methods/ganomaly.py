"""GANomaly: a reconstruction, and whether it is still the same to an encoder.

Akcay, Atapour-Abarghouei, Breckon, GANomaly: Semi-Supervised Anomaly
Detection via Adversarial Training, ACCV 2018. The networks and every constant
follow the authors' code (github.com/samet-akcay/ganomaly).

With images x in [-1, 1], encoders E and E', a decoder, and f(x) the
discriminator's features before its last layer:

  z = E(x), y = decoder(z), z' = E'(y)
  L_G = w_adv mean (f(x) - f(y))^2 + w_con mean |x - y| + w_enc mean (z - z')^2
  L_D = (BCE(D(x), 1) + BCE(D(y), 0)) / 2
score
  latent(x) = mean (z - z')^2, as released
  latent_l1(x) = sum |z - z'|, as published
  and those of jaxmed.nn.reconstruction

A step is G's, then D's on the reconstructions made before it. D forgets all
it has learned when L_D falls below 1e-5, so that it does not win for good.
Scores are made with the norms' running statistics; the released code keeps to
those of the test batch (`model.statistics='batch'`), so that a score depends on
its neighbours.
"""

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
  valid_mean,
)
from jaxmed.nn.fit import fit, start
from jaxmed.nn.ganomaly import HEAD, Discriminator, Generator
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.reconstruction import Comparison
from jaxmed.weights.names import TORCH, Table

OWN = ('latent', 'latent_l1')  # Scores of this method.
STATISTICS = ('running', 'batch')

# Of the state_dicts in netG.pth and netD.pth, which share no name.
TABLE = Table(
  TORCH,
  (
    (
      '{net:encoder1|decoder|encoder2}.main.{layer}.{leaf}',
      'generator/{net}/{layer}/{leaf}',
    ),
    ('features.{i}.{leaf}', 'discriminator/features_{i}/{leaf}'),
    ('classifier.0.{leaf}', 'discriminator/classifier/{leaf}'),
  ),
)


class Ganomaly:
  """Both networks, their losses and their step."""

  def __init__(
    self, model: ConfigDict, train: ConfigDict, image: tuple[int, int, int]
  ):
    height, width, channels = image
    doublings = (height // HEAD).bit_length() - 1
    if height != width or height != HEAD * 2**doublings or doublings < 2:
      raise UserError(
        f'GANomaly makes square images of 16, 32, 64 ... pixels, not {height} '
        f'x {width}; set --config.data.size.'
      )
    if model.width < 2 or model.width % 2:
      raise UserError(
        f'model.width is {model.width}, which the decoder halves; set it to '
        'an even number.'
      )
    if model.statistics not in STATISTICS:
      raise unknown(
        'model.statistics of ganomaly', model.statistics, STATISTICS
      )
    self.running = model.statistics == 'running'
    self.dtype = dtype_of(train.precision)
    self.image, self.weights = image, train.weights
    self.redraw_below = train.redraw_below
    self.generator = Generator(
      model.width, model.z, image, model.extra, self.dtype
    )
    self.discriminator = Discriminator(model.width, model.extra, self.dtype)
    self.adam = optax.adam(train.rate, b1=train.beta1)

  def init(self, key: RandomKey, state: State) -> State:
    keys, image = jax.random.split(key), jnp.zeros((1, *self.image))
    parts = {'generator': self.generator, 'discriminator': self.discriminator}
    for (part, network), key in zip(parts.items(), keys, strict=True):
      made = network.init(key, image)
      state = start(state, part, self.adam, made['params'])
      state = state.put(batch_stats={part: made['batch_stats']})
    return state

  def draw(self, params: PyTree, stats: PyTree, x: Images, valid=None):
    """(y, z, z') as they are trained, and the running statistics after it."""
    return _train(self.generator, params, stats, x, valid)

  def judge(self, params: PyTree, stats: PyTree, x: Images, valid=None):
    """(logits, features), likewise."""
    return _train(self.discriminator, params, stats, x, valid)

  def reconstruct(self, state: State, x: Images, valid=None):
    """(y, z, z') as scored, with the statistics of `model.statistics`."""
    variables = state.variables('generator')
    if self.running:
      return self.generator.apply(variables, x)
    params, stats = variables['params'], variables['batch_stats']
    return self.draw(params, stats, x, valid)[0]

  def generator_loss(self, params: PyTree, state: State, x: Images, valid):
    """L_G; and y, both networks' statistics, and the terms."""
    stats, judge = state.batch_stats, state.params['discriminator']
    (y, z, again), of_generator = self.draw(
      params, stats['generator'], x, valid
    )
    (_, ours), seen = self.judge(judge, stats['discriminator'], x, valid)
    (_, theirs), seen = self.judge(judge, seen, y, valid)
    terms = {
      'adversarial': valid_mean(jnp.square(ours - theirs), valid),
      'image': valid_mean(jnp.abs(x - y), valid),
      'code': valid_mean(jnp.square(z - again), valid),
    }
    total = sum(self.weights[name] * term for name, term in terms.items())
    stats = {'generator': of_generator, 'discriminator': seen}
    return total, (y, stats, terms)

  def discriminator_loss(
    self, params: PyTree, stats: PyTree, x: Images, y: Images, valid
  ):
    """L_D; and its statistics and both terms."""
    (real, _), stats = self.judge(params, stats, x, valid)
    (fake, _), stats = self.judge(params, stats, y, valid)
    of_real = valid_mean(jax.nn.softplus(-real), valid)
    of_fake = valid_mean(jax.nn.softplus(fake), valid)
    return (of_real + of_fake) / 2, (stats, (of_real, of_fake))

  def step(
    self, state: State, x: Images, valid, rng: RandomKey
  ) -> tuple[State, Scalars]:
    after, (y, stats, terms), scalars = fit(
      state,
      'generator',
      self.adam,
      lambda params: self.generator_loss(params, state, x, valid),
    )
    # D looks at the same images twice a step; its statistics move each time.
    after, (seen, (of_real, of_fake)), more = fit(
      after,
      'discriminator',
      self.adam,
      lambda params: self.discriminator_loss(
        params, stats['discriminator'], x, y, valid
      ),
    )
    discriminator, redrawn = self.redraw(
      rng, after.params['discriminator'], more['discriminator/loss']
    )
    after = after.put(
      params={'discriminator': discriminator},
      batch_stats=stats | {'discriminator': seen},
    )
    return after, {
      **scalars,
      **more,
      **{f'generator/{name}': term for name, term in terms.items()},
      'discriminator/real': of_real,
      'discriminator/fake': of_fake,
      'discriminator/redrawn': redrawn.astype(jnp.float32),
    }

  def redraw(
    self, rng: RandomKey, params: PyTree, loss: Float[Array, '']
  ) -> tuple[PyTree, Bool[Array, '']]:
    """D's parameters, or first ones if it has won; and whether it has.

    Its statistics and Adam's moments stay, as in the original.
    """
    won = loss < self.redraw_below

    def fresh():
      image = jnp.zeros((1, *self.image))
      made = self.discriminator.init(rng, image)['params']
      return jax.tree.map(lambda new, old: new.astype(old.dtype), made, params)

    return jax.lax.cond(won, fresh, lambda: params), won


def distances(
  z: Float[Array, 'b z'], again: Float[Array, 'b z']
) -> dict[str, Float[Array, ' b']]:
  """How far the code of the reconstruction is from that of the image."""
  squared, absolute = jnp.square(z - again), jnp.abs(z - again)
  return {'latent': squared.mean(axis=1), 'latent_l1': absolute.sum(axis=1)}


def build(config: ConfigDict, info: Info) -> Method:
  gan = Ganomaly(config.model, config.train, info.image)
  comparison = Comparison(config, info, gan.dtype, OWN)

  def step(state: State, batches: Batches, rng: RandomKey):
    batch = batches['normal']
    return gan.step(state, batch.signed, batch.valid, rng)

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    y, z, again = gan.reconstruct(state, batch.signed, batch.valid)
    seen = to_unit(y)
    others, maps = comparison(state.frozen, batch.unit, seen)
    named = distances(z, again) | others
    scores = {name: named[name] for name in config.score.names}
    return Score(scores, maps, {'reconstruction': seen})

  phase = Phase('train', gan.init, step, steps=config.train.steps)
  return Method((phase,), score, needs=comparison.needs, table=TABLE)


def _train(network, params, stats, x, valid):
  found, after = network.apply(
    {'params': params, 'batch_stats': stats},
    x,
    train=True,
    valid=valid,
    mutable=['batch_stats'],
  )
  return found, after['batch_stats']
