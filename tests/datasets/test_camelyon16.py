import collections
import dataclasses
import pathlib
import shutil
import zlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxmed.configs import fanogan, munit, patchcore
from jaxmed.datasets import (
  camelyon16,
  camelyon16_folder,
  records,
  write,
)
from jaxmed.datasets.slide_tiles import Tiles
from jaxmed.errors import UserError
from tests.datasets.fabricate_camelyon16 import rearrange
from tests.datasets.tasks import serially

SMALL = {'method': 'stain'}  # A phantom has few pixels at a 32nd.


def _config(path, folder='', size=64, **options) -> ConfigDict:
  return ConfigDict(
    {
      'name': 'camelyon16',
      'path': str(path),
      'dir': str(folder),
      'size': size,
      'options': SMALL | options,
    }
  )


def _open(config: ConfigDict) -> records.Records:
  return records.open_records(write.prepare(config, work=serially))


@pytest.fixture(scope='module')
def opened(camelyon, tmp_path_factory) -> records.Records:
  return _open(_config(camelyon, tmp_path_factory.mktemp('prepared')))


@pytest.fixture(scope='module')
def surveyed(camelyon, tmp_path_factory) -> pathlib.Path:
  """A folder with the surveys of tiles side by side."""
  folder = tmp_path_factory.mktemp('surveyed')
  serially(camelyon16.surveys(_config(camelyon), folder), 'survey', 'slides')
  return folder


def _plan(camelyon, surveyed, **options):
  found = camelyon16.plan(_config(camelyon, **options), surveyed)
  return {one.source.group: one for one in found}


def _keys(planned, split: str, lesion: bool, limit: int = 1 << 30) -> set:
  """Tiles that are planned for a split and label, with a draw below limit."""
  return {
    (group, x, y)
    for group, one in planned.items()
    if one.split == split
    for x, y, sick, draw in zip(
      one.tiles.x.tolist(),
      one.tiles.y.tolist(),
      one.tiles.lesion > 0,
      one.tiles.draw,
      strict=True,
    )
    if sick == lesion and draw < limit
  }


def _groups(opened, query: str) -> set[str]:
  names = opened.index['group'].to_pylist()
  return {names[row] for row in opened.select(query).tolist()}


def test_the_duplicate_is_left_out_and_the_mislabelled_is_a_tumour(opened):
  rows = {row['group']: row for row in opened.slides.to_pylist()}
  assert 'test_049' not in rows and 'normal_086' not in rows
  assert rows['tumor_111']['path'].endswith('normal_086.tif')
  assert rows['tumor_111']['label'] == 1
  assert 'tumor_111' in _groups(opened, 'label == 1')
  assert len(rows) == 13
  assert opened.about['failures'] == 0


def test_slides_that_are_not_exhaustively_annotated(opened):
  rows = {row['group']: row for row in opened.slides.to_pylist()}
  partly = {group for group, row in rows.items() if not row['exhaustive']}
  assert partly == {'tumor_010', 'test_114'}
  assert partly <= _groups(opened, 'label == 1')
  assert not partly & _groups(opened, 'label == 0')
  listed = camelyon16_folder.NOT_EXHAUSTIVE
  assert len(listed) == 21
  assert {'tumor_034', 'tumor_095'} <= listed


def test_splits_are_by_slide_and_domains_by_scanner(opened):
  rows = {row['group']: row for row in opened.slides.to_pylist()}
  splits = collections.Counter(row['split'] for row in rows.values())
  assert splits == {'train': 9, 'validation': 1, 'test': 3}
  assert {g for g in rows if rows[g]['split'] == 'test'} == {
    'test_001',
    'test_002',
    'test_114',
  }
  assert _groups(opened, "domain == 'B'") == {
    'normal_101',
    'normal_102',
    'tumor_071',
  }
  assert _groups(opened, "domain == 'A'") == (
    {g for g in rows if g not in ('normal_101', 'normal_102', 'tumor_071')}
    - {'test_001'}  # Patches are tested of tumour slides alone.
  )
  for mpp, name in ((0.2431, 'A'), (0.2275, 'B'), (float('nan'), '')):
    assert camelyon16.domain(mpp) == name


