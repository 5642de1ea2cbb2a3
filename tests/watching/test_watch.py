"""Looks at training, and the state that is chosen by what they have seen."""

import json
import types

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from jaxmed import beforehand, workdir
from jaxmed.errors import UserError
from jaxmed.method import Batch, Method, Score, Search, State
from jaxmed.metrics.frechet import frechet
from jaxmed.pipeline import read_batch
from jaxmed.scoring.score import Run
from jaxmed.training import sharding
from jaxmed.training.loop import At
from jaxmed.watching import fid, watch
from jaxmed.watching.choice import Choice, Look
from tests.contract.conftest import config_of, train

PLAN = State(params={'g': jax.ShapeDtypeStruct((3,), np.float32)})


def put(tree, mesh=None):
  mesh = mesh or sharding.make_mesh(jax.devices()[:1])
  return jax.device_put(tree, sharding.replicated(mesh))


def state(value: float) -> State:
  return put(State(params={'g': np.full(3, value, np.float32)}))


def looked(folder, values, phase=0, first=1, rule='fid') -> Choice:
  """A choice that has seen these FIDs, one a step."""
  chosen = Choice(folder, rule)
  for step, value in enumerate(values, start=1):
    event = first + step - 1
    chosen.add(Look(event, phase, step, {'fid': value}), state(event))
  return chosen


def settled(chosen: Choice, phase=0) -> float:
  """Of which event the state is that a phase ends with; 99: its last."""
  mesh = sharding.make_mesh(jax.devices()[:1])
  plan = sharding.place(mesh)(PLAN)
  held = state(99).put(frozen={'trunk': np.float32(7)})
  found = chosen.settle(phase, plan, held)
  assert found.frozen == {'trunk': 7}
  return float(found.params['g'][0])


def test_the_lowest_is_chosen_and_alone_is_kept(tmp_path):
  chosen = looked(tmp_path, [5.0, 2.0, 4.0, 3.0])
  assert settled(chosen) == 2
  assert [p.name for p in (tmp_path / 'chosen').iterdir()] == ['2']


def test_of_equals_the_latest_is_chosen(tmp_path):
  assert settled(looked(tmp_path, [2.0, 3.0, 2.0, 4.0])) == 3


def test_each_phase_has_its_own_and_may_have_none(tmp_path):
  looked(tmp_path, [1.0, 2.0])
  chosen = looked(tmp_path, [9.0, 8.0], phase=1, first=4)
  chosen.add(Look(7, 2, 1, {}, 'same'), state(7))
  assert [settled(chosen, phase) for phase in range(3)] == [1, 5, 99]
  phases = [types.SimpleNamespace(name=name) for name in 'abc']
  facts = chosen.facts(phases, [2, 2, 6])
  assert facts['rule'] == 'fid'
  one, two, three = facts['phases']
  assert one['step'] == 1 and one['of'] == 2 and one['value'] == 1.0
  assert two['among'] == [{'step': 1, 'value': 9.0}, {'step': 2, 'value': 8.0}]
  assert three == {'phase': 'c', 'step': 6, 'of': 6, 'among': []}


def test_the_last_is_taken_by_default(tmp_path):
  chosen = looked(tmp_path, [1.0, 2.0], rule='last')
  assert settled(chosen) == 99
  assert not (tmp_path / 'chosen').exists()


def test_what_was_seen_before_a_kill_is_seen_after_it(tmp_path):
  looked(tmp_path, [5.0, 2.0, 4.0])
  again = Choice(tmp_path, 'fid')
  assert again.at(At(2, 0, 2)).values == {'fid': 2.0}
  assert again.at(At(4, 0, 4)) is None
  assert settled(again) == 2


def test_killed_between_the_state_and_its_look(tmp_path):
  looked(tmp_path, [5.0])
  ocp.save(tmp_path / 'chosen/2', state(-1))  # Its look was never written.
  again = Choice(tmp_path, 'fid')
  assert settled(again) == 1
  again.add(Look(2, 0, 2, {'fid': 1.0}), state(2))
  assert settled(again) == 2


