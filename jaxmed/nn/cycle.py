"""Learning to translate between two domains by the cycle back.

What CycleGAN and SteGANomaly share: losses, a step, a score. The equations
stand in jaxmed/methods/cyclegan.py. A generator is named by the domain of what
it makes, and so is the discriminator that judges this.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key
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
  row_keys,
  to_unit,
  valid_mean,
)
from jaxmed.nn.cyclegan import DOWN, Discriminator, Generator, least
from jaxmed.nn.fit import fit, start
from jaxmed.nn.history import History
from jaxmed.nn.pairs import pair, unpair
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.reconstruction import Comparison
from jaxmed.weights.names import TORCH, Table

OTHER = {'a': 'b', 'b': 'a'}
ROUTES = ('aba', 'bab', 'ab', 'ba')  # Of a score: the domains one by one.
Both = dict[str, PyTree]  # By domain.
Keys = Key[Array, 'b']  # One of each image.
Bridge = Callable[[Keys, Images], Images]  # On images in [-1, 1].
LOGITS = {  # By `model.gan`: of logits and whether they should say real.
  'lsgan': lambda logits, real: jnp.square(logits - real),
  'vanilla': lambda logits, real: optax.sigmoid_binary_cross_entropy(
    logits, jnp.full_like(logits, real)
  ),
}


class Cycle:
  """The networks of both domains, and their losses.

  Everything a trained state is needed for takes its parameters as
  {'a': tree, 'b': tree}. `bridge` is what images of b pass before they are
  translated to a.
  """

  def __init__(
    self,
    model: ConfigDict,
    weights: Mapping[str, float],
    channels: int,
    dtype: jnp.dtype | None = None,
    bridge: Bridge = lambda keys, x: x,
  ):
    self.generator = Generator(
      channels, model.dim, model.residual_blocks, dtype
    )
    self.discriminator = Discriminator(dtype=dtype, **model.discriminator)
    self.channels, self.weights, self.bridge = channels, weights, bridge
    self.gan = LOGITS[model.gan]

  def init(self, key: RandomKey, height: int, width: int) -> dict[str, Both]:
    """The first parameters of both parts."""
    image = jnp.zeros((1, height, width, self.channels))
    keys = iter(jax.random.split(key, 4))
    return {
      part: {d: network.init(next(keys), image)['params'] for d in OTHER}
      for part, network in (
        ('generator', self.generator),
        ('discriminator', self.discriminator),
      )
    }

  def make(self, generators: Both, domain: str, x: Images) -> Images:
    """x as `domain` would show it."""
    return self.generator.apply({'params': generators[domain]}, x)

  def judge(self, discriminators: Both, domain: str, x: Images) -> Array:
    return self.discriminator.apply({'params': discriminators[domain]}, x)

  def travel(
    self, generators: Both, route: str, keys: Keys, x: Images
  ) -> list[Images]:
    """The image as each domain of a route shows it, without the first."""
    views = []
    for domain in route[1:]:
      x = self.make(generators, domain, self._leaving(domain, keys, x))
      views.append(x)
    return views

  def _leaving(self, domain: str, keys: Keys, x: Images) -> Images:
    """An image on its way into `domain`."""
    return self.bridge(keys, x) if domain == 'a' else x

  def generator_terms(
    self, params: Both, discriminators: Both, keys, x, valid
  ) -> tuple[Scalars, Both]:
    """Equations 1 to 3 of both domains, unweighted; and the translations.

    Keys are those of the images, by the domain they are from. Equal calls of
    one network are made as one, on pairs.
    """
    made, terms = {}, {}
    for d, other in OTHER.items():
      leaving = self._leaving(d, keys[other], x[other])
      if self.weights['identity']:
        made[d], same = unpair(self.make(params, d, pair(leaving, x[d])))
        terms[f'identity/{d}'] = _distance(same, x[d], valid[d])
      else:
        made[d] = self.make(params, d, leaving)
    for d, other in OTHER.items():
      logits = self.judge(discriminators, d, made[d])
      terms[f'gan/{d}'] = valid_mean(self.gan(logits, 1.0), valid[other])
      back = self.make(params, d, self._leaving(d, keys[d], made[other]))
      terms[f'cycle/{d}'] = _distance(back, x[d], valid[d])
    return terms, made

  def generator_loss(self, *inputs):
    """The terms' weighted sum; the terms and the translations."""
    terms, made = self.generator_terms(*inputs)
    total = sum(
      self.weights[name.partition('/')[0]] * value
      for name, value in terms.items()
    )
    return total, (terms, made)

  def discriminator_loss(self, params: Both, shown: Both, x, valid):
    """Equation 4, of both domains; and each domain's."""
    losses = {}
    for d, other in OTHER.items():
      fake, real = unpair(self.judge(params, d, pair(shown[d], x[d])))
      losses[f'discriminator/{d}'] = 0.5 * (
        valid_mean(self.gan(fake, 0.0), valid[other])
        + valid_mean(self.gan(real, 1.0), valid[d])
      )
    return sum(losses.values()), losses


