import numpy as np
import pyarrow as pa
import pytest

from jaxmed.datasets.query import select
from jaxmed.errors import UserError

TABLE = pa.table(
  {
    'label': pa.array([0, 1, 0, 1, -1], pa.int8()),
    'tissue': pa.array([0.5, 0.9, 1.0, float('nan'), 0.95], pa.float32()),
    'split': ['train', 'test', 'train', 'test', 'validation'],
    'key': ['tumor_1/a', 'tumor_2/b', 'normal_1/c', 'tumor_10/d', 'x'],
  }
)


@pytest.mark.parametrize(
  ('query', 'rows'),
  [
    ('', [0, 1, 2, 3, 4]),
    ('label == 0', [0, 2]),
    ('label == 0 and tissue >= 0.9', [2]),
    ('label != 0 or tissue < 0.6', [0, 1, 3, 4]),
    ('not label == 0', [1, 3, 4]),
    ("split in ('train', 'validation')", [0, 2, 4]),
    ("split not in ['train']", [1, 3, 4]),
    ('label in (-1, 1)', [1, 3, 4]),
    ('label in ()', []),
    ('0.5 <= tissue < 0.95', [0, 1]),
    ("'train' == split", [0, 2]),
    ("'tumor_1' in key", [0, 3]),
    ("split == 'train' and (label == 1 or tissue == 1)", [2]),
    ('tissue >= 0', [0, 1, 2, 4]),  # NaN is not compared.
    ('label == -1', [4]),
    ('True', [0, 1, 2, 3, 4]),
    ('label == 7', []),
  ],
)
def test_a_query_picks(query, rows):
  assert np.flatnonzero(select(query, TABLE)).tolist() == rows


@pytest.mark.parametrize(
  ('query', 'complaint'),
  [
    ('lable == 0', "'lable'. Did you mean 'label'"),
    ('label = 0', 'cannot be read'),
    ('label', "'label' is no comparison"),
    ('label == 0 and split', "'split' is no comparison"),
    ("label == 'train'", "the text 'train' with the number column"),
    ('split < 3', 'with the number 3'),
    ('label is 0', "write '=='"),
    ('label + 1 == 2', 'neither a column'),
    ("__import__('os').system('true') == 0", 'neither a column'),
    ('label.__class__ == 0', 'neither a column'),
    ('(lambda: 0)() == 0', 'neither a column'),
    ('[x for x in label] == 0', 'neither a column'),
    ("label in 'train'", 'neither a list nor a column'),
    ("f'{label}' == 'x'", 'neither a column'),
    ('label == 0 ' + 'and (label == 0 ' * 2000 + ')' * 2000, 'nested'),
    ('label == 0\0', 'cannot be read'),
  ],
)
def test_what_is_no_query_is_refused(query, complaint):
  with pytest.raises(UserError) as raised:
    select(query, TABLE)
  assert complaint in str(raised.value)
