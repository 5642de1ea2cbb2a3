"""Several runs in turn: some fail, some are done already, all are counted."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from jaxmed import command, launch, workdir
from jaxmed.commands import cli
from jaxmed.comparing import sweep
from jaxmed.errors import UserError
from tests.report.fabricate import fabricate
from tests.report.page import Page
from tests.report.test_write_report import check
from tests.test_command import pictures

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module\\(\\) method')
PATIENCE = 600.0
FIELDS = (
  '--config.data.resize=0',
  '--config.data.size=16',
  '--config.eval.resamples=100',
  '--config.train.batch=8',
  '--config.score.batch=8',
)
GRID = """
def get_sweep():
  return {
    'config': ['patchcore:tiny', 'padim:tiny'],
    'model.layers': [('stage2',), ('stage2', 'stage3')],
    'seed': range(2),
  }
"""
LISTED = """
def get_sweep():
  return [
    'patchcore:folder',
    ('patchcore:folder', {'model.coreset_size': 4, 'train.fsdp': True}),
  ]
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
  # It changes the log of the whole process; whole jobs are tested elsewhere.
  monkeypatch.setattr(command, 'set_up', lambda: None)


@pytest.fixture
def launches(monkeypatch):
  """Launches happen in this process; the list of those that were made."""
  made = []

  def here(argv, folder, log):
    made.append(folder.name)
    if '--config.model.coreset_size=4' in argv:
      log.write_text('12:00:00 training\njaxmed: It had to fail.\n')
      return 2
    return launch.main(['launch', *argv, f'--workdir={folder}'])

  monkeypatch.setattr(sweep, '_launch', here)
  return made


