"""Calls into native libraries, made in other processes that may die of it.

A slide's file is foreign data, and a decoder written in C can abort on it or
never return. Here a helper process takes the blow: the call that it was
answering fails with a reason, and the next one gets a new helper. Helpers are
bare interpreters, which do not import the script that was started, are kept
for the next call whichever slide it is of, and end as soon as their pipe does.
"""

import atexit
import contextlib
import importlib
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

PATIENCE = 4.0  # Seconds that a call may take, unless it says otherwise.
MOST_PATIENCE = 60.0  # More, while a helper waits for storage or its turn.
MOST_HELPERS = 16  # Each has some 60 MB, and a cache of tiles a slide.
START_PATIENCE = 60.0  # For a helper's imports, on a machine that is busy.
ADDRESSES = 2 << 30  # Bytes a helper may map: a header can ask for anything.
LENGTH = struct.Struct('<Q')
PIPE_BYTES = 1 << 20


class CallError(Exception):
  """A call that came to nothing, and why.

  lost: whether its helper died or had to be killed.
  """

  def __init__(self, reason: str, lost: bool = False):
    super().__init__(reason)
    self.reason, self.lost = reason, lost


class Pool:
  """Helpers that serve an object of the class `server`, 'module.Class'.

  At most `size` work at a time; more callers wait for their turn.
  """

  def __init__(self, server: str, size: int = 0):
    self._server = server
    self._size = size or min(max(2, cores()), MOST_HELPERS)
    self._reset()
    os.register_at_fork(after_in_child=self._reset)
    atexit.register(self.close)

  def _reset(self) -> None:
    # After a fork, helpers belong to the parent: their pipes are its own.
    self._inherited = getattr(self, '_idle', [])
    self._idle: list[_Helper] = []
    self._free = threading.Semaphore(self._size)
    self._lock = threading.Lock()

  def call(
    self, method: str, key: Any, *arguments, patience: float = PATIENCE
  ) -> Any:
    """What `server().method(key, *arguments)` returns in a helper.

    A helper that has answered for `key` before is taken if one is idle.
    """
    with self._free:
      helper = self._take(key)
      try:
        answer = helper.ask(method, key, *arguments, patience=patience)
      except CallError as error:
        if error.lost:
          helper.kill()
        else:
          self._give_back(helper)
        raise
      except BaseException:  # An interrupt: its answer would come too late.
        helper.kill()
        raise
      self._give_back(helper)
      return answer

  def forget(self, method: str, key: Any) -> None:
    """Calls `method` in the idle helpers that have answered for `key`."""
    with self._lock:
      know = [helper for helper in self._idle if key in helper.keys]
      for helper in know:
        self._idle.remove(helper)
    for helper in know:
      helper.keys.discard(key)
      try:
        helper.ask(method, key, patience=PATIENCE)
      except CallError:
        helper.kill()
      else:
        self._give_back(helper)

  def close(self) -> None:
    """Ends the idle helpers; a later call starts new ones."""
    with self._lock:
      idle, self._idle = self._idle, []
    for helper in idle:
      helper.kill()

  def _take(self, key: Any) -> '_Helper':
    while True:
      with self._lock:
        if not self._idle:
          break
        know = [helper for helper in self._idle if key in helper.keys]
        helper = (know or self._idle)[-1]
        self._idle.remove(helper)
      if helper.alive:
        helper.keys.add(key)
        return helper
      helper.kill()
    helper = _Helper(self._server)
    helper.keys.add(key)
    return helper

  def _give_back(self, helper: '_Helper') -> None:
    with self._lock:
      self._idle.append(helper)


