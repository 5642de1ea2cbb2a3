"""MUNIT, and anomalies as what a translation between healthy cohorts loses.

Huang, Liu, Belongie, Kautz: Multimodal Unsupervised Image-to-Image
Translation, ECCV 2018. Used for detection in histology by Stepec and Skocaj:
Unsupervised Detection of Cancerous Regions in Histology Imagery using
Image-to-Image Translation, CVPRW 2021.

Two healthy cohorts a and b; each has a content encoder Ec, a style encoder
Es, a decoder G and a discriminator D of its own. With c_a = Ec_a(x_a),
s'_a = Es_a(x_a), a drawn style s_a ~ N(0, I) and x_ba = G_a(c_b, s_a), which
is an image of b as a would show it (and the same with a and b exchanged):

  image    |G_a(c_a, s'_a) - x_a|                                   (1)
  style    |Es_a(x_ba) - s_a|                                       (2)
  content  |Ec_a(x_ba) - c_b|, with gradient into both              (3)
  cycle    |G_a(Ec_b(x_ab), s'_a) - x_a|                            (4)
  gan      sum over scales of mean (D_a(x_ba) - 1)^2                (5)
  vgg      |IN(V(x_ba)) - IN(V(x_b))|^2, V a pretrained VGG16        (6)
  D_a      sum over scales of mean D_a(x_ba)^2 + mean (D_a(x_a) - 1)^2
                                                                    (7)

A step is D's by (7), weighted as (5) is, then G's by the weighted sum of (1) to
(6) over both domains, on the same images with new styles. To score x, its
content as a sees it is decoded with its own style as b sees it,
y = G_b(Ec_a(x), Es_b(x)); what healthy tissue has no words for is lost on that
way, and the score is how x and y differ. The first paper gives no other way
than a to b; `score.routes` has them all: 'ba' backwards, 'aa' and 'bb' within a
domain.

The cycle (4) is off in half of the original's configurations; here it is on
(10), as the authors advise where pixels should stay in place. The perceptual
term (6) is on in its configuration for 512 px alone, and off here.
"""

from collections.abc import Sequence

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
  row_keys,
  to_unit,
  valid_mean,
)
from jaxmed.nn.fit import fit, start
from jaxmed.nn.munit import STYLE_DOWN, Discriminator, Generator, Style
from jaxmed.nn.pairs import pair, unpair
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.reconstruction import Comparison
from jaxmed.nn.trunk import NETWORKS
from jaxmed.nn.vgg_loss import INPUTS, LEAST, STAGE, VggLoss
from jaxmed.weights.names import TORCH, Table

OTHER = {'a': 'b', 'b': 'a'}
ROUTES = ('ab', 'ba', 'aa', 'bb')  # Of a score: content, then style and G.
Both = dict[str, PyTree]  # By domain.


