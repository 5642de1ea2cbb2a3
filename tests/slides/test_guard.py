import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxmed.slides import guard, reader
from tests.places import ROOT
from tests.slides import corpus, doomed

SHELF = 'tests.slides.doomed.Shelf'


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'healthy.tif'
  path.write_bytes(corpus.healthy())
  return path


@pytest.fixture
def helpers(monkeypatch):
  pool = guard.Pool(SHELF, size=2)
  monkeypatch.setattr(reader, 'HELPERS', pool)
  yield pool
  pool.close()


@pytest.mark.parametrize(
  ('place', 'reason'),
  [
    (doomed.ABORTS, 'ended with SIGABRT'),
    (doomed.HANGS, 'takes too long'),
    (doomed.SPINS, 'takes too long'),
    (doomed.EXITS, 'ended with code 3'),
  ],
)
def test_a_crash_is_a_tile_error_and_the_slide_goes_on(
  path, helpers, monkeypatch, place, reason
):
  monkeypatch.setattr(guard, 'PATIENCE', 0.5)
  slide = reader.Slide(path, direct=False)
  before = slide.read(0, 0, 32, 32)
  with pytest.raises(reader.TileError, match=reason) as caught:
    slide.read(place, 0, 32, 32)
  assert (caught.value.level, caught.value.x, caught.value.y) == (0, place, 0)
  assert (slide.read(0, 0, 32, 32) == before).all()
  slide.close()


def test_a_slide_that_crashes_again_and_again_is_given_up(path, helpers):
  with reader.open_slide(path) as healthy:
    slide = reader.Slide(path, direct=False)
    for _ in range(reader.MOST_LOST):
      with pytest.raises(reader.TileError, match='SIGABRT'):
        slide.read(doomed.ABORTS, 0, 8, 8)
    with pytest.raises(reader.TileError, match='given up'):
      slide.read(0, 0, 8, 8)
    assert healthy.read(0, 0, 8, 8).any()
    slide.close()


def test_a_crash_on_opening_is_a_slide_error(path, monkeypatch):
  pool = guard.Pool('tests.slides.doomed.AbortsOnOpening')
  monkeypatch.setattr(reader, 'HELPERS', pool)
  bad = path.rename(path.with_name('abort.tif'))
  with pytest.raises(reader.SlideError, match='abort.tif .* SIGABRT'):
    reader.Slide(bad)
  good = bad.rename(path)
  with reader.open_slide(good) as slide:
    assert slide.size == (corpus.WIDTH, corpus.HEIGHT)
  pool.close()


def test_a_helper_that_died_while_idle_is_replaced(path, helpers):
  slide = reader.Slide(path, direct=False)
  expected = slide.read(0, 0, 64, 64)
  os.kill(helpers.call('process', slide._key), signal.SIGKILL)
  time.sleep(0.2)
  assert (slide.read(0, 0, 64, 64) == expected).all()
  slide.close()


def test_a_helper_that_is_killed_while_it_reads(path, helpers):
  slide = reader.Slide(path, direct=False)
  process = helpers.call('process', slide._key)
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    reading = thread.submit(slide.read, doomed.HANGS, 0, 64, 64)
    time.sleep(0.3)
    os.kill(process, signal.SIGKILL)
    with pytest.raises(reader.TileError, match='SIGKILL'):
      reading.result()
  assert slide.read(0, 0, 64, 64).any()
  slide.close()


def test_threads_read_through_several_helpers(path, helpers):
  slide, direct = reader.Slide(path, direct=False), reader.Slide(path)
  places = [(x, y) for x in range(0, 448, 90) for y in range(0, 448, 90)]
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    found = list(threads.map(lambda p: slide.read(*p, 50, 40), places * 2))
  for place, pixels in zip(places * 2, found, strict=True):
    expected = direct.read(*place, 50, 40).astype(int)
    assert np.abs(pixels - expected).max() <= 2
  assert len(helpers._idle) == 2  # No more than were allowed, all given back.
  slide.close()


def test_a_slide_is_let_go_of_when_it_is_closed(path, helpers):
  slide = reader.Slide(path, direct=False)
  slide.read(0, 0, 8, 8)
  assert helpers.call('kept', slide._key) == 1
  slide.close()
  assert helpers.call('kept', slide._key) == 0


def test_a_slow_disk_and_a_busy_machine_are_no_reason_to_stop(
  path, helpers, monkeypatch
):
  """What is excused is waited for, up to a limit; what isn't, not."""
  monkeypatch.setattr(guard, 'PATIENCE', 0.1)
  slide = reader.Slide(path, direct=False)
  excuses = iter([True, True, False])
  monkeypatch.setattr(
    guard._Helper, '_excused', lambda self, patience: next(excuses)
  )
  with pytest.raises(reader.TileError, match='too long'):
    slide.read(doomed.HANGS, 0, 8, 8)
  assert next(excuses, None) is None
  monkeypatch.setattr(guard._Helper, '_excused', lambda self, patience: True)
  monkeypatch.setattr(guard, 'MOST_PATIENCE', 0.3)
  with pytest.raises(reader.TileError, match='too long'):
    slide.read(doomed.HANGS, 0, 8, 8)
  slide.close()


def test_an_interrupt_leaves_no_answer_behind(path, helpers):
  """The next call must not get what the interrupted one has asked for."""
  slide = reader.Slide(path, direct=False)
  slide.read(0, 0, 8, 8)
  poll = helpers._idle[0]

  def interrupt(*_, **__):
    raise KeyboardInterrupt

  poll._receive = interrupt
  with pytest.raises(KeyboardInterrupt):
    slide.read(0, 0, 16, 16)
  assert slide.read(0, 0, 24, 24).shape == (24, 24, 3)
  slide.close()


def test_a_fork_has_helpers_of_its_own(path):
  """Of a program without threads, as data loaders do."""
  code = f"""
import os
from jaxmed.slides import reader
slide = reader.Slide({str(path)!r}, direct=False)
first = slide.read(0, 0, 64, 64)
child = os.fork()
for _ in range(20):
  same = (slide.read(0, 0, 64, 64) == first).all()
  assert same
if not child:
  os._exit(0)
assert os.waitpid(child, 0)[1] == 0
slide.close()
"""
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=60,
  )
  assert done.returncode == 0 and not done.stderr, done.stderr


def test_helpers_end_with_the_process_that_called_them(path):
  code = f"""
import os
from jaxmed.slides import reader
reader.Slide({str(path)!r}, direct=False)
print(reader.HELPERS._idle[0]._process.pid, flush=True)
os._exit(1)
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
  )
  process = int(done.stdout)
  ended = threading.Event()
  for _ in range(100):
    try:
      os.kill(process, 0)
    except ProcessLookupError:
      ended.set()
      break
    time.sleep(0.05)
  assert ended.is_set()
