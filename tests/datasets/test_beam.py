"""Beam's DirectRunner against a crew; skipped where Beam is not installed."""

import importlib.util
import pathlib
import sys

import pytest

from jaxmed.commands import tile
from jaxmed.errors import UserError

# Beam warns of much on its own account, and of what is not installed with it.
pytestmark = pytest.mark.filterwarnings('ignore')
DIRECT = ['--runner=DirectRunner', '--direct_running_mode=in_memory']


def _content(directory: pathlib.Path) -> dict[str, bytes]:
  files = [path for path in directory.rglob('*') if path.is_file()]
  return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def test_beam_writes_what_a_crew_writes(camelyon, tmp_path):
  if not importlib.util.find_spec('apache_beam'):
    pytest.skip('needs Apache Beam: pip install jaxmed[beam]')
  config = tile.data_config(camelyon / 'training/normal', 64)
  failures = {}
  for name, work in (
    ('beam', tile.workforce(flags=DIRECT)),
    ('crew', tile.workforce(workers=2)),
  ):
    failures[name] = tile.tile(config, tmp_path / name, work)
  assert failures['beam'] == failures['crew'] == []
  found = _content(tmp_path / 'beam')
  assert sum('array_record' in name for name in found) == 6
  assert found == _content(tmp_path / 'crew')


def test_without_beam_its_extra_is_named(camelyon, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  config = tile.data_config(camelyon / 'training/normal', 64)
  with pytest.raises(UserError, match=r'pip install -e "\.\[beam\]"'):
    tile.tile(config, tmp_path / 'R', tile.workforce(flags=DIRECT))
