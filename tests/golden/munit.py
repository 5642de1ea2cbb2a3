"""MUNIT: networks, losses, and two rounds of its training.

What follows from gradients is computed in float64: where a rectifier or an
absolute value lies within rounding of its kink, float32 takes either side,
and one such place turns a gradient of a small network by a thousandth.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmed.method import State
from jaxmed.methods import munit
from jaxmed.nn.fit import fit, start
from jaxmed.weights.names import from_foreign, to_foreign
from tests.golden import check, filling

# What our networks are; a case that differs there is not ours to compute.
FIXED = {
  'gen': {'activ': 'relu', 'pad_type': 'reflect'},
  'dis': {'activ': 'lrelu', 'pad_type': 'reflect', 'norm': 'none'},
}


def compute(manifest: dict, directory: pathlib.Path) -> dict:
  del directory
  given = manifest['hyperparameters']
  for part, options in FIXED.items():
    for name, value in options.items():
      if given[part].get(name, value) != value:
        raise ValueError(f'munit has no {part}.{name} {given[part][name]!r}')
  if given['vgg_w']:
    raise ValueError('the case munit has no VGG term, which vgg_w asks for')
  config = configure(given)
  outputs = Run(manifest, config, np.float32).forward()
  with jax.enable_x64(True):
    trace = Run(manifest, config, np.float64).train()
  for name in manifest['outputs']:
    if name not in outputs and name.removeprefix('float64/') in trace:
      outputs[name] = trace[name.removeprefix('float64/')]
  return outputs | {'lr_trace': rate_trace(manifest, config)}


def tolerance(name: str, manifest: dict) -> float | None:
  """An image after the updates is still an image."""
  del manifest
  return check.CLOSE if name == 'after2/reconstruct' else None


def configure(given: dict) -> ConfigDict:
  """The config whose fields mean what the original's hyperparameters do."""
  gen, dis = given['gen'], given['dis']
  policy = given.get('lr_policy', 'constant')
  falls = policy != 'constant'
  return ConfigDict(
    {
      'model': {
        'dim': gen['dim'],
        'mlp_dim': gen['mlp_dim'],
        'style_dim': gen['style_dim'],
        'downsamplings': gen['n_downsample'],
        'residual_blocks': gen['n_res'],
        'discriminator': {
          'dim': dis['dim'],
          'layers': dis['n_layer'],
          'scales': dis['num_scales'],
        },
        'gan': dis['gan_type'],
        'tied_init': False,
      },
      'train': {
        'fsdp': False,
        'rate': given['lr'],
        'beta1': given['beta1'],
        'beta2': given['beta2'],
        'weight_decay': given['weight_decay'],
        'schedule': policy if falls else 'step',
        'decay': given['gamma'] if falls else 1.0,
        'decay_steps': given['step_size'] if falls else 1,
        'weights': {
          'gan': given['gan_w'],
          'image': given['recon_x_w'],
          'style': given['recon_s_w'],
          'content': given['recon_c_w'],
          'cycle': given['recon_x_cyc_w'],
          'vgg': given['vgg_w'],
        },
      },
    }
  )


