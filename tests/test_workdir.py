"""A run's folder is one config's, one launch's, and never half-written."""

import json
import multiprocessing
import os

import pytest

from jaxmed import workdir
from jaxmed.configs import munit, patchcore
from jaxmed.errors import UserError


def test_one_launch_at_a_time(tmp_path):
  with (
    workdir.claim(tmp_path / 'run'),
    pytest.raises(UserError, match='in use by process'),
    workdir.claim(tmp_path / 'run'),
  ):
    pass
  with workdir.claim(tmp_path / 'run'):
    pass


def test_a_name_that_is_no_text_is_refused(tmp_path):
  folder = tmp_path / os.fsdecode(b'run\xff')
  with (
    pytest.raises(UserError, match=r'run\\xff.* is not in UTF-8; .*--workdir'),
    workdir.claim(folder),
  ):
    pass
  assert not folder.exists()


def test_a_claim_ends_with_its_process(tmp_path):
  context = multiprocessing.get_context('spawn')
  holder = context.Process(target=_hold, args=(tmp_path,))
  holder.start()
  holder.join()
  with workdir.claim(tmp_path):
    pass


def _hold(folder):
  workdir.claim(folder).__enter__()


def test_the_same_config_is_welcome_again(tmp_path):
  config = patchcore.get_config('tiny')
  workdir.settle(tmp_path, config, fresh=False)
  before = (tmp_path / 'config.json').read_text()
  (tmp_path / 'final').mkdir()
  workdir.settle(tmp_path, config, fresh=False)
  assert (tmp_path / 'config.json').read_text() == before
  assert workdir.load_config(tmp_path).model.coreset_size == 32


def test_another_config_is_refused_once_something_was_learned(tmp_path):
  config = patchcore.get_config('tiny')
  workdir.settle(tmp_path, config, fresh=False)
  config.train.steps = 13
  workdir.settle(tmp_path, config, fresh=False)  # Nothing was learned.
  assert workdir.load_config(tmp_path).train.steps == 13
  (tmp_path / 'checkpoints/5').mkdir(parents=True)
  config.train.steps, config.data.size = 14, 64
  with pytest.raises(UserError) as refused:
    workdir.settle(tmp_path, config, fresh=False)
  for text in ('data.size (32 there, 64 now)', 'train.steps (13', '--fresh'):
    assert text in str(refused.value)
  workdir.settle(tmp_path, config, fresh=True)
  assert workdir.load_config(tmp_path).train.steps == 14
  assert not (tmp_path / 'checkpoints').exists()


def test_quite_another_config_is_named_by_its_fields(tmp_path):
  workdir.settle(tmp_path, patchcore.get_config('tiny'), fresh=False)
  (tmp_path / 'final').mkdir()
  with pytest.raises(UserError) as refused:
    workdir.settle(tmp_path, munit.get_config('folder'), fresh=False)
  said = str(refused.value)
  assert "config: method ('patchcore' there, 'munit' now), preset" in said
  assert 'train.batch' in said and len(said) < 2500


def test_begun_anew_it_leaves_what_is_not_a_runs(tmp_path):
  workdir.settle(tmp_path, patchcore.get_config('tiny'), fresh=False)
  (tmp_path / 'notes.txt').write_text('mine')
  (tmp_path / 'maps').mkdir()
  workdir.settle(tmp_path, patchcore.get_config('tiny'), fresh=True)
  assert (tmp_path / 'notes.txt').exists()
  assert not (tmp_path / 'maps').exists()


def test_a_folder_of_somebody_elses_is_not_touched(tmp_path):
  (tmp_path / 'maps').mkdir()
  for fresh in (False, True):
    with pytest.raises(UserError, match='maps but no config.json'):
      workdir.settle(tmp_path, patchcore.get_config('tiny'), fresh)
  assert (tmp_path / 'maps').exists()


def test_what_was_changed_from_the_preset_is_kept(tmp_path):
  config = patchcore.get_config('tiny')
  config.train.steps = 13
  workdir.settle(tmp_path, config, fresh=False)
  changed = json.loads((tmp_path / 'config.json').read_text())['changed']
  assert changed == {'train.steps': [12, 13]}


def test_nothing_half_written_has_a_files_name(tmp_path):
  path = tmp_path / 'facts.json'
  workdir.write_json(path, {'a': 1})
  with pytest.raises(ValueError):
    workdir.write_json(path, {'a': float('nan')})
  assert workdir.read_json(path) == {'a': 1}
  path.write_text('{"a": ')
  with pytest.raises(UserError, match='facts.json is not the JSON'):
    workdir.read_json(path)


def test_failures_of_a_stage_take_the_place_of_its_own(tmp_path):
  workdir.note_failures(tmp_path, 'score', [{'stage': 'score', 'item': 'a'}])
  workdir.note_failures(
    tmp_path, 'prepare', [{'stage': 'prepare', 'item': 'b'}]
  )
  workdir.note_failures(tmp_path, 'score', [{'stage': 'score', 'item': 'c'}])
  lines = (tmp_path / 'failures.jsonl').read_text().splitlines()
  assert [json.loads(line)['item'] for line in lines] == ['b', 'c']
