"""The one training loop. It knows no method and branches on none."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import logging

from jaxmed.method import Batches, Method, Phase, Scalars, State
from jaxmed.training import compiling
from jaxmed.training.sharding import Place


@dataclasses.dataclass(frozen=True)
class At:
  """Where training stands. `event` counts steps and ends of phases."""

  event: int = 0
  phase: int = 0
  step: int = 0  # Of this phase; 0: the phase has not begun.


# open_cohorts(phase, skip) yields that phase's batches, from step `skip` on.
OpenCohorts = Callable[[Phase, int], Iterator[Batches]]
# Told of what was compiled, how many steps apart it runs, and the seconds.
OnCompiled = Callable[[Phase, jax.stages.Lowered, int, float], None]
# Which state a phase, by its number, ends with, given its last one.
Settle = Callable[[int, State], State]


def plan(
  method: Method, place: Place, given: State
) -> Sequence[Sequence[State]]:
  """The abstract state before and during every phase, and at the end.

  It says what to allocate, how a step's output is sharded, and what to
  restore a checkpoint into, before anything is computed.
  """
  key, plans = jax.random.key(0), []
  state = place(jax.eval_shape(lambda s: s, given))
  for phase in method.phases:
    during = place(jax.eval_shape(phase.init, key, state))
    plans.append((state, during))
    state = place(jax.eval_shape(phase.finish, key, during))
  return [*plans, (state, state)]


def train(
  method: Method,
  open_cohorts: OpenCohorts,
  plans: Sequence[Sequence[State]],
  seed: int,
  start: tuple[At, State],
  on_compiled: OnCompiled = lambda phase, step, apart, seconds: None,
  compiler_options: compiling.Options | None = None,
  settle: Settle = lambda phase, state: state,
) -> Iterator[tuple[At, State, Scalars]]:
  """Runs every phase from `start` on, yielding after each step and phase.

  A yielded state is only good until the next step, which reuses its memory.
  """
  at, state = start
  for index in range(at.phase, len(method.phases)):
    phase, during = method.phases[index], _shardings(plans[index][1])
    init_key, step_key, finish_key = jax.random.split(
      jax.random.fold_in(jax.random.key(seed), index), 3
    )
    if at.step == 0:
      state = compiling.call_once(phase.init, during, init_key, state)
    left = None if phase.steps is None else phase.steps - at.step
    batches = itertools.islice(open_cohorts(phase, at.step), left)

    compiled = {}  # Ahead of time: a step whose inputs change is an error.
    for number, batch in enumerate(batches, start=at.step):
      scalars = {}
      for apart, step in phase.due(number):
        inputs = state, batch, step_key, number
        if step not in compiled:
          compiled[step], lowered, seconds = compiling.step_ahead(
            step, during, inputs, compiler_options
          )
          on_compiled(phase, lowered, apart, seconds)
        state, more = compiled[step](*inputs)
        scalars |= more
      at = At(at.event + 1, index, number + 1)
      yield at, state, scalars
    after = _shardings(plans[index + 1][0])
    logging.info('Finishing phase %s.', phase.name)
    state = settle(index, state)
    state = jax.jit(phase.finish, out_shardings=after)(finish_key, state)
    phase.check(state)
    at = At(at.event + 1, index + 1, 0)
    yield at, state, {}


def _shardings(abstract: State) -> State:
  return jax.tree.map(lambda leaf: leaf.sharding, abstract)
