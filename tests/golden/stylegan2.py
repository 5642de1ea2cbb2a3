"""StyleGAN2 against a port of the original to PyTorch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmed.method import Info, State
from jaxmed.methods.stylegan2 import StyleGan2
from jaxmed.nn import stylegan2 as networks
from jaxmed.ops import fir
from jaxmed.weights.names import TORCH, Table, from_foreign, to_foreign
from tests.golden import filling, projecting, rule

LAYERS = {
  'mod_same': {'window': 3},
  'mod_up': {'window': 3, 'resample': 'up'},
  'mod_down': {'window': 3, 'resample': 'down'},
  'mod_plain': {'window': 1, 'demodulate': False},
}
FILTERS = {
  'fir_up': (4, {'up': (2, 2), 'pads': ((2, 1), (2, 1))}),
  'fir_down': (1, {'down': (2, 2), 'pads': ((1, 1), (1, 1))}),
  'fir_blur_22': (1, {'pads': ((2, 2), (2, 2))}),
  'fir_blur_21': (1, {'pads': ((2, 1), (2, 1))}),
  'fir_blur_11': (4, {'pads': ((1, 1), (1, 1))}),
  'fir_up_alt': (4, {'up': (2, 2), 'pads': ((1, 2), (1, 2))}),
  'fir_down_22': (1, {'down': (2, 2), 'pads': ((2, 2), (2, 2))}),
  'fir_crop': (1, {'pads': ((-1, 2), (-1, 2))}),
}
ODD = {
  'fir_odd': {'up': (2, 2), 'down': (3, 3), 'pads': ((2, 1), (2, 1))},
  # Theirs are (x, y), ours (y, x).
  'fir_odd_axes': {'up': (2, 1), 'down': (1, 2), 'pads': ((1, 2), (3, 0))},
}
TRUNCATION = 0.6
GAMMA, R1_EVERY = 10.0, 16
PATH, PATH_EVERY, PATH_MEAN = 2.0, 4, 0.5


def compute(manifest, directory):
  del directory
  gan = _gan(manifest)
  weights, given = _weights(manifest), _inputs(manifest)
  state = _filled(gan, weights)
  return {
    **_filters(manifest, given),
    **_layers(weights, given),
    **_drawn(gan, state, given, manifest['hyperparameters']['inject']),
    **_judged(gan, state, given, manifest['outputs']),
    **_losses(gan, state, given, manifest),
    **projecting.outputs(gan, state, given, manifest),
  }


def tolerance(name, manifest):
  """A picture is cut to whole grey levels, and a few fall on either side."""
  del manifest
  return 0.01 if name.endswith('uint8') else None


def _gan(manifest) -> StyleGan2:
  sizes = manifest['hyperparameters']
  # What the code fixes, because the method does.
  assert tuple(sizes['blur_kernel']) == fir.SMOOTH
  assert sizes['stddev_feat'] == 1
  widths = {int(side): width for side, width in sizes['widths'].items()}
  model = {
    'widths': tuple(widths[side] for side in sorted(widths)),
    'w': sizes['style_dim'],
    'layers': sizes['n_mlp'],
    'mapping_rate': sizes['lr_mlp'],
    'group': sizes['stddev_group'],
    'form': '',
  }
  train = {
    'precision': 'float32',
    'rate': 0.002,
    'beta1': 0.0,
    'beta2': 0.99,
    'r1': GAMMA,
    'r1_every': R1_EVERY,
    'path': PATH,
    'path_every': PATH_EVERY,
    'path_decay': sizes['path_decay'],
    'average_kimg': 10.0,
    'ada': False,
  }
  info = Info((sizes['size'], sizes['size'], 3), sizes['batch'], {'normal': 1})
  return StyleGan2(ConfigDict(model), ConfigDict(train), info)


def _weights(manifest) -> dict[str, np.ndarray]:
  """Kinds are expressions in the rule's vector; filters are left out."""
  key = manifest['case'], manifest['seed']
  found = {}
  for name, shape, kind in manifest['state']:
    if kind == 'fixed':
      continue
    times, _, vector = kind.rpartition('*')
    plus, _, factor = times.rpartition('+')
    assert vector == 'vector', kind
    value = float(factor or 1) * rule.vector(*key, name, shape)
    found[name] = (float(plus or 0) + value).astype(np.float32)
  return found


