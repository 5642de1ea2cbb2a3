"""The doubling convolution of HealthyGAN, with its gradients, on this CPU.

Both ways of jaxmed/ops/transposed.py in turn in one process, on the maps of a
generator of an eighth and of a quarter of the width at 64 px: XLA's transposed
convolution, and one product whose results are added up. The ratio of processor
times stands beside that of the medians: it says more where other programs run.

  python benchmarks/transposed.py
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxmed.ops.transposed import as_convolution, as_product

ROUNDS = 9
# Batch, side, channels in and out.
CASES = ((8, 16, 32, 16), (8, 32, 16, 8), (8, 16, 64, 32), (8, 32, 32, 16))


def measure(functions, inputs):
  """Medians of wall and processor seconds, of each function."""
  times = {name: [] for name in functions}
  for turn in range(ROUNDS + 1):
    for name, function in functions.items():
      wall, processor = time.perf_counter(), time.process_time()
      jax.block_until_ready(function(*inputs))
      if turn:  # The first one compiles.
        times[name].append(
          (time.perf_counter() - wall, time.process_time() - processor)
        )
  return {name: np.median(found, axis=0) for name, found in times.items()}


def main():
  for batch, side, channels, features in CASES:
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, side, side, channels))
    kernel = jax.random.normal(keys[1], (4, 4, features, channels))
    functions = {
      way.__name__: jax.jit(
        jax.value_and_grad(
          lambda x, kernel, way=way: jnp.square(
            way(x, kernel, 2, ((1, 1), (1, 1)))
          ).sum(),
          (0, 1),
        )
      )
      for way in (as_convolution, as_product)
    }
    found = measure(functions, (x, kernel))
    wall, processor = found['as_convolution'] / found['as_product']
    print(
      f'{batch} x {side}^2, {channels} -> {features}: product '
      f'{1e3 * found["as_product"][0]:.1f} ms, {wall:.1f} times as fast '
      f'({processor:.1f} by processor time)'
    )


if __name__ == '__main__':
  main()
