"""Training steps that take turns in one process: ours, and PyTorch's.

A side has `step()`, which does not wait, and `wait()`. One of ours also has
`flops` of its step, as XLA counts them once it is compiled, and `compiled`,
the seconds that this took.
"""

import argparse
import os
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxmed.training.writer import matrix_peak


class Jitted:
  """A step as the loop runs it: compiled ahead, its state donated."""

  def __init__(self, step: Callable, state, *inputs):
    began = time.perf_counter()
    step = jax.jit(step, donate_argnums=0)
    self._step = step.lower(state, *inputs).compile()
    self.compiled = time.perf_counter() - began
    self.flops = self._step.cost_analysis()['flops']
    self._state, self._inputs = state, inputs

  def step(self) -> None:
    self._state, self.scalars = self._step(self._state, *self._inputs)

  def wait(self) -> None:
    jax.block_until_ready(self._state)


def report(
  sides: dict,
  options: argparse.Namespace,
  images: int,
  dtype: str = 'float32',
  theirs: str = 'torch',
) -> None:
  """Turns of all sides, then what they took.

  Args:
    sides: by name.
    options: `turns` and `steps` of each.
    images: of a step.
    dtype: in which ours compute; its matrix peak is measured.
    theirs: the side that the others are compared with, if it is there.
  """
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
      f'{name:8} {images / wall:8.1f} images/s, {wall:.3f} s a step, '
      f'processor {processor:.3f} s'
    )
  peak = matrix_peak(dtype)
  for name, side in sides.items():
    if name == theirs:
      continue
    share = 100 * side.flops / medians[name][0] / peak
    print(
      f'{name:8} {side.flops / 1e9:.1f} GFLOP a step, {share:.0f} % of the '
      f'measured peak of {peak / 1e12:.2f} TFLOP/s; compiled in '
      f'{side.compiled:.0f} s'
    )
    if theirs in medians:
      wall, processor = medians[theirs] / medians[name]
      print(f'ratio    {wall:.2f} times eager PyTorch', end='')
      cpu = jax.default_backend() == 'cpu'
      print(f', {processor:.2f} by processor time' if cpu else '')
