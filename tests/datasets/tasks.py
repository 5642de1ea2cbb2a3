"""Tasks for tests of those who do them, and one who does them here."""

import dataclasses
import os
import pathlib
import signal


def serially(tasks, name: str, units: str) -> None:
  """Does tasks one by one in this process: quick where they are few."""
  for task in tasks:
    if not task.done:
      task.run(lambda count: None)


@dataclasses.dataclass(frozen=True)
class Mark:
  """Writes a file with the number of the process, or ends otherwise."""

  path: pathlib.Path
  ends: str = ''  # A signal, or the text of an error.
  size: int | None = 10
  fragile: bool = True

  @property
  def name(self) -> str:
    return self.path.name

  @property
  def done(self) -> bool:
    return self.path.exists()

  def run(self, report) -> None:
    report(4)
    if self.ends.startswith('SIG'):
      os.kill(os.getpid(), getattr(signal, self.ends))
    if self.ends:
      raise OSError(self.ends)
    self.path.write_text(str(os.getpid()))
    report(6)

  def fail(self, reason: str) -> None:
    self.path.write_text(reason)
