"""Whole jobs in processes of their own: killed, stopped, repeated, scored."""

import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from jaxmed import workdir

pytestmark = [
  pytest.mark.slow,
  # Orbax takes the devices from the file, and there is nothing else here.
  pytest.mark.filterwarnings('ignore:Sharding info not provided'),
]
PATIENCE = 600.0  # Seconds, for one launch on a busy machine.


@pytest.fixture(scope='module')
def finished(environment, tmp_path_factory):
  """A PatchCore launched without a workdir, and what it printed."""
  place = tmp_path_factory.mktemp('finished')
  done = _run('launch', '--config=patchcore:tiny', env=environment, cwd=place)
  assert done.returncode == 0, done.stderr
  return place / 'runs/patchcore-tiny', done


def _command(module: str, *argv) -> list[str]:
  return [sys.executable, '-m', f'jaxmed.{module}', *map(str, argv)]


def _run(module: str, *argv, **options) -> subprocess.CompletedProcess:
  return subprocess.run(
    _command(module, *argv),
    capture_output=True,
    text=True,
    timeout=PATIENCE,
    **options,
  )


class _Launch:
  """A launch under way, and all it says."""

  def __init__(self, folder: pathlib.Path, environment: dict, *argv: str):
    self.folder, self._said = folder, folder.with_name(f'{folder.name}.log')
    with self._said.open('w') as file:
      self._process = subprocess.Popen(
        _command('launch', *argv, f'--workdir={folder}'),
        env=environment,
        stdout=file,
        stderr=subprocess.STDOUT,
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.kill()
    self._process.wait()

  @property
  def said(self) -> str:
    return self._said.read_text()

  def steps(self) -> int:
    """How many steps are in the log of the run."""
    path = self.folder / 'train.jsonl'
    return path.read_text().count('\n') if path.exists() else 0

  def wait_for(self, what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
      assert self._process.poll() is None, f'It has ended: {self.said}'
      assert time.monotonic() < until, self.said
      time.sleep(0.01)

  def send(self, number: int) -> int:
    """Sends a signal and gives the exit code, as a shell would."""
    self._process.send_signal(number)
    code = self._process.wait(PATIENCE)
    return code if code >= 0 else 128 - code


def _resumed(said: str) -> int:
  """The step at which a launch says that it went on; 0: it does not."""
  found = re.search(r'resumed at step (\d+)', said)
  return int(found[1]) if found else 0


def _same_bits(one: pathlib.Path, other: pathlib.Path) -> None:
  states = (ocp.load(folder / 'final') for folder in (one, other))
  jax.tree.map(np.testing.assert_array_equal, *states)
  tables = (pq.read_table(folder / 'scores.parquet') for folder in (one, other))
  assert next(tables).equals(next(tables))


@pytest.mark.parametrize(
  'argv',
  [
    ('--config=munit:tiny', '--config.train.steps=40'),
    ('--config=fanogan:tiny',),
    ('--config=patchcore:tiny',),
  ],
  ids=lambda argv: argv[0],
)
def test_killed_at_three_moments_it_ends_in_the_same_bits(
  argv, environment, tmp_path
):
  argv = *argv, '--config.train.log_every=1', '--config.train.save_minutes=0'
  whole = tmp_path / 'whole'
  done = _run('launch', *argv, f'--workdir={whole}', env=environment)
  assert done.returncode == 0 and not _resumed(done.stderr), done.stderr
  steps = (whole / 'train.jsonl').read_text().count('\n')
  dice, killed = random.Random(argv[0]), tmp_path / 'killed'
  early = dice.randrange(4, steps // 2)
  late = dice.randrange(steps // 2, steps)
  for moment in (early, late):  # While it trains.
    with _Launch(killed, environment, *argv) as launch:
      launch.wait_for(lambda launch=launch, n=moment: launch.steps() >= n)
      time.sleep(dice.uniform(0, 0.05))
      assert launch.send(signal.SIGKILL) == 137
      assert moment == early or _resumed(launch.said) > 0, launch.said
  begun = dice.choice(('final', 'scores.parquet', 'maps', 'examples'))
  with _Launch(killed, environment, *argv) as launch:  # While it scores.
    launch.wait_for((killed / begun).exists)
    assert launch.send(signal.SIGKILL) == 137
    assert _resumed(launch.said) > 0, launch.said
  assert not (killed / 'report.html').exists()
  done = _run('launch', *argv, f'--workdir={killed}', env=environment)
  assert done.returncode == 0, done.stderr
  assert 'Report: ' in done.stdout
  _same_bits(whole, killed)


def test_asked_to_stop_it_saves_and_a_second_launch_is_refused(
  environment, tmp_path
):
  argv = '--config=fanogan:tiny', '--config.train.steps=1000000'
  folder = tmp_path / 'run'
  with _Launch(folder, environment, *argv) as launch:
    launch.wait_for(lambda: launch.steps() >= 3)
    other = _run('launch', *argv, f'--workdir={folder}', env=environment)
    assert other.returncode == 2
    assert 'is in use by process' in other.stderr
    assert launch.send(signal.SIGTERM) == 143
    assert 'the same command goes on from there' in launch.said
  with _Launch(folder, environment, *argv) as launch:
    launch.wait_for(lambda: _resumed(launch.said) >= 3)
    seen = launch.steps()
    launch.wait_for(lambda: launch.steps() > seen)
    assert launch.send(signal.SIGINT) == 130
    assert 'the same command goes on from there' in launch.said
  other = _run(
    'launch', *argv, '--config.seed=1', f'--workdir={folder}', env=environment
  )
  assert other.returncode == 2
  assert 'seed (0 there, 1 now)' in other.stderr and '--fresh' in other.stderr


def test_a_finished_run_is_left_as_it_is(finished, environment):
  folder, first = finished
  assert 'nearest *' in first.stdout
  assert f'Report: {folder}/report.html' in first.stdout
  before = {
    path: path.stat().st_mtime_ns
    for path in folder.rglob('*')
    if path.is_file()
  }
  argv = '--config=patchcore:tiny', f'--workdir={folder}'
  again = _run('launch', *argv, env=environment)
  assert again.returncode == 0, again.stderr
  assert 'is done already' in again.stderr and 'Compiled' not in again.stderr
  assert again.stdout == first.stdout
  after = {path: path.stat().st_mtime_ns for path in before}
  changed = {path.name for path in before if before[path] != after[path]}
  assert changed <= {'.lock'}


def test_begun_anew(finished, environment, tmp_path):
  folder, _ = finished
  argv = '--config=patchcore:tiny', f'--workdir={tmp_path}'
  other = *argv, '--config.model.coreset_size=4'
  assert _run('launch', *other, env=environment).returncode == 0
  refused = _run('launch', *argv, env=environment)
  assert refused.returncode == 2
  assert 'model.coreset_size (4 there, 32 now)' in refused.stderr
  anew = _run('launch', *argv, '--fresh', env=environment)
  assert anew.returncode == 0 and not _resumed(anew.stderr), anew.stderr
  _same_bits(folder, tmp_path)


def test_eight_devices_choose_the_coreset_of_one(
  finished, environment, tmp_path
):
  eight = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
  argv = '--config=patchcore:tiny', f'--workdir={tmp_path}'
  done = _run('launch', *argv, env=environment | eight)
  assert done.returncode == 0, done.stderr
  assert len(workdir.read_json(tmp_path / 'provenance.json')['devices']) == 8
  cores = (
    ocp.load(folder / 'final')['memory']['core']
    for folder in (finished[0], tmp_path)
  )
  one, other = cores
  assert one.shape == (32, 16)
  np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_slide_is_scored_and_the_rest_redone(finished, environment, tmp_path):
  folder, _ = finished
  slides = pq.read_table(folder / 'slides.parquet').to_pylist()
  slide = next(one for one in slides if one['label'] == 1)
  where = '--workdir', folder
  cut = tmp_path / 'cut.png'
  with Image.open(slide['path']) as image:
    image.crop((0, 0, 40, 40)).save(cut)
  out = tmp_path / 'out'
  argv = *where, '--out', out, slide['path'], cut
  done = _run('commands.cli', 'score', *argv, env=environment)
  assert done.returncode == 0, done.stderr
  table = pq.read_table(out / 'scores.parquet').to_pylist()
  rows = {pathlib.Path(row['file']).name: row for row in table}
  scored = rows[pathlib.Path(slide['path']).name]
  assert scored['tiles'] == slide['tiles'] and not scored['tiles_failed']
  np.testing.assert_allclose(
    scored['score.nearest'], slide['score.nearest'], rtol=1e-5
  )
  assert rows['cut.png']['tiles'] == 1
  assert len(list(out.glob('*_overlay.png'))) == 2
  argv = *where, '--mpp', '1', slide['path']
  done = _run('commands.cli', 'score', *argv, env=environment)
  assert done.returncode == 2 and 'than the 0.5 that the run was' in done.stderr
  for command in ('evaluate', 'report'):
    done = _run('commands.cli', command, *where, env=environment)
    assert done.returncode == 0, done.stderr


def test_camelyon16_from_its_folder_to_the_report(
  camelyon, environment, tmp_path
):
  small = {
    'data.path': camelyon,
    'data.size': 64,
    'data.options.method': 'stain',
    'model.dim': 4,
    'model.mlp_dim': 8,
    'model.style_dim': 2,
    'model.residual_blocks': 1,
    'model.discriminator.dim': 4,
    'model.discriminator.layers': 2,
    'model.discriminator.scales': 1,
    'train.steps': 6,
    'train.batch': 2,
    'eval.resamples': 50,
  }
  done = _run(
    'launch',
    '--config=munit:camelyon16',
    f'--workdir={tmp_path}',
    *(f'--config.{name}={value}' for name, value in small.items()),
    env=environment,
  )
  assert done.returncode == 0, done.stderr
  slides = pq.read_table(tmp_path / 'slides.parquet').to_pydict()
  assert set(slides['group']) == {'test_001', 'test_002', 'test_114'}
  assert (tmp_path / 'report.html').is_file()
  scored = pq.read_table(tmp_path / 'scores.parquet').to_pydict()
  tested = {
    g
    for g, s in zip(scored['group'], scored['split'], strict=True)
    if s == 'test'
  }
  assert tested == {'test_002', 'test_114'}
