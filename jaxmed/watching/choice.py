"""Which state of each phase a run goes on with, and is scored with at last.

`watch.json` holds what each look at training has seen, and `chosen/` the best
state of every phase so far. No label beyond those of the normal cohorts takes
part. A run that goes on keeps both: a step that it repeats has been seen
already, so the choice is the same.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence

from absl import logging
from orbax.checkpoint import v1 as ocp

from jaxmed import workdir
from jaxmed.errors import UserError
from jaxmed.method import Phase, State
from jaxmed.training import distributed
from jaxmed.training.loop import At

LAST = 'last'
RULES = (LAST, 'fid', 'validation_loss')  # But for the last: lower is better.


@dataclasses.dataclass(frozen=True)
class Look:
  """What was seen after a step; `print` tells the images that were drawn."""

  event: int
  phase: int
  step: int
  values: dict[str, float]
  print: str = ''


class Choice:
  """The looks of a run, and the best state of each phase by a rule."""

  def __init__(self, folder: pathlib.Path, rule: str):
    self.rule, self._path = rule, folder / 'watch.json'
    self._states = folder / 'chosen'
    rows = workdir.read_json(self._path) if self._path.exists() else []
    self.looks = {row['event']: Look(**row) for row in rows}

  def at(self, at: At) -> Look | None:
    """What an earlier launch has seen there."""
    return self.looks.get(at.event)

  def is_known(self, print_: str, at: At) -> bool:
    """Whether an earlier look, of whatever phase, was at the same images."""
    looks = self.looks.values()
    return any(x.print == print_ for x in looks if x.event < at.event)

  def best(self, phase: int) -> Look | None:
    """Of a phase; of equals the latest; None: its last state is to be taken."""
    among = self._among(phase)
    return min(among, key=self._rank) if among else None

  def add(self, look: Look, state: State) -> None:
    """Remembers a look, and its state if no other of its phase is better.

    The state is on disk before the look is, and whatever was better before
    lies there until then: a kill leaves no look without its state.
    """
    beaten = self.best(look.phase)
    self.looks[look.event] = look
    is_best = self.best(look.phase) is look
    if is_best:
      ocp.save(self._state(look), state.replace(frozen={}), overwrite=True)
    if distributed.is_first():
      rows = [dataclasses.asdict(self.looks[e]) for e in sorted(self.looks)]
      workdir.write_json(self._path, rows)
      if is_best and beaten:
        shutil.rmtree(self._state(beaten), ignore_errors=True)

  def settle(self, phase: int, during: State, state: State) -> State:
    """The best state of a phase, which has come to its last."""
    look = self.best(phase)
    if look is None:
      return state
    path = self._state(look)
    if not path.exists():
      raise UserError(
        f'The state of step {look.step}, which train.select={self.rule} has '
        f'chosen, is not in {path} any more; give --fresh to begin anew.'
      )
    logging.info(
      'Step %d has the lowest %s, %.4g: its state is taken.',
      look.step,
      self.rule,
      look.values[self.rule],
    )
    chosen = ocp.load(path, during.replace(frozen={}))
    return chosen.replace(frozen=state.frozen)

  def facts(self, phases: Sequence[Phase], steps: Sequence[int]) -> dict:
    """What was chosen among what, for provenance; `steps`: of each phase."""
    rows = []
    for number, phase in enumerate(phases):
      look = self.best(number)
      row = {'phase': phase.name, 'step': steps[number], 'of': steps[number]}
      if look:
        row |= {'step': look.step, 'value': look.values[self.rule]}
      row['among'] = [
        {'step': one.step, 'value': one.values[self.rule]}
        for one in self._among(number)
      ]
      rows.append(row)
    return {'rule': self.rule, 'phases': rows}

  def _among(self, phase: int) -> list[Look]:
    found = (self.looks[event] for event in sorted(self.looks))
    return [
      look for look in found if look.phase == phase and self.rule in look.values
    ]

  def _rank(self, look: Look) -> tuple[float, int]:
    return look.values[self.rule], -look.event

  def _state(self, look: Look) -> pathlib.Path:
    return self._states / str(look.event)