def test_training_tiles_are_healthy_or_cancer_and_full_of_tissue(opened):
  index = opened.index.to_pydict()
  split, tissue, lesion, label = (
    np.array(index[name]) for name in ('split', 'tissue', 'lesion', 'label')
  )
  train = split != 'test'
  assert (tissue[train] >= 0.9).all()
  assert ((lesion == 0) | (lesion >= 0.9))[train].all()
  assert (lesion[split == 'validation'] == 0).all()
  assert tissue[split == 'test'].min() >= 0.8
  assert (label == (lesion > 0)).all()
  assert ((lesion > 0) & (lesion < 0.9))[split == 'test'].any()


def test_queries_choose_what_was_published(opened):
  count = {k: len(opened.select(q)) for k, q in camelyon16.QUERIES.items()}
  assert count['healthy'] == count['healthy A'] + count['healthy B']
  assert min(count.values()) > 5
  assert count['test 90/90'] < count['test 80/10']
  train = len(opened.select("split == 'train'"))
  assert count['supervised 25k+25k'] == train
  for preset in (munit, fanogan, patchcore):
    data = preset.get_config('camelyon16').data
    for query in (*data.cohorts.values(), data.validation, data.test):
      assert len(opened.select(query)), query
  config = munit.get_config('camelyon16').data
  assert len(opened.select(config.cohorts.a)) == count['healthy A']
  assert len(opened.select(config.cohorts.b)) == count['healthy B']
  assert len(opened.select(config.test)) == count['test 90/90']


def test_draws_number_the_tiles_of_a_split_and_label(opened):
  for split in ('train', 'validation', 'test'):
    for label in (0, 1):
      rows = opened.select(f"split == '{split}' and label == {label}")
      draws = opened.index['draw'].take(rows).to_pylist()
      assert sorted(draws) == list(range(len(rows)))
  rows = opened.select("split == 'train' and label == 1 and draw < 40")
  assert len(set(opened.index['group'].take(rows).to_pylist())) == 5


def test_fewer_are_among_more_and_another_seed_draws_others(camelyon, surveyed):
  all_of_them = _plan(camelyon, surveyed)
  few = _plan(camelyon, surveyed, tumour=10, normal=30)
  assert len(_keys(few, 'train', True)) == 10
  assert len(_keys(few, 'train', False)) == 30
  assert _keys(few, 'train', True) == _keys(all_of_them, 'train', True, 10)
  assert _keys(few, 'train', True, 5) < _keys(few, 'train', True)
  again = _plan(camelyon, surveyed, tumour=10, normal=30)
  assert _keys(again, 'train', True) == _keys(few, 'train', True)
  other = _plan(camelyon, surveyed, tumour=10, normal=30, seed=1)
  assert _keys(other, 'train', True) != _keys(few, 'train', True)


def test_a_slide_gives_no_more_than_it_may(camelyon, surveyed):
  free = _plan(camelyon, surveyed)
  least = _plan(camelyon, surveyed, tumour_per_slide=3, normal_per_slide=7)
  for group, one in least.items():
    sick = one.tiles.lesion > 0
    if one.split == 'train':
      assert sick.sum() == min(3, (free[group].tiles.lesion > 0).sum())
      assert (~sick).sum() == min(7, (free[group].tiles.lesion == 0).sum())
  shares = [(one.tiles.lesion > 0).sum() for one in free.values()]
  assert max(shares) > 3


def test_which_slides_are_tested(camelyon, surveyed):
  tested = lambda **options: {
    group
    for group, *_ in _keys(_plan(camelyon, surveyed, **options), 'test', False)
  }
  assert tested() == {'test_002'}
  assert tested(test_slides='all') == {'test_001', 'test_002'}
  few = _plan(camelyon, surveyed, test=6)
  for lesion in (False, True):
    assert len(_keys(few, 'test', lesion)) == 6


def test_validation_is_a_share_of_normal_slides(camelyon):
  members = camelyon16_folder.find(camelyon)

  def chosen(share, seed=0, of=members):
    options = {'validation': share, 'validation_tumour': 0.0, 'seed': seed}
    divided = camelyon16.divide(of, options)
    return {one.name for one in divided if one.split == 'validation'}

  assert not chosen(0.0)
  assert len(chosen(0.01)) == 1 and len(chosen(1.0)) == 4  # One is trained on.
  assert all(name.startswith('normal') for name in chosen(1.0))
  assert chosen(0.01) < chosen(1.0)
  assert len({frozenset(chosen(0.01, seed)) for seed in range(9)}) > 1
  without = [one for one in members if one.name not in chosen(0.01)]
  assert chosen(0.01, of=without) != chosen(0.01)


