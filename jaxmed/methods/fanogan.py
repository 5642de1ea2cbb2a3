"""f-AnoGAN: a Wasserstein GAN of healthy images, and an encoder into it.

Schlegl et al., f-AnoGAN: Fast unsupervised anomaly detection with generative
adversarial networks, Medical Image Analysis 54, 2019. The networks and every
constant follow the authors' code (github.com/tSchlegl/f-AnoGAN), which is for
64 x 64 gray images; here any power of two from 16 on, gray or RGB.

With images x in [-1, 1], noise z ~ N(0, 1), and f(x) the critic's features
before its last layer:

phase `wgan`, several steps of D to each one of G
  L_D = mean D(G(z)) - mean D(x) + lambda mean (|grad D(x^)| - 1)^2
  x^  = x + alpha (G(z) - x), alpha ~ U(0, 1), one of each image
  L_G = -mean D(G(z))
phase `encoder` (izi_f; G and D stay as they are, G with its moving averages)
  L_E = mean (x - G(E(x)))^2 + kappa mean (f(x) - f(G(E(x))))^2
score
  izi_f(x) = L_E of this image; pixel map |x - G(E(x))|
  izi, features: its terms; z_distance: mean (E(x) - E(G(E(x))))^2
  and those of jaxmed.nn.reconstruction

E ends in tanh, so codes stay in (-1, 1) though G has learned on a Gaussian:
the authors' restriction to the middle of the prior (`model.tanh`).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxmed.errors import UserError
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
from jaxmed.nn import optimisers
from jaxmed.nn.fanogan import HEAD, WIDEST, Critic, Encoder, Generator
from jaxmed.nn.fit import fit, start
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.reconstruction import Comparison
from jaxmed.weights.names import TF, Table

OWN = ('izi_f', 'izi', 'features', 'z_distance')  # Scores of this method.
Codes = Float[Array, 'b z']


def _rows(scope: str, part: str, dense: str, conv: str, norm: dict[str, str]):
  """Names of one network. `norm`: what follows a norm's name."""
  rows = {
    '@/@.{r}.{m:Shortcut|Conv[12]}/@.{r}.{m}.Filters': '{r}/{m}/kernel',
    '@/@.{r}.{m:Shortcut|Conv[12]}/@.{r}.{m}.Biases': '{r}/{m}/bias',
    **{'@/@.{r}.{m:BN[12]}' + k: '{r}/{m}/' + v for k, v in norm.items()},
    **{'@/@.{m:OutputN}' + k: '{m}/' + v for k, v in norm.items()},
    f'@/@.{dense}/@.{dense}.W': f'{dense}/kernel',
    f'@/@.{dense}/@.{dense}.b': f'{dense}/bias',
    f'@/@.{conv}/@.{conv}.Filters': f'{conv}/kernel',
    f'@/@.{conv}/@.{conv}.Biases': f'{conv}/bias',
  }
  return tuple((k.replace('@', scope), f'{part}/{v}') for k, v in rows.items())


_BATCH, _LAYER = {'/{leaf}': '{leaf}'}, {'.offset': 'bias', '.scale': 'scale'}
TABLE = Table(
  TF,
  (
    *_rows('Generator', 'generator', 'Input', 'Output', _BATCH),
    *_rows('Discriminator', 'critic', 'Output', 'Input', _LAYER),
    *_rows('Encoder', 'encoder', 'Output', 'Input', _BATCH),
  ),
)


