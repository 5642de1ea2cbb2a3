"""Whatever a user gets wrong ends in one sentence and exit code 2."""

import errno
import os
import pathlib
import pickle
import signal
import time

import imagecodecs
import numpy as np
import pytest

from jaxmed import beforehand, command, launch, workdir
from jaxmed.configs import patchcore
from jaxmed.errors import UserError

# How ml_collections loads a config file.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module\\(\\) method')
TINY = '--config=patchcore:tiny'
FOLDER = (
  '--config=patchcore:folder',
  '--config.data.resize=0',
  '--config.data.size=16',
  '--config.model.coreset_size=8',
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('JAXMED_DATA', str(tmp_path / 'prepared'))
  # It changes the log of the whole process; whole jobs are tested elsewhere.
  monkeypatch.setattr(command, 'set_up', lambda: None)


@pytest.fixture
def refused(capsys):
  """refused(*argv): the sentence in which a launch ends."""

  def get(*argv: str) -> str:
    assert launch.main(['launch', *argv]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    sentence, rest = shown.err.split('\n', 1)
    assert sentence.startswith('jaxmed: ') and sentence[-1] in '.?', sentence
    assert not rest
    return sentence

  return get


def pictures(folder: pathlib.Path, normal=12, anomalous=3, size=16) -> str:
  """A folder of images, as a flag of a launch."""
  dice = np.random.default_rng(0)
  for label, count in (('normal', normal), ('abnormal', anomalous)):
    (folder / label).mkdir(parents=True)
    for i in range(count):
      pixels = dice.integers(0, 256, (size, size, 3), np.uint8)
      path = folder / label / f'{label}{i:02d}.png'
      path.write_bytes(imagecodecs.png_encode(pixels))
  return f'--config.data.path={folder}'


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    ([], 'needs --config, e.g. --config=munit'),
    (['--config=munitt'], "No config 'munitt'. Did you mean 'munit'? Known:"),
    (['--config', 'munitt'], "Did you mean 'munit'?"),
    (['--config=munit:tinny'], "Did you mean 'tiny'? Known: camelyon16, "),
    (['--config', 'munit:tinny'], "Did you mean 'tiny'?"),
    (['--config=configs/none.py'], 'no config file configs/none.py'),
    ([TINY, '--config.train.stepz=3'], "Did you mean 'train.steps'?"),
    ([TINY, '--config.trian.steps', '3'], "Did you mean 'train.steps'?"),
    ([TINY, '--config.cohorts.normal='], "mean 'data.cohorts.normal'?"),
    ([TINY, '--config.train.steps=abc'], 'steps=abc does not fit: the field'),
    ([TINY, '--config.train.steps=1.5'], 'is a whole number, now 12.'),
    ([TINY, '--config.eval.quantile=high'], 'is a number, now 0.95.'),
    ([TINY, '--config.train.fsdp=maybe'], 'is true or false, now False.'),
    ([TINY, '--config.train=3'], 'set one, such as train.augment, train.batch'),
    ([TINY, '--workdirr=x'], 'Did you mean: workdir?'),
    ([TINY, '--processes=two'], '--processes=two: '),
    ([TINY, 'runs/mine'], "No flag 'runs/mine'; flags begin with --."),
    ([TINY, '--coordinator=a:1'], 'needs --processes and --process'),
    ([TINY, '--config.method=patchcor'], "Did you mean 'patchcore'?"),
    ([TINY, '--config.data.name=fantom'], "Did you mean 'phantom'?"),
    ([TINY, '--config.train.precision=float33'], "mean 'float32'?"),
    ([TINY, '--config.score.scheme=ncfr'], "mean 'ncrf'?"),
    ([TINY, '--config.score.tissue_method=otso'], "mean 'otsu'?"),
    ([TINY, '--config.eval.slide_rule=means'], "mean 'mean'?"),
    ([TINY, '--config.score.map_mpp=0'], 'it has to be at least 0.01.'),
    ([TINY, '--config.train.batch=0'], 'is 0; it has to be at least 1.'),
    ([TINY, '--config.eval.quantile=95'], 'is 95.0; it has to be 0 to 1.'),
    (['--config=patchcore:folder'], '--config.data.path'),
    ([*FOLDER, '--config.data.path=nowhere'], 'There is no folder'),
  ],
)
def test_what_is_misspelt_is_named_with_what_comes_near(refused, argv, said):
  assert said in refused(*argv)


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('def get_config(:\n', 'fails at line 1: SyntaxError: invalid syntax'),
    ('\nimport nothing_there\n', 'fails at line 2: ModuleNotFoundError'),
    ('def get_config():\n  return 1 / 0\n', 'line 2: ZeroDivisionError'),
    ('def get_config():\n  return {}["a"]\n', "line 2: KeyError: 'a'"),
    ('x = 1\n', 'defines no get_config'),
    ('def get_config():\n  return {}\n', 'gives no ConfigDict but a dict'),
    (
      'from ml_collections import ConfigDict\n'
      'def get_config():\n  return ConfigDict({"method": "munit"})\n',
      "The config has no 'preset'",
    ),
  ],
)
def test_a_config_file_of_ones_own_that_fails(refused, tmp_path, text, said):
  (tmp_path / 'mine.py').write_text(text)
  assert said in refused('--config=mine.py')