class _Helper:
  """Another process, as seen from the one that calls it."""

  def __init__(self, server: str):
    self.keys: set = set()
    self._spent = 0.0  # Processor seconds at its last answer.
    self._errors = tempfile.TemporaryFile()  # noqa: SIM115
    self._process = subprocess.Popen(
      [sys.executable, '-c', f'from {__name__} import serve; serve()', server],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      env=os.environ
      | {
        'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
        'OPENBLAS_NUM_THREADS': '1',  # Each thread maps memory of its own.
      },
    )
    self._answers = self._process.stdout.fileno()
    _widen(self._answers)
    self._poll = select.poll()
    self._poll.register(self._answers, select.POLLIN)
    try:
      self._receive(START_PATIENCE)
    except BaseException:
      self.kill()
      raise

  @property
  def alive(self) -> bool:
    return self._process.poll() is None

  def ask(self, method: str, *arguments, patience: float) -> Any:
    try:
      pickle.dump((method, arguments), self._process.stdin)
      self._process.stdin.flush()
    except OSError:
      raise self._lost() from None
    answer, error, shape, self._spent = self._receive(patience)
    if error:
      raise CallError(error)
    if shape is None:
      return answer
    pixels = np.empty(shape, np.uint8)
    # The pixels are there; only a dead or stopped process sends none.
    self._fill(memoryview(pixels).cast('B'), PATIENCE)
    return pixels

  def _receive(self, patience: float) -> Any:
    length = bytearray(LENGTH.size)
    self._fill(memoryview(length), patience)
    message = bytearray(LENGTH.unpack(length)[0])
    self._fill(memoryview(message), PATIENCE)
    return pickle.loads(message)

  def _fill(self, place: memoryview, patience: float) -> None:
    while place:
      self._wait(patience)
      count = os.readv(self._answers, [place])
      if not count:
        raise self._lost()
      place = place[count:]

  def _wait(self, patience: float) -> None:
    """Until there is something to read."""
    last = time.monotonic() + MOST_PATIENCE
    left = patience
    while not self._poll.poll(left * 1e3):
      if time.monotonic() > last or not self._excused(patience):
        raise CallError('reading it takes too long and was stopped', True)
      left = 0.1

  def _excused(self, patience: float) -> bool:
    """Whether it isn't the file's fault that no answer has come.

    A slow disk is not, nor a processor that others use. What spins or sleeps
    is. Where the system doesn't tell there is no excuse.
    """
    try:
      with open(f'/proc/{self._process.pid}/stat') as file:
        state, *rest = file.read().rpartition(')')[2].split()
    except OSError:
      return False
    ticks = int(rest[10]) + int(rest[11])  # In user code and in the kernel.
    spent = ticks / os.sysconf('SC_CLK_TCK') - self._spent
    return state == 'D' or (state == 'R' and spent < patience)

  def _lost(self) -> CallError:
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(PATIENCE)
    code = self._process.poll()
    if code is None:
      why = 'stopped to answer'
    elif code < 0:
      why = f'ended with {signal.Signals(-code).name}'
    else:
      why = f'ended with code {code}'
    self._errors.seek(0)
    said = self._errors.read().decode(errors='replace').strip().splitlines()
    # Of a message only the end is the same every time.
    last = f': {said[-1].rpartition(": ")[2].strip()}' if said else ''
    return CallError(f'the process that read it {why}{last}', True)

  def kill(self) -> None:
    self._process.kill()
    with contextlib.suppress(OSError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()
    self._errors.close()


def cores() -> int:
  """How many this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _widen(pipe: int) -> None:
  """Lets pixels through in fewer pieces, where the system has such pipes."""
  with contextlib.suppress(ImportError, AttributeError, OSError):
    import fcntl

    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def serve() -> None:
  """What a helper does: answers the calls that come in by standard input."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Is for whoever called.
  answers = os.dup(sys.stdout.fileno())
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Nobody else answers.
  calls: queue.SimpleQueue = queue.SimpleQueue()

  def listen():
    try:
      while True:
        calls.put(pickle.load(sys.stdin.buffer))
    except EOFError:  # Nobody is left to call.
      os._exit(0)

  module, name = sys.argv[1].rsplit('.', 1)
  server = getattr(importlib.import_module(module), name)()
  with contextlib.suppress(ImportError, ValueError, OSError):
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
  threading.Thread(target=listen, daemon=True).start()
  _send(answers, pickle.dumps('ready'))
  while True:
    method, arguments = calls.get()
    answer, error, pixels = None, '', None
    try:
      answer = getattr(server, method)(*arguments)
    except Exception as failed:  # What it can't read is the caller's to judge.
      error = str(failed) or type(failed).__name__
    if isinstance(answer, np.ndarray):
      answer, pixels = None, np.ascontiguousarray(answer)
    shape = None if pixels is None else pixels.shape
    _send(answers, pickle.dumps((answer, error, shape, time.process_time())))
    if pixels is not None:
      _write(answers, memoryview(pixels).cast('B'))


def _send(pipe: int, message: bytes) -> None:
  _write(pipe, memoryview(LENGTH.pack(len(message)) + message))


def _write(pipe: int, content: memoryview) -> None:
  while content:
    content = content[os.write(pipe, content) :]