def test_a_chosen_state_that_is_gone_is_missed(tmp_path):
  chosen = looked(tmp_path, [5.0])
  (tmp_path / 'chosen/1').rename(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match='step 1.*--fresh'):
    settled(chosen)


@pytest.mark.parametrize(
  ('shape', 'size'),
  [
    ((70, 32, 24, 3), (8 * 24, 8 * 32)),
    ((5, 8, 8, 1), (16, 16)),
    ((64, 512, 512, 3), (1024, 1024)),
    ((1, 2048, 2048, 1), (2048, 2048)),
  ],
)
def test_a_sheet_has_rows_and_columns(shape, size, tmp_path):
  images = np.broadcast_to(
    np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None, None], shape
  )
  path = tmp_path / 'samples/step-00000001.png'
  watch.write_sheet(path, images)
  with Image.open(path) as sheet:
    assert sheet.size == size
    assert sheet.mode == ('L' if shape[-1] == 1 else 'RGB')
    pixels = np.asarray(sheet)
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  across, down = size[0] // shape[2], size[1] // shape[1]
  corners = pixels[:: shape[1], :: shape[2]].reshape(across * down, -1)[:, 0]
  expected = np.round(images[: across * down, 0, 0, 0] * 255)
  np.testing.assert_array_equal(corners, expected)


class Cohort(list):
  def close(self):
    pass


def _cohort(images, mesh) -> Cohort:
  """One pass over images, in batches of 8; the last is filled up."""
  rows = sharding.batch_sharding(mesh, 8)
  short = -len(images) % 8
  padded = np.pad(images, [(0, short)] + [(0, 0)] * 3)
  number = np.where(np.arange(len(padded)) < len(images), 5, -1)
  batches = [
    Batch(padded[i : i + 8], number[i : i + 8].astype(np.int32), number)
    for i in range(0, len(padded), 8)
  ]
  return Cohort(jax.device_put(batch, rows) for batch in batches)


def _fid(name, real, side=32, normalise=lambda images: images, devices=4):
  mesh = sharding.make_mesh(jax.devices()[:devices])
  shape = side, side, 3
  return fid.Fid(name, lambda: _cohort(real, mesh), normalise, mesh, shape)


def _images(count, seed, side=32):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, side, side, 3), np.uint8)


def test_fid_is_the_distance_of_the_trunks_rows():
  """Padding and what is more than asked for is left out."""
  real, made = _images(21, 0), _images(24, 1) // 2
  measure = _fid('random', real)
  assert measure.facts['network'] == 'small'
  assert measure.facts['weights'] == 'random'
  unit = [(x / 255).astype(np.float32) for x in (real, made)]
  network = fid.trunk('small')
  deepest = lambda x: network.apply(measure._variables, x)['stage3']
  rows = [np.asarray(deepest(x)).mean((1, 2)) for x in unit]
  chunks = [unit[1][i : i + 8] for i in range(0, 24, 8)]
  found = measure(chunks, 19)
  np.testing.assert_allclose(found, frechet(rows[1][:19], rows[0]), rtol=1e-3)
  same = measure([unit[0][i : i + 8] for i in range(0, 21, 8)], 21)
  assert abs(same) < 1e-3 * found
  darker = _fid('random', real, normalise=lambda images: images / 2)
  assert darker([unit[0]], 21) > 10 * abs(same)


def test_a_method_that_searches_has_a_validation_loss():
  """Each image is scored by what was found for it; padding counts nothing."""
  mesh = sharding.make_mesh(jax.devices()[:2])
  images = _images(11, 0)

  def score(state, batch, key, found):
    return Score({'other': found, 'gap': found * state.params['g'][0]})

  search = Search(
    lambda key, state, batch: batch.unit.mean((1, 2, 3)),
    lambda key, state, batch, found, number: found + number,
    steps=4,
  )
  method = Method((), score, search)
  opened = lambda: _cohort(images, mesh)
  normals = watch.Normals(method, 'gap', mesh, 0, opened)
  expected = 2 * ((images / 255).mean() + 0 + 1 + 2 + 3)
  np.testing.assert_allclose(normals(put(state(2), mesh)), expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    ({'select': 'fidd'}, "Did you mean 'fid'"),
    ({'watch': {'every': -1}}, 'watch.every is -1'),
    ({'watch': {'images': 1}}, 'watch.images is 1; it has to be at least 2'),
  ],
)
def test_what_a_config_cannot_ask_for(fields, says):
  with pytest.raises(UserError, match=says):
    beforehand.check_config(_config(**fields))


