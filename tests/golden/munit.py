"""MUNIT: networks, losses, and two rounds of its training."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmed.method import State
from jaxmed.methods import munit
from jaxmed.nn.fit import start
from jaxmed.weights.names import from_foreign, to_foreign
from tests.golden import filling

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
  config = configure(given)
  outputs = run(manifest, config, np.float32)
  with jax.enable_x64(True):
    exact = run(manifest, config, np.float64)
  for name in manifest['outputs']:
    if name.startswith('float64/'):
      outputs[name] = exact[name.removeprefix('float64/')]
  outputs['lr_trace'] = rate_trace(manifest, config)
  return outputs


def configure(given: dict) -> ConfigDict:
  """The config whose fields mean what the original's hyperparameters do."""
  gen, dis = given['gen'], given['dis']
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
        'schedule': given.get('lr_policy', 'step'),
        'decay': given['gamma'],
        'decay_steps': given['step_size'],
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


def run(manifest: dict, config: ConfigDict, dtype) -> dict[str, np.ndarray]:
  """Everything but the rates, in one precision."""
  given, table = manifest['hyperparameters'], munit.names(config.model)
  channels = {d: given[f'input_dim_{d}'] for d in munit.OTHER}
  networks = munit.Munit(config.model, channels)
  x = {
    name: _nhwc(array).astype(dtype)
    for name, array in filling.inputs(manifest).items()
  }
  images = {d: x[f'x_{d}'] for d in munit.OTHER}

  abstract = jax.eval_shape(
    lambda key: networks.init(key, *images['a'].shape[1:3]), jax.random.key(0)
  )
  as_given = filling.state(manifest)
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract
  )
  params = from_foreign(table, as_given, {'params': abstract})['params']
  outputs = jax.jit(functools.partial(forward, networks))(params, x)

  optimiser = munit.make_optimiser(config.train)
  state = State()
  for part, tree in params.items():
    state = start(state, part, optimiser, tree)
  advance = jax.jit(functools.partial(_round, networks, config, optimiser))
  back = lambda trees: to_foreign(table, {'params': trees})
  names = manifest['after2/names']
  for number in (1, 2):
    styles = [
      {d: x[f'{part}{number}/s_{d}'] for d in munit.OTHER}
      for part in ('dis', 'gen')
    ]
    state, losses, gradients = advance(state, images, styles)
    norms = back(jax.tree.map(np.asarray, gradients))
    outputs |= {f'round{number}/{k}': v for k, v in losses.items()}
    outputs[f'round{number}/grad_l2'] = np.array(
      [filling.summary('l2', norms[name]) for name in names]
    )
  after = back(state.params)
  outputs |= filling.summaries('after2', names, after, as_given)
  outputs['after2/reconstruct'] = _nchw(
    networks.translate(state.params['generator'], 'aa', images['a'])
  )
  return jax.tree.map(np.asarray, outputs)


def forward(networks, params: dict, x: dict) -> dict[str, jax.Array]:
  """What the networks give before any update."""
  generators, critics = params['generator'], params['discriminator']
  x_a, s = x['x_a'], x['s']
  content = networks.content(generators, 'a', x_a)
  style = networks.style(generators, 'a', x_a)
  judged = networks.judge(critics, 'a', x_a)
  on_fake = networks.judge(critics, 'a', x['x_b'])
  return {
    'encode/content': _nchw(content),
    'encode/style': style[:, :, None, None],
    'decode/image': _nchw(networks.decode(generators, 'a', content, s)),
    'decode/adain_params': networks.generator['a'].apply(
      {'params': generators['a']}, s, method='norms'
    ),
    'reconstruct/image': _nchw(networks.translate(generators, 'aa', x_a)),
    'translate/a_to_b': _nchw(networks.decode(generators, 'b', content, s)),
    **{f'dis/out{i}': _nchw(logits) for i, logits in enumerate(judged)},
    'dis/calc_dis_loss': sum(
      jnp.square(fake).mean() + jnp.square(real - 1).mean()
      for fake, real in zip(on_fake, judged, strict=True)
    ),
    'dis/calc_gen_loss': sum(jnp.square(fake - 1).mean() for fake in on_fake),
  }


def _round(networks, config, optimiser, state, images, styles):
  """The method's own update; its losses by the original's names; gradients."""
  weights = config.train.weights
  valid = {d: jnp.ones(len(x), bool) for d, x in images.items()}
  after, scalars = munit.update(
    networks, weights, optimiser, state, images, styles, valid
  )
  old, new = state.params, after.params
  gradients = {
    'discriminator': jax.grad(networks.discriminator_loss, has_aux=True)(
      old['discriminator'], old['generator'], images, styles[0], valid
    )[0],
    'generator': jax.grad(
      lambda params: munit.weighted(
        networks.generator_terms(
          params, new['discriminator'], images, styles[1], valid
        ),
        weights,
      )
    )(old['generator']),
  }
  names = {
    'discriminator/loss': 'dis_total',
    'generator/loss': 'gen_total',
    **{f'discriminator/{d}': f'dis_{d}' for d in munit.OTHER},
  }
  terms = {
    'gan': 'adv',
    'image': 'recon_x',
    'style': 'recon_s',
    'content': 'recon_c',
    'cycle': 'cycrecon_x',
  }
  for ours, theirs in terms.items():
    names |= {f'{ours}/{d}': f'gen_{theirs}_{d}' for d in munit.OTHER}
  losses = {f'loss_{theirs}': scalars[ours] for ours, theirs in names.items()}
  return after, losses, gradients


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


def _nhwc(x: np.ndarray) -> np.ndarray:
  """Images to channels last; a code of one pixel to a vector."""
  return x[:, :, 0, 0] if x.shape[2:] == (1, 1) else x.transpose(0, 2, 3, 1)


def _nchw(x: jax.Array) -> jax.Array:
  return x.transpose(0, 3, 1, 2)
