"""Sheets of samples, the FID curve and the choice, as a report shows them."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxmed.report import training
from tests.report.fabricate import change
from tests.report.test_write_report import check, read


def watched(run, steps=range(100, 1000, 50), chosen=300, rule='fid'):
  """Lets a fabricated run have been looked at; its lowest FID is `chosen`."""
  rows = [json.loads(x) for x in (run / 'train.jsonl').read_text().splitlines()]
  values = {step: 10 + abs(step - chosen) / 50 for step in steps}
  for row in rows:
    if row['step'] in values:
      row[rule] = values[row['step']]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (run / 'train.jsonl').write_text(lines)
  among = [{'step': k, 'value': v} for k, v in values.items()]
  phase = {'phase': 'munit', 'step': chosen, 'of': 900, 'value': 10.0}
  select = {'rule': rule, 'phases': [phase | {'among': among}]}
  about = {
    'network': 'small',
    'weights': 'random',
    'images': 1000,
    'real': 1900,
    'cohort': 'normal',
  }
  change(
    run,
    'provenance.json',
    lambda p: p.update(select=select, watch=about),
  )
  (run / 'samples').mkdir()
  for step in steps:
    picture = Image.fromarray(np.full((256, 256, 3), step % 256, np.uint8))
    picture.save(run / f'samples/step-{step:08d}.png')


def test_sheets_are_spread_over_time_with_the_chosen_one(run):
  watched(run, steps=range(50, 901, 50), chosen=300)
  page = read(run)
  check(page)
  alts = [image['alt'] for image in page.all('img')]
  steps = [
    int(alt.rsplit(' ', 1)[1]) for alt in alts if alt.startswith('Generated')
  ]
  assert steps == sorted(steps) and 8 <= len(steps) <= 9
  assert steps[0] == 50 and steps[-1] == 900 and 300 in steps
  assert 'Step 300 of munit · FID 10.0 · chosen' in page.text


def test_the_choice_its_rule_and_all_values_are_said(run):
  watched(run, chosen=400)
  text = read(run).text
  assert 'chosen by the lowest FID, without labels and without the test' in text
  assert (
    'of phase “munit”, step 400 of 900 (FID 10.0, the lowest of 18)' in text
  )
  assert 'All 18 states that it was chosen among' in text
  assert 'Dot: chosen: step 400, 10.0.' in text
  assert '1 900 real images of cohort “normal”' in text
  assert 'an untrained network’s' in text


def test_a_choice_by_validation_loss_and_phases_without_one(run):
  watched(run, rule='validation_loss')

  def edit(record):
    more = {'phase': 'encoder', 'step': 20, 'of': 20, 'among': []}
    record['select']['phases'].append(more)
    del record['watch']

  change(run, 'provenance.json', edit)
  page = read(run)
  check(page)
  assert 'lowest mean score of the validation normals' in page.text
  assert 'of phase “encoder”, where there was nothing to' in page.text


def test_the_last_state_is_said_to_be_the_last(run):
  phase = {'phase': 'munit', 'step': 900, 'of': 900, 'among': []}
  select = {'rule': 'last', 'phases': [phase]}
  change(run, 'provenance.json', lambda p: p.update(select=select))
  page = read(run)
  check(page)
  assert 'after the last step, 900 of phase “munit”; none was chosen' in (
    page.text
  )
  assert 'that it was chosen among' not in page.text


def test_a_collapse_is_a_caution(run):
  one = {
    'part': 'discriminator_b',
    'phase': 'munit',
    'step': 400,
    'below': 1e-3,
    'rounds': 20,
  }
  change(run, 'provenance.json', lambda p: p.update(collapse=[one]))
  page = read(run)
  check(page)
  assert 'loss of discriminator_b had been at zero (below 0.00100) for 20' in (
    page.text
  )


def test_a_broken_sheet_and_a_strange_file_are_no_harm(run):
  watched(run, steps=(100, 200, 300))
  (run / 'samples/step-00000200.png').write_bytes(b'broken')
  (run / 'samples/step-one.png').write_bytes(b'')
  page = read(run)
  check(page)
  assert 'Generated images, Step 200: unreadable' in str(page.elements)


@pytest.mark.parametrize('chosen', [2, 3])
def test_the_dot_is_where_the_step_is(chosen):
  log = [{'phase': 'gan', 'step': n, 'fid': 10.0 - n} for n in range(1, 5)]
  (phase,) = training.phases(log, {'gan': chosen})
  (figure,) = phase['main']
  assert figure.title == 'FID'
  assert f'chosen: step {chosen}, {10 - chosen}.00' in str(figure.svg)