class Munit:
  """The networks of both domains, and their losses.

  `channels` is by domain; everything a trained state is needed for takes its
  parameters as {'a': tree, 'b': tree}.
  """

  def __init__(
    self,
    model: ConfigDict,
    weights: ConfigDict,
    channels: dict[str, int],
    dtype: jnp.dtype | None = None,
  ):
    if model.gan != 'lsgan':
      raise unknown('model.gan of munit', model.gan, ['lsgan'])
    sizes = {
      k: model[k]
      for k in (
        'dim',
        'mlp_dim',
        'style_dim',
        'downsamplings',
        'residual_blocks',
      )
    }
    self.generator = {
      d: Generator(channels=channels[d], dtype=dtype, **sizes) for d in OTHER
    }
    self.discriminator = {
      d: Discriminator(dtype=dtype, **model.discriminator) for d in OTHER
    }
    self.channels, self.weights = channels, weights
    self.style_dim, self.tied = model.style_dim, model.tied_init
    if weights.vgg:
      vgg = NETWORKS[model.vgg](dtype=dtype, last=STAGE)
      self.vgg_loss = VggLoss(vgg, model.vgg_input)

  def init(self, key: RandomKey, height: int, width: int) -> dict[str, Both]:
    """The first parameters of both parts."""
    keys = jax.random.split(key, 4)
    image = {d: jnp.zeros((1, height, width, self.channels[d])) for d in OTHER}
    first = {'a': 0, 'b': 0 if self.tied else 1}
    return {
      'generator': {
        d: self.generator[d].init(keys[first[d]], image[d])['params']
        for d in OTHER
      },
      'discriminator': {
        d: self.discriminator[d].init(keys[2 + i], image[d])['params']
        for i, d in enumerate(OTHER)
      },
    }

  def _apply(self, generators: Both, domain: str, how: str, *inputs):
    variables = {'params': generators[domain]}
    return self.generator[domain].apply(variables, *inputs, method=how)

  def content(self, generators: Both, domain: str, x: Images) -> Array:
    return self._apply(generators, domain, 'content', x)

  def style(self, generators: Both, domain: str, x: Images) -> Style:
    return self._apply(generators, domain, 'style', x)

  def decode(self, generators: Both, domain: str, content, style) -> Images:
    return self._apply(generators, domain, 'decode', content, style)

  def judge(self, discriminators: Both, domain: str, x: Images) -> list[Array]:
    variables = {'params': discriminators[domain]}
    return self.discriminator[domain].apply(variables, x)

  def translate(self, generators: Both, route: str, x: Images) -> Images:
    """x by its content in the route's first domain, style in its second."""
    content = self.content(generators, route[0], x)
    style = self.style(generators, route[1], x)
    return self.decode(generators, route[1], content, style)

  def discriminator_loss(
    self, params: Both, generators: Both, x, styles, valid
  ):
    """Equation 7 of both domains, weighted as 5 is; and each domain's."""
    contents = {d: self.content(generators, d, x[d]) for d in OTHER}
    losses = {}
    for d, other in OTHER.items():
      fake = self.decode(generators, d, contents[other], styles[d])
      both = pair(jax.lax.stop_gradient(fake), x[d])
      losses[f'discriminator/{d}'] = sum(
        valid_mean(jnp.square(fake), valid[other])
        + valid_mean(jnp.square(real - 1), valid[d])
        for fake, real in map(unpair, self.judge(params, d, both))
      )
    return self.weights.gan * sum(losses.values()), losses

  def generator_terms(
    self, params: Both, discriminators: Both, x, styles, valid, vgg=None
  ):
    """Equations 1 to 6 of both domains, unweighted.

    Equal calls of one network are made as one, on pairs. `vgg` are the
    variables of the pretrained network, if its term has a weight.
    """
    contents = {d: self.content(params, d, x[d]) for d in OTHER}
    own = {d: self.style(params, d, x[d]) for d in OTHER}
    decoded = {
      d: unpair(
        self.decode(
          params,
          d,
          pair(contents[d], contents[other]),
          pair(own[d], styles[d]),
        )
      )
      for d, other in OTHER.items()
    }
    crossed = {d: cross for d, (_, cross) in decoded.items()}
    again = {d: self.content(params, d, crossed[d]) for d in OTHER}
    terms = {}
    for d, other in OTHER.items():
      terms |= {
        f'image/{d}': _distance(decoded[d][0], x[d], valid[d]),
        f'style/{d}': _distance(
          self.style(params, d, crossed[d]), styles[d], valid[other]
        ),
        f'content/{d}': _distance(again[other], contents[d], valid[d]),
        f'gan/{d}': sum(
          valid_mean(jnp.square(logits - 1), valid[other])
          for logits in self.judge(discriminators, d, crossed[d])
        ),
      }
      if self.weights.cycle:
        cycle = self.decode(params, d, again[other], own[d])
        terms[f'cycle/{d}'] = _distance(cycle, x[d], valid[d])
      if self.weights.vgg:
        seen = to_unit(crossed[d]), to_unit(x[other])
        lost = self.vgg_loss.apply(vgg, *seen)
        terms[f'vgg/{d}'] = valid_mean(lost, valid[other])
    return terms

  def generator_loss(self, *inputs) -> tuple[Float[Array, ''], Scalars]:
    """The terms' weighted sum, and the terms."""
    terms = self.generator_terms(*inputs)
    total = sum(
      self.weights[name.partition('/')[0]] * value
      for name, value in terms.items()
    )
    return total, terms