def test_fwrd_draws_its_places(camelyon, tmp_path):
  options = {'protocol': 'fwrd', 'tumour_slides': 3, 'tumour_per_slide': 2}
  config = _config(camelyon, tmp_path, size=64, normal=12, **options)
  opened = _open(config)
  index = opened.index.to_pydict()
  train = [i for i, split in enumerate(index['split']) if split == 'train']
  counts = collections.Counter(
    (index['group'][i], index['label'][i]) for i in train
  )
  assert sum(n for (_, label), n in counts.items() if label == 0) <= 12
  sick = {group: n for (group, label), n in counts.items() if label == 1}
  assert len(sick) == 3 and max(sick.values()) <= 2
  assert {group for group, _ in counts} <= set(sick)  # No normal slide.
  assert 'tumor_010' not in sick  # Its healthy tissue is not to be had.
  tested = {
    g
    for g, s in zip(index['group'], index['split'], strict=True)
    if s == 'test'
  }
  assert tested == {'test_001', 'test_002', 'test_114'}
  places = collections.defaultdict(list)
  for group, label, x, y in zip(
    index['group'], index['label'], index['x'], index['y'], strict=True
  ):
    places[group, label].append((x, y))
  for some in places.values():
    for i, one in enumerate(some):
      for two in some[i + 1 :]:
        assert max(abs(one[0] - two[0]), abs(one[1] - two[1])) >= 128
  protocol = camelyon16.PROTOCOLS['fwrd']
  assert (protocol['normal'], protocol['tumour']) == (5000, 1001)
  assert protocol['tumour_per_slide'] == 122 and protocol['method'] == 'otsu'


def test_the_newer_layout_gives_the_same(camelyon, opened, tmp_path):
  other = rearrange(camelyon, tmp_path / 'newer')
  again = _open(_config(other, tmp_path / 'prepared'))
  assert again.index == opened.index
  assert again[7]['image'] == opened[7]['image']
  both = rearrange(camelyon, tmp_path / 'both')
  shutil.copy(
    camelyon / 'training/normal/normal_001.tif',
    both / 'images/normal_086.tif',
  )
  found = {one.name: one for one in camelyon16_folder.find(both)}
  assert 'normal_086' not in found
  assert found['tumor_111'].source.path.endswith('tumor_111.tif')


def test_the_reference_says_which_test_slides_are_sick(camelyon, tmp_path):
  root = shutil.copytree(camelyon, tmp_path / 'copy')
  table = root / 'testing/reference.csv'
  lines = table.read_text()
  sick = lambda: {
    one.name for one in camelyon16_folder.find(root) if one.tumour
  }
  expected = sick()
  assert {'test_002', 'test_114'} < expected and 'test_001' not in expected
  table.unlink()
  assert sick() == expected
  table.write_text('image,type\n' + lines.replace(',Tumor', '.tif,Tumor'))
  assert sick() == expected
  for before, after, said in (
    ('test_001,Normal', 'test_001,Tumor', 'have no annotation: test_001'),
    ('test_002,Tumor', 'test_002,Normal', 'calls test_002 normal, and'),
    ('test_002,Tumor', 'test_002,Tumour', "says 'tumour' of test_002"),
    ('test_002', 'test_003', 'does not list test_002'),
  ):
    assert before in lines
    table.write_text(lines.replace(before, after))
    with pytest.raises(UserError, match=said):
      camelyon16_folder.find(root)


def test_folders_that_are_not_as_published(camelyon, tmp_path):
  with pytest.raises(UserError, match='no slides of Camelyon16. Expected'):
    camelyon16_folder.find(tmp_path)
  with pytest.raises(UserError, match='needs --config.data.path'):
    camelyon16.fingerprint(_config(''))
  with pytest.raises(UserError, match='There is no folder'):
    camelyon16.fingerprint(_config(tmp_path / 'none'))
  root = shutil.copytree(camelyon, tmp_path / 'copy')
  outlines = root / 'training/lesion_annotations'
  (outlines / 'tumor_001.xml').rename(tmp_path / 'tumor_001.xml')
  with pytest.raises(UserError, match='1 tumour slides .*: tumor_001. Exp'):
    camelyon16_folder.find(root)
  outlines.rename(tmp_path / 'elsewhere')
  outlines.with_suffix('.zip').touch()
  with pytest.raises(UserError, match='Unpack .*lesion_annotations.zip into'):
    camelyon16_folder.find(root)
  (root / 'images').mkdir()
  shutil.copy(root / 'training/normal/normal_001.tif', root / 'images')
  with pytest.raises(UserError, match='normal_001 is there twice'):
    camelyon16_folder.find(root)


