"""StyleGAN2's projector against the port's, for the case stylegan2."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmed.nn import projection
from tests.golden import filling

DRAWN = 'projector_noise_'  # Of a step; at 0 the rate is 0.


def outputs(gan, state, given, manifest):
  """Of a filled StyleGan2, and its inputs with channels last."""
  sizes = manifest['hyperparameters']['projector']
  assert sizes['perceptual'].startswith('replaced by mean |image - target|')
  projector = _projector(sizes)
  params = state.params['generator']
  layers = range(len(gan.synthesis.noise_sides))
  noise = tuple(given[f'noise_{i}'][:1] for i in layers)
  numbers = [int(k.removeprefix(DRAWN)) for k in given if k.startswith(DRAWN)]
  mean, sigma = projection.statistics(gan.map(params, given['mean_z']))
  t = np.arange(sizes['steps'] + 1) / sizes['steps']

  render = lambda w, noise: gan.draw(params, gan.each_layer(w), noise)
  target = given['target']
  distance = lambda y: jnp.abs(y - target).mean(axis=(1, 2, 3))

  def step(found, t, drawn):
    size = projector.jitter(t, found.sigma)
    gradient, terms = projector.gradient(
      found.free, size * drawn, target, render, distance
    )
    sums = (
      sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(gradient[part]))
      for part in ('w', 'noise')
    )
    names = 'distance', 'noise', 'pixel', 'loss'
    row = t, size, *(terms[name][0] for name in names), *sums
    return projector.move(found, gradient, t), jnp.stack(row)

  def search(found):
    rows = []
    for number in sorted(numbers):
      drawn = given[f'{DRAWN}{number}']
      found, row = step(found, number / sizes['steps'], drawn)
      rows.append(row)
    return found, rows, render(found.free['w'], found.free['noise'])

  start = projector.start(mean[None], noise, mean, sigma)
  found, rows, image = filling.quickly(search, start)
  first = lambda v: np.moveaxis(np.asarray(v), -1, 1)
  return {
    'projector_lr': [projector.rate(value) for value in t],
    'noise_regularize': projection.noise_penalty(noise)[0],
    'w_std': sigma,
    'projector_steps': np.stack(rows),
    'projector_latent': found.free['w'],
    'projector_noise_0': first(found.free['noise'][0]),
    'projector_noise_last': first(found.free['noise'][-1]),
    'projector_image_uint8': _written(image),
  }


def _projector(sizes) -> projection.Projector:
  settings = {
    'rate': sizes['lr'],
    'rate_up': 0.05,
    'rate_down': 0.25,
    'jitter': sizes['noise'],
    'jitter_until': sizes['noise_ramp'],
    'noise': sizes['noise_regularize'],
    'pixel': sizes['mse'],
    'optimise_noise': True,
  }
  return projection.Projector(ConfigDict(settings), sample=True)


def _written(image) -> np.ndarray:
  """As the port writes a file: nothing is rounded."""
  unit = (np.clip(np.asarray(image), -1, 1) + 1) / 2
  return (unit * 255).astype(np.uint8)
