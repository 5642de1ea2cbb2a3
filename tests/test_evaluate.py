"""From the files of a scored run to results.json."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics

from configs import defaults
from jaxmed import evaluate as evaluation
from jaxmed import workdir
from jaxmed.errors import UserError

METRICS = {
  'auroc',
  'ap',
  'f1',
  'accuracy',
  'sensitivity',
  'specificity',
  'sensitivity_at_specificity',
  'oracle_youden_accuracy',
  'oracle_youden_f1',
  'oracle_best_f1',
  'oracle_best_f1_accuracy',
}


@pytest.fixture
def config():
  config = defaults.choose('munit', 'tiny', {'tiny': defaults.tiny})
  config.eval.resamples = 100
  return config


def scored(folder, change=None):
  """Scores of 6 slides, of which the last three have lesions."""
  rng = np.random.default_rng(0)
  split = np.repeat(['validation', 'test'], [40, 120])
  group = np.concatenate(
    [np.repeat(['v0', 'v1'], 20), np.repeat([f't{i}' for i in range(6)], 20)]
  )
  label = np.zeros(160, np.int8)
  label[100:] = rng.integers(0, 2, 60)
  table = {
    'row': np.arange(160, dtype=np.int32),
    'split': split,
    'group': group,
    'label': label,
    'score.good': rng.standard_normal(160) + 2 * label,
    'score.poor': rng.standard_normal(160),
    'trivial.contrast': rng.standard_normal(160) - 0.3 * label,
  }
  if change:
    change(table)
  pq.write_table(pa.table(table), folder / 'scores.parquet')
  return table


def run(folder, config):
  found = evaluation.evaluate(folder, config)
  text = (folder / 'results.json').read_text()
  assert json.loads(text) == found and 'NaN' not in text
  assert not list(folder.glob('.*partial'))
  return found


def test_values_intervals_thresholds_and_counts(tmp_path, config):
  table = scored(tmp_path)
  found = run(tmp_path, config)
  test = table['split'] == 'test'
  label, score = table['label'][test], table['score.good'][test]
  cut = np.quantile(table['score.good'][~test], 0.95)
  image = found['image']['good']
  assert set(image) == METRICS
  expected = {
    'auroc': metrics.roc_auc_score(label, score),
    'ap': metrics.average_precision_score(label, score),
    'f1': metrics.f1_score(label, score > cut),
    'accuracy': metrics.accuracy_score(label, score > cut),
    'sensitivity': (score > cut)[label == 1].mean(),
    'specificity': (score <= cut)[label == 0].mean(),
    'sensitivity_at_specificity': (
      score > np.quantile(table['score.good'][~test], 0.9)
    )[label == 1].mean(),
  }
  for name, value in expected.items():
    number = image[name]
    np.testing.assert_allclose(number['value'], value)
    assert number['low'] <= value <= number['high']
    assert (number['n'], number['groups']) == (120, 6)
    assert number['positives'] == label.sum()
  assert image['oracle_best_f1']['value'] >= image['f1']['value']
  assert found['primary'] == 'good'
  np.testing.assert_allclose(found['thresholds']['good']['value'], cut)
  assert found['thresholds']['good']['n'] == 40
  assert sum(row['n'] for row in found['counts']) == 160
  assert len(found['curves']['good']['roc']['low']) == 101
  contrast = found['trivial']['contrast']
  assert set(contrast) == METRICS | {'auroc_best_direction'}
  best = contrast['auroc_best_direction']
  np.testing.assert_allclose(best['value'], 1 - contrast['auroc']['value'])
  assert best['low'] <= best['value'] <= best['high']
  assert found['warnings'] == []
  assert found == run(tmp_path, config)  # The same seed, the same intervals.


def test_a_trivial_baseline_that_wins_is_a_warning(tmp_path, config):
  scored(tmp_path)
  config.eval.primary = 'poor'
  found = run(tmp_path, config)
  assert list(found['image']) == ['poor', 'good']
  assert any('trivial baseline contrast' in w for w in found['warnings'])


def test_one_class_is_null_with_a_reason(tmp_path, config):
  scored(tmp_path, lambda t: t['label'].fill(0))
  found = run(tmp_path, config)
  number = found['image']['good']['auroc']
  assert number['value'] is None
  assert number['reason'] == 'all examples are normal'
  assert found['image']['good']['specificity']['value'] is not None
  assert found['curves'] == {}
  assert any('no AUROC' in w for w in found['warnings'])
  assert 'none' in evaluation.table(found)


def test_what_is_not_finite_is_left_out_and_counted(tmp_path, config):
  def spoil(table):
    table['score.good'][[3, 50, 60]] = np.nan, np.inf, np.nan
    table['label'][70] = -1

  scored(tmp_path, spoil)
  found = run(tmp_path, config)
  assert found['image']['good']['auroc']['n'] == 117
  assert found['image']['poor']['auroc']['n'] == 119
  assert found['thresholds']['good']['n'] == 39
  text = ' '.join(found['warnings'])
  assert '2 of 119 test images have no finite score.good' in text
  assert '1 of 40 validation normals' in text
  assert '1 test images have no label' in text


def test_few_groups_and_no_validation_are_said(tmp_path, config):
  def shrink(table):
    table['split'][:] = 'test'
    table['group'][:] = 'only'

  scored(tmp_path, shrink)
  found = run(tmp_path, config)
  image = found['image']['good']
  assert image['auroc']['value'] is not None
  assert image['auroc']['low'] is None
  assert image['f1']['value'] is None and 'validation' in image['f1']['reason']
  assert found['thresholds']['good']['value'] is None
  text = ' '.join(found['warnings'])
  assert '1 group ' in text and 'no validation normals' in text


def test_pixels_and_slides(tmp_path, config):
  table = scored(tmp_path)
  rng = np.random.default_rng(1)
  rows = np.flatnonzero(table['split'] == 'test')
  masks = np.zeros((len(rows), 16, 16), bool)
  anomalous = table['label'][rows] == 1
  masks[anomalous, 3:8, 4:9] = True
  masks[np.flatnonzero(anomalous)[0]] = False  # Nobody has said where.
  maps = rng.standard_normal(masks.shape) + 2 * masks
  (tmp_path / 'maps').mkdir()
  np.savez(
    tmp_path / 'maps/pixel.npz',
    row=rows,
    mask=masks,
    residual=maps.astype(np.float16),
  )
  slides = {
    'group': [f't{i}' for i in range(6)],
    'label': np.array([0, 0, 0, 1, 1, 1]),
    'score.good': [0.1, 0.5, 0.2, 0.3, 0.9, np.nan],
    'mean.good': [0.1, 0.2, 0.1, 0.3, 0.4, 0.5],
  }
  pq.write_table(pa.table(slides), tmp_path / 'slides.parquet')
  found = run(tmp_path, config)
  pixel = found['pixel']['residual']
  assert set(pixel) == {'auroc', 'ap', 'aupro_4', 'aupro_8'}
  assert 0.85 < pixel['auroc']['low'] < pixel['auroc']['value'] < 0.95
  assert pixel['aupro_4']['positives'] == anomalous.sum() - 1
  slide = found['slide']['good']['auroc']
  assert (slide['value'], slide['n']) == (5 / 6, 5)
  assert found['slide']['mean.good']['auroc']['value'] == 1
  text = ' '.join(found['warnings'])
  assert '1 of 6 slides have no score good' in text
  assert '1 of 120 maps' in text
  shown = evaluation.table(found)
  assert 'AUPRO-4' in shown and 'slides, good: AUROC 0.833' in shown


def test_maps_that_float16_cannot_tell_apart_are_said(tmp_path, config):
  table = scored(tmp_path)
  rows = np.flatnonzero(table['split'] == 'test')
  masks = np.zeros((len(rows), 8, 8), bool)
  masks[table['label'][rows] == 1, :4] = True
  (tmp_path / 'maps').mkdir()
  np.savez(
    tmp_path / 'maps/pixel.npz',
    row=rows,
    mask=masks,
    fine=(0.05 * masks).astype(np.float16),
    flat=(100 + 0.05 * masks).astype(np.float16),
  )
  text = ' '.join(run(tmp_path, config)['warnings'])
  assert 'maps flat lie within 1 steps of float16' in text
  assert 'maps fine' not in text


def test_slides_without_a_label_and_sick_validations_are_said(tmp_path, config):
  def sick(table):
    table['label'][:40] = 1

  scored(tmp_path, sick)
  slides = {
    'group': ['a', 'b', 'c'],
    'label': np.array([0, 1, -1]),
    'score.good': [0.1, 0.5, 0.2],
  }
  pq.write_table(pa.table(slides), tmp_path / 'slides.parquet')
  text = ' '.join(run(tmp_path, config)['warnings'])
  assert '1 slides have no label' in text
  assert 'There are no validation normals' in text


def test_slides_by_the_rule_that_is_named_first(tmp_path, config):
  scored(tmp_path)
  label = np.array([0, 0, 0, 1, 1, 1])
  slides = {
    'group': [f't{i}' for i in range(6)],
    'label': label,
    'score.good': label[::-1] * 1.0,
    'mean.good': label * 1.0,
    'slide.mean_above.good': label + 0.5,
    'slide.top_k.good': 1.0 - label,
  }
  (tmp_path / 'later').mkdir()
  pq.write_table(pa.table(slides), tmp_path / 'later/slides.parquet')
  found = run(tmp_path, config)
  assert not found['slide'] and found['slides_folder'] == ''
  for rule, first in (
    ('max', 'good'),
    ('mean', 'mean.good'),
    ('mean_above', 'mean_above.good'),
    ('top_k', 'top_k.good'),
  ):
    config.eval.slide_rule = rule
    results = evaluation.evaluate(tmp_path, config, tmp_path / 'later')
    assert results['slides_folder'] == 'later'
    assert results['slide_rule'] == rule
    found = results['slide']
    assert next(iter(found)) == first and len(found) == 4
  aurocs = {name: metrics['auroc']['value'] for name, metrics in found.items()}
  assert aurocs == {
    'good': 0,
    'mean.good': 1,
    'mean_above.good': 1,
    'top_k.good': 0,
  }


def test_table_lines_up_and_names_everything(tmp_path, config):
  scored(tmp_path)
  lines = evaluation.table(run(tmp_path, config)).splitlines()
  assert lines[1].startswith('good *')
  assert lines[3].startswith('trivial: contrast')
  at = lines[0].index('AUROC')
  assert all(line[at - 1] == ' ' and line[at] == '0' for line in lines[1:4])


def test_a_score_that_is_put_first_afterwards_is_said(tmp_path, config):
  scored(tmp_path)
  workdir.write_json(tmp_path / 'config.json', workdir.plain_config(config))
  found = run(tmp_path, config)
  assert (found['primary'], found['beforehand']) == ('good', 'good')
  assert '* named first beforehand.' in evaluation.table(found)
  config.eval.primary = 'poor'
  found = run(tmp_path, config)
  assert (found['primary'], found['beforehand']) == ('poor', 'good')
  assert '* named first afterwards.' in evaluation.table(found)
  assert 'named before the test is good.' in found['warnings'][0]


def test_errors_that_can_be_mended(tmp_path, config):
  with pytest.raises(UserError, match='no scores.parquet'):
    evaluation.evaluate(tmp_path, config)
  scored(tmp_path)
  config.eval.primary = 'goood'
  with pytest.raises(UserError, match="Did you mean 'good'"):
    evaluation.evaluate(tmp_path, config)
  assert not (tmp_path / 'results.json').exists()


def test_without_any_label_all_is_null(tmp_path, config):
  def forget(table):
    table['label'][table['split'] == 'test'] = -1

  scored(tmp_path, forget)
  found = run(tmp_path, config)
  numbers = found['image']['good'].values()
  assert all(number['value'] is None for number in numbers)
  assert all('no labelled' in number['reason'] for number in numbers)
  assert found['thresholds']['good']['value'] is not None