def build(config: ConfigDict, info: Info) -> Method:
  """Two cohorts, `a` and `b`; one phase, D then G in every step."""
  _check(config, info)
  dtype = dtype_of(config.train.precision)
  channels = dict.fromkeys(OTHER, info.image[2])
  munit = Munit(config.model, config.train.weights, channels, dtype)
  optimiser = make_optimiser(config.train)

  def init(key: RandomKey, state: State) -> State:
    for part, params in munit.init(key, *info.image[:2]).items():
      state = start(state, part, optimiser, params)
    return state

  def step(state: State, batches: Batches, key: RandomKey):
    draws = jax.random.split(key)
    styles = [
      {d: _draw(k, d, batches, munit.style_dim) for d in OTHER} for k in draws
    ]
    images = {d: batches[d].signed for d in OTHER}
    valid = {d: batches[d].valid for d in OTHER}
    return update(munit, optimiser, state, images, styles, valid)

  phase = Phase('munit', init, step, tuple(OTHER), steps=config.train.steps)
  comparison = Comparison(config, info, dtype)
  needs = (*(('vgg',) if config.train.weights.vgg else ()), *comparison.needs)
  score = make_score(munit, config.score.routes, comparison)
  return Method((phase,), score, needs=needs, table=names(config.model))


def update(
  munit: Munit,
  optimiser: optax.GradientTransformation,
  state: State,
  images: Both,
  styles: list[Both],
  valid: Both,
) -> tuple[State, Scalars]:
  """One update of the discriminators, then one of the generators.

  Images in [-1, 1] and whether they count, by domain; of the drawn styles the
  first are the discriminators', the second the generators'.
  """
  generators = state.params['generator']
  state, losses, scalars = fit(
    state,
    'discriminator',
    optimiser,
    lambda params: munit.discriminator_loss(
      params, generators, images, styles[0], valid
    ),
  )
  discriminators = state.params['discriminator']
  state, terms, more = fit(
    state,
    'generator',
    optimiser,
    lambda params: munit.generator_loss(
      params,
      discriminators,
      images,
      styles[1],
      valid,
      state.frozen.get('vgg'),
    ),
  )
  return state, {**scalars, **losses, **more, **terms}


def make_optimiser(train: ConfigDict) -> optax.GradientTransformation:
  """Adam, with weight decay as a part of the gradient, on all parameters.

  All of a part's arrays move as one vector, which is less to compile and to
  launch, unless they lie spread over the devices.
  """
  adam = optax.adam(make_schedule(train), b1=train.beta1, b2=train.beta2)
  both = optax.chain(optax.add_decayed_weights(train.weight_decay), adam)
  return both if train.fsdp else optax.flatten(both)


