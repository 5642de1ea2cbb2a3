"""What is promised of the phantom: lesions that no training saw are found."""

import os
import subprocess
import sys

import pytest

from jaxmed.workdir import read_json
from tests.places import ROOT

# Below what each has on seed 0, which is run here, by the score that its preset
# names first. On other seeds that were run CycleGAN alone falls below, to .64.
# Methods that are not listed are below .7 on some seed, as their pages say.
LEAST = {
  'munit': 0.75,
  'cyclegan': 0.7,
  'steganomaly': 0.7,
  'ganomaly': 0.7,
  'alocc': 0.7,
}
TRIVIAL = 0.75


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """One folder of data for all: its slides are drawn once."""
  return tmp_path_factory.mktemp('data')


@pytest.mark.slow
@pytest.mark.parametrize('method', LEAST)
def test_lesions_are_told_from_healthy_tissue(method, data, tmp_path):
  environment = os.environ | {
    'JAXMED_DATA': str(data),
    'XLA_FLAGS': '',  # The tests' own flags would slow its 400 steps.
  }
  command = [sys.executable, '-m', 'jaxmed.launch', f'--config={method}']
  done = subprocess.run(
    [*command, f'--workdir={tmp_path / "run"}', '--config.score.slides=False'],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stderr
  results = read_json(tmp_path / 'run/results.json')
  assert results['primary'] == 'structure_half'
  found = results['image']['structure_half']['auroc']['value']
  trivial = {
    name: metrics['auroc_best_direction']['value']
    for name, metrics in results['trivial'].items()
  }
  assert max(trivial.values()) <= TRIVIAL
  assert found >= LEAST[method]
  assert found > max(trivial.values())
