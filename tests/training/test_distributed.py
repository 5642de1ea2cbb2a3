"""Two processes train to what one gives, and one goes on from two."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.training import distributed
from tests.places import ROOT
from tests.training.miniature import Chooser, adversaries, bank, train


def start_together(command: list[str], count: int) -> None:
  """Runs `command` plus ADDRESS COUNT NUMBER in `count` processes."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  started = [
    subprocess.Popen(
      [*command(address, number)],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for number in range(count)
  ]
  try:
    outputs = [p.communicate(timeout=300)[0] for p in started]
  finally:
    for process in started:
      process.kill()
  for process, output in zip(started, outputs, strict=True):
    assert process.returncode == 0, output


def _workers(folder, stop):
  module = [sys.executable, '-m', 'tests.training.worker']
  start_together(
    lambda address, number: [
      *module,
      address,
      '2',
      str(number),
      str(folder),
      str(stop),
    ],
    2,
  )


def test_two_processes_give_what_one_gives_and_one_goes_on(tmp_path):
  _workers(tmp_path / 'two', -1)
  _workers(tmp_path / 'begun', 3)
  for build in (adversaries, bank):
    name = build.__name__
    chooser = Chooser(tmp_path / 'one' / name)
    end, one = train(build, tmp_path / 'one' / name, devices=2, watch=chooser)
    for folder in ('one', 'two'):  # The same looks, and one state a phase.
      looks = json.loads((tmp_path / folder / name / 'watch.json').read_text())
      assert {x['values']['fid'] for x in looks if x['step'] == 6} == {0.0}
      kept = (tmp_path / folder / name / 'chosen').iterdir()
      assert len(list(kept)) == len({x['phase'] for x in looks})
    # Both are at their ends, so this only loads what the two have saved.
    at, two = train(build, tmp_path / 'two' / name, devices=2)
    assert at == end
    _close(one, two)
    begun = tmp_path / 'begun' / name / 'checkpoints'
    assert [p.name for p in begun.iterdir()] == ['3']
    chooser = Chooser(tmp_path / 'begun' / name)
    at, gone_on = train(
      build, tmp_path / 'begun' / name, devices=1, watch=chooser
    )
    assert at == end
    _close(one, gone_on)


def _close(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5
    ),
    one,
    other,
  )


def test_the_first_begins_once_all_have_come_so_far(monkeypatch):
  said = []
  monkeypatch.setattr(distributed, 'barrier', said.append)
  distributed.only_first(lambda: said.append('done'), 'scored')
  assert said == ['before scored', 'done', 'scored']


def test_a_coordinator_needs_numbers():
  with pytest.raises(UserError, match='--processes and --process'):
    distributed.initialize(False, 'localhost:1', 0, -1)
