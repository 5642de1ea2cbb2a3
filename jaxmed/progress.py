"""Progress with rate and time left: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from absl import logging
from tqdm import tqdm

T = TypeVar('T')
QUIET_SECONDS = 2.0  # A stage shorter than this prints nothing.
LINE_SECONDS = 10.0


def progress(
  items: Iterable[T], total: int, name: str, unit: str, start: int = 0
) -> Iterator[T]:
  """Yields from `items`, showing how many of `total` are done.

  Each item counts as one; `start` were done before.
  """
  counter = Progress(total, name, unit, start)
  try:
    for item in items:
      yield item
      counter.add(1)
  finally:
    counter.close()


class Progress:
  """A counter for loops that know how much each round has done."""

  def __init__(self, total: int, name: str, unit: str, start: int = 0):
    self._total, self._name, self._unit = total, name, unit
    self._start = self._done = start
    self._began = time.monotonic()
    self._next_line = self._began + QUIET_SECONDS
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(
        total=total,
        initial=start,
        desc=name,
        unit=f' {unit}',
        delay=QUIET_SECONDS,
        dynamic_ncols=True,
      )

  def add(self, count: int, note: str = '') -> None:
    self._done += count
    if self._bar is not None:
      if note:
        self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(count)
    elif time.monotonic() >= self._next_line:
      self._next_line = time.monotonic() + LINE_SECONDS
      logging.info('%s', self._line(note))

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
    elif time.monotonic() - self._began > QUIET_SECONDS:
      seconds = time.monotonic() - self._began
      logging.info('%s: %d %s in %.1f s', self._name, *self._count(), seconds)

  def _count(self):
    return self._done - self._start, self._unit

  def _line(self, note: str) -> str:
    rate = (self._done - self._start) / (time.monotonic() - self._began)
    left = (self._total - self._done) / max(rate, 1e-9)
    return (
      f'{self._name}: {self._done}/{self._total} {self._unit}, '
      f'{rate:.1f} {self._unit}/s, {left:.0f} s left'
      + (f', {note}' if note else '')
    )
