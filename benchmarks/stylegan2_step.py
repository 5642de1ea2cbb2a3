"""StyleGAN2's training step next to eager PyTorch.

Both sides have the same networks, weights and Adam, and what they make of the
same w, noise and images is compared first; then they take turns in one
process. Ours has both forms of a modulated convolution, so that the run says
which is the faster one here. The ratio is of the medians, and of processor
times where the device is a CPU.

  python benchmarks/stylegan2_step.py
  python benchmarks/stylegan2_step.py --terms r1 path

PyTorch's threads spin while they wait: where other programs run, pin both
sides to a core (taskset -c 0).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch
import turns
from stylegan2_torch import Trainer

from jaxmed.configs import stylegan2 as configs
from jaxmed.method import Batch, Info, State
from jaxmed.methods.stylegan2 import StyleGan2, lazy_of, step_of
from jaxmed.nn.stylegan2 import FORMS, TABLE
from jaxmed.weights.names import to_foreign


def main():
  options = arguments()
  config = configs.get_config(options.preset)
  info = Info((options.size, options.size, 3), options.batch, {'normal': 1})
  gans = {}
  for form in FORMS:
    config.model.form = form
    gans[form] = StyleGan2(
      config.model.copy_and_resolve_references(), config.train, info
    )
  state = jax.jit(gans['scaled'].init).lower(jax.random.key(0), State())
  quickly = {'xla_backend_optimization_level': 0}
  state = state.compile(quickly)(jax.random.key(0), State())
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  weights = to_foreign(TABLE, {'params': state.params})
  theirs = Theirs(Trainer(gans['scaled'], weights, device), options)
  compare(gans['scaled'], state, theirs.trainer, options)
  sides = {form: ours(gan, state, options) for form, gan in gans.items()}
  turns.report(sides | {'torch': theirs}, options, options.batch)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument(
    '--preset', default='folder', help='whose widths (default: %(default)s)'
  )
  parser.add_argument('--size', type=int, default=64, help='side, px')
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument(
    '--terms', nargs='*', choices=('r1', 'path'), default=(), help='too'
  )
  parser.add_argument('--steps', type=int, default=2, help='a turn')
  parser.add_argument('--turns', type=int, default=5)
  return parser.parse_args()


def images(options) -> np.ndarray:
  rng = np.random.default_rng(0)
  shape = options.batch, options.size, options.size, 3
  return rng.uniform(0, 1, shape).astype(np.float32)


def compare(gan, state: State, trainer: Trainer, options):
  """What both sides draw and judge of the same."""
  rng = np.random.default_rng(1)
  count = options.batch
  z = rng.standard_normal((count, gan.z), np.float32)
  noises = [
    rng.standard_normal((count, side, side, 1), np.float32)
    for side in gan.synthesis.noise_sides
  ]

  @jax.jit
  def both(params, z, noises):
    w = gan.each_layer(gan.map(params['generator'], z))
    image = gan.draw(params['generator'], w, noises)
    return image, gan.judge(params['discriminator'], image)

  image, judged = both(state.params, z, noises)
  with torch.no_grad():
    given = lambda x: torch.tensor(x).to(trainer.device)
    generator = trainer.generator
    w = generator.map(given(z))[:, None].expand(-1, generator.layers, -1)
    drawn = generator(w, [given(n.transpose(0, 3, 1, 2)) for n in noises])
    theirs = trainer.discriminator(drawn).cpu().numpy()
    drawn = drawn.cpu().numpy().transpose(0, 2, 3, 1)
  apart = lambda x, y: np.abs(x - y).max() / np.abs(y).max()
  print(
    f'images agree to {apart(image, drawn):.1e}, what is judged of them to '
    f'{apart(judged, theirs):.1e}'
  )


def ours(gan, state: State, options) -> turns.Jitted:
  rows = jnp.arange(options.batch, dtype=jnp.int32)
  batch = jax.device_put(Batch(images(options), rows, jnp.zeros_like(rows)))
  lazy = dict(zip(('r1', 'path'), lazy_of(gan, options.batch), strict=True))
  steps = [step_of(gan, options.batch)]
  steps += [lazy[term][1] for term in options.terms]

  def step(state, batches, key):
    scalars = {}
    for one in steps:
      state, more = one(state, batches, key)
      scalars |= more
    return state, scalars

  state = jax.tree.map(jnp.copy, state)
  return turns.Jitted(step, state, {'normal': batch}, jax.random.key(0))


class Theirs:
  """An eager step of the same."""

  def __init__(self, trainer: Trainer, options):
    real = torch.tensor(images(options).transpose(0, 3, 1, 2) * 2 - 1)
    self._real = real.contiguous().to(trainer.device)
    self._terms = {term: True for term in options.terms}
    self.trainer = trainer

  def step(self):
    self._loss = self.trainer(self._real, **self._terms)

  def wait(self):
    if torch.cuda.is_available():
      torch.cuda.synchronize()


if __name__ == '__main__':
  main()
