"""A training run on disk: start or go on, check, log, save, stop politely."""

import dataclasses
import pathlib
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxmed.errors import UserError
from jaxmed.method import Method, Scalars, State
from jaxmed.progress import Progress
from jaxmed.training import loop
from jaxmed.training.loop import At
from jaxmed.training.unwatched import Unwatched
from jaxmed.training.writer import Log, Meter


class Stopped(Exception):
  """Training was asked to stop, and has saved where it stood."""

  def __init__(self, at: At, signal_number: int | None):
    self.at, self.signal_number = at, signal_number
    super().__init__(
      f'Stopped and saved at event {at.event}; '
      'the same command goes on from there.'
    )


@dataclasses.dataclass(frozen=True)
class Policy:
  """When to save and to log.

  Attributes:
    save_minutes: least time between two saves inside a phase.
    keep: how many checkpoints are kept.
    log_every: steps between lines of the log. Saving is decided at these
      steps, and where there are several hosts, stopping too: there they agree.
  """

  save_minutes: float = 5.0
  keep: int = 2
  log_every: int = 10


def run(
  method: Method,
  open_cohorts: loop.OpenCohorts,
  plans: Sequence[Sequence[State]],
  seed: int,
  folder: pathlib.Path,
  given: State,
  batch: int,
  policy: Policy = Policy(),
  stop: Callable[[At], bool] = lambda at: False,
  compiler_options: dict | None = None,
  dtype=jnp.float32,
  totals: Mapping[str, int] | None = None,
  watch: Unwatched | None = None,
) -> tuple[At, State, dict[str, float | None]]:
  """Trains `method` to its end, from wherever `folder` stands.

  Args:
    method: what to train.
    open_cohorts: gives a phase's batches from a step on.
    plans: of `loop.plan`.
    seed: of everything random.
    folder: of the run; `checkpoints/` and `train.jsonl` are in it.
    given: the state to begin with, e.g. its frozen parts.
    batch: global, for the rates in the log and in what is returned.
    policy: when to save and log.
    stop: asked at every event; true saves and raises `Stopped`.
    compiler_options: of XLA, for the steps.
    dtype: in which the networks compute; its matrix peak is measured.
    totals: steps of the phases that are one pass, for the time left.
    watch: looks on, and may choose the state that a phase ends with.
  """
  watch = watch or Unwatched()
  keep = ocp.training.preservation_policies.LatestN(policy.keep)
  saver = ocp.training.Checkpointer(
    folder / 'checkpoints',
    preservation_policy=keep,
    cleanup_tmp_directories=True,
  )
  with saver, _Signals() as asked:
    at, state = _restore(saver, plans, given)
    meter = Meter(batch, dtype)
    with _Record(
      method, folder, at, meter, policy, totals or {}, watch
    ) as record:
      saved = time.monotonic()
      steps = loop.train(
        method,
        lambda phase, skip: record.waiting(open_cohorts(phase, skip)),
        plans,
        seed,
        (at, state),
        record.compiled,
        compiler_options,
        lambda phase, state: watch.settle(phase, plans[phase][1], state),
      )
      for at, state, scalars in steps:
        stopping, due = bool(stop(at)), at.step == 0
        if not due:
          record.step(at, state, scalars)
        at_line = at.step % policy.log_every == 0
        ripe = at_line and time.monotonic() - saved >= 60 * policy.save_minutes
        if at_line or jax.process_count() == 1:
          stopping, due = _agree(stopping or asked.is_set(), due or ripe)
        record.check(keep=0 if due or stopping else 2)
        if due or stopping:
          what = {
            'state': state.replace(frozen={}),
            'at': dataclasses.asdict(at),
          }
          saver.save_checkpointables_async(
            at.event, what, force=True, overwrite=True
          )
          saved = time.monotonic()
        if stopping:
          saver.wait()
          raise Stopped(at, asked.number)
  return at, state, record.overall()


