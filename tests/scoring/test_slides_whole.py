"""From a folder of slides to the FROC of lesions, each command a process."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from jaxmed import workdir
from jaxmed.datasets import phantom
from jaxmed.evaluate_lesions import read_detections
from jaxmed.slides import annotations, geojson
from tests.datasets import fabricate_camelyon16

pytestmark = pytest.mark.slow
PATIENCE = 600.0  # Seconds, for one command on a busy machine.
SIDE = 1792  # Of the test slides, px.
DIAMETERS = (300.0, 90.0)  # Of lesions, micrometres: the latter is an ITC.
TEST = {1: False, 2: True, 3: True, 4: False, 49: True, 114: True}
# A network and a training that are over in seconds.
SMALL = (
  *('model.dim=4', 'model.mlp_dim=8', 'model.style_dim=2'),
  *('model.residual_blocks=1', 'model.discriminator.dim=4'),
  *('model.discriminator.layers=2', 'model.discriminator.scales=1'),
  *('data.size=32', 'data.test_per_class=16', 'train.batch=8'),
  *('train.steps=6', 'train.log_every=2', 'score.batch=32'),
  *('score.stride=64', 'score.nms_radius=40.0'),
  *('eval.resamples=200', 'report.examples=2'),
)


@pytest.fixture(scope='module')
def jaxmed(environment, tmp_path_factory):
  """A function that runs a command and wants its exit code to be this."""
  here = tmp_path_factory.mktemp('here')

  def call(code: int, *argv) -> subprocess.CompletedProcess:
    module = 'launch' if argv[0] == 'launch' else 'commands.cli'
    argv = argv[1:] if argv[0] == 'launch' else argv
    done = subprocess.run(
      [sys.executable, '-m', f'jaxmed.{module}', *map(str, argv)],
      capture_output=True,
      text=True,
      timeout=PATIENCE,
      env=environment,
      cwd=here,
    )
    assert done.returncode == code, done.stderr
    return done

  return call


def overrides(*more: str) -> list[str]:
  return [f'--config.{one}' for one in (*SMALL, *more)]


@pytest.fixture(scope='module')
def tiled(published, jaxmed, tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp('tiled') / 'R'
  slides = published / 'training'
  # Normal_086 is a tumour: its outlines are named tumor_111.
  options = '--size=32', '--tissue=0.9', '--out', out
  where = '--slides', slides / 'normal', *options
  splits = out.with_suffix('.csv')
  splits.write_text(
    'slide,split\n'
    'normal_001,train\nnormal_002,validation\nnormal_003,test\n'
    'normal_086,test\nnormal_101,train\nnormal_102,train\n'
  )
  done = jaxmed(0, 'tile', *where, '--split', splits)
  assert 'tiles of 6 slides' in done.stdout
  assert '--config=munit:slides' in done.stdout
  return out


@pytest.fixture(scope='module')
def trained(tiled, jaxmed, tmp_path_factory) -> pathlib.Path:
  """On the tiles of normal slides: the test has one class, which is said."""
  folder = tmp_path_factory.mktemp('trained') / 'W'
  argv = '--config=munit:slides', f'--config.data.path={tiled}'
  jaxmed(0, 'launch', *argv, f'--workdir={folder}', *overrides())
  return folder


def fabricate(root: pathlib.Path) -> pathlib.Path:
  """With test slides so large, and so many, that there are lesions to find."""
  fabricate_camelyon16.fabricate(root)
  testing = root / 'testing'
  drawn = {
    sick: fabricate_camelyon16.draw('A', SIDE, DIAMETERS if sick else ())
    for sick in (False, True)
  }
  lines = []
  for turn, (number, sick) in enumerate(TEST.items()):
    name = f'test_{number:03d}'
    now = fabricate_camelyon16.turned(drawn[sick], turn)
    phantom.write_slide(testing / f'images/{name}.tif', now.pixels, 0.243)
    if sick:
      outline = testing / f'lesion_annotations/{name}.xml'
      annotations.write_xml(outline, now.lesions)
    lines.append(f'{name},{"Tumor,IDC,Macro" if sick else "Normal,None,None"}')
  (testing / 'reference.csv').write_text('\n'.join(lines))
  return root


@pytest.fixture(scope='module')
def published(tmp_path_factory) -> pathlib.Path:
  return fabricate(tmp_path_factory.mktemp('camelyon16') / 'published')


@pytest.fixture(scope='module')
def scoring(trained, published) -> tuple:
  """The command that scores the test slides."""
  testing = published / 'testing'
  argv = 'score', '--workdir', trained, '--slides', testing / 'images'
  return *argv, '--annotations', testing / 'lesion_annotations'


@pytest.fixture(scope='module')
def scored(trained, scoring, jaxmed) -> pathlib.Path:
  jaxmed(0, *scoring)
  return trained / 'scored/images'  # Named as the folder of slides is.


def test_three_commands_give_a_froc(trained, scored, jaxmed):
  argv = '--workdir', trained, '--slides', scored, '--protocol=camelyon16'
  done = jaxmed(0, 'evaluate', *argv)
  assert 'FROC score' in done.stdout and 'left out: test_114' in done.stdout
  found = workdir.read_json(trained / 'results.json')['froc']
  score = found['score']
  assert 0 <= score['low'] <= score['value'] <= score['high'] <= 1
  assert found['slides'] == 4 and found['tumour_slides'] == 2
  assert found['lesions'] >= 2
  assert 'auroc' in found and len(found['excluded']) == 2
  done = jaxmed(0, 'evaluate', *argv, '--no-strict')
  assert 'not strict' in done.stdout


def test_each_slide_has_its_files(scored):
  rows = pq.read_table(scored / 'slides.parquet').to_pylist()
  assert [row['label'] for row in rows] == [0, 1, 1, 0, 1, 1]
  for row in rows:
    group = row['group']
    assert row['tiles'] > 50 and row['score.structure_half'] > 0
    assert len(read_detections(scored / f'detections/{group}.csv'))
    geojson.read_geojson(scored / f'{group}.geojson')
    with tifffile.TiffFile(scored / f'{group}.ome.tif') as file:
      assert file.is_ome and file.asarray().shape[-2:] == (28, 28)
    for kind in ('thumbnail', 'overlay', 'heat'):
      assert (scored / f'{group}_{kind}.png').stat().st_size
  assert not (scored / 'failures.jsonl').read_text()


def test_an_interrupted_scoring_goes_on(scored, scoring, jaxmed):
  before = pq.read_table(scored / 'slides.parquet')
  time = (scored / 'test_001.json').stat().st_mtime_ns
  (scored / 'test_002.json').unlink()
  (scored / 'slides.parquet').unlink()
  jaxmed(0, *scoring)
  after = pq.read_table(scored / 'slides.parquet')
  for name in before.column_names:
    one, other = (table[name].to_pylist() for table in (after, before))
    if '.' in name:  # A score, of tiles in another batch.
      one, other = np.array(one, float), np.array(other, float)
      np.testing.assert_allclose(one, other, rtol=1e-5)
    else:
      assert one == other
  assert (scored / 'test_001.json').stat().st_mtime_ns == time


def test_exit_codes_say_what_failed(trained, published, jaxmed, tmp_path):
  slides = tmp_path / 'slides'
  slides.mkdir()
  for name in ('test_001', 'test_002'):
    path = published / f'testing/images/{name}.tif'
    (slides / path.name).symlink_to(path)
  (slides / 'broken.svs').write_text('no slide')
  out = '--out', tmp_path / 'R'
  done = jaxmed(1, 'tile', '--slides', slides, '--size=64', *out)
  assert 'broken.svs' in done.stdout
  out = '--out', tmp_path / 'scored'
  where = '--workdir', trained
  done = jaxmed(1, 'score', *where, '--slides', slides, *out)
  assert '1 of 3 slides have no score' in done.stderr
  (line,) = (tmp_path / 'scored/failures.jsonl').read_text().splitlines()
  assert 'broken.svs' in json.loads(line)['error']
  done = jaxmed(2, 'score', *where, '--slides', tmp_path / 'no', *out)
  assert done.stderr.startswith('jaxmed: ') and done.stderr.count('\n') == 1
  jaxmed(2, 'tile', '--slides', tmp_path / 'no', '--out', tmp_path / 'no')
  jaxmed(2, 'evaluate', *where, '--slides', tmp_path, '--protocol=camelyon16')


def test_one_command_gives_it_too(published, jaxmed, tmp_path):
  argv = '--config=munit:camelyon16', f'--config.data.path={published}'
  more = overrides('data.options.method=stain', 'train.warmup=0')
  folder = tmp_path / 'W'
  done = jaxmed(0, 'launch', *argv, f'--workdir={folder}', *more)
  assert 'FROC score' in done.stdout
  results = workdir.read_json(folder / 'results.json')
  score = results['froc']['score']
  assert 0 <= score['low'] <= score['value'] <= score['high'] <= 1
  rows = pq.read_table(folder / 'slides.parquet').to_pylist()
  rows = {row['group']: row for row in rows}
  assert rows['test_114']['exhaustive'] is False
  assert rows['test_002']['exhaustive'] is True
  excluded = [one['group'] for one in results['froc']['excluded']]
  assert 'test_114' in excluded and 'test_002' not in excluded
  for group in rows:
    assert (folder / f'detections/{group}.csv').exists()
    assert (folder / f'maps/{group}.ome.tif').exists()
  assert (folder / 'report.html').stat().st_size > 10_000


def test_a_launch_that_finds_a_broken_slide_ends_in_1(jaxmed, tmp_path):
  root = fabricate(tmp_path / 'published')
  (root / 'testing/images/test_001.tif').write_bytes(b'II*\0')
  argv = '--config=munit:camelyon16', f'--config.data.path={root}'
  more = overrides('data.options.method=stain')
  folder = tmp_path / 'W'
  jaxmed(1, 'launch', *argv, f'--workdir={folder}', *more)
  rows = pq.read_table(folder / 'slides.parquet').to_pylist()
  (broken,) = [row for row in rows if row['group'] == 'test_001']
  assert 'test_001.tif' in broken['reason']
  failed = (folder / 'failures.jsonl').read_text()
  assert 'test_001.tif' in failed
  results = workdir.read_json(folder / 'results.json')
  reasons = {x['group']: x['reason'] for x in results['froc']['excluded']}
  assert 'test_001.tif' in reasons['test_001']
