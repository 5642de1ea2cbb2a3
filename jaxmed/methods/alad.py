"""ALAD: a bidirectional GAN whose cycles are judged by discriminators, too.

Zenati, Romain, Foo, Lecouat, Chandrasekhar, Adversarially Learned Anomaly
Detection, ICDM 2018. The networks and every constant follow the authors' code
for CIFAR-10 (github.com/houssamzenati/
Adversarially-Learned-Anomaly-Detection), which is for 32 px; here any power of
two from 16 on.

With images x in [-1, 1], codes z ~ N(0, 1), an encoder E, a generator G, and
three discriminators whose answers are logits; + and - are the mean binary
cross-entropy with label 1 and 0:

  L_D   = +D_xz(x, E(x)) -D_xz(G(z), z)
          +D_xx(x, x)    -D_xx(x, G(E(x)))
          +D_zz(z, z)    -D_zz(z, E(G(z)))
  L_G,E = the same with + and - exchanged
score
  features(x) = sum |f(x, x) - f(x, G(E(x)))|, f: D_xx before its last layer
  logits(x)   = -log sigmoid(D_xx(x, G(E(x))))
  and those of jaxmed.nn.reconstruction, such as l1 and l2

All three discriminators are stepped together, then G and E on other images
and codes. E and the discriminators have spectral norm on all layers but their
last. Scores are made with moving averages of all weights.
"""

import functools

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
  to_unit,
  valid_mean,
)
from jaxmed.nn import alad as networks
from jaxmed.nn import optimisers, spectral
from jaxmed.nn.fit import fit, start
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.reconstruction import Comparison
from jaxmed.weights.names import TF, Table

OWN = ('features', 'logits')  # Scores of this method.
PARTS = ('generator', 'discriminator')
LOGITS = ('xz_real', 'xz_fake', 'xx_real', 'xx_fake')
ZZ = ('zz_real', 'zz_fake')
Codes = Float[Array, 'b z']


