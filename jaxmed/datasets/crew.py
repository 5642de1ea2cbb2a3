"""Writes shards here, and in more processes once it is clear that it pays.

A helper is a bare interpreter that gets pickled jobs through a pipe. Unlike
multiprocessing's it does not import the script that was started, which may be
anybody's, unguarded; and it ends as soon as the pipe does.
"""

import collections
import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent import futures

from jaxmed import errors
from jaxmed.datasets.shards import Job, write_shard
from jaxmed.progress import Progress

PATIENCE = 1.0  # Seconds of work before helpers, slow to start, are called.


def write_all(jobs: Sequence[Job], name: str, show: bool = True) -> None:
  """Writes every shard that is not there yet.

  This process begins at once; after PATIENCE as many others as there are
  cores help. After an error nobody takes a new shard, and those begun are
  finished, so that their work is not lost.
  """
  left = collections.deque(job for job in jobs if not job.done)
  if not left:
    return
  done = len(jobs) - len(left)
  counter = Progress(len(jobs), f'prepare {name}', 'shards', done)
  lock, over = threading.Lock(), threading.Event()

  def take_each(write: Callable[[Job], int]) -> None:
    while True:
      try:
        job = left.popleft()
      except IndexError:
        return
      try:
        write(job)
      except BaseException:
        left.clear()
        raise
      if show:
        with lock:
          counter.add(1)

  def help_out() -> None:
    if not over.wait(PATIENCE) and left:
      with _Helper() as helper:
        take_each(helper.write_shard)

  helpers = min(cores(), len(left)) - 1
  with futures.ThreadPoolExecutor(max(helpers, 1)) as threads:
    others = [threads.submit(help_out) for _ in range(helpers)]
    try:
      take_each(write_shard)
    finally:
      over.set()
    for other in others:
      other.result()
  if show:
    counter.close()


def cores() -> int:
  """How many this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


class _Helper:
  """Another process, as seen from the one that gives it jobs."""

  def __init__(self):
    self._process = subprocess.Popen(
      [sys.executable, '-c', f'from {__name__} import serve; serve()'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )

  def write_shard(self, job: Job) -> int:
    try:
      pickle.dump(job, self._process.stdin)
      self._process.stdin.flush()
      answer = pickle.load(self._process.stdout)
    except (EOFError, BrokenPipeError) as error:
      raise errors.UserError(
        f'A process that wrote {job.shard.name} of {job.dataset} ended with '
        f'code {self._process.wait()}, which may mean that memory ran out. '
        'What is written is kept; call again to go on.'
      ) from error
    if isinstance(answer, BaseException):
      raise answer
    return answer

  def __enter__(self) -> '_Helper':
    return self

  def __exit__(self, *_) -> None:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()


def serve() -> None:
  """What a helper does: writes the shards that come in by standard input."""
  answers = os.fdopen(os.dup(sys.stdout.fileno()), 'wb')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Nobody else answers.
  jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

  def listen():
    try:
      while True:
        jobs.put(pickle.load(sys.stdin.buffer))
    except EOFError:  # There is no more work, or nobody to do it for.
      os._exit(0)

  threading.Thread(target=listen, daemon=True).start()
  while True:
    answers.write(_answer(jobs.get()))
    answers.flush()


def _answer(job: Job) -> bytes:
  try:
    return pickle.dumps(write_shard(job))
  except Exception as error:
    error.add_note(f'In a helper process:\n{traceback.format_exc()}')
    try:
      answer = pickle.dumps(error)
      pickle.loads(answer)  # Some errors only fail on the other side.
      return answer
    except Exception:
      return pickle.dumps(RuntimeError(traceback.format_exc()))
