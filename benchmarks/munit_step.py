"""MUNIT's training step: images per second, and of the matrix peak how much.

With --torch also an eager PyTorch step of the same networks, losses and
sizes, in turn with ours in the same process group; the ratio is of the
medians, and of processor times where the device is a CPU. Both start from the
same weights, and their losses are compared first.

FLOPs are XLA's count on the compiled step, which counts what D's and G's
parts share once; the peak is that of a large matrix product in the same type.
An image is one of either cohort. On a machine where other programs run,
PyTorch's threads wait for one another by spinning: pin both sides to a core.

  taskset -c 0 python benchmarks/munit_step.py --size 64 --dim 8 --torch
  python benchmarks/munit_step.py --size 256 --dim 64 --batch 16 --bf16 --torch
"""

import argparse
import os
import time

import jax
import numpy as np

from jaxmed.configs import munit as configs
from jaxmed.method import Batch, Info, State
from jaxmed.methods import munit
from jaxmed.training.writer import matrix_peak
from jaxmed.weights.names import to_foreign


def main():
  options = arguments()
  config = configs.get_config('camelyon16')
  config.data.size, config.train.batch = options.size, options.batch
  config.model.dim = config.model.discriminator.dim = options.dim
  config.train.precision = 'bfloat16' if options.bf16 else 'float32'
  info = Info((options.size, options.size, 3), options.batch, {'a': 1, 'b': 1})
  phase = munit.build(config, info).phases[0]
  key = jax.random.key(0)
  quickly = {'xla_backend_optimization_level': 0}
  init = jax.jit(lambda key: phase.init(key, State()))
  state = init.lower(key).compile(quickly)(key)
  batches = draw(options.size, options.batch)
  sides = {'jaxmed': Ours(phase, state, batches, key)}
  if options.torch:
    checkpoint = to_foreign(munit.names(config.model), {'params': state.params})
    sides['torch'] = Theirs(config, checkpoint, batches, options.bf16)
    print('first losses:', {k: side.step() for k, side in sides.items()})
  report(sides, options)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--size', type=int, default=64, help='side, px')
  parser.add_argument('--dim', type=int, default=8, help="networks' width")
  parser.add_argument('--batch', type=int, default=4, help='of each cohort')
  parser.add_argument('--bf16', action='store_true')
  parser.add_argument('--torch', action='store_true', help='and PyTorch')
  parser.add_argument('--steps', type=int, default=5, help='a turn')
  parser.add_argument('--turns', type=int, default=5)
  return parser.parse_args()


def draw(size: int, batch: int) -> dict[str, Batch]:
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, batch, size, size, 3), np.uint8)
  labels = np.zeros(batch, np.int32)
  return {
    d: jax.device_put(Batch(x, np.arange(batch), labels))
    for d, x in zip('ab', images, strict=True)
  }


def report(sides: dict, options: argparse.Namespace):
  """Turns of both sides, then what they took."""
  taken = {name: [] for name in sides}
  for turn in range(options.turns + 1):
    for name, side in sides.items():
      began = time.perf_counter(), time.process_time()
      for _ in range(options.steps):
        side.step(wait=False)
      side.wait()
      ended = time.perf_counter(), time.process_time()
      if turn:  # The first warms up.
        taken[name].append(np.subtract(ended, began) / options.steps)
  medians = {name: np.median(times, axis=0) for name, times in taken.items()}
  peak = matrix_peak('bfloat16' if options.bf16 else 'float32')
  device = jax.devices()[0].device_kind
  load = os.getloadavg()[0]
  print(f'{device}, {os.cpu_count()} cores, load {load:.1f}; {options}')
  for name, (wall, processor) in medians.items():
    print(
      f'{name:7} {2 * options.batch / wall:8.1f} images/s, '
      f'{wall:.3f} s a step, processor {processor:.3f} s'
    )
  flops = sides['jaxmed'].flops
  share = 100 * flops / medians['jaxmed'][0] / peak
  print(
    f'jaxmed  {flops / 1e9:.1f} GFLOP a step, {share:.0f} % of the measured '
    f'peak of {peak / 1e12:.2f} TFLOP/s; compiled in '
    f'{sides["jaxmed"].compiled:.0f} s'
  )
  if 'torch' in medians:
    wall, processor = medians['torch'] / medians['jaxmed']
    print(f'ratio   {wall:.2f} times eager PyTorch', end='')
    cpu = jax.default_backend() == 'cpu'
    print(f', {processor:.2f} by processor time' if cpu else '')


class Ours:
  """The jitted step, as the loop runs it."""

  def __init__(self, phase, state, batches, key):
    began = time.perf_counter()
    step = jax.jit(phase.step, donate_argnums=0)
    self._step = step.lower(state, batches, key).compile()
    self.compiled = time.perf_counter() - began
    self.flops = self._step.cost_analysis()['flops']
    self._state, self._inputs = state, (batches, key)

  def step(self, wait: bool = True) -> dict[str, float] | None:
    self._state, self._scalars = self._step(self._state, *self._inputs)
    if wait:
      parts = ('discriminator', 'generator')
      return {p: float(self._scalars[f'{p}/loss']) for p in parts}
    return None

  def wait(self):
    jax.block_until_ready(self._state)


class Theirs:
  """An eager step of the same in PyTorch, from the same weights."""

  def __init__(self, config, checkpoint, batches, bf16: bool):
    import munit_torch
    import torch

    self._torch = torch
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    rows = {d: np.asarray(b.image, np.float32) for d, b in batches.items()}
    self._images = {
      d: torch.from_numpy(x / 127.5 - 1).permute(0, 3, 1, 2).to(device)
      for d, x in rows.items()
    }
    self._step = munit_torch.Trainer(
      config.model, config.train, checkpoint, device, bf16
    )

  def step(self, wait: bool = True) -> dict[str, float] | None:
    losses = self._step(self._images)
    return {k: float(v) for k, v in losses.items()} if wait else None

  def wait(self):
    if self._torch.cuda.is_available():
      self._torch.cuda.synchronize()


if __name__ == '__main__':
  main()