def _inputs(manifest) -> dict[str, np.ndarray]:
  """Channels last; `real` and `fake` are derived from what is drawn."""
  found = filling.inputs(manifest)
  size = manifest['hyperparameters']['size']
  for name in ('real', 'fake'):
    times = size // found[name].shape[-1]
    large = found[name].repeat(times, axis=2).repeat(times, axis=3)
    large[0::2] *= 1.5
    large[1::2] *= 1.5 * 0.25
    found[name] = large
  last = lambda x: x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
  return {name: last(x) for name, x in found.items()}


def _filled(gan, weights) -> State:
  state = jax.eval_shape(gan.init, jax.random.key(0), State())
  target = {'params': state.params, 'batch_stats': state.batch_stats}
  of_networks = {k: v for k, v in weights.items() if k[:2] in ('g.', 'd.')}
  return State(**from_foreign(networks.TABLE, of_networks, target))


def _filters(manifest, given):
  odd = given['fir_kernel']
  kernel = fir.outer(tuple(manifest['hyperparameters']['blur_kernel']))

  def run(x):
    found = {
      name: fir.upfirdn(x, gain * kernel, **how)
      for name, (gain, how) in FILTERS.items()
    }
    found |= {name: fir.upfirdn(x, odd, **how) for name, how in ODD.items()}
    return {name: _first(y) for name, y in found.items()}

  return filling.quickly(run, given['fir_x'])


def _layers(weights, given):
  """Modulated convolutions of both forms, which must agree."""
  found = {}
  for name, kind in LAYERS.items():
    mine = {
      key.removeprefix(f'{name}.'): value
      for key, value in weights.items()
      if key.startswith(f'{name}.')
    }
    table = Table(
      TORCH,
      (
        ('weight', 'conv/kernel'),
        ('modulation.{leaf}', 'conv/modulation/{leaf}'),
      ),
      layouts=(('conv/kernel$', networks.MODULATED),),
    )
    both = []
    for form in networks.FORMS:
      features = mine['weight'].shape[1]
      layer = networks.ModulatedConv(features, form=form, **kind)
      inputs = given['mod_x'], given['mod_style']
      target = jax.eval_shape(layer.init, jax.random.key(0), *inputs)
      params = from_foreign(table, mine, {'p': {'conv': target['params']}})
      params = params['p']['conv']
      both.append(filling.quickly(layer.apply, {'params': params}, *inputs))
    scale = np.abs(both[0]).max()
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5 * scale)
    found[name] = _first(both[0])
  return found


def _noises(given):
  count = sum(name.startswith('noise_') for name in given)
  return tuple(given[f'noise_{i}'] for i in range(count))


def _drawn(gan, state, given, inject):
  params, noises = state.params['generator'], _noises(given)
  fixed = state.batch_stats['generator']
  buffers = tuple(fixed[f'noise_{i}'] for i in range(len(noises)))

  def run(params):
    w, other = gan.map(params, given['z']), gan.map(params, given['z2'])
    mean = gan.map(params, given['mean_z']).mean(0)
    drawn = gan.synthesis.apply(
      {'params': params['synthesis']},
      gan.each_layer(w),
      noises,
      capture_intermediates=lambda layer, _: isinstance(
        layer, networks.StyledConv | networks.ToRGB
      ),
    )
    averaged = State(memory={'w': {'mean': mean}})
    short = gan.truncated(averaged, w, TRUNCATION)
    mixed = gan.mixed(w, other, inject)
    draw = lambda w, noises=noises: gan.draw(params, w, noises)
    images = {
      'image': drawn[0],
      'image_buffers': draw(gan.each_layer(w), buffers),
      'image_truncated': draw(gan.each_layer(short)),
      'image_mixed': draw(mixed),
      'image_w_plus': draw(given['w_plus']),
    }
    return {
      'w': w,
      'mean_w': mean[None],
      'latents_mixed': mixed,
      **{name: _first(image) for name, image in images.items()},
    }, drawn[1]['intermediates']

  found, layers = filling.quickly(run, params)
  order = ['conv1', 'to_rgb1']
  for i in range(len(gan.synthesis.widths) - 1):
    order += [f'convs_{2 * i}', f'convs_{2 * i + 1}', f'to_rgbs_{i}']
  rows = [_moments(layers[name]['__call__'][0]) for name in order]
  return {**found, 'g_layer_stats': np.array(rows)}


