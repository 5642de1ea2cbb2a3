"""Our networks against the originals', and that the check would notice."""

import functools
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxmed.nn import munit as networks
from tests.golden import __main__ as command
from tests.golden import check, filling, munit, tissue
from tests.places import ROOT, SHARED

HERE = pathlib.Path(__file__).parent
GOLDEN = SHARED / 'golden'
# Cases of large networks, or of long compiling.
SLOW = {
  'alad',
  'alocc',
  'backbones',
  'fanogan',
  'fwrd',
  'ganomaly',
  'healthygan',
  'lpips',
  'metrics',
  'munit',
  'rd4ad',
  'stylegan2',
}


def cases() -> list[pathlib.Path]:
  """The cases copied here, and of the shared ones those we have code for."""
  here = [path.parent for path in sorted(HERE.glob('*/manifest.json'))]
  names = {path.name for path in here}
  return here + [
    path.parent
    for path in sorted(GOLDEN.glob('*/manifest.json'))
    if path.parent.name not in names
    and (HERE / f'{path.parent.name}.py').exists()
  ]


@functools.cache
def ours(directory: pathlib.Path) -> dict:
  manifest = filling.read(directory)
  try:
    return check.module_of(manifest['case']).compute(manifest, directory)
  except check.NoData as error:
    pytest.skip(str(error))


def lines(directory: pathlib.Path, **changed) -> dict[str, check.Line]:
  manifest = filling.read(directory)
  with np.load(directory / 'outputs.npz') as outputs:
    theirs = dict(outputs)
  found = check.compare(
    manifest,
    check.module_of(manifest['case']),
    ours(directory) | changed,
    theirs,
  )
  return {line.name: line for line in found}


def wrong(directory: pathlib.Path, **changed) -> set[str]:
  found = lines(directory, **changed).values()
  return {line.name for line in found if not line.passed}


@pytest.mark.parametrize(
  'directory',
  [
    pytest.param(path, marks=[pytest.mark.slow] * (path.name in SLOW))
    for path in cases()
  ],
  ids=lambda path: path.name,
)
def test_ours_is_theirs(directory):
  failed = [str(x) for x in lines(directory).values() if not x.passed]
  assert not failed, '\n'.join(failed)


@pytest.mark.parametrize(
  'name', ['encode/content', 'dis/out1', 'round2/loss_gen_total', 'lr_trace']
)
def test_an_output_a_little_off_fails(name):
  off = ours(HERE / 'munit')[name] * 1.01
  assert wrong(HERE / 'munit', **{name: off}) == {name}


@pytest.mark.parametrize('name', ['exact_score', 'decimal_total_fps'])
def test_the_froc_is_exact(name):
  off = ours(HERE / 'camelyon16_froc')[name] * (1 + 1e-12)
  assert wrong(HERE / 'camelyon16_froc', **{name: off}) == {name}


def test_one_value_that_is_no_number_fails():
  image = np.array(ours(HERE / 'munit')['decode/image'])
  image.flat[7] = np.nan
  assert wrong(HERE / 'munit', **{'decode/image': image}) == {'decode/image'}


def test_a_missing_output_and_another_shape_fail():
  mine = dict(ours(HERE / 'munit'))
  theirs = {k: np.asarray(mine[k]) for k in ('dis/out0', 'dis/out1')}
  manifest = filling.read(HERE / 'munit')
  del mine['dis/out0']
  mine['dis/out1'] = mine['dis/out1'][:1]
  found = check.compare(manifest, munit, mine, theirs)
  assert [line.passed for line in found] == [False, False]


def test_a_network_that_never_trained_fails():
  weights = filling.state(filling.read(HERE / 'munit'))
  names = filling.read(HERE / 'munit')['after2/names']
  same = filling.summaries('after2', names, weights, weights)
  same |= {f'float64/{k}': v for k, v in same.items()}
  assert wrong(HERE / 'munit', **same) >= {
    'after2/first8',
    'after2/change_abs_sum',
    'float64/after2/first8',
  }


def test_twice_the_rate_fails():
  weights = filling.state(filling.read(HERE / 'munit'))
  names = filling.read(HERE / 'munit')['after2/names']
  before = filling.summaries('after2', names, weights)
  twice = {
    name: 2 * ours(HERE / 'munit')[name] - before[name] for name in before
  }
  assert 'after2/first8' in wrong(HERE / 'munit', **twice)


def test_adaptive_norms_read_in_the_wrong_order_fail(monkeypatch):
  right = networks.adaptive_instance_norm
  monkeypatch.setattr(
    networks,
    'adaptive_instance_norm',
    lambda x, shift, scale: right(x, scale, shift),
  )
  manifest = filling.read(HERE / 'munit')
  config = munit.configure(manifest['hyperparameters'])
  swapped = munit.Run(manifest, config, np.float32).forward()
  failed = wrong(HERE / 'munit', **swapped)
  assert 'encode/content' not in failed
  assert failed >= {'decode/image', 'reconstruct/image', 'translate/a_to_b'}


def test_a_pixel_of_a_mask_that_is_wrong_fails_and_a_few_of_the_slide_pass():
  masks = {
    k: ours(HERE / 'tissue')[k].copy() for k in ('thumb_mask', 'slide_mask')
  }
  masks['thumb_mask'][7] ^= 1
  masks['slide_mask'][1000:1100] ^= 1
  assert wrong(HERE / 'tissue', **masks) == {'thumb_mask'}
  masks['slide_mask'][:10_000] ^= 1
  assert wrong(HERE / 'tissue', **masks) == {'thumb_mask', 'slide_mask'}


def test_inputs_are_not_compared():
  assert not {'extra_tiles', 'thumb'} & set(lines(HERE / 'tissue'))


def test_the_command_says_what_data_a_case_needs(tmp_path, capsys, monkeypatch):
  shutil.copytree(HERE / 'tissue', tmp_path / 'tissue')
  monkeypatch.setattr(tissue, 'ROOT', tmp_path / 'nowhere' / 'repository')
  assert command.main([str(tmp_path / 'tissue')]) == 1
  assert 'needs shared/data/' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / 'data').exists(), reason='needs shared/data')
def test_the_command_takes_several_cases_in_one_process():
  cases = [str(HERE / name) for name in ('alocc', 'lpips', 'tissue')]
  done = subprocess.run(
    [sys.executable, '-m', 'tests.golden', *cases],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert not done.returncode, done.stderr
  assert done.stdout.endswith(' outputs of 3 cases, 0 wrong.\n')


def test_the_command_refuses_a_case_it_does_not_have(tmp_path, capsys):
  (tmp_path / 'manifest.json').write_text(json.dumps({'case': 'mumit'}))
  assert command.main([str(tmp_path)]) == 1
  assert "'mumit'" in capsys.readouterr().err
  assert command.main([]) == 2


def test_the_command_fails_for_a_wrong_output(tmp_path, capsys, monkeypatch):
  array = np.ones(3, np.float32)
  np.savez(tmp_path / 'outputs.npz', x=array, grad=array, index=np.arange(3))
  manifest = {'case': 'munit', 'outputs': {}}
  (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
  mine = {'x': array * 1.0002, 'grad': array * 1.0002, 'index': np.arange(3)}
  monkeypatch.setattr(munit, 'compute', lambda manifest, directory: mine)
  assert command.main([str(tmp_path)]) == 1
  printed = capsys.readouterr().out.splitlines()
  assert [line.rsplit('  ', 1)[1] for line in printed[:-1]] == [
    'FAILED',
    'ok',
    'ok (exact)',
  ]
  assert printed[-1] == '3 outputs of 1 cases, 1 wrong.'
