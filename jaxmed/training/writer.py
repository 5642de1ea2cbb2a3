"""`train.jsonl`, and what a reader of it wants to know about speed."""

import collections
import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxmed.method import Batches, Phase
from jaxmed.training.loop import At


class Meter:
  """Counts images, waiting and arithmetic since the last line of the log."""

  def __init__(self, batch: int, dtype=jnp.float32):
    self._batch, self._dtype = batch, dtype
    self._peak = math.nan
    self._flops = collections.Counter()  # Of one step of each phase.
    self._total = dict.fromkeys(('images', 'seconds', 'flops', 'waited'), 0.0)
    self._restart()

  def compiled(self, phase: Phase, step: jax.stages.Lowered, apart: int):
    """Learns a step's arithmetic; compiling is not training time."""
    if not self._flops:
      self._peak = matrix_peak(self._dtype)
    flops = (step.cost_analysis() or {}).get('flops', math.nan)
    self._flops[phase.name] += flops / apart  # On average.
    self._restart()

  def step(self, phase: Phase) -> None:
    drawn = self._batch * phase.batches * len(phase.cohorts)
    self._now['images'] += drawn if phase.seen is None else phase.seen
    self._now['flops'] += self._flops[phase.name]

  @contextlib.contextmanager
  def aside(self) -> Iterator[None]:
    """What is done meanwhile is not training."""
    began = time.monotonic()
    yield
    self._began += time.monotonic() - began

  def waiting(self, batches: Iterator[Batches]) -> Iterator[Batches]:
    """Hands batches on, counting how long the loop waits for each."""
    while True:
      began = time.monotonic()
      batch = next(batches, None)
      self._now['waited'] += time.monotonic() - began
      if batch is None:
        return
      yield batch

  def read(self) -> dict[str, float | None]:
    """Rates since the last reading."""
    now = self._now | {'seconds': time.monotonic() - self._began}
    self._total = {k: v + now[k] for k, v in self._total.items()}
    self._restart()
    return self._rates(now)

  def overall(self) -> dict[str, float | None]:
    return self._rates(self._total)

  def _restart(self):
    self._began = time.monotonic()
    self._now = dict.fromkeys(self._total, 0.0)

  def _rates(self, counts):
    seconds = max(counts['seconds'], 1e-9)
    percent = 100 * counts['flops'] / seconds / self._peak
    return {
      'images_per_s': counts['images'] / seconds,
      'matrix_peak_percent': percent if math.isfinite(percent) else None,
      'data_wait_percent': 100 * counts['waited'] / seconds,
    }


class Log:
  """Appends to `train.jsonl`; after a restart, goes on from its step."""

  def __init__(self, path: pathlib.Path, at: At):
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if _event(line) <= at.event]
    whole = path.with_name(f'.{path.name}.partial')
    whole.write_text(''.join(f'{line}\n' for line in kept))
    os.replace(whole, path)
    self._file = path.open('a')
    self._before = max((json.loads(k)['seconds'] for k in kept), default=0.0)
    self._began = time.monotonic()

  def write(self, phase: str, at: At, values: dict) -> None:
    head = {
      'phase': phase,
      'step': at.step,
      'event': at.event,
      'seconds': self._before + time.monotonic() - self._began,
    }
    self._file.write(json.dumps(head | values) + '\n')
    self._file.flush()

  def close(self) -> None:
    self._file.close()


def _event(line: str) -> float:
  try:
    return json.loads(line)['event']
  except ValueError:  # Cut short by a kill.
    return math.inf


def matrix_peak(dtype) -> float:
  """Measured FLOP/s of a large matrix product on all devices together."""
  side = 1024 if jax.default_backend() == 'cpu' else 8192
  x = jnp.asarray(np.random.default_rng(0).standard_normal((side, side)), dtype)
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  best = math.inf
  for _ in range(5):
    began = time.monotonic()
    product(x).block_until_ready()
    best = min(best, time.monotonic() - began)
  devices = 1 if jax.default_backend() == 'cpu' else jax.device_count()
  return devices * 2 * side**3 / best
