"""Several hosts: how they find each other, wait, and let one write."""

import os
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmed.errors import UserError

GRACE = 10.0  # Seconds for other hosts to end, too, where one cannot go on.


def initialize(
  automatic: bool, coordinator: str, processes: int, process: int
) -> None:
  """Joins the other hosts, if this launch is one of several.

  Args:
    automatic: let JAX find out, as it can on TPU pods and under Slurm.
    coordinator: host:port of process 0, where JAX can't find out.
    processes: how many.
    process: which one this is.
  """
  if coordinator and not (processes > 0 and 0 <= process < processes):
    raise UserError(
      f'--coordinator={coordinator} needs --processes and --process, from 0 '
      f'to processes - 1; found {processes} and {process}.'
    )
  if coordinator:
    jax.distributed.initialize(coordinator, processes, process)
  elif automatic:
    jax.distributed.initialize()


def is_first() -> bool:
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits for all hosts."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def of_first(values: np.ndarray) -> np.ndarray:
  """What the first host has: where hosts might differ by a rounding."""
  if jax.process_count() == 1:
    return values
  return np.asarray(multihost_utils.broadcast_one_to_all(values))


def only_first(function: Callable[[], None], name: str) -> None:
  """One host does it, once all have come so far, while the others wait.

  Where it cannot, none goes on.
  """
  barrier(f'before {name}')
  failure = None
  if is_first():
    try:
      function()
    except Exception as error:
      failure = error
  failed = of_first(np.array(failure is not None))
  if failure:
    raise failure
  if failed:
    raise UserError(
      f'The first host could not do its part ({name}); it has printed why.'
    )


def exit_code(main: Callable[[], int]) -> int:
  """What `main` returns, with which this process ends even if others do not.

  JAX ends all hosts together. Where the others do not end, because this one
  alone cannot go on, it would wait for minutes, and abort with another code.
  """
  code = 1  # Of an exception.
  try:
    code = main()
  finally:
    if code and jax.distributed.is_initialized():
      end = threading.Timer(GRACE, os._exit, [code])
      end.daemon = True
      end.start()
  return code
