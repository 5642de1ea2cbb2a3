"""What a run remembers of the data that it has learned from."""

import json
import types

import numpy as np
import pyarrow as pa
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxmed import learn
from jaxmed.configs import patchcore
from jaxmed.datasets import write
from jaxmed.errors import UserError
from jaxmed.launch import launch
from jaxmed.provenance import Provenance
from tests.datasets.pictures import picture


def test_the_scale_of_training_is_that_of_resized_images():
  index = pa.table(
    {
      'mpp': np.array([0.25, 0.25, 9.0], np.float32),
      'width': [512, 600, 512],
      'height': [512, 512, 512],
    }
  )
  records = types.SimpleNamespace(index=index)
  phase = types.SimpleNamespace(cohorts=('normal',))
  method = types.SimpleNamespace(phases=(phase,))
  cohorts = {'normal': np.array([0, 1]), 'other': np.array([2])}
  assert learn._mpp(records, cohorts, method, 0) == 0.25
  assert learn._mpp(records, cohorts, method, 256) == 0.5
  nothing = records.index.set_column(0, 'mpp', pa.array([np.nan] * 3))
  records = types.SimpleNamespace(index=nothing)
  assert learn._mpp(records, cohorts, method, 256) is None


def _few(count: int, seed: int = 0) -> set[int]:
  """The rows of a cohort of which so many are asked for."""
  records = types.SimpleNamespace(select=lambda query: np.arange(50, 90))
  data = {'cohorts': {'few': 'label == 1'}, 'shots': {'few': count}}
  rows = learn._cohort(records, 'few', ConfigDict({'data': data, 'seed': seed}))
  assert (np.diff(rows) > 0).all()
  return set(rows.tolist())


def test_few_shots_are_drawn_and_are_among_the_more():
  assert _few(0) == set(range(50, 90)) == _few(40)
  five, ten = _few(5), _few(10)
  assert len(five) == 5 and five < ten and len(ten) == 10
  assert five == _few(5) and five != _few(5, seed=1)


@pytest.mark.parametrize('count', [41, -1])
def test_more_shots_than_there_are_are_refused(count):
  with pytest.raises(UserError, match=f'{count} examples .* 40 fit .* == 1'):
    _few(count)


def _finished(place):
  """The config and the folder of a run that has nothing left to do."""
  for kind in ('normal', 'sick'):
    for number in range(4):
      path = place / 'images' / kind / f'{number}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(picture(number)).save(path)
  config = patchcore.get_config('folder')
  config.data.path = str(place / 'images')
  config.data.dir = str(place / 'records')
  run = place / 'run'
  run.mkdir()
  (run / 'config.json').write_text(config.to_json_best_effort())
  for name in ('final', 'examples.json', 'results.json', 'report.html'):
    (run / name).touch()
  Provenance(run).add(data={'fingerprint': write.location(config.data).name})
  return config, run


def test_changed_images_are_said_of_a_finished_run_and_refused_to_others(
  tmp_path, caplog
):
  config, run = _finished(tmp_path)
  caplog.set_level('INFO')
  launch(config, run)
  learn.check_same_data(Provenance(run), write.location(config.data))
  assert 'done already' in caplog.text and 'have changed' not in caplog.text
  Image.fromarray(picture(9)).save(tmp_path / 'images/sick/9.png')
  with pytest.raises(UserError, match='images .* have changed since'):
    learn.check_same_data(Provenance(run), write.location(config.data))
  launch(config, run)
  assert 'images or data.options have changed since' in caplog.text
  caplog.clear()
  (tmp_path / 'images').rename(tmp_path / 'elsewhere')
  launch(config, run)  # They may be gone, and what was found stays.
  assert (
    'done already' in caplog.text and str(tmp_path / 'images') in caplog.text
  )
  assert json.loads((run / 'provenance.json').read_text())['data']
