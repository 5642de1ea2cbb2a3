"""StyleGAN2: a generator of healthy images, which other images are held to.

Karras et al., Analyzing and Improving the Image Quality of StyleGAN, CVPR
2020. Networks and constants follow the authors' code (github.com/NVlabs/
stylegan2) and the port github.com/rosinality/stylegan2-pytorch, in whose order
a step updates D first.

With images x in [-1, 1], noise z ~ N(0, 1), w = f(z) and s = softplus:

a step
  L_D = mean s(-D(x)) + mean s(D(G(w)))
  L_G = mean s(-D(G(w)))
every 16th step, of D alone
  L_R = 16 gamma / 2 mean |grad_x D(x)|^2
every 4th step, of G alone, on half a batch
  J   = |grad_w sum(G(w) y)|, y ~ N(0, 1) / sqrt(height width); its square is
        summed over numbers of w and averaged over layers
  a   = a + 0.01 (mean J - a), through which the gradient goes, too
  L_P = 4 * 2 mean (J - a)^2
  Adam's rate is then scaled by c = n / (n + 1) of these n = 16 and 4, its
  betas are raised to it, as it makes n + 1 updates where it made n
w is that of one z or, with a probability of .9, of two: one for the first
layers, another for the others. G's moving average is what is looked at.

score
  critic(x) = -D(x), D alone with x (its group of one has no deviation)
  the others: of x and the nearest image that G draws, for which w and noise are
  searched; see jaxmed.nn.projection and projection_search
With `train.ada`, D sees x and G(w) changed at random; see jaxmed.ops.ada.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
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
  Step,
  to_unit,
  valid_mean,
)
from jaxmed.nn import optimisers
from jaxmed.nn.fit import fit, start
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.projection_search import Projection
from jaxmed.nn.stylegan2 import (
  FORMS,
  TABLE,
  Codes,
  Discriminator,
  Drawing,
  Mapping,
  Noises,
  Styles,
  Synthesis,
  form_of,
  group_of,
  widths_of,
)
from jaxmed.ops import ada

OWN = ('critic',)  # Scores of this method.
Look = Callable[[Images], Images]  # Differentiated through.


class StyleGan2(Drawing):
  """The networks, their losses and their steps.

  Losses take the noise they use, so that they are functions of it.
  """

  def __init__(self, model: ConfigDict, train: ConfigDict, info: Info):
    height, width, channels = info.image
    if height != width:
      raise UserError(
        f'StyleGAN2 makes square images, not {height} x {width}; set'
        ' --config.data.size.'
      )
    self.form = model.form or form_of(jax.default_backend())
    if self.form not in FORMS:
      raise unknown('form of convolution (model.form)', self.form, FORMS)
    group_of(info.batch, model.group)  # Or an error.
    dtype = dtype_of(train.precision)
    widths = tuple(model.widths) or widths_of(height, model.base, model.widest)
    super().__init__(
      Mapping(model.w, model.layers, model.mapping_rate),
      Synthesis(widths, channels, self.form, dtype),
    )
    self.model, self.train, self.dtype = model, train, dtype
    self.image, self.group = info.image, model.group
    self.discriminator = Discriminator(widths, dtype)
    self.adams = {
      part: optimisers.lazy_adam(train.rate, train.beta1, train.beta2, every)
      for part, every in (
        ('generator', train.path_every),
        ('discriminator', train.r1_every),
      )
    }
    images = train.average_kimg * 1000
    self.decay = 0.5 ** (info.batch / images) if images else 0.0

  def init(self, key: RandomKey, state: State) -> State:
    keys = jax.random.split(key, 4)
    z = jnp.zeros((1, self.z))
    w = jnp.zeros((1, self.synthesis.layers, self.z))
    noises = self.noises(keys[3], 1)
    mapping = self.mapping.init(keys[0], z)['params']
    synthesis = self.synthesis.init(keys[1], w, noises)['params']
    generator = {'mapping': mapping, 'synthesis': synthesis}
    judge = self.discriminator.init(
      keys[2], jnp.zeros((1, *self.image)), self.group
    )
    state = start(state, 'generator', self.adams['generator'], generator)
    state = start(
      state, 'discriminator', self.adams['discriminator'], judge['params']
    )
    # Maps of noise to draw from where nothing is to be left to chance.
    fixed = {f'noise_{i}': noise for i, noise in enumerate(noises)}
    return state.put(
      ema={'generator': generator},
      batch_stats={'generator': fixed},
      memory={
        'path': {'mean': jnp.zeros(())},
        'w': {'mean': jnp.zeros(self.z)},
        'augment': ada.fresh(),
      },
    )

  def judge(
    self, params: PyTree, x: Images, group: int | None = None
  ) -> Float[Array, ' b']:
    group = self.group if group is None else group
    return self.discriminator.apply({'params': params}, x, group)

  def styles(
    self, key: RandomKey, params: PyTree, count: int
  ) -> tuple[Styles, Codes]:
    """Of z or, by chance, of two; and w of the (first) z."""
    if not self.train.mixing:
      w = self.map(params, jax.random.normal(key, (count, self.z)))
      return self.each_layer(w), w
    keys = jax.random.split(key, 3)
    z = jax.random.normal(keys[0], (2 * count, self.z))
    w, other = jnp.split(self.map(params, z), 2)
    layers = self.synthesis.layers
    first = jax.random.randint(keys[1], (), 1, layers)
    mixing = jax.random.uniform(keys[2]) < self.train.mixing
    return self.mixed(w, other, jnp.where(mixing, first, layers)), w

  def look(self, key: RandomKey, state: State) -> Look:
    """What D sees of images, real or drawn."""
    if not self.train.ada:
      return lambda images: images
    strength = state.memory['augment']['strength']
    return lambda images: ada.augment(images, key, strength)

  # Losses.

  def discriminator_loss(self, params: PyTree, real, fake, valid):
    """L_D of images as D sees them."""
    of_real, of_fake = (self.judge(params, x) for x in (real, fake))
    loss = valid_mean(jax.nn.softplus(-of_real), valid)
    loss += jax.nn.softplus(of_fake).mean()
    scalars = {
      'discriminator/real': valid_mean(of_real, valid),
      'discriminator/fake': of_fake.mean(),
      'discriminator/sign': valid_mean(jnp.sign(of_real), valid),
    }
    return loss, scalars

  def generator_loss(self, discriminator: PyTree, fake: Images):
    """L_G of images as D sees them."""
    return jax.nn.softplus(-self.judge(discriminator, fake)).mean()

  def r1(self, params: PyTree, real, valid, look: Look = lambda x: x):
    """mean |grad_x D(x)|^2."""
    total = lambda x: self.judge(params, look(x)).sum()
    gradient = jax.grad(total)(real)
    return valid_mean(jnp.square(gradient).sum((1, 2, 3)), valid)

  def path_lengths(
    self, params: PyTree, w: Styles, noises: Noises, y: Images
  ) -> Float[Array, ' b']:
    """J, for y of N(0, 1)."""
    y = y / math.sqrt(y.shape[1] * y.shape[2])
    total = lambda w: (self.draw(params, w, noises) * y).sum()
    gradient = jax.grad(total)(w)
    return jnp.sqrt(jnp.square(gradient).sum(-1).mean(-1))

  def path_penalty(self, lengths: Float[Array, ' b'], mean: Float[Array, '']):
    """mean (J - a)^2, and the new a."""
    mean = mean + self.train.path_decay * (lengths.mean() - mean)
    return jnp.square(lengths - mean).mean(), mean

  # Steps.

  def discriminator_step(
    self, key: RandomKey, state: State, real: Images, valid
  ) -> tuple[State, Scalars]:
    keys = jax.random.split(key, 4)
    generator = state.params['generator']
    w, _ = self.styles(keys[0], generator, len(real))
    fake = self.draw(generator, w, self.noises(keys[1], len(real)))
    fake = self.look(keys[2], state)(fake)
    real = self.look(keys[3], state)(real)
    part = 'discriminator'
    loss = lambda params: self.discriminator_loss(params, real, fake, valid)
    state, aux, scalars = fit(state, part, self.adams[part], loss)
    return state, {**scalars, **aux}

  def r1_step(
    self, key: RandomKey, state: State, real: Images, valid
  ) -> tuple[State, Scalars]:
    part, look = 'discriminator', self.look(key, state)
    weight = self.train.r1 / 2 * self.train.r1_every

    def loss(params):
      penalty = self.r1(params, real, valid, look)
      return weight * penalty, {'r1/penalty': penalty}

    state, aux, scalars = fit(state, part, self.adams[part], loss)
    return state, {**_of(scalars, part, 'r1'), **aux}

  def generator_step(
    self, key: RandomKey, state: State, count: int
  ) -> tuple[State, Scalars]:
    keys = jax.random.split(key, 3)
    part, look = 'generator', self.look(keys[2], state)
    noises = self.noises(keys[1], count)

    def loss(params):
      styles, w = self.styles(keys[0], params, count)
      fake = look(self.draw(params, styles, noises))
      return self.generator_loss(state.params['discriminator'], fake), w

    after, w, scalars = fit(state, part, self.adams[part], loss)
    mean, decay = state.memory['w']['mean'], self.train.w_decay
    mean = decay * mean + (1 - decay) * w.mean(axis=0)
    return after.put(memory={'w': {'mean': mean}}), scalars

  def path_step(
    self, key: RandomKey, state: State, count: int
  ) -> tuple[State, Scalars]:
    keys, part = jax.random.split(key, 3), 'generator'
    noises = self.noises(keys[1], count)
    y = jax.random.normal(keys[2], (count, *self.image))
    weight = self.train.path * self.train.path_every

    def loss(params):
      w, _ = self.styles(keys[0], params, count)
      lengths = self.path_lengths(params, w, noises, y)
      penalty, mean = self.path_penalty(lengths, state.memory['path']['mean'])
      scalars = {
        'path/penalty': penalty,
        'path/length': lengths.mean(),
        'path/mean': mean,
      }
      return weight * penalty, scalars

    state, aux, scalars = fit(state, part, self.adams[part], loss)
    state = state.put(memory={'path': {'mean': aux['path/mean']}})
    return state, {**_of(scalars, part, 'path'), **aux}

  def adapted(self, state: State, sign: Float[Array, ''], count: int):
    """The state that changes as much of what D sees as D has earned."""
    if not self.train.ada:
      return state, {}
    kept = ada.follow(
      state.memory['augment'], sign, count, self.train.ada_target
    )
    scalars = {'augment/strength': kept['strength']}
    return state.put(memory={'augment': kept}), scalars

  def averaged(self, state: State) -> State:
    """The state whose moving average has taken G in."""
    average = optax.incremental_update(
      state.params['generator'], state.ema['generator'], 1 - self.decay
    )
    return state.put(ema={'generator': average})

  def averaged_too(self, before: State, after: State) -> State:
    """`after`, as if G had moved there before its average was taken."""
    average = jax.tree.map(
      lambda mean, x, y: mean + (1 - self.decay) * (y - x),
      after.ema['generator'],
      before.params['generator'],
      after.params['generator'],
    )
    return after.put(ema={'generator': average})

  def truncated(self, state: State, w: Codes, share: float) -> Codes:
    """w, nearer to the average w by `share`."""
    mean = state.memory['w']['mean'][None]
    return mean + share * (w - mean) if share < 1 else w


def build(config: ConfigDict, info: Info) -> Method:
  size = config.model.w
  if size < 1 or size & (size - 1):
    raise UserError(
      f'The latent size is {size}; set --config.model.w to a power of two.'
    )
  gan = StyleGan2(config.model, config.train, info)
  projection = Projection(gan, config, info, OWN)

  def score(state: State, batch: Batch, rng: RandomKey, *found) -> Score:
    del rng
    x = batch.signed
    own = {'critic': -gan.judge(state.params['discriminator'], x, group=1)}
    score = projection.scores(state, batch, *found) if found else Score({})
    named = own | score.image
    return score.replace(image={n: named[n] for n in config.score.names})

  def sample(state: State, rng: RandomKey, count: int) -> Images:
    keys = jax.random.split(rng)
    params = state.ema['generator']
    w = gan.map(params, jax.random.normal(keys[0], (count, gan.z)))
    w = gan.truncated(state, w, config.model.truncation)
    images = gan.draw(params, gan.each_layer(w), gan.noises(keys[1], count))
    return jnp.clip(to_unit(images), 0, 1)

  phase = Phase(
    'gan',
    gan.init,
    step_of(gan, info.batch),
    steps=config.train.steps,
    every=lazy_of(gan, info.batch),
  )
  return Method(
    (phase, *projection.phases),
    score,
    search=projection.search,
    needs=projection.needs,
    sample=sample,
    table=TABLE,
  )


def step_of(gan: StyleGan2, count: int) -> Step:
  """A step of D and G."""

  def step(state: State, batches: Batches, rng: RandomKey):
    batch, keys = batches['normal'], jax.random.split(rng, 4)
    state, scalars = gan.discriminator_step(
      keys[0], state, batch.signed, batch.valid
    )
    state, strength = gan.adapted(state, scalars['discriminator/sign'], count)
    state, more = gan.generator_step(keys[1], state, count)
    return gan.averaged(state), {**scalars, **strength, **more}

  return step


def lazy_of(gan: StyleGan2, count: int) -> tuple[tuple[int, Step], ...]:
  """What regularises D and G, for Phase.every."""

  def r1(state: State, batches: Batches, rng: RandomKey):
    batch = batches['normal']
    key = jax.random.split(rng, 4)[2]
    return gan.r1_step(key, state, batch.signed, batch.valid)

  def path(state: State, batches: Batches, rng: RandomKey):
    del batches
    key = jax.random.split(rng, 4)[3]
    part = max(1, count // gan.train.path_shrink)
    after, scalars = gan.path_step(key, state, part)
    return gan.averaged_too(state, after), scalars

  terms = (gan.train.r1_every, r1), (gan.train.path_every, path)
  return tuple((every, term) for every, term in terms if every)


def _of(scalars: Scalars, part: str, term: str) -> Scalars:
  """Scalars of a part's step on one term, by the term's name."""
  return {k.replace(f'{part}/', f'{term}/'): v for k, v in scalars.items()}