class Fanogan:
  """The three networks, their losses and their steps.

  Steps take the noise they use, so that they are functions of it.
  """

  def __init__(
    self, model: ConfigDict, train: ConfigDict, image: tuple[int, int, int]
  ):
    height, width, channels = image
    scales = round(math.log2(height / HEAD))
    if height != width or height != HEAD * 2**scales or scales < 2:
      raise UserError(
        f'f-AnoGAN makes square images of 16, 32, 64 ... pixels, not'
        f' {height} x {width}; set --config.data.size.'
      )
    dtype = dtype_of(train.precision)
    widths = tuple(
      min(WIDEST, 2**scale) * model.dim for scale in range(scales + 1)
    )
    self.image, self.z, self.kappa = image, model.z, model.kappa
    self.dtype = dtype
    self.penalty = model.penalty
    self.generator = Generator(widths, channels, dtype)
    self.critic = Critic(widths, dtype)
    self.encoder = Encoder(widths, model.z, model.tanh, dtype)
    self.adam = optimisers.adam(train.rate, beta1=0.0, beta2=0.9)
    self.rmsprop = optimisers.rmsprop(train.encoder_rate)

  def init_wgan(self, key: RandomKey, state: State) -> State:
    keys = jax.random.split(key)
    made = self.generator.init(keys[0], jnp.zeros((1, self.z)))
    critic = self.critic.init(keys[1], jnp.zeros((1, *self.image)))
    state = start(state, 'generator', self.adam, made['params'])
    state = state.put(batch_stats={'generator': made['batch_stats']})
    return start(state, 'critic', self.adam, critic['params'])

  def init_encoder(self, key: RandomKey, state: State) -> State:
    made = self.encoder.init(key, jnp.zeros((1, *self.image)))
    state = state.replace(opt={})  # Generator and critic are done.
    state = start(state, 'encoder', self.rmsprop, made['params'])
    return state.put(batch_stats={'encoder': made['batch_stats']})

  def fake(self, params: PyTree, stats: PyTree, z: Codes):
    """G(z) as it is trained, and the moving averages after it."""
    images, after = self.generator.apply(
      {'params': params, 'batch_stats': stats},
      z,
      train=True,
      mutable=['batch_stats'],
    )
    return images, after['batch_stats']

  def generate(self, state: State, z: Codes) -> Images:
    """G(z) with its moving averages."""
    return self.generator.apply(state.variables('generator'), z)

  def encode(self, state: State, x: Images) -> Codes:
    return self.encoder.apply(state.variables('encoder'), x)

  def judge(self, params: PyTree, x: Images):
    return self.critic.apply({'params': params}, x)

  def slopes(self, params: PyTree, real, fake, alpha) -> Float[Array, ' b']:
    """|grad D(x^)| over all pixels of each image."""
    between = real + alpha[:, None, None, None] * (fake - real)
    total = lambda x: self.judge(params, x)[0].sum()
    gradient = jax.grad(total)(between)
    return jnp.sqrt(jnp.square(gradient).sum(axis=(1, 2, 3)))

  def critic_loss(self, params: PyTree, real, fake, alpha, valid):
    """L_D."""
    # Each in a pass of its own: what moves both alike then has a gradient of
    # exactly zero, and not its rounding, which Adam would blow up.
    of_fake, of_real = (self.judge(params, x)[0] for x in (fake, real))
    slopes = self.slopes(params, real, fake, alpha)
    gap = valid_mean(of_fake, valid) - valid_mean(of_real, valid)
    penalty = valid_mean(jnp.square(slopes - 1), valid)
    scalars = {'critic/gap': -gap, 'critic/penalty': penalty}
    return gap + self.penalty * penalty, scalars

  def generator_loss(self, params: PyTree, critic: PyTree, stats, z: Codes):
    """L_G, and G's moving averages."""
    fake, stats = self.fake(params, stats, z)
    return -self.judge(critic, fake)[0].mean(), stats

  def errors(self, critic: PyTree, x: Images, y: Images):
    """Of each image, both terms of L_E."""
    ours, theirs = (self.judge(critic, images)[1] for images in (x, y))
    image = jnp.square(x - y).mean(axis=(1, 2, 3))
    return image, jnp.square(ours - theirs).mean(axis=1)

  def encoder_loss(self, params: PyTree, state: State, x: Images, valid):
    """L_E, and E's moving averages."""
    z, after = self.encoder.apply(
      {'params': params, 'batch_stats': state.batch_stats['encoder']},
      x,
      train=True,
      valid=valid,
      mutable=['batch_stats'],
    )
    y = self.generate(state, z)
    image, features = (
      valid_mean(error, valid)
      for error in self.errors(state.params['critic'], x, y)
    )
    scalars = {'encoder/image': image, 'encoder/features': features}
    return image + self.kappa * features, (after['batch_stats'], scalars)

  def critic_step(
    self, state: State, real: Images, z: Codes, alpha, valid
  ) -> tuple[State, Scalars]:
    generator = state.params['generator'], state.batch_stats['generator']
    fake, _ = self.fake(*generator, z)  # The averages stay where they are.
    loss = lambda params: self.critic_loss(params, real, fake, alpha, valid)
    state, aux, scalars = fit(state, 'critic', self.adam, loss)
    return state, {**scalars, **aux}

  def generator_step(self, state: State, z: Codes) -> tuple[State, Scalars]:
    loss = lambda params: self.generator_loss(
      params, state.params['critic'], state.batch_stats['generator'], z
    )
    after, stats, scalars = fit(state, 'generator', self.adam, loss)
    return after.put(batch_stats={'generator': stats}), scalars

  def encoder_step(
    self, state: State, x: Images, valid
  ) -> tuple[State, Scalars]:
    loss = lambda params: self.encoder_loss(params, state, x, valid)
    after, (stats, aux), scalars = fit(state, 'encoder', self.rmsprop, loss)
    return after.put(batch_stats={'encoder': stats}), {**scalars, **aux}

  def reconstruct(self, state: State, x: Images):
    """G(E(x)), and how far its code is from that of x."""
    z = self.encode(state, x)
    y = self.generate(state, z)
    return y, jnp.square(z - self.encode(state, y)).mean(axis=1)


