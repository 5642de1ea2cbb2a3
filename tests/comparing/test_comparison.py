"""Runs side by side: the same numbers as alone, and refusals that say why."""

import csv
import json
import pathlib
import re
import shutil
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import metrics

from jaxmed import command, evaluate, workdir
from jaxmed.commands import cli
from jaxmed.comparing import comparison, comparison_runs
from jaxmed.comparing.comparison_examples import choose, examples
from jaxmed.configs import munit, padim, patchcore
from jaxmed.datasets import write
from jaxmed.datasets.records import open_records
from jaxmed.errors import UserError
from jaxmed.scoring.score_records import KEPT
from tests.report.fabricate import fabricate
from tests.report.page import Page
from tests.report.test_write_report import check

SCORE = 'score.cycle_ssim'
CONFIGS = {'munit': munit, 'padim': padim, 'patchcore': patchcore}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
  # It changes the log of the whole process; whole jobs are tested elsewhere.
  monkeypatch.setattr(command, 'set_up', lambda: None)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A folder of one fabricated run of 24 slides, which others come from."""
  folder = tmp_path_factory.mktemp('made') / 'run'
  fabricate(folder, patches=120, slides=24, side=32)
  shutil.rmtree(folder / 'maps')
  columns = [*KEPT, SCORE, 'score.cycle_l1', 'trivial.contrast']
  table = pq.read_table(folder / 'scores.parquet', columns=columns)
  pq.write_table(table, folder / 'scores.parquet')
  return folder


@pytest.fixture
def make(made, tmp_path):
  """make(name, ...): the folder of a run whose scores a function changes."""

  def run(name, method='munit', seed=0, scores=lambda table: None, **fields):
    folder = shutil.copytree(made, tmp_path / name)
    config = CONFIGS[method].get_config('tiny')
    config.seed = seed
    config.eval.update({'primary': 'cycle_ssim', 'resamples': 200})
    config.update_from_flattened_dict(fields)
    plain = json.loads(config.to_json_best_effort())
    (folder / 'config.json').write_text(json.dumps(plain))
    table = read(folder)
    table = scores(table) or table
    pq.write_table(pa.table(table), folder / 'scores.parquet')
    evaluate.evaluate(folder, config)
    return folder

  return run


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  table = pq.read_table(folder / 'scores.parquet')
  return {
    name: table[name].to_numpy(zero_copy_only=False).copy()
    for name in table.column_names
  }


def noise(seed: int, size: float, column: str = SCORE):
  """Makes a score worse."""

  def change(table):
    dice = np.random.default_rng(seed)
    table[column] += dice.normal(0, size, len(table[column]))

  return change


def rows(folder: pathlib.Path) -> list[dict]:
  with (folder / 'comparison.csv').open() as file:
    return list(csv.DictReader(file))


def page(folder: pathlib.Path) -> Page:
  found = Page((folder / 'comparison.html').read_text('utf-8'))
  check(found)
  return found


def facts(folder: pathlib.Path) -> dict:
  return json.loads((folder / 'results.json').read_text())


def edit(folder: pathlib.Path, name: str, change) -> None:
  value = json.loads((folder / name).read_text())
  change(value)
  (folder / name).write_text(json.dumps(value))


def test_every_number_is_what_the_run_has_alone(make, tmp_path):
  one = make('one')
  two = make('two', 'padim', scores=noise(0, 0.2))
  text = comparison.compare([one, two], tmp_path / 'out')
  first, second = rows(tmp_path / 'out')
  assert (first['name'], second['name']) == ('MUNIT', 'PaDiM')
  for folder, row in ((one, first), (two, second)):
    alone = facts(folder)['image']['cycle_ssim']
    for name in ('auroc', 'ap', 'f1', 'sensitivity', 'specificity'):
      for part, column in (
        ('value', name),
        ('low', f'{name}_low'),
        ('high', f'{name}_high'),
      ):
        np.testing.assert_allclose(float(row[column]), alone[name][part])
    at = alone['sensitivity_at_specificity']['value']
    np.testing.assert_allclose(float(row['sensitivity_at_specificity']), at)
    slides = facts(folder)['slide']['cycle_ssim']['auroc']['value']
    np.testing.assert_allclose(float(row['slide_auroc']), slides)
    assert f'{alone["auroc"]["value"]:.3f}' in text
  assert not first['against'] and second['against'] == 'MUNIT'
  gap = float(second['auroc']) - float(first['auroc'])
  np.testing.assert_allclose(float(second['auroc_difference']), gap)
  assert float(second['auroc_difference_p_holm']) < 0.05
  assert second['train_images_per_s'] == '51.3'
  assert float(second['parameters']) == 612_331 + 204_113


def test_the_page_says_it_all(make, tmp_path):
  folders = [
    make('one'),
    make('same', 'patchcore'),
    make('worse', 'padim', scores=noise(0, 0.5)),
  ]
  comparison.compare(folders, tmp_path / 'out')
  seen = page(tmp_path / 'out')
  ids = {a.get('id') for a in seen.all('section')}
  assert ids >= {'results', 'differences', 'examples', 'costs', 'runs'}
  text = seen.text
  for said in (
    '3 methods on phantom H&E slides',
    'Established after Holm’s correction: worse than MUNIT: PaDiM.',
    'corrected for the 2 comparisons',
    'The best trivial baseline',
    'AUROC of slides',
    'MUNIT, the first named',
  ):
    assert said in text, said
  by_name = {row['name']: row for row in rows(tmp_path / 'out')}
  assert float(by_name['PatchCore']['auroc_difference_p']) == 1
  assert float(by_name['PatchCore']['auroc_difference_p_holm']) == 1
  p = float(by_name['PaDiM']['auroc_difference_p'])
  assert p < 0.02
  np.testing.assert_allclose(
    float(by_name['PaDiM']['auroc_difference_p_holm']), 2 * p
  )


def test_no_p_is_nought(make, tmp_path):
  folders = [make('one'), make('two', 'padim', scores=noise(0, 2.0))]
  said = comparison.compare(folders, tmp_path / 'out', resamples=5000)
  assert '< 0.001  < 0.001' in said and '0.000' not in said


def test_a_baseline_that_is_better_is_said_first(make, tmp_path):
  def worse(table):
    table[SCORE] *= -1

  folders = [
    make('one', scores=worse),
    make('two', 'patchcore', scores=noise(0, 5.0)),
  ]
  comparison.compare(folders, tmp_path / 'out')
  assert 'No method does better than that' in page(tmp_path / 'out').text


def test_against_the_best(make, tmp_path):
  folders = [
    make('worse', 'padim', scores=noise(0, 0.5)),
    make('one'),
  ]
  comparison.compare(folders, tmp_path / 'out', 'best')
  worse, best = rows(tmp_path / 'out')
  assert worse['against'] == 'MUNIT' and not best['against']
  assert 'chosen on the same images' in page(tmp_path / 'out').text
  with pytest.raises(UserError, match="No method to compare against 'last'"):
    comparison.compare(folders, tmp_path, 'last')


def test_seeds_of_one_config_are_one_method(make, tmp_path):
  runs = [
    make(f'seed{seed}', seed=seed, scores=noise(seed, 0.1))
    for seed in (2, 0, 1)
  ]
  other = make('other', 'padim', seed=1, **{'data.dir': '/elsewhere'})
  text = comparison.compare([other, *runs], tmp_path / 'out')
  assert 'MUNIT (3 seeds)' in text and '±' in text
  found = rows(tmp_path / 'out')
  kinds = [(row['kind'], row['name'], row['seeds']) for row in found]
  assert kinds == [
    ('method', 'PaDiM', '1'),
    ('method', 'MUNIT', '0 1 2'),
    *(('run', 'MUNIT', str(seed)) for seed in range(3)),
  ]
  for name in ('auroc', 'f1', 'slide_auroc'):
    values = [float(row[name]) for row in found[2:]]
    np.testing.assert_allclose(float(found[1][name]), np.mean(values))
    spread = np.std(values, ddof=1)
    np.testing.assert_allclose(float(found[1][f'{name}_spread']), spread)
  assert float(found[1]['auroc_low']) < min(
    float(row['auroc']) for row in found[2:]
  )
  assert '±' in page(tmp_path / 'out').text


def test_methods_of_one_name_are_told_apart(make, tmp_path):
  folders = [
    make('a', 'padim'),
    make('b', 'padim', **{'model.channels': 7}, scores=noise(0, 0.1)),
    make('c', 'padim', scores=noise(1, 0.1)),  # The same seed once more.
  ]
  entries = comparison_runs.read(folders[:2])
  names = [m.name for m in comparison_runs.grouped(entries)]
  assert names[1] == 'PaDiM, channels 7' and names[0] != names[1]
  methods = comparison_runs.grouped(comparison_runs.read(folders))
  assert [m.name for m in methods] == ['PaDiM, a', 'PaDiM, b', 'PaDiM, c']
  comparison.compare(folders, tmp_path / 'out')


def test_images_without_a_score_are_left_out_of_all(make, tmp_path):
  def lose(table):
    table[SCORE][np.flatnonzero(table['split'] == 'test')[:5]] = np.nan

  one, two = make('one'), make('two', 'padim', scores=lose)
  text = comparison.compare([one, two], tmp_path / 'out')
  assert '5 of 240 test images have no finite score' in text
  table = read(two)
  kept = (table['split'] == 'test') & np.isfinite(table[SCORE])
  for folder, row in zip((one, two), rows(tmp_path / 'out'), strict=True):
    scores = read(folder)[SCORE][kept]
    area = metrics.roc_auc_score(table['label'][kept], scores)
    np.testing.assert_allclose(float(row['auroc']), area)


def test_one_group_left_gives_no_interval_and_no_p(make, tmp_path):
  def lose(table):
    test = np.flatnonzero(table['split'] == 'test')
    groups = table['group'][test]
    table[SCORE][test[groups != groups[-1]]] = np.nan

  folders = [make('one'), make('two', 'padim', scores=lose)]
  comparison.compare(folders, tmp_path / 'out')
  for row in rows(tmp_path / 'out'):
    assert row['auroc'] and not row['auroc_low'] and not row['auroc_high']
    assert not row.get('auroc_p')


def test_numbers_that_do_not_compare_are_said(make, tmp_path):
  one, two = make('one'), make('two', 'padim')
  froc = {'strict': True, 'slides': 10, 'excluded': 0}
  edit(one, 'results.json', lambda x: x.update(froc=froc))
  edit(two, 'results.json', lambda x: x.update(froc=froc | {'slides': 3}))
  text = comparison.compare([one, two], tmp_path / 'out')
  assert 'FROC is of other slides' in text
  assert 'Pixel metrics are of other' not in text


def test_a_score_that_was_put_first_afterwards_is_said(make, tmp_path):
  one, two = make('one'), make('two', 'padim', scores=noise(1, 0.1))
  config = workdir.load_config(two)
  config.eval.primary = 'cycle_l1'
  evaluate.evaluate(two, config)
  said = comparison.compare([one, two], tmp_path / 'out')
  assert 'Warning: two is compared by cycle_l1, which was put first' in said
  assert 'one is compared by' not in said


def test_one_class_alone_gives_reasons_and_no_p(make, tmp_path):
  def normal(table):
    table['label'] = table['label'] * 0

  folders = [make('one', scores=normal), make('two', 'padim', scores=normal)]
  text = comparison.compare(folders, tmp_path / 'out')
  assert 'none' in text and 'nan' not in text
  assert 'not defined: all examples are normal' in page(tmp_path / 'out').text


def test_other_data_with_the_same_test_images(make, tmp_path):
  one, two = make('one'), make('two', 'padim')
  edit(two, 'provenance.json', lambda x: x['data'].update(fingerprint='other'))
  text = comparison.compare([one, two], tmp_path / 'out')
  assert 'the test images are the same' in text


def _prepared(place: pathlib.Path, seed: int, train_sick: float):
  """As an entry: records of ten pictures, in the order of their keys."""
  dice = np.random.default_rng(seed)
  for kind, count in (('normal', 6), ('sick', 4)):
    (place / kind).mkdir(parents=True)
    for number in range(count):
      pixels = dice.integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(place / kind / f'{number}.png')
  config = patchcore.get_config('folder')
  config.data.update({'path': str(place), 'dir': str(place.parent / 'records')})
  config.data.options.train_sick = train_sick
  directory = write.prepare(config.data)
  keys = open_records(directory).index['key'].to_pylist()
  return types.SimpleNamespace(
    records=lambda: directory, test={'row': np.argsort(keys)}
  )


def test_images_that_runs_cut_otherwise_are_compared_by_their_files(tmp_path):
  one, other = (
    _prepared(tmp_path / name / 'pictures', 0, sick)
    for name, sick in (('one', 0.0), ('other', 0.5))
  )
  assert one.records().name != other.records().name
  assert comparison_runs._same_files(one, other)
  changed = _prepared(tmp_path / 'changed/pictures', 1, 0.0)
  assert not comparison_runs._same_files(one, changed)
  gone = types.SimpleNamespace(records=lambda: None, test=one.test)
  assert not comparison_runs._same_files(one, gone)


def _other_images(table):
  table['trivial.contrast'] += 0.1


def _fewer(table):
  return {name: values[:-3] for name, values in table.items()}


def _twice(table):
  return {
    name: values[[*range(len(values)), -1]] for name, values in table.items()
  }


def _other_label(table):
  table['label'][-1] = 0


def _other_group(table):
  table['group'][-1] = 'test_000'


@pytest.mark.parametrize(
  ('change', 'fingerprint', 'said'),
  [
    (_other_images, 'other', 'phantom 3fa9c1, that of the other phantom other'),
    (_fewer, '3fa9c1', 'they have 240 and 237, of which 3 and 0 are in that'),
    (_twice, '3fa9c1', 'they have 240 and 241 rows of 240 images'),
    (_other_label, '3fa9c1', '1 have another label, '),
    (_other_group, '3fa9c1', '1 have another group, '),
  ],
)
def test_other_test_sets_are_refused(
  make, tmp_path, capsys, change, fingerprint, said
):
  one, two = make('one'), make('two', 'padim', scores=change)
  edit(
    two, 'provenance.json', lambda x: x['data'].update(fingerprint=fingerprint)
  )
  sentence = _says(capsys, one, two, '--out', tmp_path / 'out')
  assert said in sentence and 'were not tested on the same images' in sentence
  assert not (tmp_path / 'out').exists()


def test_images_of_unknown_data_are_compared_by_what_baselines_say(
  make, tmp_path, capsys
):
  same = make('same', 'padim')
  changed = make('changed', 'padim', scores=_other_images)
  runs = [make('one'), same, changed]
  for run in runs:
    edit(run, 'provenance.json', lambda x: x['data'].pop('fingerprint'))
  assert comparison.compare(runs[:2], tmp_path / 'out')
  assert 'not tested on the same' in _says(capsys, runs[0], runs[2])


def _says(capsys, *argv) -> str:
  """The sentence in which a comparison ends."""
  assert cli.main(['compare', *map(str, argv)]) == 2
  shown = capsys.readouterr()
  sentence, rest = shown.err.split('\n', 1)
  assert sentence.startswith('jaxmed: ') and sentence.endswith('.'), sentence
  assert not rest and not shown.out
  return sentence


def test_what_cannot_be_compared_is_refused(make, tmp_path, capsys):
  one, copy = make('one'), make('copy')
  assert 'There is one run to compare' in _says(capsys, one)
  again = one / '..' / 'one'
  assert 'are the same run; name each once' in _says(capsys, one, again)
  assert 'one config, one seed, and equal scores' in _says(capsys, one, copy)
  assert 'There is no folder' in _says(capsys, one, tmp_path / 'none')
  (copy / 'results.json').unlink()
  said = _says(capsys, one, copy)
  assert 'not a finished run: it has no results.json; launch it' in said
  two = make('two', 'padim')
  (tmp_path / 'file').touch()
  said = _says(capsys, one, two, '--out', tmp_path / 'file')
  assert 'cannot be written into' in said
  said = _says(capsys, one, two, '--resamples=-1')
  assert 'give at least 1' in said
  (two / 'scores.parquet').write_bytes(b'PAR1')
  assert 'cannot be read' in _says(capsys, one, two)


def test_the_command_prints_and_writes(make, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  argv = [str(make('one')), str(make('two', 'padim', scores=noise(0, 0.1)))]
  assert cli.main(['compare', *argv, '--resamples=50']) == 0
  shown = capsys.readouterr().out
  assert 'reference' in shown and '50 resamples' in shown
  assert 'Comparison: comparison.html' in shown
  assert len(rows(tmp_path)) == 2
  links = [a['href'] for a in page(tmp_path).all('a')]
  assert '#runs' in links


def test_the_examples_are_the_same_in_any_order(make):
  one = make('one')
  two = make('two', 'padim', scores=noise(0, 0.2))
  entries = comparison_runs.read([one, two])
  allowed = np.arange(240) % 3 > 0
  chosen = choose(entries, allowed)
  assert choose(entries[::-1], allowed) == chosen
  assert len(set(chosen)) == 10 and allowed[chosen].all()
  labels = entries[0].test['label'][chosen]
  assert labels.tolist() == [1] * 5 + [0] * 5
  ranks = sum(np.argsort(np.argsort(e.test[SCORE])) for e in entries)
  for places in (chosen[:5], chosen[5:]):
    assert (np.diff(ranks[places]) < 0).all()
    same = allowed & (
      entries[0].test['label'] == entries[0].test['label'][places[0]]
    )
    assert ranks[places[0]] == ranks[same].max()
    assert ranks[places[-1]] == ranks[same].min()


def test_examples_are_cut_where_the_table_is(make, tmp_path):
  """Not where a run of another quantile has its threshold."""
  one = make('one')
  two = make('two', 'padim', **{'eval.quantile': 0.5})
  edit(
    two, 'calibration.json', lambda v: v['cycle_ssim'].update(threshold=-1.0)
  )
  comparison.compare([one, two], tmp_path / 'out')
  text = (tmp_path / 'out/comparison.html').read_text('utf-8')
  said = re.findall('>(above|below)</b>', text)
  assert len(said) == 20 and said[::2] == said[1::2]
  entry = comparison_runs.read([one, two])[0]
  cut = np.quantile(entry.normals[SCORE], 0.95)
  chosen = choose([entry], np.ones(240, bool))
  assert said[::2].count('above') == (entry.test[SCORE][chosen] > cut).sum()


@pytest.mark.parametrize('masked', [True, False])
def test_maps_that_were_kept_are_shown_with_their_outlines(make, masked):
  one = make('one')
  two = make('two', 'padim', scores=noise(0, 0.2))
  entries = comparison_runs.read([one, two])
  kept = entries[0].test['row'][::2]
  (one / 'maps').mkdir()
  mask = np.zeros((len(kept), 8, 8), bool)
  mask[:, 2:6, 2:6] = True
  maps = np.random.default_rng(0).random((len(kept), 8, 8)).astype(np.float16)
  if masked:
    np.savez(one / 'maps/pixel.npz', row=kept, mask=mask, cycle_l1=maps)
  else:
    np.savez(one / 'maps/shown.npz', row=kept, cycle_l1=maps)
  methods = comparison_runs.grouped(entries)
  shown = examples(methods, np.ones(240, bool))
  assert len(shown) == 10
  rows = {
    str(k): r
    for k, r in zip(entries[0].test['key'], entries[0].test['row'], strict=True)
  }
  for one in shown:
    assert rows[one['key']] in kept
    first, second = one['maps']
    assert first.shape == (160, 160, 3) and second is None
    lines = (first == (64, 240, 255)).all(axis=-1)
    if masked:
      assert lines[40, 40:120].all() and lines[40:120, 119].all()
    assert lines.sum() == (4 * 79 if masked else 0)
    assert one['image'] is None and 'not here any more' in one['missing']