def _judged(gan, state, given, outputs):
  params, real = state.params['discriminator'], given['real']
  counts = [
    int(name.removeprefix('d_real_')) for name in outputs if 'd_real_' in name
  ]

  def run(params):
    _, kept = gan.discriminator.apply(
      {'params': params},
      real,
      gan.group,
      capture_intermediates=True,
    )
    last = f'convs_{len(gan.discriminator.widths) - 1}'
    features = kept['intermediates'][last]['__call__'][0]
    return {
      f'd_real_{n}': gan.judge(params, real[:n])[:, None] for n in counts
    }, features

  found, features = filling.quickly(run, params)
  return {
    **found,
    'd_features_stats': np.array(_moments(features)),
    'd_stddev': networks.deviation(features, gan.group),
  }


def _losses(gan, state, given, manifest):
  parts = state.params
  generator, discriminator = parts['generator'], parts['discriminator']
  noises, z = _noises(given), given['z']
  said = re.search(r'real\[:(\d+)\]', manifest['outputs']['d_loss'])
  some = int(said[1]) if said else 4
  real, fake = given['real'][:some], given['fake'][:some]
  valid = jnp.ones(len(real), bool)
  styles = lambda params: gan.each_layer(gan.map(params, z))

  def path(params):
    lengths = gan.path_lengths(
      params, styles(params), noises, given['path_noise']
    )
    penalty, mean = gan.path_penalty(lengths, PATH_MEAN)
    return PATH * PATH_EVERY * penalty, (penalty, mean, lengths)

  def r1(params):
    penalty = gan.r1(params, real, valid)
    return GAMMA / 2 * R1_EVERY * penalty, penalty

  def step(params):
    image = gan.draw(params, styles(params), noises)
    loss = gan.generator_loss(discriminator, image)
    return loss, gan.judge(discriminator, image)[:, None]

  def judged(params):
    loss, _ = gan.discriminator_loss(params, real, fake, valid)
    return loss, gan.generator_loss(params, fake)

  gradient = lambda loss, params: filling.quickly(
    jax.value_and_grad(loss, has_aux=True), params
  )
  (d_loss, g_loss), d_grads = gradient(judged, discriminator)
  (_, penalty), r1_grads = gradient(r1, discriminator)
  (step_loss, of_image), g_grads = gradient(step, generator)
  (_, (path_penalty, mean, lengths)), path_grads = gradient(path, generator)
  rows = lambda part, tree: _rows(manifest, part, tree)
  return {
    'd_image': of_image,
    'd_loss': d_loss,
    'd_loss_grads': rows('discriminator', d_grads),
    'g_loss': g_loss,
    'r1': penalty,
    'r1_grads': rows('discriminator', r1_grads),
    'g_step_loss': step_loss,
    'g_step_grads': rows('generator', g_grads),
    'path_penalty': path_penalty,
    'path_mean': mean,
    'path_lengths': lengths,
    'path_grads': rows('generator', path_grads),
  }


def _rows(manifest, part, gradient):
  """Sum, sum of magnitudes and norm, in the order of the state."""
  named = to_foreign(networks.TABLE, {'params': {part: gradient}})
  listed = [name for name, _, _ in manifest['state'] if name in named]
  assert set(listed) == set(named)
  kept = 'sum', 'abs_sum', 'l2'
  return np.array(
    [[filling.summary(what, named[n]) for what in kept] for n in listed]
  )


def _moments(x) -> tuple[float, float, float]:
  x = np.asarray(x, np.float64)
  return x.mean(), x.std(ddof=1), np.abs(x).sum()


def _first(x):
  """Channels first."""
  return jnp.transpose(x, (0, 3, 1, 2))