def _restore(saver, plans, given) -> tuple[At, State]:
  """The newest checkpoint that can be read, or the beginning."""
  found = sorted((c.step for c in saver.checkpoints), reverse=True)
  for event in found:
    try:
      at = saver.load_checkpointables(event, {'at': None})['at']
      at = At(**{k: int(v) for k, v in at.items()})
      plan = plans[at.phase][at.step > 0]
      target = plan.replace(frozen={})
      state = saver.load_checkpointables(event, {'state': target})['state']
    except Exception as error:  # Orbax raises many kinds for a missing file.
      logging.warning(
        'The checkpoint of event %d cannot be read (%s: %s); '
        'trying the one before.',
        event,
        type(error).__name__,
        str(error).splitlines()[0] if str(error) else '',
      )
      continue
    logging.info('Training resumed at step %d.', at.event)
    held = {part: given.frozen[part] for part in plan.frozen}
    return at, state.replace(frozen=held)
  if found:
    raise UserError(
      f'None of the {len(found)} checkpoints in {saver.directory} can be '
      'read; give --fresh to begin anew.'
    )
  return At(), given


def _agree(*flags: bool) -> tuple[bool, ...]:
  """True where any host says so."""
  if jax.process_count() == 1:
    return flags
  every = multihost_utils.process_allgather(np.array(flags))
  return tuple(bool(x) for x in every.any(axis=0))


class _Record:
  """What training says of itself: the log, the bars, and that all is finite.

  Scalars are read two steps late: each is checked for NaN, and the devices
  are never drained for it.
  """

  def __init__(self, method, folder, at, meter, policy, totals, watch):
    self._phases, self._start = method.phases, at
    self._every, self._totals = policy.log_every, totals
    self._meter, self._watch, self._late = meter, watch, deque()
    self._log = None
    if jax.process_index() == 0:
      self._log = Log(folder / 'train.jsonl', at)
    self._bar, self._name = None, ''
    self.waiting, self.overall = self._meter.waiting, self._meter.overall

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._bar:
      self._bar.close()
    if self._log:
      self._log.close()

  def compiled(self, phase, step, apart, seconds) -> None:
    logging.info(
      'Compiled %s of phase %s in %.1f s.',
      'a step' if apart == 1 else f'what is due every {apart} steps',
      phase.name,
      seconds,
    )
    self._meter.compiled(phase, step, apart)

  def step(self, at: At, state: State, scalars: Scalars) -> None:
    self._meter.step(self._phases[at.phase])
    seen = {}
    if self._watch.due(at):
      self.check(keep=0)
      scalars = self._finite(at, scalars)  # Or there is nothing to look at.
      with self._meter.aside():
        seen = self._watch.look(at, state)
    line = bool(seen) or at.step % self._every == 0
    self._late.append((at, {**scalars, **seen}, line))

  def check(self, keep: int) -> None:
    while len(self._late) > keep:
      at, scalars, line = self._late.popleft()
      scalars = self._finite(at, scalars)
      name = self._phases[at.phase].name
      self._show(name, at, scalars)
      if self._log and line:
        self._log.write(name, at, self._meter.read() | scalars)
        self._watch.logged(name, at, scalars)

  def _finite(self, at: At, scalars: Scalars) -> dict[str, float]:
    """The scalars on the host, once their step is done; or training stops."""
    scalars = {k: float(v) for k, v in jax.device_get(scalars).items()}
    bad = [k for k, v in scalars.items() if not np.isfinite(v)]
    if bad:
      raise UserError(
        f'Training stopped: phase {self._phases[at.phase].name}, step '
        f'{at.step}: {", ".join(bad)} not finite. Nothing after it was saved; '
        'a lower learning rate or --config.train.precision=float32 may help.'
      )
    return scalars

  def _show(self, name, at, scalars) -> None:
    if name != self._name:
      if self._bar:
        self._bar.close()
      resumed = at.phase == self._start.phase
      total = self._phases[at.phase].steps or self._totals.get(name, 0)
      start = self._start.step if resumed else 0
      self._name = name
      self._bar = Progress(total, f'train {name}', 'steps', start)
    losses = [f'{k} {v:.3g}' for k, v in scalars.items() if k.endswith('/loss')]
    self._bar.add(1, ', '.join(losses))


class _Signals:
  """SIGTERM and Ctrl-C ask to stop; a second Ctrl-C is not held back."""

  def __init__(self):
    self._asked, self.number, self._before = threading.Event(), None, {}

  def is_set(self) -> bool:
    return self._asked.is_set()

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    del frame
    if self._asked.is_set():
      raise KeyboardInterrupt
    logging.info('Asked to stop: saving after this step.')
    self.number = number
    self._asked.set()


def discard(folder: pathlib.Path) -> None:
  """Removes what training has left, so that it begins anew."""
  shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  (folder / 'train.jsonl').unlink(missing_ok=True)
