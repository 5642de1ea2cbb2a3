"""HealthyGAN: networks, what it shows and scores, and its training's traces.

What follows from gradients is computed in float64, as of munit.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import special
from sklearn import metrics

from jaxmed.method import State
from jaxmed.methods.healthygan import (
  TABLE,
  HealthyGan,
  View,
  make_optimiser,
  make_schedule,
)
from jaxmed.weights.names import from_foreign, to_foreign
from tests.golden import filling

LOSSES = {
  'D/loss_real': 'discriminator/real',
  'D/loss_fake': 'discriminator/fake',
  'D/loss_gp': 'discriminator/penalty',
  'D/loss_total': 'discriminator/loss',
  'G/loss_fake': 'generator/fool',
  'G/loss_fake_id': 'generator/fool_healthy',
  'G/loss_rec': 'generator/reconstruction',
  'G/loss_id': 'generator/identity',
  'G/loss_mask': 'generator/mask',
  'G/loss_total': 'generator/loss',
}
RATES = {'generator': 'g_lr', 'discriminator': 'd_lr'}
MASKS = {'OT': 'mixed', 'OO': 'healthy'}
TERMS = {'min': 'least', 'max': 'most', 'small': 'small', 'zo': 'binary'}
LOSSES |= {
  f'Mask/{theirs}_{term}': f'mask/{ours}_{name}'
  for theirs, ours in MASKS.items()
  for term, name in TERMS.items()
}


def compute(manifest: dict, directory: pathlib.Path) -> dict:
  del directory
  outputs = _forward(manifest)
  for key, trace in manifest['hyperparameters'].items():
    if key.startswith('trace_'):
      with jax.enable_x64(True):
        outputs |= Trace(manifest, key.removeprefix('trace_'), trace).run()
  for name in manifest['outputs']:
    if name.startswith('float64/'):
      outputs[name] = outputs[name.removeprefix('float64/')]
  return outputs


def configure(given: dict, trace: dict, rate: str = 'd_lr') -> ConfigDict:
  """The config whose fields mean what the original's hyperparameters do.

  Its lambda_cls and mask_loss_mode mean nothing there either. It has a `rate`
  for each network.
  """
  weights = {
    'penalty': 'gp',
    'reconstruction': 'rec',
    'identity': 'id',
    'mask': 'mask',
    'small': 'msmall',
    'binary': 'mzerone',
  }
  return ConfigDict(
    {
      'model': {
        'generator_dim': given['g_conv_dim'],
        'residual_blocks': given['g_repeat_num'],
        'discriminator_dim': given['d_conv_dim'],
        'discriminator_layers': given['d_repeat_num'],
        'statistics': 'image',
      },
      'train': {
        'precision': 'float32',
        'fsdp': False,
        'rate': given[rate],
        'beta1': given['beta1'],
        'beta2': given['beta2'],
        'critics': trace['n_critic'],
        # Not always a whole number: the last batches may be the critic's.
        'steps': trace['num_iters'] / trace['n_critic'],
        'decay': 'as_code',
        'decay_last': trace['num_iters_decay'],
        'decay_every': trace['lr_update_step'],
        'small': 'square',
        'weights': {k: given[f'lambda_{v}'] for k, v in weights.items()}
        | {'variation': 0.0},
      },
    }
  )


def _filled(manifest: dict, gan: HealthyGan, x, dtype) -> State:
  """A state with the rule's weights and fresh slots."""
  state = jax.eval_shape(
    lambda: gan.init(jax.random.key(0), State(), x.shape[1:])
  )
  trees = {'params': state.params, 'batch_stats': state.batch_stats}
  trees = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), trees)
  filled = from_foreign(TABLE, filling.state(manifest), trees)
  state = State(batch_stats=filled['batch_stats'])
  for part, params in filled['params'].items():
    state = gan.begin(state, part, params)
  return state


def _inputs(manifest: dict, dtype) -> dict[str, np.ndarray]:
  """Images as ours, and the alphas, which the original draws as uniforms."""
  found = {}
  for name, array in filling.inputs(manifest).items():
    if name.startswith('alpha'):
      uniform = special.ndtr(array.astype(np.float64)).astype(np.float32)
      found[name] = uniform.astype(dtype)
    else:
      found[name] = filling.nhwc(array).astype(dtype)
  return found


