import os
import pathlib
import signal
import threading
import time

import pytest

from jaxmed.datasets import crew
from jaxmed.errors import UserError
from tests.datasets.tasks import Mark


def test_a_crash_is_the_failure_of_its_task_alone(tmp_path):
  tasks = [Mark(tmp_path / f'{i}') for i in range(4)]
  for number, name in ((1, 'SIGSEGV'), (2, 'SIGABRT')):
    tasks[number] = Mark(tmp_path / f'{number}', name)
  crew.run_all(tasks, 'marks', 'items', workers=1)
  said = [task.path.read_text() for task in tasks]
  assert 'crashed with SIGSEGV' in said[1]
  assert 'crashed with SIGABRT' in said[2]
  assert said[0] != said[3]  # Another process took over.
  assert str(os.getpid()) not in said


def test_where_memory_ran_out_the_work_stops_and_goes_on_later(tmp_path):
  tasks = [Mark(tmp_path / f'{i}') for i in range(3)]
  tasks[1] = Mark(tmp_path / '1', 'SIGKILL')
  with pytest.raises(UserError, match='wrote 1 ended with code -9.*memory'):
    crew.run_all(tasks, 'marks', 'items', workers=1)
  assert [task.done for task in tasks] == [True, False, False]
  first = tasks[0].path.read_text()
  tasks[1] = Mark(tmp_path / '1')
  crew.run_all(tasks, 'marks', 'items', workers=1)
  assert all(task.done for task in tasks)
  assert tasks[0].path.read_text() == first


def test_an_error_of_a_fragile_task_is_raised_here(tmp_path):
  tasks = [Mark(tmp_path / '0', 'the disk broke'), Mark(tmp_path / '1')]
  with pytest.raises(OSError, match='the disk broke'):
    crew.run_all(tasks, 'marks', 'items', workers=1)
  assert not tasks[1].done


def test_progress_is_in_items_where_every_task_knows_its_own(
  tmp_path, monkeypatch
):
  bars = []

  class Bar:
    def __init__(self, total, name, units, start):
      self.about, self.added = (total, name, units, start), []
      bars.append(self)

    def add(self, count):
      self.added.append(count)

    def close(self):
      pass

  monkeypatch.setattr(crew, 'Progress', Bar)
  (tmp_path / '0').touch()
  tasks = [Mark(tmp_path / f'{i}', fragile=False) for i in range(3)]
  crew.run_all(tasks, 'marks', 'items')
  assert bars[0].about == (30, 'marks', 'items', 10)
  assert bars[0].added == [4, 6, 4, 6]
  tasks = [Mark(tmp_path / f'{i}', size=None, fragile=False) for i in (2, 3)]
  crew.run_all(tasks, 'marks', 'items')
  assert bars[1].about == (2, 'marks', 'shards', 1)
  assert bars[1].added == [1]


class Sleepy(Mark):
  def run(self, report) -> None:
    self.path.with_suffix('.pid').write_text(str(os.getpid()))
    time.sleep(600)


def test_an_interrupt_does_not_wait_for_slides(tmp_path):
  tasks = [Sleepy(tmp_path / 'long')]
  began = tmp_path / 'long.pid'

  def interrupt():
    while not (began.exists() and began.read_text()):
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt, daemon=True).start()
  with pytest.raises(KeyboardInterrupt):
    crew.run_all(tasks, 'sleep', 'items', workers=1)
  assert not pathlib.Path(f'/proc/{began.read_text()}').exists()
