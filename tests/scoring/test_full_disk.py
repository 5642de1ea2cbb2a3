"""A disk that is full in the middle: one sentence, and later it goes on."""

import pathlib
import shutil
import subprocess

import pytest

from jaxmed import command
from jaxmed.commands import cli, tile
from jaxmed.datasets import shards, write
from jaxmed.errors import UserError
from jaxmed.scoring import score_files
from tests.datasets.tasks import serially
from tests.scoring.test_score_slides import MAP, trained, write_slide


class Disk:
  """A small one, in memory."""

  def __init__(self, place: pathlib.Path):
    self.place = place

  def mount(self, kilobytes: int, *more: str) -> bool:
    options = ','.join([*more, f'size={kilobytes}k'])
    argv = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(self.place)]
    return not subprocess.run(argv, capture_output=True).returncode

  def enlarge(self) -> None:
    assert self.mount(100_000, 'remount')

  def empty(self, kilobytes: int) -> None:
    for path in self.place.iterdir():
      shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert self.mount(kilobytes, 'remount')


@pytest.fixture
def disk(tmp_path):
  place = tmp_path / 'disk'
  place.mkdir()
  found = Disk(place)
  if shutil.which('mount') is None or not found.mount(100):
    pytest.skip('only root can mount a small disk')
  yield found
  subprocess.run(['umount', str(place)], check=True)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
  monkeypatch.setattr(command, 'set_up', lambda: None)


@pytest.fixture(scope='module')
def slides(tmp_path_factory):
  place = tmp_path_factory.mktemp('slides')
  for number, name in enumerate('abc'):
    write_slide(place / f'{name}.tif', number)
  return place


def says(capsys, *argv) -> str:
  assert cli.main([str(word) for word in argv]) == 2
  sentence, rest = capsys.readouterr().err.split('\n', 1)
  assert not rest and sentence.endswith('.')
  return sentence


@pytest.fixture
def here(monkeypatch):
  """Tiles are cut in this process; what they take is not foreseen."""
  monkeypatch.setattr(tile, 'workforce', lambda *_: serially)
  monkeypatch.setattr(write, '_check_room', lambda *_: None)


def test_tiling_keeps_whole_shards_and_goes_on(disk, here, slides, capsys):
  disk.mount(500, 'remount')
  argv = 'tile', '--slides', slides, '--size=64', '--png', '--tissue=0.1'
  argv += '--out', disk.place / 'R'
  assert 'is full. Make room' in says(capsys, *argv)
  kept = list((disk.place / 'R.unfinished').glob('*.array_record*'))
  assert kept and not list(disk.place.rglob('*.tmp'))
  times = {path.name: path.stat().st_mtime_ns for path in kept}
  disk.enlarge()
  assert cli.main([str(word) for word in argv]) == 0
  assert 'tiles of 3 slides' in capsys.readouterr().out
  for name, time in times.items():
    assert (disk.place / 'R' / name).stat().st_mtime_ns == time


def test_a_disk_too_small_is_known_before(disk, slides, capsys, monkeypatch):
  monkeypatch.setattr(tile, 'workforce', lambda *_: serially)
  argv = 'tile', '--slides', slides, '--size=64', '--out', disk.place / 'R'
  assert 'MB free. Make room' in says(capsys, *argv)


def test_what_array_record_says_is_understood(slides, tmp_path, monkeypatch):
  def full(self, shard):
    raise RuntimeError('write() failed: No space left on device; at byte 9')

  monkeypatch.setattr(shards._Writer, 'finish', full)
  config = tile.data_config(slides, 64, {})
  with pytest.raises(UserError, match='is full. Make room'):
    tile.tile(config, tmp_path / 'R', serially)
  monkeypatch.undo()
  assert not tile.tile(config, tmp_path / 'R', serially)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  found = trained(tmp_path_factory.mktemp('run'))
  found.config.score.update({'dense': MAP, 'map_mpp': 0.5})
  return found


@pytest.mark.parametrize('kilobytes', [8, 1000, 2500])
def test_scoring_keeps_whole_slides_and_goes_on(
  disk, slides, run, kilobytes, capsys, monkeypatch
):
  monkeypatch.setattr(score_files, 'Run', lambda folder: run)
  disk.mount(kilobytes, 'remount')
  out = disk.place / 'out'
  argv = 'score', '--workdir', run.folder, '--slides', slides, '--out', out
  said = says(capsys, *argv)
  assert f'The disk of {disk.place}' in said and 'is full' in said
  assert not (out / 'slides.parquet').exists()
  disk.enlarge()
  assert cli.main([str(word) for word in argv]) == 0
  assert (out / 'slides.parquet').exists()
