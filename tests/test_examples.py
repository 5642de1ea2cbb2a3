"""Which examples a report shows, and what is kept of them."""

import json

import numpy as np

from jaxmed import examples


def test_the_extremes_of_each_class_and_scores_that_are_not_finite():
  table = [
    {
      'row': i,
      'key': f'k{i}',
      'group': 'g',
      'label': i % 2,
      'kind': '',
      'split': 'test' if i < 8 else 'validation',
      'score.first': float(i) if i else np.nan,
      'score.second': (1.0, np.inf, np.nan)[i % 3],
    }
    for i in range(10)
  ]
  chosen = examples._choose(table, 'first', 2)
  rows = {}
  for rank, one in chosen:
    rows.setdefault(rank, []).append(one['row'])
  assert rows == {
    'highest anomalous': [7, 5],
    'highest normal': [6, 4],
    'lowest anomalous': [1, 3],
    'lowest normal': [2, 4],
  }
  found = [examples._describe(rank, one, {}) for rank, one in chosen]
  text = json.dumps(found, allow_nan=False)
  assert json.loads(text)[0]['scores'] == {'first': 7.0, 'second': None}
