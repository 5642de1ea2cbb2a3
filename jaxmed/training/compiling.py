"""How steps, and what runs once, are compiled."""

import time
from typing import Any

import jax

from jaxmed.method import State, Step

Options = dict[str, bool | int | str]  # XLA's.


def step_ahead(
  step: Step, shardings: State, inputs: tuple, options: Options | None
) -> tuple[jax.stages.Compiled, jax.stages.Lowered, float]:
  """A step compiled for these inputs, which it donates; and the seconds."""

  def advance(state, batches, key, number):
    return step(state, batches, jax.random.fold_in(key, number))

  began = time.monotonic()
  lowered = jax.jit(
    advance, donate_argnums=0, out_shardings=(shardings, None)
  ).lower(*inputs)
  return lowered.compile(options), lowered, time.monotonic() - began


def call_once(function, shardings: State, *inputs: Any) -> State:
  """Runs what is run only once, compiled for that.

  A first draw of every weight is a hundred small programs; a CPU takes twenty
  times as long to optimise them, a minute, as to run them as they are.
  """
  on_cpu = jax.default_backend() == 'cpu'
  options = {'xla_backend_optimization_level': 0} if on_cpu else {}
  lowered = jax.jit(function, out_shardings=shardings).lower(*inputs)
  return lowered.compile(options)(*inputs)
