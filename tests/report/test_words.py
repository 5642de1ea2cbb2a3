"""Numbers, times and names as the page writes them."""

import pytest

from jaxmed.report import words

NOTHING = (None, float('nan'), float('inf'), 'text')


@pytest.mark.parametrize(
  'write',
  [words.share, words.count, words.number, words.per_cent, words.seconds],
)
@pytest.mark.parametrize('value', NOTHING)
def test_what_is_no_number_is_a_dash(write, value):
  assert write(value) == words.DASH


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (0, '0'),
    (0.0123456, '0.0123'),
    (51.34, '51.3'),
    (-2.5, '−2.50'),
    (12345.6, '12\u202f346'),
    (0.00001234, '1.23e−05'),
    (1.5e9, '1.50e+09'),
  ],
)
def test_number(value, expected):
  assert words.number(value) == expected


@pytest.mark.parametrize(
  ('value', 'expected'),
  [(8.24, '8.2 s'), (42, '42 s'), (200, '3 min 20 s'), (7500, '2 h 05 min')],
)
def test_seconds(value, expected):
  assert words.seconds(value) == expected


def test_the_rest():
  assert words.several(1, 'slide') == '1 slide'
  assert words.several(2, 'patch') == '2 patches'
  assert words.per_cent(1.26) == '1.3 %' and words.per_cent(38.2) == '38 %'
  assert words.metric('auroc') == 'AUROC'
  assert words.metric('oracle_new_one') == 'new one'
  assert words.interval({'low': 0.7, 'high': None}) == ''
  assert words.text({'a': None, 'b': [1, 2.5]}) == 'a: –, b: 1, 2.5'
  assert words.text(float('nan')) == words.DASH
  assert words.text(True) == 'yes' and words.text([]) == words.DASH


def test_p_values_and_sizes():
  assert words.p_value(0.0499) == '0.050'
  assert words.p_value(0.0004) == '< 0.001'
  assert words.p_value(1.0) == '1.000'
  assert words.size(1_240_000_000) == '1.2 GB'
  assert words.size(840_000_000) == '840 MB'
  assert words.p_value(None) == words.size(float('nan')) == words.DASH
