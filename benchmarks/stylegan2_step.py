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
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from stylegan2_torch import Trainer

from jaxmed.configs import stylegan2 as configs
from jaxmed.method import Batch, Info, State
from jaxmed.methods.stylegan2 import StyleGan2, step_of
from jaxmed.nn.stylegan2 import FORMS, TABLE
from jaxmed.training.writer import matrix_peak
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
  sides = {form: Ours(gan, state, options) for form, gan in gans.items()}
  report(sides | {'torch': theirs}, options)


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
  def ours(params, z, noises):
    w = gan.each_layer(gan.map(params['generator'], z))
    image = gan.draw(params['generator'], w, noises)
    return image, gan.judge(params['discriminator'], image)

  image, judged = ours(state.params, z, noises)
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


class Ours:
  """The jitted step, as the loop runs it."""

  def __init__(self, gan, state: State, options):
    rows = jnp.arange(options.batch, dtype=jnp.int32)
    batch = jax.device_put(Batch(images(options), rows, jnp.zeros_like(rows)))
    terms = {term: True for term in options.terms}
    step = step_of(gan, options.batch, **terms)
    self._inputs = {'normal': batch}, jax.random.key(0)
    began = time.perf_counter()
    self._step = jax.jit(step, donate_argnums=0)
    self._step = self._step.lower(state, *self._inputs).compile()
    self.compiled = time.perf_counter() - began
    self.flops = self._step.cost_analysis()['flops']
    self._state = jax.tree.map(jnp.copy, state)

  def step(self):
    self._state, _ = self._step(self._state, *self._inputs)

  def wait(self):
    jax.block_until_ready(self._state)


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


def report(sides: dict, options: argparse.Namespace):
  """Turns of all sides, then what they took."""
  taken = {name: [] for name in sides}
  for turn in range(options.turns + 1):
    for name, side in sides.items():
      began = time.perf_counter(), time.process_time()
      for _ in range(options.steps):
        side.step()
      side.wait()
      ended = time.perf_counter(), time.process_time()
      if turn:  # The first warms up.
        taken[name].append(np.subtract(ended, began) / options.steps)
  medians = {name: np.median(times, axis=0) for name, times in taken.items()}
  device = jax.devices()[0].device_kind
  load = os.getloadavg()[0]
  print(f'{device}, {os.cpu_count()} cores, load {load:.1f}; {options}')
  for name, (wall, processor) in medians.items():
    print(
      f'{name:8} {options.batch / wall:8.1f} images/s, {wall:.3f} s a step, '
      f'processor {processor:.3f} s'
    )
  peak = matrix_peak('float32')
  for form in FORMS:
    side = sides[form]
    share = 100 * side.flops / medians[form][0] / peak
    wall, processor = medians['torch'] / medians[form]
    print(
      f'{form:8} {side.flops / 1e9:.1f} GFLOP a step, {share:.0f} % of the '
      f'measured peak of {peak / 1e12:.2f} TFLOP/s; compiled in '
      f'{side.compiled:.0f} s'
    )
    print(f'ratio    {wall:.2f} times eager PyTorch', end='')
    cpu = jax.default_backend() == 'cpu'
    print(f', {processor:.2f} by processor time' if cpu else '')


if __name__ == '__main__':
  main()