class Run:
  """The networks in one precision, filled, with the inputs."""

  def __init__(self, manifest: dict, config: ConfigDict, dtype):
    self.manifest, self.config = manifest, config
    self.table = munit.names(config.model)
    given = manifest['hyperparameters']
    channels = {d: given[f'input_dim_{d}'] for d in munit.OTHER}
    self.munit = munit.Munit(config.model, config.train.weights, channels)
    self.optimiser = filling.recording(munit.make_optimiser(config.train))
    self.x = {
      name: filling.nhwc(array).astype(dtype)
      for name, array in filling.inputs(manifest).items()
    }
    self.images = {d: self.x[f'x_{d}'] for d in munit.OTHER}
    self.valid = {d: np.ones(len(x), bool) for d, x in self.images.items()}

    sides = self.images['a'].shape[1:3]
    shapes = jax.eval_shape(
      lambda key: self.munit.init(key, *sides), jax.random.key(0)
    )
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes
    )
    self.given = filling.state(manifest)
    params = from_foreign(self.table, self.given, {'params': shapes})['params']
    self.state = State()
    for part, tree in params.items():
      self.state = start(self.state, part, self.optimiser, tree)

  def styles(self, part: str, number: int) -> dict:
    return {d: self.x[f'{part}{number}/s_{d}'] for d in munit.OTHER}

  def forward(self) -> dict[str, np.ndarray]:
    """What the networks give, and round 1's losses."""

    def both(state, x):
      return _forward(self.munit, state.params, x) | self._first_losses(state)

    return jax.tree.map(np.asarray, filling.jit(both)(self.state, self.x))

  def _first_losses(self, state: State) -> dict[str, jax.Array]:
    generators = state.params['generator']
    state, losses, scalars = fit(
      state,
      'discriminator',
      self.optimiser,
      lambda params: self.munit.discriminator_loss(
        params, generators, self.images, self.styles('dis', 1), self.valid
      ),
    )
    total, terms = self.munit.generator_loss(
      generators,
      state.params['discriminator'],
      self.images,
      self.styles('gen', 1),
      self.valid,
    )
    losses = scalars | losses | terms | {'generator/loss': total}
    return _named('round1', losses)

  def train(self) -> dict[str, np.ndarray]:
    """Two rounds of the method's own update."""

    @filling.jit
    def advance(state, styles):
      return munit.update(
        self.munit,
        self.optimiser,
        state,
        self.images,
        styles,
        self.valid,
      )

    state, outputs = self.state, {}
    names = self.manifest['after2/names']
    for number in (1, 2):
      styles = [self.styles(part, number) for part in ('dis', 'gen')]
      state, losses = advance(state, styles)
      gradients = self._theirs({k: v[0] for k, v in state.opt.items()})
      outputs |= _named(f'round{number}', losses)
      outputs[f'round{number}/grad_l2'] = np.array(
        [filling.summary('l2', gradients[name]) for name in names]
      )
    after = self._theirs(state.params)
    outputs |= filling.summaries('after2', names, after, self.given)
    reconstruct = filling.jit(
      lambda params, x: self.munit.translate(params, 'aa', x)
    )
    outputs['after2/reconstruct'] = filling.nchw(
      reconstruct(state.params['generator'], self.images['a'])
    )
    return jax.tree.map(np.asarray, outputs)

  def _theirs(self, trees: dict) -> dict[str, np.ndarray]:
    return to_foreign(self.table, {'params': trees})


def _forward(networks, params: dict, x: dict) -> dict[str, jax.Array]:
  generators, critics = params['generator'], params['discriminator']
  x_a, s = x['x_a'], x['s']
  content = networks.content(generators, 'a', x_a)
  style = networks.style(generators, 'a', x_a)
  judged = networks.judge(critics, 'a', x_a)
  on_fake = networks.judge(critics, 'a', x['x_b'])
  return {
    'encode/content': filling.nchw(content),
    'encode/style': style[:, :, None, None],
    'decode/image': filling.nchw(networks.decode(generators, 'a', content, s)),
    'decode/adain_params': networks.generator['a'].apply(
      {'params': generators['a']}, s, method='norms'
    ),
    'reconstruct/image': filling.nchw(
      networks.translate(generators, 'aa', x_a)
    ),
    'translate/a_to_b': filling.nchw(
      networks.decode(generators, 'b', content, s)
    ),
    **{f'dis/out{i}': filling.nchw(logits) for i, logits in enumerate(judged)},
    'dis/calc_dis_loss': sum(
      jnp.square(fake).mean() + jnp.square(real - 1).mean()
      for fake, real in zip(on_fake, judged, strict=True)
    ),
    'dis/calc_gen_loss': sum(jnp.square(fake - 1).mean() for fake in on_fake),
  }


def _named(prefix: str, scalars: dict) -> dict[str, jax.Array]:
  """A step's losses by the original's names."""
  names = {'discriminator/loss': 'dis_total', 'generator/loss': 'gen_total'}
  terms = {
    'gan': 'adv',
    'image': 'recon_x',
    'style': 'recon_s',
    'content': 'recon_c',
    'cycle': 'cycrecon_x',
  }
  for d in munit.OTHER:
    names[f'discriminator/{d}'] = f'dis_{d}'
    names |= {f'{our}/{d}': f'gen_{their}_{d}' for our, their in terms.items()}
  return {
    f'{prefix}/loss_{their}': scalars.get(our, 0.0)  # No cycle.
    for our, their in names.items()
  }


def rate_trace(manifest: dict, config: ConfigDict) -> np.ndarray:
  """The rates of the first iterations, with the constants its text names."""
  text = manifest['outputs']['lr_trace']
  said = dict(re.findall(r'(lr|step_size|gamma) ([\d.e-]*\d)', text))
  count = re.search(r'iterations 0\.\.(\d+)', text)
  train = ConfigDict(config.train)
  train.rate, train.decay = float(said['lr']), float(said['gamma'])
  train.decay_steps = int(said['step_size'])
  schedule = munit.make_schedule(train)
  return np.array([schedule(i) for i in range(int(count[1]) + 1)])
