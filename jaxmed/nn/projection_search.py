"""Projection as a method's search: from a batch of images to their scores.

The steps are those of jaxmed.nn.projection. What they start from, and what is
taken of what they find, is here: an image's nearest one among those that the
generator draws, and how far it is.

  distance    d(x, y) of the two, as the search has it, at 256 px or below
  w_distance  |w - mean| / sigma: how unusual a latent it needs
  and those of jaxmed.nn.reconstruction, at the full size

The search starts from the mean latent or, with `model.encoder`, from what an
encoder E makes of the image. E has learned on the generator's own images, whose
latents are known:

  L_E = mean ((w - mean) sqrt(d) / sigma - E(G(w)))^2     d numbers in w
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from jaxmed.errors import UserError, unknown
from jaxmed.method import (
  Batch,
  Batches,
  Images,
  Info,
  Phase,
  PyTree,
  RandomKey,
  Score,
  Search,
  State,
  row_keys,
  to_unit,
)
from jaxmed.nn import lpips, optimisers, projection
from jaxmed.nn.equalised import Conv, Dense, leaky
from jaxmed.nn.fit import fit, start
from jaxmed.nn.projection import Found, Noise
from jaxmed.nn.reconstruction import PART, Comparison

SPACES = ('w', 'w+')
LOSSES = ('lpips', 'l1')
OWN = ('distance', 'w_distance')
ENCODER = 'encoder'  # The part of the state, and the phase.
NARROWEST, WIDEST = 16, 256  # Channels of the encoder.


class Encoder(nn.Module):
  """Images to latents, in units of their deviation from their mean."""

  latent: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: Images) -> Float[Array, 'b d']:
    width = NARROWEST
    x = leaky(Conv(width, 3, dtype=self.dtype, name='input')(x))
    while x.shape[1] > 4:
      width = min(2 * width, WIDEST)
      name = f'conv_{x.shape[1]}'
      x = leaky(Conv(width, 3, stride=2, dtype=self.dtype, name=name)(x))
    x = x.reshape(len(x), -1)
    x = leaky(Dense(WIDEST, dtype=self.dtype, name='dense')(x))
    x = Dense(self.latent, dtype=self.dtype, name='output')(x)
    return x.astype(jnp.float32)


class Projection:
  """The search of a generator's images, and what it says of them.

  Attributes:
    needs: for Method.needs.
    search: for Method.search; None if no score or map needs it.
    phases: what is trained for it once the generator is.
  """

  def __init__(
    self, gan, config: ConfigDict, info: Info, own: tuple[str, ...] = ()
  ):
    """`gan` maps z to w, and w and noise to images in [-1, 1].

    `own` are scores that the method makes itself.
    """
    score = config.score
    for what, name, known in (
      ('space (score.space)', score.space, SPACES),
      ('loss (score.projection.loss)', score.projection.loss, LOSSES),
    ):
      if name not in known:
        raise unknown(f'{what} of a projection', name, known)
    if score.steps < 1:
      raise UserError(
        f'A projection of {score.steps} steps finds nothing; set'
        ' --config.score.steps to 1 or more.'
      )
    self.gan, self.score, self.image = gan, score, info.image
    self.needs, self.search, self.phases = (), None, ()
    if not {*score.names, *score.maps} - set(own):
      return  # Nothing is asked for that a search must find.
    self.projector = projection.Projector(score.projection)
    self.compare = Comparison(config, info, gan.dtype, (*own, *OWN))
    self.needs = self.compare.needs
    if score.projection.loss == 'lpips':
      self.needs = (PART,)
      self._lpips = lpips.Lpips(config.model.lpips, gan.dtype)
      seen = projection.reduce(jnp.zeros((1, *info.image)))
      lpips.check(config.model.lpips, seen, seen)
    self.search = Search(self._init, self._step, score.steps)
    self._encoder = None
    if config.model.encoder:
      self._encoder = Encoder(gan.z, gan.dtype)
      self._adam = optimisers.adam(config.train.encoder_rate)
      steps = config.train.encoder_steps
      self.phases = (
        Phase(ENCODER, self._init_encoder, self._encode_step, steps=steps),
      )

  def scores(self, state: State, batch: Batch, found: Found) -> Score:
    """All of them, the maps asked for, and y as a picture."""
    drawn = self._render(state)(found.free['w'], found.free['noise'])
    y = jnp.clip(to_unit(drawn), 0, 1)
    others, maps = self.compare(state.frozen, batch.unit, y)
    w = found.free['w'].reshape(len(y), -1, self.gan.z)
    squares = jnp.square(w - found.mean[None, None]).sum(axis=-1)
    own = {
      'distance': self._distance(state, found.target)(projection.reduce(drawn)),
      'w_distance': jnp.sqrt(squares.mean(axis=1)) / found.sigma,
    }
    return Score(own | others, maps, {'projection': y})

  def _init(self, key: RandomKey, state: State, batch: Batch) -> Found:
    if batch.image.shape[1:] != self.image:
      height, width, channels = batch.image.shape[1:]
      raise UserError(
        f'The generator draws images of {" x ".join(map(str, self.image))},'
        f' and cannot be held to one of {height} x {width} x {channels};'
        ' resize it, or train on images of its size.'
      )
    x = batch.signed
    mean, sigma = self._statistics(state)
    w = jnp.broadcast_to(mean, (len(x), len(mean)))
    if self._encoder is not None:
      made = self._encoder.apply({'params': state.params[ENCODER]}, x)
      w = w + made * (sigma / jnp.sqrt(len(mean)))
    if self.score.space == 'w+':
      w = self.gan.each_layer(w)
    target = self._target(state, projection.reduce(x))
    noise = self._noise(key, batch.row)
    return self.projector.start(w, noise, mean, sigma, target)

  def _step(
    self,
    key: RandomKey,
    state: State,
    batch: Batch,
    found: Found,
    number: Int[Array, ''],
  ) -> Found:
    t = number / self.search.steps
    w = found.free['w']
    # Apart from the keys of noise, which are of layers.
    key = jax.random.fold_in(jax.random.fold_in(key, 1), number)
    drawn = projection.normal(row_keys(key, batch.row), w.shape[1:])
    gradient, _ = self.projector.gradient(
      found.free,
      self.projector.jitter(t, found.sigma) * drawn,
      batch.signed,
      self._render(state),
      self._distance(state, found.target),
    )
    return self.projector.move(found, gradient, t)

  def _statistics(self, state: State):
    """The mean and sigma of latents, the same in every batch."""
    shape = self.score.projection.samples, self.gan.z
    z = jax.random.normal(jax.random.key(projection.SEED), shape)
    return projection.statistics(self.gan.map(_generator(state), z))

  def _noise(self, key: RandomKey, rows: Int[Array, ' b']) -> Noise:
    keys = row_keys(jax.random.fold_in(key, 0), rows)
    of_layer = lambda i: jax.vmap(lambda one: jax.random.fold_in(one, i))(keys)
    return tuple(
      projection.normal(of_layer(i), (side, side, 1))
      for i, side in enumerate(self.gan.synthesis.noise_sides)
    )

  def _render(self, state: State) -> projection.Render:
    def render(w, noise):
      w = w if w.ndim == 3 else self.gan.each_layer(w)
      return self.gan.draw(_generator(state), w, noise)

    return render

  def _target(self, state: State, x: Images) -> PyTree:
    """What is kept of x for `_distance`."""
    if self.score.projection.loss == 'l1':
      return x
    return self._lpips.apply(state.frozen[PART], to_unit(x), method='kept')

  def _distance(self, state: State, target: PyTree) -> projection.Distance:
    if self.score.projection.loss == 'l1':
      return lambda y: jnp.abs(target - y).mean(axis=(1, 2, 3))
    return lambda y: self._lpips.apply(
      state.frozen[PART], target, to_unit(y), method='against'
    )

  def _init_encoder(self, key: RandomKey, state: State) -> State:
    made = self._encoder.init(key, jnp.zeros((1, *self.image)))['params']
    mean, sigma = self._statistics(state)
    state = state.replace(opt={})  # The generator is done.
    state = state.put(memory={ENCODER: {'mean': mean, 'sigma': sigma}})
    return start(state, ENCODER, self._adam, made)

  def _encode_step(self, state: State, batches: Batches, rng: RandomKey):
    count, gan = len(batches['normal'].row), self.gan
    keys = jax.random.split(rng)
    mean, sigma = (state.memory[ENCODER][k] for k in ('mean', 'sigma'))
    w = gan.map(_generator(state), jax.random.normal(keys[0], (count, gan.z)))
    x = self._render(state)(w, gan.noises(keys[1], count))
    wanted = (w - mean[None]) * (jnp.sqrt(len(mean)) / sigma)

    def loss(params):
      made = self._encoder.apply({'params': params}, jnp.clip(x, -1, 1))
      return jnp.square(made - wanted).mean(), {}

    state, _, scalars = fit(state, ENCODER, self._adam, loss)
    return state, scalars


def _generator(state: State) -> PyTree:
  """Its moving average."""
  return state.ema['generator']