def _forward(manifest: dict) -> dict[str, np.ndarray]:
  """What the networks give, and what the original shows and scores."""
  given = manifest['hyperparameters']
  trace = next(v for k, v in given.items() if k.startswith('trace_'))
  config = configure(given, trace)
  x = _inputs(manifest, np.float32)
  channels = x['x_a1'].shape[-1]
  gan = HealthyGan(config.model, config.train, channels)
  state = _filled(manifest, gan, x['x_a1'], np.float32)
  text = manifest['outputs']['testAUC/scores']
  scored = re.findall(r'x_[ab]\d+', text)

  @jax.jit
  def run(state, x):
    one, two = x['x_a1'], x['x_b1']
    own, fixed = gan.raw(state, one), gan.raw(state, one, running=True)
    judge = {'params': state.params['discriminator']}
    features, patches = gan.discriminator.apply(judge, two)
    seen, other = View.of(one, own), gan.view(state, two)
    shown = lambda image: filling.nchw(jnp.clip((image + 1) / 2, 0, 1))
    healthy = {name: gan.view(state, x[name]).healthy for name in scored}
    return {
      'G/eval/image_raw': filling.nchw(fixed.image),
      'G/eval/mask_raw': filling.nchw(fixed.mask),
      'G/train/image_raw': filling.nchw(own.image),
      'G/train/mask_raw': filling.nchw(own.mask),
      'D/features': filling.nchw(features),
      'D/src': filling.nchw(patches),
      'test/fake_a': shown(seen.image),
      'test/healthy_a': shown(seen.healthy),
      'test/mask_a': filling.nchw(seen.mask),
      'test/healthy_b': shown(other.healthy),
      'testAUC/scores': jnp.concatenate(
        [
          jnp.abs(x[name] - healthy[name]).mean((1, 2, 3)) / 2
          for name in scored
        ]
      ),
    }

  found = jax.tree.map(np.asarray, run(state, x))
  labels = np.concatenate(
    [np.full(len(x[name]), int(name[2] == 'a')) for name in scored]
  )
  return found | {
    'testAUC/labels': labels,
    'testAUC/threshold': _cut_off(labels, found['testAUC/scores']),
  }


def _cut_off(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Where sensitivity and specificity are nearest to each other."""
  false, true, thresholds = metrics.roc_curve(labels, scores)
  return thresholds[np.abs(true - (1 - false)).argmin()]


class Trace:
  """One training of the original, again from the rule's weights."""

  def __init__(self, manifest: dict, name: str, trace: dict):
    self.manifest, self.name, self.length = manifest, name, trace['num_iters']
    given = manifest['hyperparameters']
    self.config = configure(given, trace)
    self.x = _inputs(manifest, np.float64)
    self.gan = HealthyGan(
      self.config.model, self.config.train, self.x['x_a1'].shape[-1]
    )
    self.gan.adam = {
      part: filling.recording(
        make_optimiser(configure(given, trace, rate).train, part)
      )
      for part, rate in RATES.items()
    }
    self.state = _filled(manifest, self.gan, self.x['x_a1'], np.float64)

  def run(self) -> dict[str, np.ndarray]:
    gan, train = self.gan, self.config.train
    discriminate, generate = (
      filling.jit(gan.discriminator_step),
      filling.jit(gan.generator_step),
    )
    state, found, steps = self.state, {}, {'G': 0, 'D': 0}
    before = self._theirs(state)
    for i in range(1, self.length + 1):
      x = {'mixed': self.x[f'x_a{i}'], 'healthy': self.x[f'x_b{i}']}
      valid = {k: np.ones(len(v), bool) for k, v in x.items()}
      alpha = self.x[f'alpha{i}']
      found[f'{self.name}/iter{i}/alpha'] = alpha
      state, scalars = discriminate(state, x, alpha.reshape(-1), valid)
      found |= self._step(state, 'D', steps)
      if i % train.critics == 0:
        state, more = generate(state, x, valid)
        found |= self._step(state, 'G', steps)
        scalars = scalars | more
      found |= {
        f'{self.name}/iter{i}/{theirs}': scalars[ours]
        for theirs, ours in LOSSES.items()
        if ours in scalars
      }
    after = self._theirs(state)
    for kind in ('after', 'after_buffers'):
      prefix = f'{self.name}/{kind}'
      names = self.manifest[f'{prefix}/names']
      found |= filling.summaries(prefix, names, after, before)
    return self._gathered(found) | {f'{self.name}/lr': self._rates()}

  def _step(self, state: State, part: str, steps: dict) -> dict:
    """The norms of a part's gradient, by name, at its own step."""
    steps[part] += 1
    ours = {'G': 'generator', 'D': 'discriminator'}[part]
    gradient = to_foreign(TABLE, {'params': {ours: state.opt[ours][0]}})
    norms = {k: filling.summary('l2', v) for k, v in gradient.items()}
    return {(steps[part], part): norms}

  def _gathered(self, found: dict) -> dict[str, np.ndarray]:
    """Norms of both parts together, in the manifest's order."""
    outputs = {k: np.asarray(v) for k, v in found.items() if type(k) is str}
    for number in {k[0] for k in found if type(k) is tuple}:
      name = f'{self.name}/grad_l2_step{number}'
      norms = {}
      for part in 'GD':
        norms |= found.get((number, part), {})
      outputs[name] = np.array(
        [norms[n] for n in self.manifest[f'{name}/names']]
      )
    return outputs

  def _rates(self) -> np.ndarray:
    """The discriminator's; the generator's fall when these do."""
    train = self.config.train
    ours = make_schedule(train, 'discriminator')
    theirs = make_schedule(train, 'generator')
    rates = np.array([float(ours(i)) for i in range(self.length)])
    for step in range(self.length // train.critics):
      same = rates[train.critics * (step + 1) - 1]
      np.testing.assert_allclose(theirs(step), same, rtol=1e-6)
    return rates

  def _theirs(self, state: State) -> dict[str, np.ndarray]:
    return to_foreign(
      TABLE, {'params': state.params, 'batch_stats': state.batch_stats}
    )
