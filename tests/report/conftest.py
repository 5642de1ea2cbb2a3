"""One fabricated run for all tests that only read it."""

import shutil

import pytest

from tests.report.fabricate import fabricate


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """The folder of a whole run; not to be changed."""
  return fabricate(tmp_path_factory.mktemp('finished') / 'run')


@pytest.fixture(scope='session')
def small(tmp_path_factory):
  folder = tmp_path_factory.mktemp('small') / 'run'
  return fabricate(folder, patches=40, slides=4, side=64)


@pytest.fixture
def run(small, tmp_path):
  """The folder of a small run that a test may change."""
  return shutil.copytree(small, tmp_path / 'run')
