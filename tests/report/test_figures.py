"""What is drawn is where the data says."""

import re

import numpy as np
import pytest
from PIL import Image

from jaxmed.report import figures, training
from jaxmed.report.images import Pictures
from jaxmed.report.plot import Plot, Scale


def points(svg: str, style: str) -> np.ndarray:
  """The path of that class, in pixels."""
  path = re.search(rf'<path [^>]*class="{style}"[^>]*>', svg)[0]
  pairs = re.findall(r'[ML](-?[\d.]+) (-?[\d.]+)', path)
  return np.array(pairs, float)


def test_a_line_runs_from_corner_to_corner_and_skips_what_is_missing():
  plot = Plot((0, 1), (0, 10), 'x', 'y', (200, 100))
  plot.line([0, None, 0.5, 1], [0, 3, float('nan'), 10], 's0')
  found = points(plot.svg('a line'), 'line s0')
  np.testing.assert_allclose(
    found, [[plot.x(0), plot.y(0)], [plot.x(1), plot.y(10)]]
  )
  assert found[0, 1] > found[1, 1]  # Up is up.


@pytest.mark.parametrize(
  ('low', 'high', 'log', 'expected'),
  [
    (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (-3, 7, False, [-2, 0, 2, 4, 6]),
    (1, 1000, True, [1, 10, 100, 1000]),
  ],
)
def test_ticks(low, high, log, expected):
  ticks = Scale(low, high, 0, 100, log).ticks()
  np.testing.assert_allclose(ticks, expected, atol=1e-12)


@pytest.mark.parametrize('value', [0.0, 5.0, -2.0])
def test_a_range_without_width_is_widened(value):
  scale = Scale(value, value, 0, 100)
  assert scale(value) == pytest.approx(50)
  assert len(scale.ticks()) > 1


def test_histogram_shares_and_threshold():
  rng = np.random.default_rng(0)
  values = {
    'normal': rng.normal(0, 1, 500),
    'anomalous': np.append(rng.normal(2, 1, 300), [np.nan, 1e6]),
    'validation': np.zeros(0),
  }
  figure = figures.histogram(values, 's', {'value': 1.5})
  assert 'threshold 1.5' in figure.svg
  assert [name for _, name in figure.legend] == [
    'normal, test (500)',
    'anomalous, test (301)',
  ]
  assert figure.caption.startswith('1 image beyond the axis')
  heights = points(figure.svg, 'area normal')[:, 1]
  assert heights.min() >= 0 and heights.max() > heights.min()


def test_histogram_of_nothing_and_of_one_value():
  nothing = {'normal': np.array([np.nan]), 'anomalous': np.zeros(0)}
  assert figures.histogram(nothing, 's', {}) is None
  one = {'normal': np.ones(5), 'anomalous': np.ones(3)}
  assert figures.histogram(one, 's', {'value': None}) is not None


def test_curves_without_a_band_and_without_curves():
  assert figures.roc({}, 's') is None
  assert figures.precision_recall({}, 's') is None
  curve = {'fpr': [0, 0.5, 1], 'tpr': [0, None, 1]}
  figure = figures.roc({'curves': {'s': {'roc': curve}}}, 's')
  assert len(points(figure.svg, 'line s0')) == 2
  assert 'class="band' not in figure.svg


def test_long_logs_keep_their_level():
  log = [
    {'phase': 'p', 'step': i, 'g/loss': i + i % 2 - 5000} for i in range(10_000)
  ]
  (phase,) = training.phases(log)
  (figure,) = phase['main']
  found = points(figure.svg, 'line s0')
  assert len(found) == training.POINTS
  slope = np.diff(found[:, 1]) / np.diff(found[:, 0])
  np.testing.assert_allclose(slope, slope.mean(), atol=0.2)


def test_pictures_stop_at_the_budget(tmp_path):
  noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
  Image.fromarray(noise).save(tmp_path / 'noise.png')
  pictures = Pictures(budget=60_000)
  found = [pictures.embed(tmp_path / 'noise.png', 150) for _ in range(20)]
  assert found[0]['width'] == 150 and found[0]['height'] == 100
  assert 'missing' in found[-1]
  kept = [p['uri'] for p in found if 'uri' in p]
  assert 0 < sum(map(len, kept)) <= 60_000
  assert pictures.left_out == 20 - len(kept)


@pytest.mark.parametrize('mode', ['1', 'L', 'I;16', 'P', 'RGBA', 'LA', 'F'])
def test_every_kind_of_picture_can_be_shown(tmp_path, mode):
  if mode == 'I;16':
    image = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20))
  else:
    image = Image.new('RGBA', (20, 20), (200, 10, 10, 90)).convert(
      'L' if mode == 'F' else mode
    )
    image = image.convert(mode)
  path = tmp_path / ('image.tif' if mode == 'F' else 'image.png')
  image.save(path)
  assert 'uri' in Pictures().embed(path, 100)


def test_enormous_pictures_are_not_opened(tmp_path):
  Image.new('1', (10_000, 6_000)).save(tmp_path / 'bomb.png')
  assert Pictures().embed(tmp_path / 'bomb.png', 9)['missing'] == 'unreadable'


def test_the_last_of_a_long_log_is_its_last():
  log = [{'step': n, 'g/loss': float(n)} for n in range(1, 10_001)]
  (phase,) = training.phases(log)
  assert phase['main'][0].legend == (('s0', 'g (last 10\u202f000)'),)


def test_a_band_is_told_of_where_there_is_one():
  curve = {'fpr': [0, 1], 'tpr': [0, 1], 'low': [0, 0.9], 'high': [0.1, 1]}
  results = {'curves': {'s': {'roc': curve}}}
  figure = figures.roc(results, 's')
  assert figure.caption.startswith('Band: 95 %') and 'band s0' in figure.svg
  curve |= {'low': [None, None], 'high': [None, None]}  # Of one group.
  figure = figures.roc(results, 's')
  assert figure.caption == 'Dashed diagonal: chance.'
  assert 'band' not in figure.svg


def test_the_froc_is_drawn_where_its_numbers_say():
  rates, sensitivity = [0.125, 0.5, 1, 8], [0, 0.25, 0.5, 0.75]
  found = {
    'score': {'value': 0.4},
    'sensitivity_at': {'1': {'value': 0.5}, '8': {'value': None}},
    'curve': {
      'false_positives': rates,
      'sensitivity': sensitivity,
      'low': [0, 0.125, 0.25, 0.5],
      'high': [0.125, 0.5, 0.75, 1],
    },
  }
  figure = figures.froc(found)
  drawn = points(figure.svg, 'line s0')
  octaves = np.log2(rates)
  np.testing.assert_allclose(
    (drawn[:, 0] - drawn[0, 0]) / np.ptp(drawn[:, 0]),
    (octaves - octaves[0]) / np.ptp(octaves),
    atol=1e-3,
  )
  heights = drawn[0, 1] - drawn[:, 1]
  np.testing.assert_allclose(
    heights / heights[-1], np.array(sensitivity) / 0.75, atol=1e-3
  )
  assert len(points(figure.svg, 'band s0')) == 8
  dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', figure.svg)
  assert dots == [tuple(f'{v:g}' for v in drawn[2])]
  assert '>0.125<' in figure.svg and '>8<' in figure.svg
  assert '0.400' in figure.caption
  found['curve'] |= {'low': [None] * 4, 'high': [None] * 4}
  assert 'band' not in figures.froc(found).svg
  assert figures.froc(found | {'curve': None}) is None
