"""What a run remembers of the data that it has learned from."""

import types

import numpy as np
import pyarrow as pa

from jaxmed import learn


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
