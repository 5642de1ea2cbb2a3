"""Features of a residual trunk: images per second, ours and PyTorch's.

Both sides have the same weights and images and are called in turn; their
features are compared first. PyTorch runs eagerly, in its own layout and with
channels last. Ratios are of medians; those of processor times say more where
other programs run, but PyTorch's threads wait for one another by spinning:
pin both sides to a core there.

  python benchmarks/trunks.py
  taskset -c 0 python benchmarks/trunks.py --network resnet18 --size 128
"""

import argparse
import time

import jax
import numpy as np
import torch
from torch.nn import functional

from jaxmed.nn.resnet import ResNet
from jaxmed.nn.trunk import NETWORKS
from jaxmed.weights.names import to_foreign

ROUNDS = 5


def main():
  residual = [k for k, v in NETWORKS.items() if issubclass(v, ResNet)]
  parser = argparse.ArgumentParser()
  parser.add_argument('--network', choices=residual, default='wide_resnet50_2')
  parser.add_argument('--last', default='layer3')
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--batch', type=int, default=4)
  given = parser.parse_args()
  torch.set_grad_enabled(False)
  sides = prepare(given)
  first = {name: np.asarray(side()) for name, side in sides.items()}
  for name, found in first.items():
    error = np.abs(found - first['jaxmed']).max() / np.abs(found).max()
    assert error < 1e-4, f'{name} computes something else: {error:.1e}'
  wall, cpu = measure(sides)
  for name in sides:
    print(
      f'{name:22} {given.batch / wall[name]:7.2f} images/s;'
      f' jaxmed: {wall[name] / wall["jaxmed"]:.2f} times as fast,'
      f' {cpu[name] / cpu["jaxmed"]:.2f} by processor time'
    )


def prepare(given) -> dict:
  network = NETWORKS[given.network](last=given.last)
  rng = np.random.default_rng(0)
  shape = given.batch, given.size, given.size, 3
  x = rng.standard_normal(shape).astype(np.float32)
  init = jax.jit(network.init).lower(jax.random.key(0), x)
  variables = init.compile({'xla_backend_optimization_level': 0})(
    jax.random.key(0), x
  )
  weights = {
    name: torch.from_numpy(array.copy())
    for name, array in to_foreign(network.table(), variables).items()
  }
  began = time.perf_counter()
  run = jax.jit(lambda variables, x: network.apply(variables, x)[given.last])
  run = run.lower(variables, x).compile()
  print(f'Compiled in {time.perf_counter() - began:.1f} s.')
  ours = jax.device_put(x)
  theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
  last = {'memory_format': torch.channels_last}
  weights_last = {
    k: w.contiguous(**last) if w.ndim == 4 else w for k, w in weights.items()
  }
  theirs_last, counts = theirs.contiguous(**last), network.counts
  counts = counts[: len(network.stages) - 1]
  return {
    'jaxmed': lambda: run(variables, ours).block_until_ready(),
    'torch': lambda: plain(weights, counts, theirs),
    'torch, channels last': lambda: plain(weights_last, counts, theirs_last),
  }


def plain(weights, counts, x):
  """A residual network as it is written down first."""

  def conv(name, x, stride=1):
    kernel = weights[f'{name}.weight']
    pad = kernel.shape[-1] // 2
    return functional.conv2d(x, kernel, stride=stride, padding=pad)

  def norm(name, x):
    leaves = ('running_mean', 'running_var', 'weight', 'bias')
    return functional.batch_norm(x, *(weights[f'{name}.{k}'] for k in leaves))

  def block(name, x, stride):
    y, layers = x, 3 if f'{name}.conv3.weight' in weights else 2
    for i in range(1, layers + 1):
      # Of a bottleneck's three the second has it, of two the first.
      y = conv(f'{name}.conv{i}', y, stride if i == layers - 1 else 1)
      y = norm(f'{name}.bn{i}', y)
      y = y if i == layers else y.relu_()
    if f'{name}.downsample.0.weight' in weights:
      x = conv(f'{name}.downsample.0', x, stride)
      x = norm(f'{name}.downsample.1', x)
    return y.add_(x).relu_()

  x = norm('bn1', conv('conv1', x, 2)).relu_()
  x = functional.max_pool2d(x, 3, 2, 1)
  for stage, count in enumerate(counts, start=1):
    for i in range(count):
      x = block(f'layer{stage}.{i}', x, 2 if stage > 1 and i == 0 else 1)
  return x.permute(0, 2, 3, 1)


def measure(sides) -> tuple[dict, dict]:
  """Median seconds of a call, on the clock and of the processor."""
  times = {name: [] for name in sides}
  for _ in range(ROUNDS):
    for name, side in sides.items():
      before = time.perf_counter(), time.process_time()
      side()
      after = time.perf_counter(), time.process_time()
      times[name].append(np.subtract(after, before))
  medians = {name: np.median(spent, axis=0) for name, spent in times.items()}
  return (
    {name: spent[0] for name, spent in medians.items()},
    {name: spent[1] for name, spent in medians.items()},
  )


if __name__ == '__main__':
  main()
