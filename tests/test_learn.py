"""What a run remembers of the data that it has learned from."""

import types

import numpy as np
import pyarrow as pa
import pytest
from ml_collections import ConfigDict

from jaxmed import learn
from jaxmed.errors import UserError


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
