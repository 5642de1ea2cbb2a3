"""Does tasks here, and in more processes once it is clear that it pays.

A helper is a bare interpreter that gets pickled tasks through a pipe. Unlike
multiprocessing's it does not import the script that was started, which may be
anybody's, unguarded; and it ends as soon as the pipe does. Where a task may
take its process down, as a decoder of broken slides does, only helpers do it:
the one that crashes is replaced, and the task says that it failed.
"""

import collections
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Protocol

from jaxmed import errors
from jaxmed.progress import Progress
from jaxmed.slides.guard import cores

PATIENCE = 1.0  # Seconds of work before helpers, slow to start, are called.
REPORT_SECONDS = 0.3  # Between a helper's words on its progress.
# How a process ends by its own fault, and not by somebody else's wish.
CRASHES = {
  getattr(signal, name)
  for name in ('SIGSEGV', 'SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGILL')
}
Report = Callable[[int], None]


class Task(Protocol):
  """Work that leaves a file behind, whole or not at all; can be pickled.

  Attributes:
    name: for people.
    size: in how many items it reports its progress; None: not known.
    done: whether its file is there.
    fragile: whether it may crash, so that helpers alone do it.
  """

  name: str
  size: int | None
  done: bool
  fragile: bool

  def run(self, report: Report) -> None:
    """Does it; calls `report` with how many items more are done."""

  def fail(self, reason: str) -> None:
    """Writes down, in place of what `run` would, that it crashed."""


def run_all(
  tasks: Sequence[Task],
  name: str,
  units: str,
  show: bool = True,
  workers: int | None = None,
) -> None:
  """Does every task that is not done yet.

  This process begins at once; after PATIENCE as many others as there are
  cores help. After an error nobody takes a new task, and those begun are
  finished, so that their work is not lost.

  Args:
    tasks: of which any number may be done.
    name: of the work, for the progress.
    units: what a task's size counts; where one has none, tasks are counted.
    show: the progress.
    workers: at most so many processes; as many as there are cores if None.
  """
  left = collections.deque(task for task in tasks if not task.done)
  if not left:
    return
  counter = _Counter(tasks, name, units, show)
  apart = any(task.fragile for task in left)
  over, called = threading.Event(), []

  def take_each(do: Callable[[Task, Report], None]) -> None:
    while True:
      try:
        task = left.popleft()
      except IndexError:
        return
      try:
        with counter.of(task) as report:
          do(task, report)
      except BaseException:
        left.clear()
        raise

  def help_out() -> None:
    if not apart and over.wait(PATIENCE):
      return
    if left:
      with _Helper() as helper:
        called.append(helper)
        take_each(helper.run)

  most = min(workers or cores(), len(left))
  helpers = most if apart else most - 1
  with futures.ThreadPoolExecutor(max(helpers, 1)) as threads:
    others = [threads.submit(help_out) for _ in range(helpers)]
    try:
      if not apart:
        take_each(lambda task, report: task.run(report))
      over.set()
      for other in others:
        other.result()
    except KeyboardInterrupt:  # Somebody wants an end now.
      left.clear()
      for helper in called:
        helper.stop()
      raise
    finally:
      over.set()
  counter.close()


class _Counter:
  """The progress of all tasks together, in items if all know theirs."""

  def __init__(self, tasks: Sequence[Task], name: str, units: str, show: bool):
    self._lock = threading.Lock()
    self._by_item = all(task.size is not None for task in tasks)
    total, done = (
      sum(self._weight(task) for task in some)
      for some in (tasks, [task for task in tasks if task.done])
    )
    units = units if self._by_item else 'shards'
    self._bar = Progress(total, name, units, done) if show else None

  def _weight(self, task: Task) -> int:
    return task.size if self._by_item else 1

  @contextlib.contextmanager
  def of(self, task: Task):
    """A function that adds what is done of a task; at its end, the rest."""
    seen = 0

    def report(count: int) -> None:
      nonlocal seen
      if self._by_item:
        count = min(count, task.size - seen)
        seen += count
        self._add(count)

    yield report
    self._add(self._weight(task) - seen)

  def _add(self, count: int) -> None:
    if self._bar is not None and count:
      with self._lock:
        self._bar.add(count)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


class _Helper:
  """Another process, as seen from the one that gives it tasks."""

  def __init__(self):
    self._start()

  def _start(self) -> None:
    self._process = subprocess.Popen(
      [sys.executable, '-c', f'from {__name__} import serve; serve()'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )

  def run(self, task: Task, report: Report) -> None:
    try:
      pickle.dump(task, self._process.stdin)
      self._process.stdin.flush()
      while isinstance(answer := pickle.load(self._process.stdout), int):
        report(answer)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
      self._bury(task, error)
      return
    if answer is not None:
      raise answer

  def _bury(self, task: Task, error: Exception) -> None:
    """A crash is the task's failure; any other end stops the work."""
    code = self._process.wait()
    if task.fragile and -code in CRASHES:
      task.fail(f'its reader crashed with {signal.Signals(-code).name}')
      self._close()
      self._start()
      return
    raise errors.UserError(
      f'A process that wrote {task.name} ended with code {code}, which may '
      'mean that memory ran out. What is written is kept; call again to go on.'
    ) from error

  def stop(self) -> None:
    self._process.terminate()

  def _close(self) -> None:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()

  def __enter__(self) -> '_Helper':
    return self

  def __exit__(self, *_) -> None:
    self._close()


def serve() -> None:
  """What a helper does: the tasks that come in by standard input."""
  answers = os.fdopen(os.dup(sys.stdout.fileno()), 'wb')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Nobody else answers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other side.
  tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()

  def listen():
    try:
      while True:
        tasks.put(pickle.load(sys.stdin.buffer))
    except EOFError:  # There is no more work, or nobody to do it for.
      os._exit(0)
    except BaseException:  # A task that can't be read: nobody would answer.
      traceback.print_exc()
      os._exit(1)

  def say(answer: bytes) -> None:
    answers.write(answer)
    answers.flush()

  threading.Thread(target=listen, daemon=True).start()
  while True:
    say(_answer(tasks.get(), lambda count: say(pickle.dumps(count))))


def _answer(task: Task, report: Report) -> bytes:
  try:
    task.run(_seldom(report))
    return pickle.dumps(None)
  except Exception as error:
    error.add_note(f'In a helper process:\n{traceback.format_exc()}')
    try:
      answer = pickle.dumps(error)
      pickle.loads(answer)  # Some errors only fail on the other side.
      return answer
    except Exception:
      return pickle.dumps(RuntimeError(traceback.format_exc()))


def _seldom(report: Report) -> Report:
  """Gathers counts; what is left at the end the other side adds itself."""
  gathered, due = 0, time.monotonic() + REPORT_SECONDS

  def gather(count: int) -> None:
    nonlocal gathered, due
    gathered += count
    if time.monotonic() >= due:
      report(gathered)
      gathered, due = 0, time.monotonic() + REPORT_SECONDS

  return gather
