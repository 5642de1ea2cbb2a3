"""The summary's words follow the numbers, to the method's disadvantage."""

import dataclasses
import pathlib
import re

import pytest

from jaxmed.report.load import Run
from jaxmed.report.summary import cautions, summary, unit
from tests.report.fabricate import number


def made(auroc, baselines=None, config=None, **results) -> Run:
  results = {
    'primary': 's',
    'image': {'s': {'auroc': auroc}},
    'trivial': baselines or {},
  } | results
  config = {'method': 'munit', 'data': {'name': 'phantom'}} | (config or {})
  return Run(pathlib.Path(), config, results, {}, {}, [], [], [], [], [])


def baseline(value, low, high, best=None) -> dict:
  row = {'auroc': number(value, low, high)}
  if best:
    row['auroc_best_direction'] = number(*best)
  return row


@pytest.mark.parametrize(
  ('auroc', 'other', 'tone', 'words'),
  [
    ((0.9, 0.85, 0.95), (0.6, 0.5, 0.7), 'good', 'above every trivial'),
    ((0.8, 0.65, 0.95), (0.6, 0.5, 0.7), 'unclear', 'intervals overlap'),
    ((0.6, 0.55, 0.65), (0.7, 0.6, 0.8), 'bad', 'as well or better'),
    ((0.6, 0.55, 0.65), (0.6, 0.5, 0.7), 'bad', 'as well or better'),
    ((0.6, 0.45, 0.75), (0.5, 0.4, 0.6), 'unclear', 'includes 0.5'),
    ((0.3, 0.2, 0.4), (0.5, 0.4, 0.6), 'bad', 'below chance'),
    ((0.9, None, None), (0.6, 0.5, 0.7), 'unclear', 'no interval'),
    ((0.9, 0.85, 0.95), (0.6, None, None), 'unclear', 'intervals overlap'),
  ],
)
def test_verdict(auroc, other, tone, words):
  found = summary(made(number(*auroc), {'contrast': baseline(*other)}))
  assert found['tone'] == tone
  assert words in found['verdict']


def test_every_baseline_counts_not_the_highest_alone():
  others = {
    'contrast': baseline(0.7, 0.65, 0.75),
    'red': baseline(0.31, 0.05, 0.6, best=(0.69, 0.4, 0.95)),
  }
  found = summary(made(number(0.8, 0.78, 0.82), others))
  assert found['tone'] == 'unclear' and 'overlap' in found['verdict']
  del others['red']
  assert summary(made(number(0.8, 0.78, 0.82), others))['tone'] == 'good'


@pytest.mark.parametrize(
  ('value', 'says'),
  [
    (0.855, r'of 0\.85 .* higher 85 times in 100'),
    (0.996, 'higher more than 99 times in 100'),
    (1.0, 'higher 100 times in 100'),
    (0.004, 'higher less than 1 times in 100'),
    (0.0, 'higher 0 times in 100'),
  ],
)
def test_the_words_are_rounded_as_the_number_is(value, says):
  assert re.search(says, summary(made(number(value)))['sentence'])


def test_sentence():
  run = made(
    number(0.832, 0.781, 0.884),
    {
      'contrast': baseline(0.6, 0.5, 0.7),
      'mean_intensity': baseline(0.3, 0.2, 0.4, best=(0.7, 0.6, 0.8)),
    },
  )
  sentence = summary(run)['sentence']
  assert sentence.startswith('MUNIT on phantom H&E slides reaches an AUROC of')
  assert '0.83 (95 % interval 0.78 to 0.88 over 7 slides)' in sentence
  assert '400 anomalous among 800 test images' in sentence
  assert '83 times in 100' in sentence
  assert 'mean intensity, reaches 0.70 (0.60 to 0.80), with its' in sentence
  assert 'hindsight' in sentence


def test_without_baselines_or_auroc():
  found = summary(made(number(0.9, 0.8, 0.95)))
  assert 'No trivial baseline' in found['sentence']
  found = summary(made(number(None, reason='one class only')))
  assert found['sentence'].endswith('not defined: one class only.')
  assert found['tone'] == 'bad'


@pytest.mark.parametrize(
  ('name', 'groups', 'expected'),
  [
    ('phantom', 7, 'slide'),
    ('slides', 7, 'slide'),
    ('folder', 800, 'image'),
    ('folder', 30, 'patient'),
  ],
)
def test_what_a_group_is(name, groups, expected):
  run = made(
    number(0.8, 0.7, 0.9, groups=groups), config={'data': {'name': name}}
  )
  assert unit(run) == expected
  run.results['slide'] = {'s': {'auroc': number(0.8)}}
  assert unit(run) == 'slide'
  later = dataclasses.replace(run, slides_folder='scored/more')
  assert unit(later) == expected  # Of the images, not of those slides.


def test_few_groups_are_a_caution():
  few = cautions(made(number(0.8, 0.7, 0.9, groups=3)))
  assert any('3 slides' in text for text in few)
  assert not cautions(made(number(0.8, 0.7, 0.9, groups=40)))


def test_a_folder_goes_by_its_own_name():
  config = {'data': {'name': 'folder', 'path': 'images/oral'}}
  found = summary(made(number(0.8, 0.7, 0.9), config=config))
  assert found['sentence'].startswith('MUNIT on oral reaches')