@pytest.mark.slow
def test_one_fails_the_others_are_compared_and_a_second_call_goes_on(
  launches, tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('JAXMED_DATA', str(tmp_path / 'prepared'))
  path = pictures(tmp_path / 'images')
  (tmp_path / 'mine.py').write_text(
    'def get_sweep():\n'
    '  few = {"model.coreset_size": 8}\n'
    '  return [\n'
    '    ("patchcore:folder", few | {"seed": 1}),\n'
    '    ("patchcore:folder", {"model.coreset_size": 4}),\n'
    '    ("patchcore:folder", few | {"seed": 0}),\n'
    '    ("padim:folder", {"model.channels": 4}),\n'
    '  ]\n'
  )
  out = tmp_path / 'sweep'
  argv = ['sweep', str(tmp_path / 'mine.py'), f'--workdir={out}', path, *FIELDS]
  assert cli.main(argv) == 1
  names = [
    'patchcore-folder-model.coreset_size=8-seed1',
    'patchcore-folder-model.coreset_size=4',
    'patchcore-folder-model.coreset_size=8-seed0',
    'padim-folder-model.channels=4',
  ]
  assert launches == names
  shown = capsys.readouterr().out
  assert 'PatchCore (2 seeds)' in shown and 'PaDiM' in shown
  assert '3 of 4 runs are finished.' in shown
  assert f'Failed: {names[1]}: exit code 2, It had to fail.' in shown
  with (out / 'comparison.csv').open() as file:
    rows = [r for r in csv.DictReader(file) if r['kind'] == 'method']
  assert [row['seeds'] for row in rows] == ['0 1', '0']
  assert rows[0]['auroc_spread'] and not rows[1]['auroc_spread']
  assert float(rows[0]['host_bytes']) > 1e8
  assert float(rows[0]['score_images_per_s']) > 0
  assert float(rows[0]['pretrained']) > 0 and float(rows[0]['bank']) > 0
  page = Page((out / 'comparison.html').read_text('utf-8'))
  check(page)
  links = [a['href'] for a in page.all('a') if not a['href'].startswith('#')]
  assert links and all(
    (out / link.replace('%3D', '=')).exists() for link in links
  )
  table = pq.read_table(out / names[0] / 'scores.parquet').to_pydict()
  test = [
    label
    for label, split in zip(table['label'], table['split'], strict=True)
    if split == 'test'
  ]
  shown = min(5, test.count(1)) + min(5, test.count(0))
  # The data is here, and a map of either method.
  assert len(page.all('img')) == 3 * shown > 15
  launches.clear()
  assert cli.main(argv) == 1
  assert launches == [names[1]]
  assert '3 of 4 runs are finished.' in capsys.readouterr().out


def test_runs_that_do_not_compare_are_still_made(tmp_path, monkeypatch):
  """Two test sets, of fabricated runs in place of launches."""

  def fake(argv, folder, log):
    config = command.parse_launch(('launch', *argv), '').config
    fabricate(folder, patches=10, slides=4, side=16)
    plain = workdir.plain_config(config)
    (folder / 'config.json').write_text(json.dumps(plain))
    (folder / 'report.html').touch()
    record = json.loads((folder / 'provenance.json').read_text())
    record['data']['fingerprint'] = folder.name
    (folder / 'provenance.json').write_text(json.dumps(record))
    (folder / 'slides.parquet').unlink()  # One of them has no score.
    if config.seed:
      table = pq.read_table(folder / 'scores.parquet')
      table = table.drop_columns(['trivial.contrast'])
      pq.write_table(table, folder / 'scores.parquet')
    return 0

  monkeypatch.setattr(sweep, '_launch', fake)
  given = [('munit:tiny', {'seed': seed}) for seed in (0, 1)]
  text, code = sweep.sweep(given, tmp_path)
  assert code == 1 and '2 of 2 runs are finished.' in text
  assert 'No comparison: ' in text and 'on the same images' in text
  text, code = sweep.sweep(given[:1], tmp_path)
  assert code == 0 and 'needs two finished runs' in text
  (tmp_path / 'munit-tiny-seed0/config.json').write_text('{')
  text, code = sweep.sweep(given[:1], tmp_path)  # It is made again.
  assert code == 0 and '1 of 1 runs' in text


def test_files_of_sweeps_are_read(tmp_path):
  path = tmp_path / 'sweep.py'
  path.write_text(GRID)
  given = sweep.read_file(path)
  assert len(given) == 8 and len({str(one) for one in given}) == 8
  assert given[1] == (
    'patchcore:tiny',
    {'model.layers': ('stage2',), 'seed': 1},
  )
  planned = sweep.plan(given)
  assert len({run.name for run in planned}) == 8
  assert planned[1].config.model.layers == ('stage2',)
  assert planned[1].config.seed == 1
  path.write_text(LISTED)
  planned = sweep.plan(
    sweep.with_seeds(sweep.read_file(path), (3, 4)), ['--config.train.batch=2']
  )
  assert [run.name for run in planned] == [
    'patchcore-folder-seed3',
    'patchcore-folder-seed4',
    'patchcore-folder-model.coreset_size=4-train.fsdp=True-seed3',
    'patchcore-folder-model.coreset_size=4-train.fsdp=True-seed4',
  ]
  assert planned[3].config.train.fsdp and planned[3].config.train.batch == 2


def test_names_are_safe_and_do_not_depend_on_the_rest_of_the_sweep():
  given = [
    ('my/own.py', {'data.path': '/some where/else'}),
    ('my/own.py', {'data.path': '/some/where else'}),
    ('padim:tiny', {'data.path': 'x' * 300}),
  ]
  names = [sweep._name(*one) for one in given]
  assert len(set(names)) == 3
  assert all('/' not in name and len(name) <= 100 for name in names)
  assert names == [sweep._name(*one) for one in given]


@pytest.mark.parametrize(
  ('source', 'said'),
  [
    ('x = 1', 'defines no get_sweep'),
    ('def get_sweep(): return 3', 'gives a int; it has to be a list'),
    ('def get_sweep(): return [3]', 'gives 3; a run is a config'),
    ('def get_sweep(): return []', 'The sweep has no run'),
    ('def get_sweep(): return {"seed": [1]}', 'has no config'),
    ('def get_sweep(): return {"config": "padim"}', 'has to be a list'),
    ('def get_sweep(): return 1 / 0', 'fails: ZeroDivisionError'),
    ('def get_sweep(): return ["padmi"]', "Did you mean 'padim'?"),
    ('def get_sweep(): return ["padim"] * 2', 'has the run padim twice'),
    (
      'def get_sweep(): return [("padim:tiny", {"train.stepz": 1})]',
      "padim-tiny-train.stepz=1 of the sweep: No config field 'train.stepz'",
    ),
    (
      'def get_sweep(): return [("padim:tiny", {"train.batch": "x"})]',
      'does not fit: the field is a whole number',
    ),
    (
      'def get_sweep(): return [("padim:tiny", {"eval.quantile": 2.0})]',
      'it has to be 0 to 1.',
    ),
  ],
)
def test_mistakes_are_found_before_the_first_run(
  source, said, launches, tmp_path, capsys
):
  path = tmp_path / 'sweep.py'
  path.write_text(source)
  assert cli.main(['sweep', str(path), f'--workdir={tmp_path}/out']) == 2
  shown = capsys.readouterr()
  assert said in shown.err and shown.err.count('\n') == 1 and not shown.out
  assert not launches and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    ([], 'Name either the file of a sweep or configs'),
    (['--config=padim:tiny', 'x.py'], 'Name either the file of a sweep'),
    (['none.py'], 'There is no file none.py'),
    (['--config=padim:tiny', '--config.train.batch'], 'write --config.train.b'),
    (
      ['--config=padim:tiny', '--seeds=1', '--config.seed=2'],
      '--config.seed is given for all runs, and padim-tiny-seed1 sets it too',
    ),
  ],
)
def test_command_lines_that_say_too_much_or_too_little(
  argv, said, launches, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['sweep', *argv, '--workdir=out']) == 2
  assert said in capsys.readouterr().err
  assert not launches