def test_a_trunks_weights_are_there_or_named(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXMED_WEIGHTS', str(tmp_path / 'store'))
  for name in ('inception_fid', 'squeezenet1_1'):
    with pytest.raises(UserError, match=f'fetch {name}.*watch.trunk=random'):
      _fid(name, _images(8, 0))
  with pytest.raises(UserError, match='no file.*one of these'):
    _fid('inception', _images(8, 0))
  np.savez(tmp_path / 'strange.npz', weight=np.zeros(3, np.float32))
  with pytest.raises(UserError, match='no network'):
    _fid(str(tmp_path / 'strange.npz'), _images(8, 0))


def test_a_file_of_weights_says_which_network_it_is_of(shared):
  path = shared('data/weights/squeezenet1_1.npz')
  measure = _fid(str(path), _images(16, 0), side=48)
  assert measure.facts['network'] == 'squeezenet1_1'
  assert len(measure.facts['sha256']) == 64
  assert measure([(_images(8, 1) / 255).astype(np.float32)], 8) > 0


def _config(name='fanogan', **train_fields):
  config = config_of(name)
  with config.unlocked():
    config.train.update(train_fields)
  return config


def _log(folder) -> list[dict]:
  text = (folder / 'train.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _by_step(folder, name) -> dict[tuple[str, int], float]:
  return {
    (row['phase'], row['step']): row[name]
    for row in _log(folder)
    if name in row
  }


@pytest.fixture(scope='module')
def data_folder(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAXMED_DATA', str(tmp_path_factory.mktemp('data')))
    yield


@pytest.fixture(scope='module')
def selected(data_folder, tmp_path_factory):
  """f-AnoGAN, whose generator is chosen by FID."""
  folder = tmp_path_factory.mktemp('selected')
  return train(_config(select='fid', log_every=4), folder, devices=2)


@pytest.mark.slow
def test_a_generator_is_looked_at_and_chosen_by_fid(selected):
  seen = _by_step(selected, 'fid')
  # Every two steps, which are no steps of the log; its encoder leaves it alone.
  assert list(seen) == [('wgan', 2), ('wgan', 4), ('wgan', 6)]
  sheets = sorted(p.name for p in (selected / 'samples').iterdir())
  assert sheets == [f'step-{n:08d}.png' for n in (2, 4, 6)]
  record = workdir.read_json(selected / 'provenance.json')
  assert record['watch']['network'] == 'small'
  assert record['watch']['weights'] == 'random'
  wgan, encoder = record['select']['phases']
  best = min(seen, key=seen.get)
  assert (wgan['step'], wgan['value']) == (best[1], seen[best])
  assert [one['value'] for one in wgan['among']] == list(seen.values())
  assert encoder == {'phase': 'encoder', 'step': 6, 'of': 6, 'among': []}


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_the_chosen_state_becomes_final(selected):
  """And was trained on: the generator is that of its step."""
  (kept,) = (selected / 'chosen').iterdir()
  chosen = workdir.read_json(selected / 'provenance.json')['select']['phases']
  assert kept.name == str(chosen[0]['step'])
  one = ocp.load(kept)['params']['generator']
  other = Run(selected).state.params['generator']
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
@pytest.mark.parametrize('event', [3, 6])
def test_stopped_and_resumed_it_chooses_the_same(selected, event, tmp_path):
  config = _config(select='fid', log_every=4)
  train(config, tmp_path, 2, stop=lambda at: at.event == event)
  assert not (tmp_path / 'final').exists()
  train(config, tmp_path, 2)
  records = [
    workdir.read_json(folder / 'provenance.json')['select']
    for folder in (selected, tmp_path)
  ]
  assert records[0] == records[1]
  assert _by_step(tmp_path, 'fid') == _by_step(selected, 'fid')
  finals = (Run(folder).state for folder in (selected, tmp_path))
  jax.tree.map(np.testing.assert_array_equal, *finals)


@pytest.mark.slow
def test_watching_changes_nothing_that_is_learned(selected, tmp_path):
  """Up to the first choice, the scalars are those of an unwatched run."""
  config = _config(log_every=1, watch={'every': 0})
  train(config, tmp_path, 2, stop=lambda at: at.event == 6)
  rows = {row['event']: row for row in _log(tmp_path)}
  assert not any('fid' in row for row in rows.values())
  for row in _log(selected):
    if row['phase'] == 'wgan':
      other = rows[row['event']]
      for name in row.keys() & other.keys():
        if '/' in name:
          assert row[name] == other[name]


@pytest.fixture(scope='module')
def validated(data_folder, tmp_path_factory):
  """MUNIT, which draws no images, chosen by its validation normals."""
  folder = tmp_path_factory.mktemp('validated')
  config = _config('munit', select='validation_loss', watch={'every': 5})
  return train(config, folder, devices=2)


@pytest.mark.slow
def test_the_state_with_the_least_validation_loss_is_chosen(validated):
  seen = _by_step(validated, 'validation_loss')
  assert [step for _, step in seen] == [5, 10, 12]  # And the last.
  record = workdir.read_json(validated / 'provenance.json')
  assert 'watch' not in record and not (validated / 'samples').exists()
  (phase,) = record['select']['phases']
  assert phase['value'] == min(seen.values())
  assert seen[phase['phase'], phase['step']] == phase['value']


@pytest.mark.slow
def test_validation_loss_is_the_mean_score_of_validation_normals(validated):
  """As scoring with the final state gives it, which is the chosen one."""
  from jaxmed.datasets import write
  from jaxmed.datasets.records import open_records

  run = Run(validated, jax.devices()[:1])
  records = open_records(write.prepare(run.config.data, progress=False))
  rows = records.normals(run.config.data.validation)
  dice = np.random.default_rng(run.config.seed)
  rows = np.sort(dice.permutation(rows)[: run.config.train.watch.real])
  images = read_batch([_decoded(records, row) for row in rows], run.config.data)
  batches = [
    run.place(images[i : i + run.batch], rows[i : i + run.batch])
    for i in range(0, len(rows), run.batch)
  ]
  scores = [part.image[run.primary] for part in run.parts(batches)]
  expected = np.concatenate(scores).mean()
  record = workdir.read_json(validated / 'provenance.json')
  (phase,) = record['select']['phases']
  np.testing.assert_allclose(phase['value'], expected, rtol=1e-4)


def _decoded(records, row):
  from jaxmed.pipeline.frame import decode

  return decode(records.read([row])[0].image)


@pytest.mark.parametrize(
  ('name', 'fields', 'says'),
  [
    ('munit', {'select': 'fid', 'watch': {'every': 2}}, 'draws no images'),
    ('fanogan', {'select': 'fid', 'watch': {'every': 0}}, 'every is 0'),
    (
      'patchcore',
      {'select': 'validation_loss', 'watch': {'every': 2}},
      'nothing to choose from',
    ),
    ('fanogan', {'watch': {'cohort': 'nromal'}}, "Did you mean 'normal'"),
    ('fanogan', {'watch': {'trunk': 'inception_fid'}}, 'weights fetch'),
  ],
)
def test_what_cannot_be_done_is_said_before_training(
  name, fields, says, data_folder, tmp_path, monkeypatch
):
  monkeypatch.setenv('JAXMED_WEIGHTS', str(tmp_path / 'store'))
  (tmp_path / 'run').mkdir()
  with pytest.raises(UserError, match=says):
    train(_config(name, **fields), tmp_path / 'run')
  assert not (tmp_path / 'run/train.jsonl').exists()