def build(config: ConfigDict, info: Info) -> Method:
  gan = Fanogan(config.model, config.train, info.image)
  comparison = Comparison(config, info, gan.dtype, OWN)
  critics = config.train.critics

  def wgan_step(state: State, batches: Batches, rng: RandomKey):
    *keys, last = jax.random.split(rng, critics + 1)
    # Written out: a loop would be slow on CPU.
    for key, one in zip(keys, turns(batches, critics), strict=True):
      real, valid = one['normal'].signed, one['normal'].valid
      noise, mix = jax.random.split(key)
      z = jax.random.normal(noise, (len(real), gan.z))
      alpha = jax.random.uniform(mix, (len(real),))
      state, scalars = gan.critic_step(state, real, z, alpha, valid)
    z = jax.random.normal(last, (info.batch, gan.z))
    state, more = gan.generator_step(state, z)
    return state, {**scalars, **more}

  def encoder_step(state: State, batches: Batches, rng: RandomKey):
    del rng
    batch = batches['normal']
    return gan.encoder_step(state, batch.signed, batch.valid)

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    x = batch.signed
    y, code = gan.reconstruct(state, x)
    image, features = gan.errors(state.params['critic'], x, y)
    values = image + gan.kappa * features, image, features, code
    own = dict(zip(OWN, values, strict=True))
    seen = to_unit(y)
    others, maps = comparison(state.frozen, batch.unit, seen)
    scores = {n: (own | others)[n] for n in config.score.names}
    return Score(scores, maps, {'reconstruction': seen})

  def sample(state: State, rng: RandomKey, count: int) -> Images:
    return to_unit(gan.generate(state, jax.random.normal(rng, (count, gan.z))))

  wgan = Phase(
    'wgan', gan.init_wgan, wgan_step, steps=config.train.steps, batches=critics
  )
  encoder = Phase(
    'encoder',
    gan.init_encoder,
    encoder_step,
    steps=config.train.encoder_steps,
  )
  return Method(
    (wgan, encoder),
    score,
    needs=comparison.needs,
    sample=sample,
    table=TABLE,
  )
