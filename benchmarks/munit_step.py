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

import jax
import numpy as np
import turns

from jaxmed.configs import munit as configs
from jaxmed.method import Batch, Info, State
from jaxmed.methods import munit
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
  sides = {'jaxmed': Ours(phase.step, state, batches, key)}
  if options.torch:
    checkpoint = to_foreign(munit.names(config.model), {'params': state.params})
    sides['torch'] = Theirs(config, checkpoint, batches, options.bf16)
    print('first losses:', {k: side.losses() for k, side in sides.items()})
  dtype = 'bfloat16' if options.bf16 else 'float32'
  turns.report(sides, options, 2 * options.batch, dtype)


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


class Ours(turns.Jitted):
  def losses(self) -> dict[str, float]:
    self.step()
    parts = ('discriminator', 'generator')
    return {p: float(self.scalars[f'{p}/loss']) for p in parts}


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

  def step(self) -> None:
    self._losses = self._step(self._images)

  def losses(self) -> dict[str, float]:
    self.step()
    return {k: float(v) for k, v in self._losses.items()}

  def wait(self):
    if self._torch.cuda.is_available():
      self._torch.cuda.synchronize()


if __name__ == '__main__':
  main()
