"""AnoGAN: a GAN of healthy images, and a search for the noise of each image.

Schlegl, Seeboeck, Waldstein, Schmidt-Erfurth, Langs: Unsupervised Anomaly
Detection with Generative Adversarial Networks to Guide Marker Discovery, IPMI
2017. The networks are DCGAN's (jaxmed/nn/dcgan.py), whose widths at 64 px are
those of the paper.

With images x in [-1, 1], noise z ~ U(-1, 1), D's logits, and f(x) the
features of D's last convolution:

training, a step of D, then one of G with the same noise
  L_D = mean H(1, D(x)) + mean H(0, D(G(z)))       H: the cross entropy   (1)
  L_G = mean H(1, D(G(z)))                                                (2)
search, for every image, G and D as they are with their moving averages
  R(z) = sum |x - G(z)|                            over the pixels        (3)
  F(z) = sum |f(x) - f(G(z))|                      over the features      (4)
  z    = what `score.search.steps` steps of Adam make of a first draw by
         the gradient of (1 - lambda) R + lambda F                        (5)
score
  anogan = (1 - lambda) R + lambda F of the last z; map |x - G(z)|
  residual_loss, features: R and F; and those of jaxmed.nn.reconstruction

The paper gives lambda = 0.1 and 500 steps, and neither the prior, the rate nor
the rule of the search: a uniform prior is DCGAN's, whose edge no z may leave.
"""

import math

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
  Search,
  State,
  row_keys,
  to_unit,
  valid_mean,
)
from jaxmed.nn.dcgan import HEAD, Discriminator, Generator
from jaxmed.nn.fit import fit, start
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.reconstruction import Comparison
from jaxmed.weights.names import TORCH, Table

OWN = ('anogan', 'residual_loss', 'features')  # Scores of this method.
SIDES = (16, 32, 64, 128)
PRIORS = {
  'uniform': lambda key, shape: jax.random.uniform(key, shape, minval=-1.0),
  'normal': jax.random.normal,
}
Codes = Float[Array, 'b z']
PerImage = Float[Array, 'b']


class Anogan:
  """Both networks, their losses and steps, and the search."""

  def __init__(self, config: ConfigDict, image: tuple[int, int, int]):
    _check(config, image)
    model, train = config.model, config.train
    self.image, self.z, self.draw = image, model.z, PRIORS[model.prior]
    self.bounded = model.prior == 'uniform'
    self.share = config.score.feature_weight  # lambda.
    self.dtype = dtype_of(train.precision)
    scales = round(math.log2(image[0] / HEAD))
    widths = tuple(model.dim * 2**i for i in range(scales))
    self.generator = Generator(widths, image[2], self.dtype)
    self.discriminator = Discriminator(widths, self.dtype)
    self.optimiser = optax.adam(train.rate, train.beta1, train.beta2)
    self.searching = optax.adam(config.score.search.rate)

  def init(self, key: RandomKey, state: State) -> State:
    keys = jax.random.split(key)
    parts = {
      'generator': self.generator.init(keys[0], jnp.zeros((1, self.z))),
      'discriminator': self.discriminator.init(
        keys[1], jnp.zeros((1, *self.image))
      ),
    }
    for part, made in parts.items():
      state = start(state, part, self.optimiser, made['params'])
      state = state.put(batch_stats={part: made['batch_stats']})
    return state

  def fake(self, params: PyTree, stats: PyTree, z: Codes):
    """G(z) as it is trained, and the moving averages after it."""
    variables = {'params': params, 'batch_stats': stats}
    images, after = self.generator.apply(
      variables, z, train=True, mutable=['batch_stats']
    )
    return images, after['batch_stats']

  def learned(self, params: PyTree, stats: PyTree, x: Images, valid=None):
    """D's logits as it is trained, and the moving averages after them."""
    variables = {'params': params, 'batch_stats': stats}
    (logits, _), after = self.discriminator.apply(
      variables, x, train=True, valid=valid, mutable=['batch_stats']
    )
    return logits, after['batch_stats']

  def generate(self, state: State, z: Codes) -> Images:
    """G(z) with its moving averages."""
    return self.generator.apply(state.variables('generator'), z)

  def features(self, state: State, x: Images) -> Float[Array, 'b f']:
    variables = state.variables('discriminator')
    return self.discriminator.apply(variables, x)[1]

  def discriminator_loss(self, params, stats, real, fake, valid):
    """L_D, its two terms, and D's moving averages."""
    of_real, stats = self.learned(params, stats, real, valid)
    of_fake, stats = self.learned(params, stats, fake)
    real_loss = valid_mean(_entropy(of_real, 1.0), valid)
    fake_loss = _entropy(of_fake, 0.0).mean()
    scalars = {
      'discriminator/real': real_loss,
      'discriminator/fake': fake_loss,
    }
    return real_loss + fake_loss, (stats, scalars)

  def generator_loss(self, params, stats, discriminator, judge_stats, z):
    """L_G, and the moving averages of both."""
    fake, stats = self.fake(params, stats, z)
    logits, judge_stats = self.learned(discriminator, judge_stats, fake)
    return _entropy(logits, 1.0).mean(), (stats, judge_stats)

  def update(
    self, state: State, real: Images, z: Codes, valid: Bool[Array, ' b']
  ) -> tuple[State, Scalars]:
    """One step of D, then one of G with the same noise."""
    stats = state.batch_stats
    fake, _ = self.fake(state.params['generator'], stats['generator'], z)
    state, (judged, terms), scalars = fit(
      state,
      'discriminator',
      self.optimiser,
      lambda params: self.discriminator_loss(
        params, stats['discriminator'], real, fake, valid
      ),
    )
    discriminator = state.params['discriminator']
    state, (made, judged), more = fit(
      state,
      'generator',
      self.optimiser,
      lambda params: self.generator_loss(
        params, stats['generator'], discriminator, judged, z
      ),
    )
    state = state.put(batch_stats={'generator': made, 'discriminator': judged})
    return state, {**scalars, **terms, **more}

  def errors(
    self, state: State, x: Images, features: Float[Array, 'b f'], z: Codes
  ) -> tuple[PerImage, PerImage, Images]:
    """Equations 3 and 4 of each image, whose features are given; and G(z)."""
    y = self.generate(state, z)
    pixels = jnp.abs(x - y).sum(axis=(1, 2, 3))
    away = jnp.abs(features - self.features(state, y)).sum(axis=1)
    return pixels, away, y

  def weigh(self, pixels: PerImage, features: PerImage) -> PerImage:
    return (1 - self.share) * pixels + self.share * features

  def search_init(self, key: RandomKey, state: State, batch: Batch) -> PyTree:
    """Of each image: a first z, Adam's slots, and its own features."""
    draw = lambda key: self.draw(key, (self.z,))
    z = jax.vmap(draw)(row_keys(key, batch.row))
    features = self.features(state, batch.signed)
    return {'z': z, 'opt': self.searching.init(z), 'features': features}

  def search_step(
    self, key: RandomKey, state: State, batch: Batch, found: PyTree, number
  ) -> PyTree:
    """Equation 5. No image's z has a gradient from another's error."""
    del key, number
    x = batch.signed

    def loss(z):
      pixels, features, _ = self.errors(state, x, found['features'], z)
      return self.weigh(pixels, features).sum()

    slope = jax.grad(loss)(found['z'])
    change, opt = self.searching.update(slope, found['opt'])
    z = found['z'] + change
    z = jnp.clip(z, -1, 1) if self.bounded else z
    return found | {'z': z, 'opt': opt}


