"""What is promised of the default demo: it finds lesions that it never saw."""

import os
import subprocess
import sys

import pytest

from jaxmed.workdir import read_json
from tests.conftest import ROOT


@pytest.mark.slow
def test_munit_tells_lesions_from_healthy_tissue(tmp_path):
  environment = os.environ | {
    'JAXMED_DATA': str(tmp_path / 'data'),
    'XLA_FLAGS': '',  # The tests' own flags would slow its 400 steps.
  }
  command = [sys.executable, '-m', 'jaxmed.launch', '--config=munit']
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
  found = results['image']['structure_half']['auroc']['value']
  trivial = {
    name: metrics['auroc_best_direction']['value']
    for name, metrics in results['trivial'].items()
  }
  assert max(trivial.values()) <= 0.75
  assert found >= 0.75
  assert found > max(trivial.values())