def make_schedule(train: ConfigDict) -> optax.Schedule:
  """`step`: the original's, which ticks before the update; or `cosine`."""
  if train.schedule == 'step':
    return lambda count: (
      train.rate * train.decay ** ((count + 1) // train.decay_steps)
    )
  if train.schedule == 'cosine':
    return optax.warmup_cosine_decay_schedule(
      0.0,
      train.rate,
      min(train.warmup, train.steps // 2),
      train.steps,
      train.rate * train.last,
    )
  raise unknown('train.schedule', train.schedule, ['step', 'cosine'])


def make_score(munit: Munit, routes: Sequence[str], comparison: Comparison):
  """The mean, over routes, of how an image and its translation differ."""
  routes = tuple(routes)
  for route in routes:
    if route not in ROUTES:
      raise unknown('route in score.routes', route, ROUTES)
  if not routes:
    raise UserError('munit: score.routes is empty; name at least one, as ab.')

  def score(state: State, batch: Batch, key: RandomKey) -> Score:
    del key
    generators, image = state.params['generator'], batch.unit
    views = [
      to_unit(munit.translate(generators, route, batch.signed))
      for route in routes
    ]
    scores, maps = jax.tree.map(
      lambda *each: sum(each) / len(each),
      *(comparison(state.frozen, image, view) for view in views),
    )
    names = ['reconstruction', *(f'by {route}' for route in routes[1:])]
    return Score(scores, maps, dict(zip(names, views, strict=True)))

  return score


def names(model: ConfigDict) -> Table:
  """The names of the original's state_dict, for both parts of a state."""
  here, depth = 'generator/{d}', model.downsamplings
  gen, rows = 'gen_{d}.', []
  rows += [
    (gen + 'enc_style.model.6.{leaf}', here + '/style_encoder/head/{leaf}'),
    (
      gen + 'enc_style.model.{i}.conv.{leaf}',
      here + '/style_encoder/conv_{i}/{leaf}',
    ),
    (
      gen
      + f'enc_content.model.{depth + 1}.model.{{i}}.model.{{j}}.conv.{{leaf}}',
      here + '/content_encoder/residual_{i}/conv_{j}/{leaf}',
    ),
    (
      gen + 'enc_content.model.{i}.conv.{leaf}',
      here + '/content_encoder/conv_{i}/{leaf}',
    ),
    (
      gen + 'dec.model.0.model.{i}.model.{j}.conv.{leaf}',
      here + '/decoder/residual_{i}/conv_{j}/{leaf}',
    ),
    (
      gen + f'dec.model.{2 * depth + 1}.conv.{{leaf}}',
      here + '/decoder/head/{leaf}',
    ),
    (gen + 'mlp.model.{i}.fc.{leaf}', here + '/style_map/dense_{i}/{leaf}'),
  ]
  for i in range(depth):
    block, ours = gen + f'dec.model.{2 * i + 2}', here + '/decoder'
    rows += [
      (block + '.conv.{leaf}', ours + f'/conv_{i}/{{leaf}}'),
      (block + '.norm.gamma', ours + f'/norm_{i}/scale'),
      (block + '.norm.beta', ours + f'/norm_{i}/bias'),
    ]
  critic = 'discriminator/{d}/scale_{s}/'
  layers = model.discriminator.layers
  rows += [
    (f'dis_{{d}}.cnns.{{s}}.{layers}.{{leaf}}', critic + 'head/{leaf}'),
    ('dis_{d}.cnns.{s}.{i}.conv.{leaf}', critic + 'conv_{i}/{leaf}'),
  ]
  # Adaptive norms register statistics which nothing reads.
  return Table(TORCH, tuple(rows), (r'gen_.*\.norm\.running_(mean|var)',))


def _draw(key, domain: str, batches: Batches, style_dim: int) -> Style:
  """A style for each image that is to be shown as `domain` would."""
  key = jax.random.fold_in(key, list(OTHER).index(domain))
  keys = row_keys(key, batches[OTHER[domain]].row)
  return jax.vmap(lambda key: jax.random.normal(key, (style_dim,)))(keys)


def _distance(x: Array, y: Array, valid: Array) -> Float[Array, '']:
  """Mean absolute difference, in float32 at least."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return valid_mean(jnp.abs(x.astype(wide) - y.astype(wide)), valid)


def _check(config: ConfigDict, info: Info):
  """What must hold of sizes and weights, in words, before tracing fails."""
  model, side = config.model, min(info.image[:2])
  unit = 2**model.downsamplings
  if any(length % unit for length in info.image[:2]):
    raise UserError(
      f'munit: images of {info.image[0]} x {info.image[1]} px cannot be '
      f'halved {model.downsamplings} times; set data.size to a multiple of '
      f'{unit}.'
    )
  # A reflected border of one pixel needs two of them before each halving.
  critic = model.discriminator
  least = max(
    2**STYLE_DOWN,
    2 ** (model.downsamplings + 1),
    (2**critic.layers - 1) * 2 ** (critic.scales - 1) + 1,
  )
  if side < least:
    raise UserError(
      f'munit: images of {side} px are too small for '
      f'{critic.scales} scales of {critic.layers} layers (at least {least} '
      'px); set model.discriminator.scales or .layers lower, or data.size '
      'higher.'
    )
  if config.train.weights.vgg:
    if model.vgg != 'vgg16':
      raise unknown('model.vgg of munit', model.vgg, ['vgg16'])
    if model.vgg_input not in INPUTS:
      raise unknown('model.vgg_input', model.vgg_input, INPUTS)
    if side < LEAST:
      raise UserError(
        f'munit: train.weights.vgg is {config.train.weights.vgg}, but of '
        f'images of {side} px VGG16 leaves nothing to compare; set it to 0, '
        f'or data.size to {LEAST} at least.'
      )
