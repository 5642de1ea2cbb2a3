"""Nearest neighbours: 10,000 queries in a bank of 100,000 x 384.

The rate is that of the matrix product alone, 2 x queries x rows x width, and
is compared with what this CPU reaches in a product of the same queries and a
block of rows, in NumPy and in XLA, measured in turn with it. Distances are
checked against float64 for some queries. What is held in memory beside queries
and bank is printed for several values of `chunk`.

  python benchmarks/neighbours.py [--queries 10000] [--rows 100000]

Wall time says less where other programs run; processor time stands beside it.
"""

import argparse
import os
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxmed.ops import nearest

WIDTH, BLOCK, CHECKED = 384, 5000, 50
CHUNKS = 2**22, 2**24, 2**26


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--queries', type=int, default=10_000)
  parser.add_argument('--rows', type=int, default=100_000)
  parser.add_argument('--neighbours', type=int, default=1)
  parser.add_argument('--chunk', type=int, default=2**24)
  parser.add_argument('--turns', type=int, default=2)
  given = parser.parse_args()
  rng = np.random.default_rng(0)
  draw = lambda n: rng.standard_normal((n, WIDTH), np.float32)
  host = draw(given.queries), draw(given.rows)
  queries, bank = jax.device_put(host)
  print(
    f'{queries.shape} in {bank.shape}, {given.neighbours} nearest,'
    f' {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}'
  )
  for chunk in CHUNKS:
    memory = search(queries, bank, given.neighbours, chunk).memory_analysis()
    held = memory.temp_size_in_bytes / 2**20
    print(f'chunk {chunk:9d}: {held:7.1f} MiB beside queries and bank')
  compiled = search(queries, bank, given.neighbours, given.chunk)
  product = jax.jit(lambda a, b: jnp.einsum('qc,nc->qn', a, b))
  product = product.lower(queries, bank[:BLOCK]).compile()
  block = bank[:BLOCK]
  sides = {
    'nearest': (
      given.rows,
      lambda: jax.block_until_ready(compiled(queries, bank)),
    ),
    'XLA': (BLOCK, lambda: product(queries, block).block_until_ready()),
    'NumPy': (BLOCK, lambda: host[0] @ host[1][:BLOCK].T),
  }
  product(queries, block).block_until_ready()
  best = {name: np.full(2, np.inf) for name in sides}
  for _ in range(given.turns):
    for name, (_, side) in sides.items():
      began = time.perf_counter(), time.process_time()
      found = side()
      ended = time.perf_counter(), time.process_time()
      best[name] = np.minimum(best[name], np.subtract(ended, began))
      if name == 'nearest':
        away, index = map(np.asarray, found)
  check(*host, away, index)
  flops = {n: 2 * given.queries * k * WIDTH for n, (k, _) in sides.items()}
  rates = {n: flops[n] / best[n] / 1e9 for n in sides}
  for name, (wall, processor) in rates.items():
    print(f'{name:8} {wall:6.1f} GFLOP/s, a processor second {processor:6.1f}')
  for name in ('XLA', 'NumPy'):
    wall, processor = 100 * rates['nearest'] / rates[name]
    print(
      f"{wall:.0f} % of {name}'s matrix product, {processor:.0f} % by"
      ' processor time'
    )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(f'peak memory of the process {peak:.2f} GiB')


def search(queries, bank, neighbours: int, chunk: int):
  find = lambda a, b: nearest.nearest(a, b, neighbours, chunk=chunk)
  return jax.jit(find).lower(queries, bank).compile()


def check(queries, bank, away, index):
  """Against differences in float64."""
  bank = bank.astype(np.float64)
  for i in range(0, len(queries), -(-len(queries) // CHECKED)):
    true = np.square(bank - queries[i]).sum(axis=1)
    order = np.argsort(true, kind='stable')[: index.shape[1]]
    np.testing.assert_array_equal(index[i], order)
    np.testing.assert_allclose(away[i], true[order], rtol=1e-5)


if __name__ == '__main__':
  main()