def update(
  cycle: Cycle,
  optimiser: optax.GradientTransformation,
  state: State,
  images: Both,
  keys: Mapping[str, Keys],
  valid: Mapping[str, Bool[Array, ' b']],
) -> tuple[State, Scalars]:
  """One update of the generators, then one of the discriminators.

  Images in [-1, 1], a key of each and whether it counts, by domain. The
  discriminators see what was made before the generators' update.
  """
  discriminators = state.params['discriminator']
  state, (terms, made), scalars = fit(
    state,
    'generator',
    optimiser,
    lambda params: cycle.generator_loss(
      params, discriminators, keys, images, valid
    ),
  )
  memory, shown = {}, {}
  for d, other in OTHER.items():
    memory[d], shown[d] = state.memory['history'][d].exchange(
      keys[other], made[d], valid[other]
    )
  state = state.put(memory={'history': memory})
  state, losses, more = fit(
    state,
    'discriminator',
    optimiser,
    lambda params: cycle.discriminator_loss(params, shown, images, valid),
  )
  return state, {**scalars, **terms, **more, **losses}


def make_method(
  config: ConfigDict,
  info: Info,
  bridge: Bridge = lambda keys, x: x,
  views: Mapping[str, Callable[[Images], Images]] | None = None,
) -> Method:
  """Two cohorts, `a` and `b`; one phase, G then D in every step.

  `views` say, by cohort, as what its images in [0, 1] are learned.
  """
  _check(config, info)
  views = views or {}
  dtype = dtype_of(config.train.precision)
  cycle = Cycle(
    config.model, config.train.weights, info.image[2], dtype, bridge
  )
  optimiser = make_optimiser(config.train)

  def init(key: RandomKey, state: State) -> State:
    for part, params in cycle.init(key, *info.image[:2]).items():
      state = start(state, part, optimiser, params)
    empty = History.empty(config.model.history, info.batch, info.image)
    return state.put(memory={'history': dict.fromkeys(OTHER, empty)})

  def step(state: State, batches: Batches, key: RandomKey):
    see = lambda d: views.get(d, lambda x: x)(batches[d].unit)
    images = {d: 2 * see(d) - 1 for d in OTHER}
    draws = dict(zip(OTHER, jax.random.split(key), strict=True))
    keys = {d: row_keys(draws[d], batches[d].row) for d in OTHER}
    valid = {d: batches[d].valid for d in OTHER}
    return update(cycle, optimiser, state, images, keys, valid)

  phase = Phase(
    config.method,
    init,
    step,
    tuple(OTHER),
    steps=config.train.steps,
    finish=lambda key, state: state.replace(memory={}),
  )
  comparison = Comparison(config, info, dtype)
  score = make_score(cycle, config.score.routes, comparison)
  return Method(
    (phase,),
    score,
    needs=comparison.needs,
    sharding=(('memory/history', PartitionSpec('data')),),
    table=names(config.model),
  )


def make_score(cycle: Cycle, routes: Sequence[str], comparison: Comparison):
  """The mean, over routes, of how an image and its last view differ."""
  routes = tuple(routes)

  def score(state: State, batch: Batch, key: RandomKey) -> Score:
    image, keys = batch.unit, row_keys(key, batch.row)
    panels, scores = {}, []
    for route in routes:
      *between, last = (
        to_unit(view)
        for view in cycle.travel(
          state.params['generator'], route, keys, batch.signed
        )
      )
      scores.append(comparison(state.frozen, image, last))
      panels['reconstruction' if not panels else f'by {route}'] = last
      for view in between:
        panels[f'as {route[1]}'] = view
    scores, maps = jax.tree.map(lambda *each: sum(each) / len(each), *scores)
    return Score(scores, maps, panels)

  return score


