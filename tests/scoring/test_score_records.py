"""Which records are scored, and how fast that was."""

import types

import numpy as np
import pyarrow as pa
import pytest

from jaxmed.configs import patchcore
from jaxmed.datasets.records import Records
from jaxmed.errors import UserError
from jaxmed.scoring import score_records
from jaxmed.scoring.score import Run


class _Records(Records):
  """An index of 100 records, of which the first ten are for validation."""

  def __init__(self):
    split = ['validation'] * 10 + ['test'] * 90
    self.index = pa.table({'label': np.arange(100) % 2, 'split': split})

  def select(self, query: str) -> np.ndarray:
    return np.arange(10) if query == 'validation' else np.arange(10, 100)


def test_every_training_seed_is_tested_on_the_same_images():
  config = patchcore.get_config('tiny')
  config.data.update({'validation': 'validation', 'test': 'test'})
  config.data.test_per_class = 8
  rows = score_records.chosen(config, _Records())
  assert len(rows) == 5 + 16  # The normals of the validation, and the test.
  config.seed = 1
  np.testing.assert_array_equal(score_records.chosen(config, _Records()), rows)
  config.eval.seed = 1
  assert set(score_records.chosen(config, _Records())) != set(rows)


class _Everything(_Records):
  def select(self, query: str) -> np.ndarray:
    return np.arange(100)


def test_images_of_another_split_are_refused():
  config = patchcore.get_config('tiny')
  config.data.update({'validation': 'validation', 'test': ''})
  with pytest.raises(UserError, match='10 images of the split validation'):
    score_records.chosen(config, _Everything())


def test_thresholds_are_of_normals_alone():
  config = patchcore.get_config('tiny')
  config.score.dense = ''
  table = pa.table(
    {
      'split': ['validation'] * 4 + ['test'],
      'label': [0, 0, 1, 1, 0],
      'group': list('abcde'),
      'score.x': [0.1, 0.2, 9.0, 9.5, 7.0],
    }
  )
  found = score_records._calibration(config, table, np.zeros(0))['x']
  assert (found['n'], found['groups'], found['value'][-1]) == (2, 2, 0.2)
  assert found['threshold'] <= 0.2


def test_of_equal_normals_none_lies_below():
  known = {
    'value': [0.0, 0.5, 0.5, 0.5, 1.0],
    'quantile': [0, 0.25, 0.5, 0.75, 1],
  }
  run = types.SimpleNamespace(calibration={'x': known})
  found = Run.calibrate(run, 'x', np.array([-1, 0.25, 0.5, 0.75, 2]))
  np.testing.assert_allclose(found, [0, 0.125, 0.25, 0.875, 1])


class _Pictures(_Records):
  """The same, with masks or without."""

  has_masks = False

  def __init__(self, has_masks: bool):
    super().__init__()
    self.has_masks = has_masks


def test_maps_to_look_at_are_of_the_same_images_whatever_the_method():
  info = types.SimpleNamespace(image=(8, 8, 3))
  run = types.SimpleNamespace(map_names=('nearest',), info=info)
  other = types.SimpleNamespace(map_names=('residual', 'ssim'), info=info)
  silent = types.SimpleNamespace(map_names=(), info=info)
  rows = np.arange(100)
  kept = score_records._mapped(run, _Pictures(False), rows)
  assert kept == score_records._mapped(other, _Pictures(False), rows)
  assert len(kept) == 2 * score_records.SHOWN and min(kept) >= 10
  assert sum(row % 2 for row in kept) == score_records.SHOWN
  assert len(score_records._mapped(run, _Pictures(True), rows)) == 90
  assert not score_records._mapped(silent, _Pictures(False), rows)


def test_speed_leaves_out_the_first_batch_which_compiles(monkeypatch):
  clock = iter([0.0, 9.0, 11.0])  # Begun, first batch there, read.
  fake = types.SimpleNamespace(monotonic=lambda: next(clock))
  monkeypatch.setattr(score_records, 'time', fake)
  speed = score_records._Speed()
  for images in (8, 8, 4):
    speed.add(images)
  assert speed.read() == {'images_per_s': 12 / 2, 'with_compiling': False}
  clock = iter([0.0, 9.0, 10.0])
  speed = score_records._Speed()
  speed.add(8)
  assert speed.read() == {'images_per_s': 8 / 10, 'with_compiling': True}
