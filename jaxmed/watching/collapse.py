"""Notices an adversary that has won, while a run trains.

A discriminator whose loss stays at zero tells generated images from real ones
without fail, and its gradient teaches the generator nothing more.
"""

import collections
import json
import pathlib
import re
from collections.abc import Mapping

from absl import logging

from jaxmed.method import Method
from jaxmed.provenance import Provenance
from jaxmed.training.loop import At

ZERO = 1e-3  # A loss that is less, whatever its sign.
ADVERSARY = re.compile('discriminator|critic')


class Collapse:
  """Counts, of each adversary, the lines of the log with its loss at zero."""

  def __init__(
    self,
    method: Method,
    rounds: int,
    folder: pathlib.Path,
    provenance: Provenance,
  ):
    """`rounds` in a row are warned of; 0: none are."""
    self._named, self._rounds = method.adversaries, rounds
    self._path, self._provenance = folder / 'train.jsonl', provenance
    self._counts: collections.Counter[str] | None = None

  def logged(self, phase: str, at: At, scalars: Mapping[str, float]) -> None:
    """Told of a line of the log; warns once of each part."""
    if not self._rounds:
      return
    if self._counts is None:
      self._counts = collections.Counter()
      self._read(at.event)
    for part in self._count(scalars):
      self._warn(part, phase, at.step)

  def _read(self, event: int) -> None:
    """Counts the lines before this one, of earlier launches."""
    for line in self._path.read_text().splitlines():
      row = json.loads(line)
      if row['event'] < event:
        self._count(row)

  def _count(self, scalars: Mapping[str, float]) -> list[str]:
    """The parts whose loss has been at zero for long enough."""
    ripe = []
    for name, value in scalars.items():
      part, _, last = str(name).rpartition('/')
      if last == 'loss' and (part in self._named or ADVERSARY.search(part)):
        self._counts[part] = self._counts[part] + 1 if abs(value) < ZERO else 0
        if self._counts[part] >= self._rounds:
          ripe.append(part)
    return ripe

  def _warn(self, part: str, phase: str, step: int) -> None:
    known = self._provenance.get('collapse', [])
    if any(one['part'] == part for one in known):
      return
    logging.warning(
      'The loss of %s has been below %g for %d logged steps in a row, up to '
      'step %d of phase %s: it tells generated images from real ones without '
      'fail, and the generator learns nothing from it. A lower rate or less '
      'steps of it, or a stronger penalty, may help.',
      part,
      ZERO,
      self._rounds,
      step,
      phase,
    )
    fact = {'part': part, 'phase': phase, 'step': step, 'below': ZERO}
    self._provenance.add(collapse=[*known, fact | {'rounds': self._rounds}])