def make_optimiser(train: ConfigDict) -> optax.GradientTransformation:
  """Adam, of all of a part's arrays as one vector.

  That is less to compile and to launch, unless they lie spread over devices.
  """
  adam = optax.adam(make_schedule(train), b1=train.beta1, b2=train.beta2)
  return adam if train.fsdp else optax.flatten(adam)


def make_schedule(train: ConfigDict) -> optax.Schedule:
  """The rate as it is, then falling on a line that ends a step too late.

  The original counts epochs; this is the same of steps.
  """
  constant = int(train.steps * train.decay_from)
  falling = train.steps - constant

  def rate(count: Int[Array, '']) -> Float[Array, '']:
    over = jnp.maximum(0, count + 1 - constant)
    return train.rate * (1 - over / (falling + 1))

  return rate


def names(model: ConfigDict) -> Table:
  """The names of the original's state_dicts, each after its network's name.

  A is our a. Its G_A makes images of B, and its D_A judges them.
  """
  blocks, layers = model.residual_blocks, model.discriminator.layers
  places = {'conv_in': '1', 'conv_out': f'{blocks + 17}'}
  for i in range(DOWN):
    places[f'down_{i}'] = f'{4 + 3 * i}'
    places[f'up_{i}'] = f'{blocks + 10 + 3 * i}'
  for i in range(blocks):
    for j, layer in enumerate((1, 5)):
      places[f'residual_{i}/conv_{j}'] = f'{10 + i}.conv_block.{layer}'
  critic = {f'conv_{i}': f'{max(0, 3 * i - 1)}' for i in range(layers + 1)}
  critic['head'] = f'{3 * layers + 2}'
  rows = [
    (
      f'net{net}_{theirs}.model.{at}.{{leaf}}',
      f'{part}/{ours}/{layer}/{{leaf}}',
    )
    for theirs, ours in (('A', 'b'), ('B', 'a'))
    for net, part, layers_of in (
      ('G', 'generator', places),
      ('D', 'discriminator', critic),
    )
    for layer, at in layers_of.items()
  ]
  # Older checkpoints hold statistics of norms, which nothing reads.
  return Table(TORCH, tuple(rows), (r'net.*\.running_(mean|var)',))


def _check(config: ConfigDict, info: Info) -> None:
  """What must hold of sizes and choices, in words, before tracing fails."""
  method, model, train = config.method, config.model, config.train
  for kind, found, known in (
    (f'model.gan of {method}', model.gan, LOGITS),
    *(('route in score.routes', r, ROUTES) for r in config.score.routes),
  ):
    if found not in known:
      raise unknown(kind, found, known)
  if not config.score.routes:
    raise UserError(f'{method}: score.routes is empty; name one, as aba.')
  height, width, _ = info.image
  if height % 2**DOWN or width % 2**DOWN:
    raise UserError(
      f'{method}: images of {height} x {width} px cannot be halved {DOWN} '
      f'times; set data.size to a multiple of {2**DOWN}.'
    )
  smallest = max(2 ** (DOWN + 1), least(model.discriminator.layers))
  if min(height, width) < smallest:
    raise UserError(
      f'{method}: images of {min(height, width)} px are too small for a '
      f'discriminator of {model.discriminator.layers} layers (at least '
      f'{smallest} px); set model.discriminator.layers lower, or data.size '
      'higher.'
    )
  if model.history < 0:
    raise UserError(
      f'{method}: model.history is {model.history} images; 0 keeps none, 50 '
      'is as published.'
    )
  if not 0 <= train.decay_from <= 1:
    raise UserError(
      f'{method}: train.decay_from is {train.decay_from}; it is the share of '
      'the steps before the rate falls, from 0 to 1.'
    )


def _distance(x: Array, y: Array, valid: Array) -> Float[Array, '']:
  return valid_mean(jnp.abs(x - y), valid)
