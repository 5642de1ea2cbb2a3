"""Strictness for every test, and the tiers: plain, and `--all`."""

import collections
import os
import pathlib
import tempfile

# Compiling is most of what the tests do; their programs are too small to gain
# from being optimised.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax
import pytest
from absl import flags

from tests.places import ROOT, SHARED

# Files that take minutes with --all are begun first, or the last of them would
# be waited for by itself.
LONGEST = (
  'learning/test_phantom.py',
  'test_launch.py',
  'contract/test_contract.py',
  'golden/test_golden.py',
  'scoring/test_slides_whole.py',
  'test_notebooks.py',
  'comparing/test_sweep.py',
)

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
  parser.addoption('--all', action='store_true', help='also the slow tests')


def pytest_configure(config):
  # Tests that restart a run compile the same step again and again.
  cache = tempfile.TemporaryDirectory(prefix='jaxmed-compiled-')
  config.add_cleanup(cache.cleanup)
  jax.config.update('jax_compilation_cache_dir', cache.name)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  if not flags.FLAGS.is_parsed():  # Grain's worker processes ask for them.
    flags.FLAGS(['pytest'])


def pytest_collection_modifyitems(config, items):
  tests = collections.Counter(item.path for item in items)
  first = {ROOT / 'tests' / name: i for i, name in enumerate(LONGEST)}
  rank = lambda path: (first.get(path, len(first)), -tests[path], path)
  items.sort(key=lambda item: rank(item.path))
  if config.getoption('--all'):
    return
  skip = pytest.mark.skip(reason='slow: run with --all')
  for item in items:
    if 'slow' in item.keywords:
      item.add_marker(skip)


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """All launches of a module share prepared data and compiled steps."""
  place = tmp_path_factory.mktemp('shared')
  return os.environ | {
    'JAXMED_DATA': str(place / 'data'),
    'JAX_COMPILATION_CACHE_DIR': str(place / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
  }


@pytest.fixture
def shared():
  """A function that gives a path of the shared real data, or skips."""

  def find(path: str) -> pathlib.Path:
    found = SHARED / path
    if not found.exists():
      pytest.skip(f'needs {path} of the shared data, which is not here')
    return found

  return find


@pytest.fixture(scope='session')
def camelyon(tmp_path_factory) -> pathlib.Path:
  """A folder in the layout of Camelyon16. Tests that change it copy it."""
  from tests.datasets import fabricate_camelyon16

  folder = tmp_path_factory.mktemp('camelyon16') / 'published'
  return fabricate_camelyon16.fabricate(folder)