def test_debug_shows_the_traceback_and_the_code_stays(capsys, tmp_path):
  (tmp_path / 'mine.py').write_text('def get_config():\n  return 1 / 0\n')
  assert launch.main(['launch', '--config=mine.py', '--debug']) == 2
  shown = capsys.readouterr().err
  assert 'Traceback' in shown and 'return 1 / 0' in shown
  assert shown.splitlines()[-1].startswith('jaxmed: The config file mine.py')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_interrupted_where_nothing_is_to_be_saved(number, capsys):
  before = signal.getsignal(number)

  def job():
    os.kill(os.getpid(), number)
    time.sleep(10)

  assert command.exit_code(job, debug=False) == 128 + number
  assert 'the same command goes on' in capsys.readouterr().err
  assert signal.getsignal(number) is before


def test_a_full_disk_is_one_sentence(capsys):
  def job():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'train.jsonl')

  assert command.exit_code(job, debug=False) == 2
  shown = capsys.readouterr().err
  assert 'no space left for train.jsonl' in shown and shown.count('\n') == 1

  def other():
    raise PermissionError(errno.EACCES, 'Permission denied')

  with pytest.raises(PermissionError):
    command.exit_code(other, debug=False)


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    ((TINY, '--config.data.path=images'), 'makes phantom slides instead'),
    ((*FOLDER, '--config.data.path=here', '--workdir=here'), 'of the data'),
  ],
)
def test_a_path_that_would_not_be_meant(argv, said, capsys):
  assert launch.main(['launch', *argv]) == 2
  assert said in capsys.readouterr().err


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user():
  with pytest.raises(ZeroDivisionError):
    command.exit_code(lambda: 1 // 0, debug=False)


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (['train.batch=12'], 'A batch of 12 does not divide among 8 devices'),
    (['score.batch=12'], 'A batch of 12 does not divide among 8 devices'),
    (['data.size=32'], '15 of 15 images are smaller than data.size = 32'),
    (['data.size=32', 'data.resize=16'], 'cannot be cut larger'),
    (['data.cohorts.normal=label == 7'], "Cohort 'normal' is empty: no record"),
    (['data.test=split == "tset"'], 'The test is empty: no record fits'),
    (['data.test=spilt == "test"'], "Did you mean 'split'?"),
    (['data.test=split =='], 'split =='),
    (['data.validation=label == 1'], 'There are no validation normals'),
    (['eval.primary=nearst'], "Did you mean 'nearest'?"),
    (['score.dense=nearst'], "map (config.score.dense) 'nearst'"),
    (['train.augment=("flp",)'], "Did you mean 'flip'?"),
    (['train.augment=3'], 'No augmentation 3'),
    (['model.coreset_size=9999999'], 'set --config.model.coreset_size'),
    (['data.options.train=1.0'], 'of which together at most 1.'),
  ],
)
def test_what_cannot_be_done_is_known_before_training(
  refused, tmp_path, change, said
):
  path = pictures(tmp_path / 'images')
  flags = [f'--config.{one}' for one in change]
  assert said in refused(*FOLDER, path, *flags, '--workdir=run')
  run = tmp_path / 'run'
  assert not (run / 'final').exists() and not (run / 'checkpoints').exists()