def test_seeds_are_given_once(capsys):
  given = [('padim:tiny', {'seed': 1})]
  with pytest.raises(UserError, match='has a seed of its own'):
    sweep.with_seeds(given, (1, 2))
  for seeds in ('1,x', '1,1'):
    with pytest.raises(SystemExit):
      cli.main(['sweep', '--config=padim', f'--seeds={seeds}', '--workdir=x'])
  assert '1,x' in capsys.readouterr().err


@pytest.mark.slow
def test_whole_jobs_stopped_and_gone_on_with(environment, tmp_path):
  out = tmp_path / 'out'
  words = [
    sys.executable,
    '-m',
    'jaxmed.commands.cli',
    'sweep',
    f'--workdir={out}',
  ]
  words += ['--config=patchcore:tiny', '--seeds=0,1']
  first, second = (out / f'patchcore-tiny-seed{seed}' for seed in (0, 1))
  process = subprocess.Popen(
    words, env=environment, stderr=subprocess.PIPE, text=True
  )
  until = time.monotonic() + PATIENCE
  while not (second / 'train.jsonl').exists():
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, said = process.communicate(timeout=PATIENCE)
  assert process.returncode == 143, said
  assert 'the same command goes on' in said
  lock = (second / '.lock').read_text().strip()
  assert not os.path.exists(f'/proc/{lock}')  # It was let end, and has.
  before = (first / 'report.html').stat().st_mtime_ns
  done = subprocess.run(
    words, env=environment, capture_output=True, text=True, timeout=PATIENCE
  )
  assert done.returncode == 0, done.stderr
  assert 'patchcore-tiny-seed0, is finished already' in done.stderr
  assert (first / 'report.html').stat().st_mtime_ns == before
  assert '2 of 2 runs are finished.' in done.stdout
  assert 'PatchCore (2 seeds)' in done.stdout
  keys = [
    [row['n'] for row in json.loads((f / 'results.json').read_text())['counts']]
    for f in (first, second)
  ]
  assert keys[0] == keys[1]  # One test set, whatever the seed.
