import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxmed.slides import guard, reader
from tests.places import ROOT
from tests.slides import corpus


@pytest.mark.parametrize('case', corpus.CASES, ids=lambda case: case.name)
def test_each_is_one_error_that_says_where_and_why(case, tmp_path):
  if case.name == 'forbidden' and os.geteuid() == 0:
    pytest.skip('root may read everything')
  path = case.write(tmp_path)
  with pytest.raises((reader.SlideError, reader.TileError)) as caught:
    case.provoke(path)
  assert isinstance(caught.value, reader.TileError) == case.opens
  said = str(caught.value)
  assert str(path) in said and re.search(case.says, said), said
  assert '\n' not in said


def test_what_opens_can_still_be_read_elsewhere(tmp_path):
  """A broken tile costs the regions that touch it, and no others."""
  tiles = [c for c in corpus.CASES if c.opens and c.name.startswith('tile_of')]
  assert tiles
  for case in tiles:
    with reader.open_slide(case.write(tmp_path)) as slide:
      assert slide.read(0, 0, 256, 256).any()
      with pytest.raises(reader.TileError):
        slide.read(0, 0, 300, 300)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
  """As for the one in the corpus, which root can read."""
  path = tmp_path / 'forbidden.tif'
  path.write_bytes(corpus.healthy())

  def refuse(self, *_, **__):
    raise PermissionError(13, 'Permission denied', str(self))

  monkeypatch.setattr(pathlib.Path, 'open', refuse)
  with pytest.raises(reader.SlideError, match='forbidden.tif .*: Permission'):
    reader.Slide(path)


def test_the_healthy_one_is(tmp_path):
  path = tmp_path / 'healthy.tif'
  path.write_bytes(corpus.healthy())
  with reader.open_slide(path) as slide:
    assert slide.direct and slide.mpp == 0.5
    assert slide.read(0, 0, *slide.size).std() > 20


def test_memory_and_patience_are_bounded():
  assert guard.PATIENCE < 5
  done = subprocess.run(
    [sys.executable, '-m', 'tests.slides.corpus'],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  peak = re.search(r'peak memory (\d+) MB', done.stdout)
  assert int(peak[1]) < 512
  taken = [float(said) for said in re.findall(r'(?m)^([\d.]+) s ', done.stdout)]
  assert len(taken) == len(corpus.CASES)
  assert max(taken) < 5
