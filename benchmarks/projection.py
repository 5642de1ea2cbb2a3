"""Projections of a whole batch against one patch at a time.

The original searches one image after the other; here a batch is that many
searches side by side. The same generator and steps, at every batch in turn and
by the medians of their times; a patch a minute is one whose whole
search, of --search steps, is done. Weights are random: time does not ask.

  python benchmarks/projection.py
  python benchmarks/projection.py --size 256 --base 16384 --w 512 --loss lpips
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxmed import methods
from jaxmed.configs import stylegan2 as configs
from jaxmed.method import Batch, Info, State
from jaxmed.nn import lpips


def main():
  options = arguments()
  method = methods.build(config_of(options), Info(image(options), 1, {}))
  state = drawn(method, options)
  sides = {n: Side(method, state, n, options) for n in options.batches}
  taken = {n: [] for n in sides}
  for turn in range(options.turns + 1):
    for n, side in sides.items():
      began = time.perf_counter(), time.process_time()
      side.run(options.steps)
      ended = time.perf_counter(), time.process_time()
      if turn:  # The first warms up.
        taken[n].append(np.subtract(ended, began) / options.steps)
  report({n: np.median(t, axis=0) for n, t in taken.items()}, options)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--size', type=int, default=64, help='side, px')
  parser.add_argument('--base', type=int, default=1024, help='of the widths')
  parser.add_argument('--w', type=int, default=64, help='numbers of a latent')
  parser.add_argument('--loss', default='l1', help='or lpips')
  parser.add_argument('--lpips', default='squeeze', help='its network')
  parser.add_argument(
    '--batches', type=int, nargs='+', default=[1, 4, 8, 16, 32]
  )
  parser.add_argument('--search', type=int, default=1000, help='steps of one')
  parser.add_argument('--steps', type=int, default=5, help='a turn')
  parser.add_argument('--turns', type=int, default=5)
  return parser.parse_args()


def image(options) -> tuple[int, int, int]:
  return options.size, options.size, 3


def config_of(options):
  config = configs.get_config('phantom')
  config.model.update({'base': options.base, 'widest': 512, 'w': options.w})
  config.model.lpips = options.lpips
  config.score.projection.loss = options.loss
  config.score.steps = options.search
  return config


def drawn(method, options) -> State:
  """The state of a generator that nobody has trained."""
  state = jax.eval_shape(method.phases[0].init, jax.random.key(0), State())
  rng = np.random.default_rng(0)
  state = jax.tree.map(
    lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype),
    state.replace(opt={}),
  )
  if not method.needs:
    return state
  network, x = lpips.Lpips(options.lpips), jnp.zeros((1, *image(options)))
  quickly = {'xla_backend_optimization_level': 0}
  init = jax.jit(network.init).lower(jax.random.key(0), x, x)
  return state.put(
    frozen={'lpips': init.compile(quickly)(jax.random.key(0), x, x)}
  )


class Side:
  """The search at one batch, as scoring steps it."""

  def __init__(self, method, state: State, count: int, options):
    rng, rows = np.random.default_rng(1), np.arange(count, dtype=np.int32)
    images = rng.integers(0, 256, (count, *image(options)), np.uint8)
    batch = jax.device_put(Batch(images, rows, np.zeros_like(rows)))
    self._inputs = jax.random.key(0), state, batch
    self._step = jax.jit(method.search.step, donate_argnums=3)
    self._found = jax.jit(method.search.init)(*self._inputs)
    self._number = 0

  def run(self, steps: int):
    for _ in range(steps):
      number = jnp.int32(self._number)
      self._found = self._step(*self._inputs, self._found, number)
      self._number += 1
    jax.block_until_ready(self._found)


def report(seconds: dict[int, np.ndarray], options: argparse.Namespace):
  """By the clock and, as other programs may run, by processor time."""
  device = jax.devices()[0].device_kind
  load = os.getloadavg()[0]
  print(f'{device}, {os.cpu_count()} cores, load {load:.1f}; {options}')
  rates = {n: 60 * n / (s * options.search) for n, s in seconds.items()}
  for n, (rate, by_processor) in rates.items():
    print(
      f'batch {n:4}: {rate:7.2f} patches a minute, by processor time '
      f'{by_processor:7.2f}; {seconds[n][0]:.4f} s a step'
    )
  for which, name in enumerate(('ratio', 'by processor time')):
    of = {n: rate[which] for n, rate in rates.items()}
    best, one = max(of, key=of.get), min(of)
    ratio = of[best] / of[one]
    print(f'{name}: {ratio:.2f}, batch {best} against {one}')
    if jax.default_backend() != 'cpu':
      break


if __name__ == '__main__':
  main()