def build(config: ConfigDict, info: Info) -> Method:
  """One cohort, one phase; a search before every score."""
  gan = Anogan(config, info.image)
  comparison = Comparison(config, info, gan.dtype, OWN)

  def step(state: State, batches: Batches, key: RandomKey):
    batch = batches['normal']
    z = gan.draw(key, (len(batch.row), gan.z))
    return gan.update(state, batch.signed, z, batch.valid)

  def score(state: State, batch: Batch, key: RandomKey, found: PyTree) -> Score:
    del key
    x = batch.signed
    pixels, features, y = gan.errors(state, x, found['features'], found['z'])
    values = gan.weigh(pixels, features), pixels, features
    own, seen = dict(zip(OWN, values, strict=True)), to_unit(y)
    others, maps = comparison(state.frozen, batch.unit, seen)
    scores = {n: (own | others)[n] for n in config.score.names}
    return Score(scores, maps, {'reconstruction': seen})

  def sample(state: State, key: RandomKey, count: int) -> Images:
    return to_unit(gan.generate(state, gan.draw(key, (count, gan.z))))

  phase = Phase('gan', gan.init, step, steps=config.train.steps)
  return Method(
    (phase,),
    score,
    search=Search(gan.search_init, gan.search_step, config.score.search.steps),
    needs=comparison.needs,
    sample=sample,
    table=names(len(gan.generator.widths)),
  )


def names(scales: int) -> Table:
  """What PyTorch's example calls the arrays, after netG and netD."""
  rows = [('netD.main.0.{leaf}', 'discriminator/down_0/{leaf}')]
  for i in range(scales):
    rows += [
      (f'netG.main.{3 * i}.{{leaf}}', f'generator/up_{i}/{{leaf}}'),
      (f'netG.main.{3 * i + 1}.{{leaf}}', f'generator/norm_{i}/{{leaf}}'),
    ]
  for i in range(1, scales):
    part = 'discriminator/'
    rows += [
      (f'netD.main.{3 * i - 1}.{{leaf}}', part + f'down_{i}/{{leaf}}'),
      (f'netD.main.{3 * i}.{{leaf}}', part + f'norm_{i}/{{leaf}}'),
    ]
  rows += [
    (f'netG.main.{3 * scales}.{{leaf}}', 'generator/up_out/{leaf}'),
    (f'netD.main.{3 * scales - 1}.{{leaf}}', 'discriminator/head/{leaf}'),
  ]
  return Table(TORCH, tuple(rows))


def _check(config: ConfigDict, image: tuple[int, int, int]) -> None:
  height, width, _ = image
  if height != width or height not in SIDES:
    raise UserError(
      f'AnoGAN makes square images of 16, 32, 64 or 128 pixels, not {height} '
      f'x {width}; set --config.data.size.'
    )
  if config.model.prior not in PRIORS:
    raise unknown('model.prior of anogan', config.model.prior, PRIORS)
  score = config.score
  if not 0 <= score.feature_weight <= 1:
    raise UserError(
      f'anogan: score.feature_weight is {score.feature_weight}; it is the '
      'share of the features in the score, from 0 to 1.'
    )
  if score.search.steps < 0:
    raise UserError(
      f'anogan: score.search.steps is {score.search.steps}; 500 is as '
      'published, 0 scores by a first draw.'
    )


def _entropy(logits: PerImage, real: float) -> PerImage:
  return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, real))
