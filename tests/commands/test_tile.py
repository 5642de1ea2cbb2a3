"""`jaxmed tile` from the command line: what it writes, says and returns."""

import shutil

import numpy as np
import pytest

from jaxmed import command
from jaxmed.commands import cli, tile
from jaxmed.datasets import crew, phantom, records
from tests.datasets.tasks import serially


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # It changes the log of the whole process; whole jobs are tested elsewhere.
  monkeypatch.setattr(command, 'set_up', lambda: None)


@pytest.fixture
def hands(monkeypatch):
  """Work is done here, and asked for with these options."""
  asked = []

  def workforce(workers, flags):
    asked.append((workers, flags))
    return serially

  monkeypatch.setattr(tile, 'workforce', workforce)
  return asked


@pytest.fixture
def slides(camelyon, tmp_path):
  (tmp_path / 'slides').mkdir()
  (tmp_path / 'outlines').mkdir()
  for path in ('normal/normal_001', 'normal/normal_101', 'tumor/tumor_001'):
    shutil.copy(camelyon / f'training/{path}.tif', tmp_path / 'slides')
  outlines = camelyon / 'training/lesion_annotations/tumor_001.xml'
  shutil.copy(outlines, tmp_path / 'outlines')
  return tmp_path / 'slides'


def test_slides_become_a_data_set(slides, hands, capsys):
  argv = ['tile', '--slides', 'slides', '--annotations', 'outlines']
  argv += ['--size=64', '--tissue=0.9', '--workers=1', '--out=R']
  assert cli.main(argv) == 0
  said = capsys.readouterr().out
  opened = records.open_records('R')
  assert f'{len(opened)} tiles of 3 slides in R: ' in said
  assert f'{len(opened.select("label == 1"))} with a lesion' in said
  assert '--config.data.path=R' in said
  assert min(opened.index['tissue'].to_pylist()) >= 0.9
  assert hands == [(1, [])]


def test_a_slide_that_cannot_be_read_makes_the_exit_code_1(
  slides, hands, capsys
):
  (slides / 'broken.svs').write_text('no slide')
  argv = ['tile', '--slides=slides', '--out=R', '--size=128']
  assert cli.main([*argv, '--dry-run']) == 1
  said = capsys.readouterr().out
  assert '1 cannot be read:\n  broken: ' in said and 'normal_101' in said
  assert not (slides.parent / 'R').exists()
  assert not (slides.parent / 'R.unfinished').exists()
  assert cli.main(argv) == 1
  said = capsys.readouterr().out
  assert ' tiles of 3 slides in R' in said
  assert '1 could not be read (failures.jsonl):\n  broken: ' in said


def test_slides_without_a_tile_are_named(slides, hands, capsys):
  glass = np.full((300, 300, 3), 240, np.uint8)
  for name in ('glass', 'pane'):
    phantom.write_slide(slides / f'{name}.tif', glass, 0.25)
  assert cli.main(['tile', '--slides=slides', '--out=R', '--size=128']) == 0
  said = capsys.readouterr().out
  assert '2 slides are too small for a tile, or have' in said
  assert 'too little tissue: glass, pane.' in said


@pytest.mark.parametrize('dash', '-_')
def test_beam_gets_its_flags(slides, hands, capsys, dash):
  argv = ['tile', '--slides=slides', '--out=R', '--dry-run']
  argv.append(f'--beam{dash}runner=SparkRunner')
  cli.main([*argv, f'--beam{dash}flags=--a=1 --b="2 3"'])
  assert hands == [(None, ['--runner=SparkRunner', '--a=1', '--b=2 3'])]


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    (['--workers=0'], '--workers is 0; it has to be at least 1.'),
    (['--beam_flags=--x'], '--beam-flags needs --beam-runner.'),
    (['--size=0'], 'at least'),
    (['--tissue=2'], 'out of bounds'),
    (['--annotations=nowhere'], 'nowhere'),
    (['--split=nowhere.csv'], 'There is no table'),
  ],
)
def test_what_is_wrong_is_one_sentence(slides, capsys, options, said):
  assert cli.main(['tile', '--slides=slides', '--out=R', *options]) == 2
  shown = capsys.readouterr()
  sentence, rest = shown.err.split('\n', 1)
  assert sentence.startswith('jaxmed: ') and said in sentence
  assert not rest and not shown.out


def test_by_default_a_crew_does_it():
  work = tile.workforce(workers=3)
  assert work.func is crew.run_all and work.keywords == {'workers': 3}
