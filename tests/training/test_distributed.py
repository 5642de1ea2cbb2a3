"""Two processes train to what one gives, and one goes on from two."""

import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.training import distributed
from tests.places import ROOT
from tests.training.miniature import Chooser, adversaries, bank, train


def run_two(*words: object) -> list[tuple[int, str]]:
  """Exit codes and output of two that run `words`, with ADDRESS, PROCESS in."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  module, *rest = map(str, words)
  started = [
    subprocess.Popen(
      [sys.executable, '-m', module, address, str(process), *rest],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for process in range(2)
  ]
  try:
    outputs = [p.communicate(timeout=300)[0] for p in started]
  finally:
    for process in started:
      process.kill()
  return [(p.returncode, o) for p, o in zip(started, outputs, strict=True)]


def _train_two(folder, stop):
  for code, output in run_two('tests.training.worker', folder, stop):
    assert code == 0, output


def test_two_processes_give_what_one_gives_and_one_goes_on(tmp_path):
  _train_two(tmp_path / 'two', -1)
  _train_two(tmp_path / 'begun', 3)
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
  monkeypatch.setattr(distributed, 'of_first', lambda x: said.append('all'))
  distributed.only_first(lambda: said.append('done'), 'scored')
  assert said == ['before scored', 'done', 'all']


def test_what_the_first_cannot_do_ends_all():
  (first, why), (other, output) = run_two('tests.training.leaver', 'first')
  assert first == other == 2
  assert 'jaxmed: There is no disk.' in why
  assert 'jaxmed: The first host could not do its part (the test)' in output


def test_one_that_cannot_go_on_ends_with_its_code_and_lets_none_wait():
  began = time.monotonic()
  (other, _), (alone, why) = run_two('tests.training.leaver', 'alone')
  assert alone == 2 and 'jaxmed: There is no disk.' in why
  assert other != 0
  assert time.monotonic() - began < 120


def test_a_coordinator_needs_numbers():
  with pytest.raises(UserError, match='--processes and --process'):
    distributed.initialize(False, 'localhost:1', 0, -1)
