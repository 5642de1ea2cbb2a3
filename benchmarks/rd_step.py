"""Reverse distillation's training step next to eager PyTorch.

Both sides have the same networks, weights, images and Adam, and their first
losses are printed; then they take turns in one process. The ratio is of the
medians, and of processor times where the device is a CPU. FLOPs are XLA's
count on the compiled step; the peak is that of a large matrix product.

  python benchmarks/rd_step.py
  python benchmarks/rd_step.py --teacher wide_resnet50_2 --size 64

PyTorch's threads spin while they wait: where other programs run, pin both
sides to a core (taskset -c 0).
"""

import argparse

import jax
import numpy as np
import torch
import turns
from rd_torch import BLOCKS, Trainer

from jaxmed import pretrained
from jaxmed.configs import rd as configs
from jaxmed.method import Batch, Info, State
from jaxmed.methods import rd
from jaxmed.nn.reverse import TABLE
from jaxmed.nn.trunk import DEVIATION, MEAN, trunk
from jaxmed.weights.names import to_foreign


def main():
  options = arguments()
  config = configs.get_config('paper')
  config.model.teacher, config.model.weights = options.teacher, 'random'
  info = Info((options.size, options.size, 3), options.batch, {'normal': 1})
  phase = rd.build(config, info).phases[0]
  teacher, _ = pretrained.load('teacher', config.model, info)
  key = jax.random.key(0)
  quickly = {'xla_backend_optimization_level': 0}
  init = jax.jit(
    lambda key: phase.init(key, State(frozen={'teacher': teacher}))
  )
  state = init.lower(key).compile(quickly)(key)
  batch = draw(options.size, options.batch)
  theirs = Theirs(config, state, batch)
  ours = Ours(phase.step, state, {'normal': batch}, key)
  sides = {'jaxmed': ours, 'torch': theirs}
  for name, side in sides.items():
    print(f'{name} first losses: {side.loss():.5f} {side.loss():.5f}')
  turns.report(sides, options, options.batch)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--teacher', choices=BLOCKS, default='resnet18')
  parser.add_argument('--size', type=int, default=128, help='side, px')
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--steps', type=int, default=3, help='a turn')
  parser.add_argument('--turns', type=int, default=5)
  return parser.parse_args()


def draw(size: int, batch: int) -> Batch:
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
  rows = np.arange(batch, dtype=np.int32)
  return jax.device_put(Batch(images, rows, np.zeros(batch, np.int32)))


class Ours(turns.Jitted):
  def loss(self) -> float:
    self.step()
    return float(self.scalars['student/loss'])


class Theirs:
  """An eager step of the same in PyTorch, from the same weights."""

  def __init__(self, config, state: State, batch: Batch):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    table = trunk(config.model.teacher, last='layer3').table()
    named = to_foreign(table, state.frozen['teacher'])
    teacher = {k: v for k, v in named.items() if not table.ignores(k)}
    student = to_foreign(
      TABLE, {'params': state.params, 'batch_stats': state.batch_stats}
    )
    unit = (np.asarray(batch.unit) - MEAN) / DEVIATION
    images = torch.tensor(unit.transpose(0, 3, 1, 2)).contiguous()
    self._images = images.to(device)
    self._step = Trainer(
      config.model.teacher, config.train, teacher, student, device
    )

  def step(self):
    self._loss = self._step(self._images)

  def loss(self) -> float:
    self.step()
    return float(self._loss)

  def wait(self):
    if torch.cuda.is_available():
      torch.cuda.synchronize()


if __name__ == '__main__':
  main()
