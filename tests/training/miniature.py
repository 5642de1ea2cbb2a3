"""Two methods in miniature that pull the loop in different directions.

`adversaries`: two phases, several batches a step, a lazy term, an encoder.
`bank`: no gradient, one pass, a memory sharded over the devices.
"""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import PartitionSpec

from jaxmed.method import Batch, Info, Method, Phase, Score, State, valid_mean
from jaxmed.nn.fit import fit, start
from jaxmed.training import distributed, loop, run, sharding
from jaxmed.training.unwatched import Unwatched
from jaxmed.watching.choice import Choice, Look

CONFIG = types.SimpleNamespace(steps=9, critics=3, core=5, width=8)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
INFO = Info(image=(8, 8, 1), batch=8, examples={'normal': 50})


def adversaries(config, info: Info) -> Method:
  size = info.image[0] * info.image[1] * info.image[2]
  generator, critic, encoder = nn.Dense(size), nn.Dense(1), nn.Dense(4)
  sgd = optax.sgd(1e-2, momentum=0.9)

  def init(rng, state):
    params = generator.init(rng, jnp.zeros((1, 4)))
    state = start(state, 'generator', sgd, params)
    return start(state, 'critic', sgd, critic.init(rng, jnp.zeros((1, size))))

  def adversarial_step(state, batches, rng):
    reals = batches['normal'].unit.reshape(config.critics, -1, size)
    keys = jax.random.split(rng, config.critics + 1)
    for real, key in zip(reals, keys[1:], strict=True):
      made = generator.apply(state.params['generator'], _noise(key, real))

      def critic_loss(params, made=made, real=real):
        gap = critic.apply(params, made) - critic.apply(params, real)
        return gap.mean(), None

      state, _, scalars = fit(state, 'critic', sgd, critic_loss)

    def generator_loss(params):
      made = generator.apply(params, _noise(keys[0], real))
      return -critic.apply(state.params['critic'], made).mean(), None

    state, _, more = fit(state, 'generator', sgd, generator_loss)
    return state, {**scalars, **more}

  def shrink(state, batches, rng):
    del batches, rng

    def penalty(params):
      return 0.01 * optax.tree.norm(params) ** 2, None

    state, _, scalars = fit(state, 'critic', sgd, penalty)
    return state, {'shrink/loss': scalars['critic/loss']}

  def residual(params, state, batch):
    x = batch.unit.reshape(-1, size)
    code = encoder.apply(params, x)
    return jnp.square(generator.apply(state.params['generator'], code) - x)

  def init_encoder(rng, state):
    return start(state, 'encoder', sgd, encoder.init(rng, jnp.zeros((1, size))))

  def encoder_step(state, batches, rng):
    del rng
    batch = batches['normal']

    def loss(params):
      return valid_mean(residual(params, state, batch), batch.valid), None

    state, _, scalars = fit(state, 'encoder', sgd, loss)
    return state, scalars

  def score(state, batch, rng):
    del rng
    error = residual(state.params['encoder'], state, batch)
    return Score({'residual': error.mean(axis=1)})

  first = Phase(
    'adversaries',
    init,
    adversarial_step,
    steps=config.steps,
    batches=config.critics,
    every=((4, shrink),),
  )
  second = Phase('encoder', init_encoder, encoder_step, steps=config.steps)
  return Method((first, second), score)


def bank(config, info: Info) -> Method:
  size = info.image[0] * info.image[1] * info.image[2]

  def init(rng, state):
    del rng
    shape = info.batches('normal'), info.batch
    return state.put(
      memory={
        'bank': jnp.zeros((*shape, size)),
        'full': jnp.zeros(shape, bool),
        'next': jnp.int32(0),
      }
    )

  def step(state, batches, rng):
    del rng
    batch, memory = batches['normal'], state.memory
    here = memory['next']
    rows = batch.unit.reshape(-1, size) * state.frozen['trunk']
    memory = {
      'bank': memory['bank'].at[here].set(rows),
      'full': memory['full'].at[here].set(batch.valid),
      'next': here + 1,
    }
    images = memory['full'].sum(dtype=jnp.float32)
    return state.put(memory=memory), {'images': images}

  def finish(rng, state):
    del rng
    rows, full = state.memory['bank'], state.memory['full']
    mean = (rows * full[..., None]).sum((0, 1)) / full.sum()
    return state.replace(memory={'mean': mean})

  def score(state, batch, rng):
    del rng
    gap = batch.unit.reshape(-1, size) * state.frozen['trunk']
    gap = gap - state.memory['mean'][None]
    return Score({'distance': jnp.square(gap).mean(axis=1)})

  return Method(
    (Phase('bank', init, step, finish=finish),),
    score,
    needs=('trunk',),
    sharding=(('memory/(bank|full)', PartitionSpec(None, 'data')),),
  )


def _noise(key, like):
  return jax.random.normal(key, (len(like), 4))


def opener(mesh):
  """Batches of IMAGES as the pipeline gives them, without a pipeline."""
  rows = sharding.batch_sharding(mesh, INFO.batch)

  def batch(k, endless):
    at = np.arange(k * INFO.batch, (k + 1) * INFO.batch)
    row = at % len(IMAGES) if endless else np.where(at < len(IMAGES), at, -1)
    label = np.zeros(INFO.batch, np.int32)
    host = Batch(IMAGES[row], row.astype(np.int32), label)
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(
        x.shape, rows, lambda index: x[index]
      ),
      host,
    )

  def open_cohorts(phase, skip):
    endless = phase.steps is not None
    last = None if endless else INFO.batches('normal')
    for step in itertools.islice(itertools.count(), skip, last):
      several = [
        batch(step * phase.batches + i, endless) for i in range(phase.batches)
      ]
      one = several[0]
      if phase.batches > 1:
        one = jax.tree.map(lambda *x: jnp.stack(x), *several)
      yield {name: one for name in phase.cohorts}

  return open_cohorts


class Chooser(Unwatched):
  """Looks at every second step, and takes what it saw of step 6 or so."""

  def __init__(self, folder):
    self._choice = Choice(folder, 'fid')

  def due(self, at):
    return at.step % 2 == 0

  def look(self, at, state):
    # What hosts say may differ; they must keep the same states all the same.
    said = np.array([abs(at.step - 6) + 0.1 * jax.process_index()])
    values = {'fid': float(distributed.of_first(said)[0])}
    self._choice.add(Look(at.event, at.phase, at.step, values), state)
    return values

  def settle(self, phase, during, state):
    return self._choice.settle(phase, during, state)


def train(build, folder, devices=None, method=None, **options):
  """Runs a miniature; returns where it ended and its state on the host."""
  if isinstance(devices, int):
    devices = jax.devices()[:devices]
  mesh = sharding.make_mesh(devices)
  method = method or build(CONFIG, INFO)
  frozen = {'trunk': jnp.float32(2.0)} if method.needs else {}
  given = jax.device_put(State(frozen=frozen), sharding.replicated(mesh))
  plans = loop.plan(method, sharding.place(mesh, method.sharding), given)
  at, state, _ = run.run(
    method,
    opener(mesh),
    plans,
    0,
    folder,
    given,
    INFO.batch,
    **options,
  )
  return at, state
