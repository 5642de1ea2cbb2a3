"""ALOCC against the original in TensorFlow 1."""

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmed.method import State
from jaxmed.methods.alocc import TABLE, Alocc
from jaxmed.weights.names import from_foreign, to_foreign
from tests.golden import filling

PARTS = {'D_step': 'discriminator', 'R_step': 'generator'}


def compute(manifest, directory):
  del directory
  sizes = manifest['hyperparameters']
  alocc = _alocc(sizes)
  weights = filling.state(manifest)
  state = _filled(alocc, weights)
  given = filling.inputs(manifest)
  x = given['x']
  z = x + np.float32(sizes['noise_sigma']) * given['noise']
  valid = np.ones(len(x), bool)

  @jax.jit
  def trained(state):
    call = lambda part, x: alocc.trained(
      part, state.params[part], state.batch_stats[part], x, valid
    )[0]
    return _outputs(alocc, call, x, z, valid)

  @jax.jit
  def in_use(state):
    call = lambda part, x: alocc.in_use(state, part, x)
    return _outputs(alocc, call, x, z, valid)

  found = {f'train/{name}': value for name, value in trained(state).items()}
  found |= {f'inference/{k}': value for k, value in in_use(state).items()}
  for prefix, part in PARTS.items():
    found |= _step(alocc, state, prefix, part, (x, z, valid), manifest, weights)
  return found


def _alocc(sizes) -> Alocc:
  rmsprop = sizes['rmsprop']
  # What the code fixes, because the method does.
  assert (rmsprop['decay'], rmsprop['momentum']) == (0.9, 0)
  assert rmsprop['epsilon'] == 1e-10
  assert (sizes['leaky_relu'], sizes['bn_epsilon']) == (0.2, 1e-5)
  model = {
    'width': sizes['df_dim'],
    'decoder': sizes['gf_dim'],
    'refinement': 'code',
    'weight': sizes['r_alpha'],
  }
  train = {'rate': rmsprop['lr'], 'precision': 'float32'}
  image = sizes['height'], sizes['width'], sizes['channels']
  return Alocc(ConfigDict(model), ConfigDict(train), image)


def _filled(alocc, weights) -> State:
  made = jax.eval_shape(lambda: alocc.init(jax.random.key(0), State()))
  trees = {'params': made.params, 'batch_stats': made.batch_stats}
  filled = from_foreign(TABLE, weights, trees)
  opt = {k: alocc.rmsprop.init(v) for k, v in filled['params'].items()}
  return State(opt=opt, **filled)


def _outputs(alocc, call, x, z, valid) -> dict:
  refined = call('generator', z)
  real, fake = (call('discriminator', images) for images in (x, refined))
  of_d = alocc.discriminator_losses(real, fake, valid)
  of_r = alocc.generator_losses(fake, refined, x, z, valid)
  return {
    'R': refined,
    'D_real_logit': real[:, None],
    'D_fake_logit': fake[:, None],
    'D_real': jax.nn.sigmoid(real)[:, None],
    'D_fake': jax.nn.sigmoid(fake)[:, None],
    'loss/d_real': of_d['real'],
    'loss/d_fake': of_d['fake'],
    'loss/d': of_d['real'] + of_d['fake'],
    'loss/refinement': of_r['refinement'],
    'loss/g': of_r['adversarial'] + alocc.weight * of_r['refinement'],
  }


def _step(alocc, state, prefix, part, given, manifest, weights) -> dict:
  """From the filled state: gradients, and what has moved."""
  losses = {
    'discriminator': alocc.discriminator_loss,
    'generator': alocc.generator_loss,
  }
  gradient = jax.jit(
    jax.grad(lambda p: losses[part](p, state, *given), has_aux=True)
  )(state.params[part])[0]
  after = jax.jit(lambda state: alocc.step(part, state, *given))(state)[0]
  others = {k: v for k, v in after.params.items() if k != part}
  for other, tree in others.items():  # Nothing else has moved.
    jax.tree.map(np.testing.assert_array_equal, tree, state.params[other])
  found = {}
  for what, tree, before in (
    ('grad', gradient, None),
    ('after', after.params[part], weights),
  ):
    names = manifest[f'{prefix}/{what}/names']
    theirs = to_foreign(TABLE, {'params': {part: tree}})
    found |= filling.summaries(f'{prefix}/{what}', names, theirs, before)
  return found
