"""LPIPS of pairs of RGB images: ours against PyTorch's formulation.

Both sides have the same random trunk, the published heads, and the same float32
images in [0, 1], each in its own kind of array; both use all cores. PyTorch's
side is the formulation of the authors' package, without gradients: one pass of
the trunk an image, normalise, square, weigh, average. They are called in turn
and compared by the medians of their times.

  python benchmarks/lpips.py [--side 224] [--batch 4] [--rounds 9]
"""

import argparse
import os
import time

import jax
import numpy as np
import torch
from torch.nn import functional

from jaxmed.nn import lpips
from jaxmed.weights.names import to_foreign

# In torchvision's numbers: what is not a convolution or a fire, and where it
# lies; the rest are ReLUs.
POOLS = {
  'alex': {2: (3, 2), 5: (3, 2)},
  'vgg': {i: (2, 2) for i in (4, 9, 16, 23)},
  'squeeze': {i: (3, 2) for i in (2, 5, 8)},
}
STRIDES = {('alex', 0): (4, 2), ('alex', 3): (1, 2), ('squeeze', 0): (2, 0)}
TAPS = {
  'alex': (1, 4, 7, 9, 11),
  'vgg': (3, 8, 15, 22, 29),
  'squeeze': (1, 4, 7, 9, 10, 11, 12),
}


class Theirs:
  """Of images in [0, 1], channels first."""

  def __init__(self, kind: str, variables):
    table = lpips.network(kind).table()
    held = to_foreign(table, {'params': variables['params']['network']})
    self.weights = {k: torch.tensor(v) for k, v in held.items()}
    self.kind = kind
    row = lambda numbers: torch.tensor(numbers)[None, :, None, None]
    self.heads = [row(w) for w in lpips.published_heads(kind)]
    self.shift, self.scale = row(lpips.SHIFT.ravel()), row(lpips.SCALE.ravel())

  def _conv(self, name, x, stride=1, padding=0):
    weight, bias = (
      self.weights[f'{name}.{leaf}'] for leaf in ('weight', 'bias')
    )
    return functional.conv2d(x, weight, bias, stride, padding)

  def features(self, x):
    found = []
    for i in range(TAPS[self.kind][-1] + 1):
      name = f'features.{i}'
      if i in POOLS[self.kind]:
        up = self.kind == 'squeeze'
        x = functional.max_pool2d(x, *POOLS[self.kind][i], ceil_mode=up)
      elif f'{name}.weight' in self.weights:
        x = self._conv(name, x, *STRIDES.get((self.kind, i), (1, 1)))
      elif f'{name}.squeeze.weight' in self.weights:
        x = functional.relu(self._conv(f'{name}.squeeze', x))
        one = self._conv(f'{name}.expand1x1', x)
        three = self._conv(f'{name}.expand3x3', x, padding=1)
        x = torch.cat([functional.relu(one), functional.relu(three)], 1)
      else:
        x = functional.relu(x)
      if i in TAPS[self.kind]:
        found.append(x)
    return found

  @torch.no_grad()
  def __call__(self, x, y):
    scaled = [(2 * image - 1 - self.shift) / self.scale for image in (x, y)]
    total = 0
    for a, b, head in zip(*map(self.features, scaled), self.heads, strict=True):
      a, b = (
        f / (torch.sqrt(torch.sum(f**2, dim=1, keepdim=True)) + 1e-10)
        for f in (a, b)
      )
      weighed = functional.conv2d((a - b) ** 2, head)
      total = total + weighed.mean([2, 3], keepdim=True)
    return total[:, 0, 0, 0]


def race(kind: str, x, y, rounds: int) -> dict[str, float]:
  """Median seconds of each side."""
  network = lpips.Lpips(kind)
  small = np.zeros((1, 32, 32, 3), np.float32)
  variables = jax.jit(network.init)(jax.random.key(0), small, small)
  first = lambda z: torch.tensor(np.moveaxis(z, -1, 1).copy())
  theirs, pair = Theirs(kind, variables), (first(x), first(y))
  run, ours = jax.jit(network.apply), jax.device_put((x, y))
  sides = {
    'theirs': lambda: theirs(*pair).numpy(),
    'ours': lambda: np.asarray(run(variables, *ours)),
  }
  found = {name: side() for name, side in sides.items()}
  np.testing.assert_allclose(found['ours'], found['theirs'], rtol=1e-3)
  seconds = {name: [] for name in sides}
  for _ in range(rounds):
    for name, side in sides.items():
      began = time.perf_counter()
      side()
      seconds[name].append(time.perf_counter() - began)
  return {name: float(np.median(taken)) for name, taken in seconds.items()}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--side', type=int, default=224)
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--rounds', type=int, default=9)
  given = parser.parse_args()
  torch.set_num_threads(os.cpu_count())
  shape = 2, given.batch, given.side, given.side, 3
  x, y = np.random.default_rng(0).random(shape, np.float32)
  print(
    f'{given.batch} pairs of {given.side} px, {os.cpu_count()} cores, '
    f'load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, '
    f'jax {jax.__version__} on {jax.devices()[0].platform}'
  )
  for kind in lpips.KINDS:
    taken = race(kind, x, y, given.rounds)
    ratio = taken['theirs'] / taken['ours']
    each = {name: 1e3 * s / given.batch for name, s in taken.items()}
    print(
      f'{kind:8} {each["ours"]:7.1f} ms a pair, PyTorch {each["theirs"]:7.1f}: '
      f'{ratio:.2f} times PyTorch',
      flush=True,
    )


if __name__ == '__main__':
  main()
