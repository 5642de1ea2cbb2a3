"""f-AnoGAN against the original in TensorFlow 1."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmed.method import State
from jaxmed.methods.fanogan import TABLE, Fanogan
from jaxmed.nn.fanogan import Encoder
from jaxmed.weights.names import from_foreign, to_foreign
from tests.golden import filling


def compute(manifest, directory):
  del directory
  sizes = manifest['hyperparameters']
  gan = _gan(sizes)
  state = _filled(gan, filling.state(manifest))
  given = filling.inputs(manifest)
  x, z, alpha = given['x'], given['z'], given['alpha'][:, 0]
  return {
    **_adversaries(gan, state, x, z, alpha),
    **_steps(gan, state, x, z, alpha, manifest),
    **_scores(gan, state, x, z, sizes['kappa']),
  }


def _gan(sizes) -> Fanogan:
  adam, rmsprop = sizes['adam'], sizes['rmsprop']
  # What the code fixes, because the method does.
  assert (adam['beta1'], adam['beta2'], adam['epsilon']) == (0, 0.9, 1e-8)
  assert (rmsprop['decay'], rmsprop['momentum']) == (0.9, 0)
  assert rmsprop['epsilon'] == 1e-10
  model = {
    'dim': sizes['dim'],
    'z': sizes['zdim'],
    'tanh': True,
    'kappa': sizes['kappa'],
    'penalty': sizes['gp_lambda'],
  }
  train = {
    'rate': adam['lr'],
    'encoder_rate': rmsprop['lr'],
    'precision': 'float32',
  }
  side = sizes['image_size']
  image = side, side, sizes['channels']
  return Fanogan(ConfigDict(model), ConfigDict(train), image)


def _fresh(gan, key) -> State:
  """A state of all three networks, each with fresh slots."""
  one = gan.init_wgan(key, State())
  two = gan.init_encoder(key, one)
  return two.put(opt=one.opt)


def _filled(gan, weights) -> State:
  state = jax.eval_shape(lambda: _fresh(gan, jax.random.key(0)))
  collections = {'params': state.params, 'batch_stats': state.batch_stats}
  filled = from_foreign(TABLE, weights, collections)
  optimisers = {
    'generator': gan.adam,
    'critic': gan.adam,
    'encoder': gan.rmsprop,
  }
  opt = {k: tx.init(filled['params'][k]) for k, tx in optimisers.items()}
  return State(opt=opt, **filled)


def _adversaries(gan, state, x, z, alpha):
  @jax.jit
  def run(state):
    params, valid = state.params, jnp.ones(len(x), bool)
    stats = state.batch_stats['generator']
    fake, _ = gan.fake(params['generator'], stats, z)
    critic = params['critic']
    critic_loss, aux = gan.critic_loss(critic, x, fake, alpha, valid)
    generator_loss, _ = gan.generator_loss(
      params['generator'], critic, stats, z
    )
    real, features = gan.judge(critic, x)
    return {
      'generator/train': fake,
      'critic/real': real,
      'critic/fake': gan.judge(critic, fake)[0],
      'critic/features': features,
      'gp/slopes': gan.slopes(critic, x, fake, alpha),
      'gp/penalty': aux['critic/penalty'],
      'loss/critic': critic_loss,
      'loss/generator': generator_loss,
    }

  return run(state)


def _steps(gan, state, x, z, alpha, manifest):
  """Each from the filled state: gradients, and what has moved where."""
  valid = jnp.ones(len(x), bool)
  stats = state.batch_stats['generator']
  critic = state.params['critic']

  def critic_loss(params):
    fake, _ = gan.fake(state.params['generator'], stats, z)
    return gan.critic_loss(params, x, fake, alpha, valid)

  losses = {
    'critic': critic_loss,
    'generator': lambda p: gan.generator_loss(p, critic, stats, z),
    'encoder': lambda p: gan.encoder_loss(p, state, x, valid),
  }
  steps = {
    'critic': lambda s: gan.critic_step(s, x, z, alpha, valid),
    'generator': lambda s: gan.generator_step(s, z),
    'encoder': lambda s: gan.encoder_step(s, x, valid),
  }
  found, before = {}, _names(state)
  for part, step in steps.items():
    gradient = jax.jit(jax.grad(losses[part], has_aux=True))
    gradient = to_foreign(
      TABLE, {'params': {part: gradient(state.params[part])[0]}}
    )
    after = _names(jax.jit(step)(state)[0])
    listed = manifest[f'{part}_step/after/names']
    found |= filling.summaries(f'{part}_step/grad', listed, gradient)
    found |= filling.summaries(f'{part}_step/after', listed, after, before)
    moving = manifest.get(f'{part}_step/moving/names', [])
    if moving:
      found |= filling.summaries(f'{part}_step/moving', moving, after, before)
    for name in set(before) - {*listed, *moving}:  # Nothing else has moved.
      np.testing.assert_array_equal(after[name], before[name], name)
  return found


def _names(state):
  return to_foreign(
    TABLE, {'params': state.params, 'batch_stats': state.batch_stats}
  )


def _scores(gan, state, x, z, kappa):
  linear = Encoder(gan.encoder.widths, gan.z, tanh=False)

  @jax.jit
  def run(state):
    variables = {
      'params': state.params['encoder'],
      'batch_stats': state.batch_stats['encoder'],
    }
    valid = jnp.ones(len(x), bool)
    code, _ = gan.encoder.apply(
      variables, x, train=True, valid=valid, mutable=['batch_stats']
    )
    loss, (_, terms) = gan.encoder_loss(
      state.params['encoder'], state, x, valid
    )
    y, distance = gan.reconstruct(state, x)
    image, features = gan.errors(state.params['critic'], x, y)
    return {
      'generator/inference': gan.generate(state, z),
      'encoder/train': code,
      'encoder/inference': gan.encode(state, x),
      'encoder/inference_linear': linear.apply(variables, x),
      'izif/reconstruction': gan.generate(state, code),
      'izif/loss_image': terms['encoder/image'],
      'izif/loss_features': terms['encoder/features'],
      'izif/loss': loss,
      'score/reconstruction': y,
      'score/image': image,
      'score/features': features,
      'score/anomaly': image + kappa * features,
      'score/z_distance': distance,
    }

  return run(state)