def test_an_annotation_that_outlines_nothing(camelyon, surveyed, tmp_path):
  copied = shutil.copytree(surveyed, tmp_path / 'copied')
  (survey,) = [
    one
    for one in camelyon16.surveys(_config(camelyon), copied)
    if one.name == 'tumor_001'
  ]
  path = tmp_path / 'empty.xml'
  path.write_text('<ASAP_Annotations><Annotations/></ASAP_Annotations>')
  survey.path.unlink()
  source = dataclasses.replace(survey.source, annotation=str(path))
  serially([dataclasses.replace(survey, source=source)], 'survey', 'slides')
  with pytest.raises(UserError, match='outlines no lesion, and tumor_001 is a'):
    camelyon16.plan(_config(camelyon), copied)


def test_a_broken_slide_costs_only_itself(camelyon, tmp_path):
  root = shutil.copytree(camelyon, tmp_path / 'copy')
  (root / 'training/normal/normal_003.tif').write_bytes(b'II*\0' + bytes(99))
  opened = _open(_config(root, tmp_path / 'prepared'))
  assert opened.about['failures'] == 1
  assert 'normal_003' not in _groups(opened, '')
  assert len(opened.select(camelyon16.QUERIES['healthy'])) > 20


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'protocol': 'ibm'}, 'No protocol of Camelyon16'),
    ({'norml': 1}, "Did you mean 'normal'"),
    ({'test_slides': 'some'}, "No choice of test_slides 'some'"),
    ({'validation': 1.5}, 'data.options.validation is 1.5; it has to be 0 to'),
    ({'normal': -2}, 'data.options.normal is -2; it has to be at least 0'),
  ],
)
def test_options_that_are_wrong(camelyon, options, said):
  with pytest.raises(UserError, match=said):
    camelyon16.fingerprint(_config(camelyon, **options))


def test_a_config_leaves_the_rest_to_the_protocol(camelyon):
  data = munit.get_config('camelyon16').data
  data.path = str(camelyon)
  options = camelyon16.fingerprint(data)['options']
  assert (options['normal'], options['tumour']) == (80_000, 25_000)
  assert options['method'] == 'codait' and options['test_slides'] == 'tumour'
  data.options.protocol = 'fwrd'
  options = camelyon16.fingerprint(data)['options']
  assert (options['normal'], options['method']) == (5000, 'otsu')


def test_patches_may_be_larger_than_what_networks_see(camelyon):
  data = fanogan.get_config('camelyon16').data
  data.path = str(camelyon)
  assert data.size == 64 and camelyon16.fingerprint(data)['size'] == 512


def test_drawing_is_as_a_loop_would_do_it():
  """A plain loop over the shuffled tiles, against the vectorised draw."""
  rng = np.random.default_rng(3)
  candidates = []
  for count in (40, 0, 25, 60):
    x = np.arange(count)
    share = rng.uniform(0, 1, (2, count))
    candidates.append(Tiles.at(x, x, share[0], share[1] * (x % 2)))
  pool = camelyon16.Pool('p', [0, 1, 3], True, 12, 0.3, 0.2, per_slide=4)
  drawn = pool.draw(candidates, seed=5)
  found = {}
  for number, tiles in drawn.items():
    for x, draw in zip(tiles.x.tolist(), tiles.draw.tolist(), strict=True):
      found[draw] = number, x
  assert sorted(found) == list(range(8))  # Two slides have some, four each.
  listed = [
    (number, x)
    for number in pool.slides
    for x in range(len(candidates[number]))
    if candidates[number].tissue[x] >= 0.3
    and candidates[number].lesion[x] >= 0.2
  ]
  dice = np.random.default_rng((5, zlib.crc32(b'p')))
  taken, each = [], collections.Counter()
  for i in dice.permutation(len(listed)):
    number, x = listed[i]
    if each[number] < 4 and len(taken) < 12:
      each[number] += 1
      taken.append((number, x))
  assert [found[i] for i in range(8)] == taken
