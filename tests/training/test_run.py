"""Stop anywhere, lose nothing; any number of devices; never a NaN saved."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.method import Phase
from jaxmed.training import run, writer
from jaxmed.training.run import Policy, Stopped
from jaxmed.training.unwatched import Unwatched
from tests.training import miniature
from tests.training.miniature import CONFIG, INFO, adversaries, bank, train

BOTH = pytest.mark.parametrize('build', [adversaries, bank])
OFTEN = Policy(save_minutes=0.0, log_every=2)


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@BOTH
def test_stopped_anywhere_it_resumes_to_the_same_bits(build, tmp_path):
  end, whole = train(build, tmp_path / 'whole')
  for event in sorted({1, end.event // 2, end.event - 1}):
    folder = tmp_path / str(event)
    with pytest.raises(Stopped):
      train(build, folder, stop=lambda at, event=event: at.event == event)
    at, resumed = train(build, folder)
    assert at == end
    _equal(whole, resumed)


@BOTH
def test_eight_devices_or_one_or_first_eight_then_one(build, tmp_path):
  _, one = train(build, tmp_path / 'one', devices=1)
  _, eight = train(build, tmp_path / 'eight', devices=8)
  with pytest.raises(Stopped):
    stop = lambda at: at.event == 3
    train(build, tmp_path / 'both', devices=8, stop=stop)
  _, both = train(build, tmp_path / 'both', devices=1)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, one, eight)
  jax.tree.map(close, one, both)


def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
  end, whole = train(adversaries, tmp_path / 'whole')
  with pytest.raises(Stopped):
    stop = lambda at: at.event == 7
    train(adversaries, tmp_path / 'broken', policy=OFTEN, stop=stop)
  kept = sorted((tmp_path / 'broken/checkpoints').iterdir(), key=_number)
  assert len(kept) == 2
  shutil.rmtree(kept[-1] / 'state')
  caplog.set_level('INFO')
  at, resumed = train(adversaries, tmp_path / 'broken', policy=OFTEN)
  assert f'event {_number(kept[-1])} cannot be read' in caplog.text
  assert f'resumed at step {_number(kept[0])}' in caplog.text
  assert at == end
  _equal(whole, resumed)


def test_with_every_checkpoint_broken_it_says_what_to_do(tmp_path):
  with pytest.raises(Stopped):
    train(bank, tmp_path, stop=lambda at: at.event == 3)
  for checkpoint in (tmp_path / 'checkpoints').iterdir():
    shutil.rmtree(checkpoint / 'state')
  with pytest.raises(UserError, match='--fresh'):
    train(bank, tmp_path)


def _number(path):
  return int(path.name)


def test_a_nan_stops_training_and_is_never_saved(tmp_path):
  method = adversaries(CONFIG, INFO)

  def spoil(phase):
    def step(state, batches, rng):
      state, scalars = phase.step(state, batches, rng)
      bad = scalars['encoder/loss'] < scalars['encoder/loss'] + 1
      return state, scalars | {'term': jnp.where(bad, jnp.nan, 0.0)}

    return Phase(phase.name, phase.init, step, steps=phase.steps)

  spoilt = method.phases[0], spoil(method.phases[1])
  method = type(method)(spoilt, method.score)
  watch = Third()
  watch.due = lambda at: True
  with pytest.raises(UserError, match='encoder, step 1: term not finite'):
    train(None, tmp_path, method=method, policy=OFTEN, watch=watch)
  assert watch.kept.keys() == {0}  # Nor is it looked at.
  events = [_number(p) for p in (tmp_path / 'checkpoints').iterdir()]
  assert max(events) == CONFIG.steps + 1  # The end of the first phase.


def test_sigterm_saves_and_says_so(tmp_path):
  def stop(at):
    if at.event == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return False

  with pytest.raises(Stopped) as stopped:
    train(adversaries, tmp_path, policy=OFTEN, stop=stop)
  assert stopped.value.signal_number == signal.SIGTERM
  end, _ = train(adversaries, tmp_path)
  assert end.event == 2 * CONFIG.steps + 2


def test_the_log_has_rates_norms_and_no_step_twice(tmp_path):
  with pytest.raises(Stopped):
    train(adversaries, tmp_path, policy=OFTEN, stop=lambda at: at.event == 6)
  with (tmp_path / 'train.jsonl').open('a') as file:
    file.write('{"event": 99, "cut')
  train(adversaries, tmp_path, policy=OFTEN)
  text = (tmp_path / 'train.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in text]
  events = [line['event'] for line in lines]
  assert events == sorted(set(events)) and events[0] == 2
  first, last = lines[0], lines[-1]
  assert first['phase'] == 'adversaries' and last['phase'] == 'encoder'
  for name in ('critic/gradient_norm', 'generator/parameter_norm'):
    assert np.isfinite(first[name])
  assert first['images_per_s'] > 0 and first['matrix_peak_percent'] > 0
  assert 0 <= first['data_wait_percent'] <= 100
  assert all(np.diff([line['seconds'] for line in lines]) > 0)


def test_padding_never_enters_the_bank(tmp_path):
  _, state = train(bank, tmp_path)
  rows = miniature.IMAGES.reshape(50, -1) / np.float32(255) * 2
  np.testing.assert_allclose(state.memory['mean'], rows.mean(axis=0), rtol=1e-5)


class Third(Unwatched):
  """Looks at every third step, and goes on with what it saw first."""

  def __init__(self):
    self.kept, self.lines = {}, []

  def due(self, at):
    return at.step % 3 == 0

  def look(self, at, state):
    copy = jax.tree.map(jnp.copy, state)  # The next step takes its memory.
    self.kept.setdefault(at.phase, (at.step, copy))
    return {'looked': at.step}

  def settle(self, phase, during, state):
    abstract = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert abstract == jax.tree.map(lambda x: (x.shape, x.dtype), during)
    return self.kept[phase][1]

  def logged(self, phase, at, scalars):
    self.lines.append((phase, at.step, dict(scalars)))


def test_a_watch_is_logged_and_chooses_what_a_phase_ends_with(tmp_path):
  watch = Third()
  end, state = train(
    adversaries, tmp_path, policy=Policy(log_every=4), watch=watch
  )
  assert end.event == 2 * CONFIG.steps + 2
  text = (tmp_path / 'train.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in text]
  first = [line for line in lines if line['phase'] == 'adversaries']
  # A line for each look, besides those of the log's own.
  assert [line['step'] for line in first] == [3, 4, 6, 8, 9]
  assert [line.get('looked') for line in first] == [3, None, 6, None, 9]
  assert [(p, step) for p, step, _ in watch.lines] == [
    (line['phase'], line['step']) for line in lines
  ]
  chosen = watch.kept[0][1].params
  _equal(state.params['generator'], chosen['generator'])
  _equal(state.params['encoder'], watch.kept[1][1].params['encoder'])


def test_a_look_takes_no_time_of_training(monkeypatch):
  class clock:
    now = 0.0

  monkeypatch.setattr(writer.time, 'monotonic', lambda: clock.now)
  meter = writer.Meter(8)
  with meter.aside():
    clock.now += 1000
  meter.step(adversaries(CONFIG, INFO).phases[1])
  clock.now += 2
  assert meter.read()['images_per_s'] == 4


def test_discard_begins_anew(tmp_path):
  with pytest.raises(Stopped):
    train(bank, tmp_path, stop=lambda at: at.event == 3)
  run.discard(tmp_path)
  end, _ = train(bank, tmp_path)
  assert end.event == INFO.batches('normal') + 1