class Alad:
  """The five networks, their losses and their steps.

  State.params has two parts: `generator` with encoder and generator, and
  `discriminator` with xz, xx and zz.
  """

  def __init__(
    self, model: ConfigDict, train: ConfigDict, image: tuple[int, int, int]
  ):
    height, width, channels = image
    widths = networks.widths(model.width, height)
    side = networks.HEAD * 2 ** len(widths)
    if height != width or height != side or len(widths) < 2:
      raise UserError(
        f'ALAD makes square images of 16, 32, 64 ... pixels, not {height} x '
        f'{width}; set --config.data.size.'
      )
    if model.width % 4 or model.width < 4:
      raise UserError(
        f'model.width is {model.width}, a quarter of which is the width of '
        'the smallest layer; set it to a multiple of 4.'
      )
    if model.joint not in networks.JOINTS:
      raise unknown('model.joint of alad', model.joint, networks.JOINTS)
    self.dtype = dtype = dtype_of(train.precision)
    self.image, self.z = image, model.z
    self.spectral, self.cycle_z = model.spectral, model.cycle_z
    self.decay = train.ema
    drop, half = model.dropout, model.width // 2
    self.networks = {
      'generator': {
        'encoder': networks.Encoder(widths, model.z, dtype),
        'generator': networks.Generator(widths, channels, dtype),
      },
      'discriminator': {
        'xz': networks.OfPairs(widths, drop, dtype),
        'xx': networks.OfImages(half, drop, model.joint, dtype),
        'zz': networks.OfCodes((half, half // 2), drop, dtype),
      },
    }
    self.adam = optimisers.adam(train.rate, beta1=train.beta1)

  def init(self, key: RandomKey, state: State) -> State:
    x, z = jnp.zeros((1, *self.image)), jnp.zeros((1, self.z))
    inputs = {
      'encoder': (x,),
      'generator': (z,),
      'xz': (x, z),
      'xx': (x, x),
      'zz': (z, z),
    }
    for part, members in self.networks.items():
      params, stats = {}, {}
      for name, network in members.items():
        key, once, rows = jax.random.split(key, 3)
        made = network.init(once, *inputs[name])
        params[name] = made['params']
        stats[name] = made.get('batch_stats', {})
        if self.spectral and name != 'generator':
          stats[name] = spectral.start(
            rows, params[name], stats[name], lambda path: path != 'head'
          )
      state = start(state, part, self.adam, params)
      state = state.put(batch_stats={part: stats}, ema={part: params})
    return state

  def look(
    self, params: PyTree, stats: PyTree, x: Images, z: Codes, key, valid
  ) -> tuple[dict[str, Array], PyTree]:
    """All that the losses look at, in training, and the statistics after it.

    `params` and `stats` are of both parts. Every network is normalised once,
    however often it is called.
    """
    params, stats = spectral.normalise(params, stats)
    calls = 0

    def call(part, name, *inputs, **valid):
      nonlocal calls
      calls += 1
      found, after = self.networks[part][name].apply(
        {'params': params[part][name], 'batch_stats': stats[part][name]},
        *inputs,
        train=True,
        rngs={'dropout': jax.random.fold_in(key, calls)},
        mutable=['batch_stats'],
        **valid,
      )
      stats[part][name] = after.get('batch_stats', {})
      return found

    return everything(call, x, z, valid), stats

  def losses(
    self, logits: dict[str, Array], valid, flipped: bool = False
  ) -> dict[str, Float[Array, '']]:
    """The six terms of L_D, or of L_G,E."""
    terms = {}
    for name in LOGITS + (ZZ if self.cycle_z else ()):
      # Codes are drawn for every row; images may be missing.
      rows = jnp.ones_like(valid) if name in ('xz_fake', *ZZ) else valid
      sign = 1 if name.endswith('fake') != flipped else -1
      terms[name] = valid_mean(jax.nn.softplus(sign * logits[name]), rows)
    return terms

  def _fit(self, state: State, part: str, x, z, key, valid):
    """One step of a part, and of its average."""
    other = {p: state.params[p] for p in PARTS if p != part}

    def loss(params):
      seen, stats = self.look(
        {part: params} | other, state.batch_stats, x, z, key, valid
      )
      terms = self.losses(seen, valid, flipped=part == 'generator')
      return sum(terms.values()), (stats[part], terms)

    after, (stats, terms), scalars = fit(state, part, self.adam, loss)
    ema = optax.incremental_update(
      after.params[part], state.ema[part], 1 - self.decay
    )
    terms = {f'{part}/{name}': term for name, term in terms.items()}
    after = after.put(batch_stats={part: stats}, ema={part: ema})
    return after, {**scalars, **terms}

  def discriminator_step(
    self, state: State, x: Images, z: Codes, key: RandomKey, valid
  ) -> tuple[State, Scalars]:
    return self._fit(state, 'discriminator', x, z, key, valid)

  def generator_step(
    self, state: State, x: Images, z: Codes, key: RandomKey, valid
  ) -> tuple[State, Scalars]:
    """Encoder and generator: no term of the one has the other's gradient."""
    return self._fit(state, 'generator', x, z, key, valid)

  def in_use(self, params: PyTree, stats: PyTree):
    """call(part, network, *inputs) with the moving statistics."""
    params, _ = spectral.normalise(params, stats)

    def call(part, name, *inputs, **valid):
      variables = {
        'params': params[part][name],
        'batch_stats': stats[part][name],
      }
      return self.networks[part][name].apply(variables, *inputs, **valid)

    return call

  def scores(
    self, params: PyTree, stats: PyTree, x: Images
  ) -> tuple[Images, dict[str, Float[Array, ' b']]]:
    """G(E(x)), and this method's own scores."""
    call = self.in_use(params, stats)
    y = call('generator', 'generator', call('generator', 'encoder', x))
    _, same = call('discriminator', 'xx', x, x)
    logit, other = call('discriminator', 'xx', x, y)
    return y, {
      'features': jnp.abs(same - other).sum(axis=1),
      'logits': jax.nn.softplus(-logit),
    }


def everything(call, x: Images, z: Codes, valid) -> dict[str, Array]:
  """What all networks make of images and codes, and of one another.

  `call(part, network, *inputs, valid=...)` applies one of them.
  """
  code = call('generator', 'encoder', x, valid=valid)
  fake = call('generator', 'generator', z)
  seen = call('generator', 'generator', code, valid=valid)
  again = call('generator', 'encoder', fake)
  judge = functools.partial(call, 'discriminator')
  return {
    'code': code,
    'fake': fake,
    'seen': seen,
    'again': again,
    'xz_real': judge('xz', x, code, valid=valid),
    'xz_fake': judge('xz', fake, z),
    'xx_real': judge('xx', x, x)[0],
    'xx_fake': judge('xx', x, seen)[0],
    'zz_real': judge('zz', z, z),
    'zz_fake': judge('zz', z, again),
  }


def build(config: ConfigDict, info: Info) -> Method:
  gan = Alad(config.model, config.train, info.image)
  comparison = Comparison(config, info, gan.dtype, OWN)

  def step(state: State, batches: Batches, rng: RandomKey):
    batch, scalars = batches['normal'], {}
    turns = gan.discriminator_step, gan.generator_step
    for turn, key in enumerate(jax.random.split(rng)):
      x, valid = 2 * batch.unit[turn] - 1, batch.row[turn] >= 0
      noise, drop = jax.random.split(key)
      z = jax.random.normal(noise, (len(x), gan.z))
      state, more = turns[turn](state, x, z, drop, valid)
      scalars |= more
    return state, scalars

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    y, own = gan.scores(state.ema, state.batch_stats, batch.signed)
    seen = to_unit(y)
    others, maps = comparison(state.frozen, batch.unit, seen)
    scores = {name: (own | others)[name] for name in config.score.names}
    return Score(scores, maps, {'reconstruction': seen})

  def sample(state: State, rng: RandomKey, count: int) -> Images:
    z = jax.random.normal(rng, (count, gan.z))
    call = gan.in_use(state.ema, state.batch_stats)
    return to_unit(call('generator', 'generator', z))

  phase = Phase('train', gan.init, step, steps=config.train.steps, batches=2)
  return Method(
    (phase,),
    score,
    needs=comparison.needs,
    sample=sample,
    table=names(config.model, info.image),
  )


def names(model: ConfigDict, image: tuple[int, int, int]) -> Table:
  """What the original's checkpoints call the arrays of both parts."""
  last = len(networks.widths(model.width, image[0])) + 1
  encoder = 'encoder_model/encoder/layer_'
  generator = 'generator_model/generator/layer_{i}/tconv{i}'
  xz, xx, zz = (
    f'discriminator_model_{pair}/discriminator_{pair}/'
    for pair in ('xz', 'xx', 'zz')
  )
  norm, leaf = '/batch_normalization/{leaf}', '/{leaf}'
  plain = {
    f'{encoder}{last}/conv': 'generator/encoder/head',
    encoder + '{i}/conv': 'generator/encoder/conv_{i}',
    generator: 'generator/generator/conv_{i}',
    xz + 'x_layer_{i}/conv{i}': 'discriminator/xz/x_{i}',
    xz + 'z_layer_{i}/conv': 'discriminator/xz/z_{i}',
    xz + 'y_layer_1/conv': 'discriminator/xz/y_1',
    xz + 'y_layer_2/conv': 'discriminator/xz/head',
    xx + 'layer_3/fc': 'discriminator/xx/head',
    xx + 'layer_{i}/conv{i}': 'discriminator/xx/conv_{i}',
    zz + 'y_layer_3/fc': 'discriminator/zz/head',
    zz + 'y_layer_{i}/fc': 'discriminator/zz/dense_{i}',
  }
  normed = {
    encoder + '{i}': 'generator/encoder/norm_{i}',
    generator: 'generator/generator/norm_{i}',
    xz + 'x_layer_{i}/conv{i}': 'discriminator/xz/x_norm_{i}',
  }
  return Table(
    TF,
    (
      *((theirs + norm, ours + leaf) for theirs, ours in normed.items()),
      *((theirs + '/u', ours + '/u') for theirs, ours in plain.items()),
      *((theirs + leaf, ours + leaf) for theirs, ours in plain.items()),
    ),
    ignore=(
      r'.*/(ExponentialMovingAverage|Adam(_1)?)',
      r'(.*/)?(beta[12]_power.*|global_step)',
    ),
  )
