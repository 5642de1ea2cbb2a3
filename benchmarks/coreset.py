"""A coreset: 10 % of 50,000 features of 384, against a loop in PyTorch.

The loop is the usual one: for every pick it forms the differences of all
features and the one picked, and their norms. It takes minutes, so some of its
picks are timed, in turn with our whole coreset, and scaled to all; these picks
must be ours. Features lie near a surface of 12 dimensions, in clusters, and on
a grid on which float32 makes no error, so that a tie is one on both sides.

  python benchmarks/coreset.py [--count 50000] [--picks 60]

Wall time says less where other programs run; processor time stands beside it.
"""

import argparse
import os
import time

import jax
import numpy as np
import torch

from jaxmed.ops import nearest

WIDTH, SHARE, TURNS = 384, 0.1, 3


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--count', type=int, default=50_000, help='features')
  parser.add_argument('--picks', type=int, default=60, help='of the loop')
  given = parser.parse_args()
  x, count = features(given.count), int(given.count * SHARE)
  points, valid = jax.device_put((x, np.ones(len(x), bool)))
  began = time.perf_counter()
  compiled = nearest_of(points, valid, count)
  print(
    f'{x.shape}, {count} picks, {os.cpu_count()} cores,'
    f' load {os.getloadavg()[0]:.1f}; compiled in'
    f' {time.perf_counter() - began:.1f} s',
    flush=True,
  )
  ours = np.asarray(compiled(points, valid))
  tensor, first = torch.from_numpy(x), int(ours[0])
  sides = {
    'jaxmed': lambda: compiled(points, valid).block_until_ready(),
    'torch': lambda: loop(tensor, first, given.picks),
  }
  np.testing.assert_array_equal(ours[: given.picks], sides['torch']())
  assert len(set(ours.tolist())) == count
  print(f'the first {given.picks} picks are equal', flush=True)
  taken = {name: [] for name in sides}
  for _ in range(TURNS):
    for name, side in sides.items():
      began = time.perf_counter(), time.process_time()
      side()
      ended = time.perf_counter(), time.process_time()
      taken[name].append(np.subtract(ended, began))
  medians = {name: np.median(rows, axis=0) for name, rows in taken.items()}
  medians['torch'] = medians['torch'] * (count / given.picks)
  for name, (wall, processor) in medians.items():
    note = f' (of {given.picks} picks, scaled)' if name == 'torch' else ''
    print(f'{name:7} {wall:7.1f} s, processor {processor:7.1f} s{note}')
  wall, processor = medians['torch'] / medians['jaxmed']
  print(f'ratio {wall:.1f}, of processor times {processor:.1f}')


def features(count: int) -> np.ndarray:
  """Whole numbers, small enough that every squared distance is below 2^24."""
  rng = np.random.default_rng(0)
  centres = 3 * rng.standard_normal((60, 12))[rng.integers(0, 60, count)]
  surface = rng.standard_normal((count, 12)) + centres
  x = np.tanh(0.3 * surface @ rng.standard_normal((12, WIDTH)))
  x += 0.1 * rng.standard_normal(x.shape)
  return np.clip(np.round(20 * x / x.std()), -100, 100).astype(np.float32)


def nearest_of(points, valid, count: int):
  pick = jax.jit(nearest.coreset, static_argnums=2)
  return pick.lower(points, valid, count).compile()


def loop(x: torch.Tensor, pick: int, count: int) -> list[int]:
  far, picked = torch.full((len(x),), torch.inf), []
  while True:
    picked.append(pick)
    if len(picked) == count:
      return picked
    away = torch.linalg.vector_norm(x - x[pick], dim=1)
    far = torch.minimum(far, away)
    far[pick] = -torch.inf
    pick = int(far.argmax())


if __name__ == '__main__':
  main()
