"""The two smallest networks of the case; all six are in the slow tier."""

import pathlib

import numpy as np
import pytest

from tests.golden import backbones, check, filling

HERE = pathlib.Path(__file__).parent / 'backbones'


@pytest.mark.parametrize('name', ['resnet18', 'squeezenet1_1'])
def test_a_small_network_is_torchvisions(name):
  manifest = filling.read(HERE)
  sizes = manifest['hyperparameters']
  count = sizes['parameter_counts'][name]
  sizes = sizes | {'parameter_counts': {name: count}}
  with np.load(HERE / 'outputs.npz') as outputs:
    theirs = {k: v for k, v in outputs.items() if k.startswith(f'{name}.')}
  ours = backbones.compute(manifest | {'hyperparameters': sizes}, HERE)
  lines = check.compare(manifest, backbones, ours, theirs)
  assert len(lines) >= 14
  assert not [str(line) for line in lines if not line.passed]