def test_a_folder_without_images(refused, tmp_path):
  (tmp_path / 'images/normal').mkdir(parents=True)
  said = refused(*FOLDER, f'--config.data.path={tmp_path / "images"}')
  assert str(tmp_path / 'images') in said


def test_truncated_images_alone(refused, tmp_path):
  path = pictures(tmp_path / 'images')
  for image in (tmp_path / 'images').rglob('*.png'):
    image.write_bytes(image.read_bytes()[:60])
  assert 'has no images that can be read' in refused(*FOLDER, path)


def test_an_error_in_a_thread_that_reads_arrives_whole(
  refused, tmp_path, monkeypatch
):
  """Grain reads ahead in threads; the sentence must come through them."""
  path = pictures(tmp_path / 'images')
  monkeypatch.setattr(beforehand, 'check_data', lambda config, records: None)
  said = refused(*FOLDER, path, '--config.data.size=32', '--workdir=run')
  assert 'has 16 x 16 px, less than data.size = 32' in said


def test_an_error_of_another_process_arrives_whole():
  error = pickle.loads(pickle.dumps(UserError('Found; expected; do.')))
  assert isinstance(error, UserError) and str(error) == 'Found; expected; do.'


def test_a_workdir_that_cannot_be_one(refused, tmp_path):
  (tmp_path / 'file').write_text('')
  assert 'cannot be used: File exists' in refused(TINY, '--workdir=file')
  (tmp_path / 'photos/examples').mkdir(parents=True)
  said = refused(TINY, '--workdir=photos', '--fresh')
  assert 'it is not the folder of a run' in said
  assert (tmp_path / 'photos/examples').is_dir()


def test_a_workdir_of_another_config(refused, tmp_path):
  workdir.settle(tmp_path, patchcore.get_config('tiny'), fresh=False)
  (tmp_path / 'final').mkdir()
  said = refused(TINY, '--config.train.steps=13', f'--workdir={tmp_path}')
  assert 'train.steps (12 there, 13 now)' in said and '--fresh' in said


def test_a_second_launch_in_one_workdir(refused, tmp_path):
  with workdir.claim(tmp_path):
    assert 'is in use by process' in refused(TINY, f'--workdir={tmp_path}')


def test_a_mistaken_launch_does_not_spoil_its_workdir(refused, tmp_path):
  path = pictures(tmp_path / 'images')
  common = *FOLDER, path, '--workdir=run'
  refused(*common, '--config.train.batch=12')
  said = refused(*common, '--config.data.test=split == "tset"')
  assert 'The test is empty' in said


def test_help_names_flags_presets_and_fields(capsys):
  with pytest.raises(SystemExit) as ended:
    launch.main(['launch', '--help'])
  assert ended.value.code == 0
  shown = capsys.readouterr().out
  for name in ('--config=', '--workdir=', '--fresh', 'patchcore: phantom'):
    assert name in shown
  assert all(len(line) <= 80 for line in shown.splitlines())
  with pytest.raises(SystemExit):
    launch.main(['launch', '--config=patchcore:tiny', '--help'])
  shown = capsys.readouterr().out
  assert 'model.coreset_size = 32' in shown and 'train.steps = 12' in shown
