"""An adversary that wins is warned of once, whatever kills come between."""

import json
import types

import pytest

from jaxmed.provenance import Provenance
from jaxmed.training.loop import At
from jaxmed.watching.collapse import Collapse


class Log:
  """A log in miniature, told of losses step by step."""

  def __init__(self, folder, rounds=3, adversaries=()):
    self.folder, self.event = folder, 0
    self.rounds, self.adversaries = rounds, adversaries
    self.restart()

  def restart(self):
    method = types.SimpleNamespace(adversaries=self.adversaries)
    self.provenance = Provenance(self.folder)
    self.collapse = Collapse(method, self.rounds, self.folder, self.provenance)

  def write(self, *losses, name='discriminator/loss'):
    for loss in losses:
      self.event += 1
      row = {'event': self.event, 'phase': 'gan', name: loss}
      with (self.folder / 'train.jsonl').open('a') as file:
        file.write(json.dumps(row) + '\n')
      at = At(self.event, 0, self.event)
      self.collapse.logged('gan', at, {name: loss, 'generator/loss': 0.0})

  @property
  def found(self):
    return self.provenance.get('collapse', [])


def test_so_many_in_a_row_are_warned_of_once(tmp_path, caplog):
  log = Log(tmp_path)
  log.write(0.5, 0.0, 0.0009, 0.3, 0.0, -0.0005)
  assert not log.found and not caplog.records
  log.write(0.0, 0.0, 0.0)
  assert [(one['part'], one['step']) for one in log.found] == [
    ('discriminator', 7)
  ]
  (record,) = caplog.records
  assert '3 logged steps in a row, up to step 7' in record.getMessage()
  on_disk = json.loads((tmp_path / 'provenance.json').read_text())
  assert on_disk['collapse'] == log.found


def test_a_run_that_goes_on_counts_on(tmp_path, caplog):
  log = Log(tmp_path)
  log.write(0.0, 0.0)
  log.restart()
  log.write(0.0)
  assert log.found[0]['step'] == 3
  log.restart()
  log.write(0.0, 0.0, 0.0)
  assert len(log.found) == 1 and len(caplog.records) == 1


@pytest.mark.parametrize(
  ('part', 'warned'),
  [
    ('critic', True),
    ('discriminator_b', True),
    ('judge', True),
    ('generator', False),
    ('encoder', False),
  ],
)
def test_which_parts_are_adversaries(part, warned, tmp_path):
  log = Log(tmp_path, adversaries=('judge',))
  log.write(0.0, 0.0, 0.0, name=f'{part}/loss')
  assert bool(log.found) == warned


def test_other_scalars_of_an_adversary_may_be_zero(tmp_path):
  log = Log(tmp_path)
  log.write(0.0, 0.0, 0.0, name='critic/penalty')
  assert not log.found


def test_none_is_warned_of_if_not_asked_to(tmp_path):
  log = Log(tmp_path, rounds=0)
  log.write(*[0.0] * 30)
  assert not log.found
