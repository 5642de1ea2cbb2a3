"""Tiny runs of every config, trained once for all the tests that look."""

import contextlib
import pathlib

import jax
import pytest

from jaxmed import command, learn, workdir
from jaxmed.datasets import write
from jaxmed.methods import names
from jaxmed.provenance import Provenance
from jaxmed.training.run import Stopped

# In every run; the others take minutes, and so run with --all.
QUICK = {'munit', 'padim', 'patchcore'}


def config_of(name: str):
  """The tiny preset of a config."""
  module = __import__(f'jaxmed.configs.{name}', fromlist=['get_config'])
  return module.get_config('tiny')


@pytest.fixture(scope='session', autouse=True)
def data_folder(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAXMED_DATA', str(tmp_path_factory.mktemp('data')))
    yield


@pytest.fixture(scope='session')
def learned(tmp_path_factory):
  """learned(name, devices): the folder of a run trained to its end."""
  done = {}

  def get(name: str, devices: int = 8) -> pathlib.Path:
    if (name, devices) not in done:
      folder = tmp_path_factory.mktemp(f'{name}-{devices}')
      done[name, devices] = train(config_of(name), folder, devices)
    return done[name, devices]

  return get


def train(config, folder, devices=8, stop=lambda at: False) -> pathlib.Path:
  """Trains in `folder`, or until `stop`."""
  if not (folder / 'config.json').exists():
    workdir.settle(folder, config, fresh=False)
  data = write.prepare(config.data, progress=False)
  with contextlib.suppress(Stopped):
    learn.train(
      config,
      folder,
      data,
      Provenance(folder),
      jax.devices()[:devices],
      stop,
    )
  return folder


def pytest_generate_tests(metafunc):
  if 'name' in metafunc.fixturenames:
    configs = [n for n in command.config_names() if n in names()]
    slow = pytest.mark.slow
    metafunc.parametrize(
      'name',
      [pytest.param(n, marks=[slow] * (n not in QUICK)) for n in configs],
    )
