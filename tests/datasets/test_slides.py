import collections
import dataclasses
import json
import pathlib
import shutil

import imagecodecs
import numpy as np
import pytest
import tifffile
from matplotlib.path import Path
from ml_collections import ConfigDict

from jaxmed.commands import tile
from jaxmed.datasets import images, phantom, records, slide_tiles, slides, write
from jaxmed.errors import UserError
from jaxmed.slides import annotations, grid, reader, tissue
from tests.datasets.tasks import serially

NORMALS = ('normal_001', 'normal_002', 'normal_003', 'normal_101')
TUMOURS = ('tumor_001', 'tumor_002')


@pytest.fixture(scope='session')
def folder(camelyon, tmp_path_factory) -> pathlib.Path:
  """Four normal slides, two tumours with outlines, and one that is broken."""
  root = tmp_path_factory.mktemp('own')
  (root / 'slides/deep').mkdir(parents=True)
  (root / 'outlines').mkdir()
  for name in NORMALS:
    shutil.copy(camelyon / f'training/normal/{name}.tif', root / 'slides')
  for name in TUMOURS:
    shutil.copy(camelyon / f'training/tumor/{name}.tif', root / 'slides/deep')
    outlines = camelyon / f'training/lesion_annotations/{name}.xml'
    shutil.copy(outlines, root / 'outlines')
  (root / 'slides/broken.svs').write_text('no slide')
  return root


def _config(root: pathlib.Path, size: int = 128, **options) -> ConfigDict:
  options.setdefault('annotations', str(root / 'outlines'))
  return tile.data_config(root / 'slides', size, options)


@pytest.fixture(scope='session')
def prepared(folder, tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp('tiled') / 'R'
  failures = tile.tile(_config(folder), out, serially)
  assert len(failures) == 1 and failures[0].startswith('broken: ')
  return out


@pytest.fixture(scope='session')
def opened(prepared) -> records.Records:
  return records.open_records(prepared)


def _path(folder: pathlib.Path, group: str) -> pathlib.Path:
  (path,) = (folder / 'slides').rglob(f'{group}.tif')
  return path


def _plan(folder, tmp_path, config=None, **options):
  config = config or _config(folder, **options)
  serially(slides.surveys(config, tmp_path), 'survey', 'slides')
  return {one.source.group: one for one in slides.plan(config, tmp_path)}


def test_tiles_lie_on_the_grid_where_there_is_tissue(folder, opened):
  found = collections.defaultdict(dict)
  for row in opened.index.to_pylist():
    found[row['group']][row['x'], row['y']] = row['tissue']
  assert set(found) == {*NORMALS, *TUMOURS}
  for group in (NORMALS[3], TUMOURS[0]):
    with reader.open_slide(_path(folder, group)) as slide:
      mask = tissue.tissue_mask(slide)
      tiles = grid.tile_grid(slide.size, 128)
      covered = grid.coverage(mask, tiles)
    expected = {
      (int(x), int(y)): covered[i, j]
      for i, y in enumerate(tiles.y)
      for j, x in enumerate(tiles.x)
      if covered[i, j] >= 0.5
    }
    assert 5 < len(expected) < covered.size
    assert set(found[group]) == set(expected)
    assert all(np.isclose(found[group][k], v) for k, v in expected.items())


def test_lesion_and_mask_are_those_of_pixel_centres(folder, opened):
  outlines = annotations.read_xml(folder / f'outlines/{TUMOURS[0]}.xml')
  y, x = np.mgrid[:640, :640] + 0.5
  centres = np.stack([x.ravel(), y.ravel()], axis=1)
  inside = np.zeros(len(centres), bool)
  for one in outlines:
    assert not one.hole and not one.holes
    inside |= Path(one.points).contains_points(centres)
  inside = inside.reshape(640, 640)
  labels = set()
  for row in opened.select(f"group == '{TUMOURS[0]}'").tolist():
    one = opened[row]
    square = np.s_[one['y'] : one['y'] + 128, one['x'] : one['x'] + 128]
    assert one['label'] == inside[square].any()
    assert abs(one['lesion'] - inside[square].mean()) < 1e-3
    if one['label']:
      assert (images.decode_mask(one['mask']) != inside[square]).mean() < 1e-3
    else:
      assert one['mask'] == b''
    labels.add(one['label'])
  assert labels == {0, 1}


def test_a_tile_of_the_file_stays_as_it_is(folder, tmp_path):
  out = tmp_path / 'R'
  tile.tile(_config(folder, 256, tissue=0.3), out, serially)
  opened = records.open_records(out)
  assert len(opened) > 8
  for row in range(len(opened)):
    one = opened[row]
    with tifffile.TiffFile(_path(folder, one['group'])) as tiff:
      page = tiff.pages[0]
      number = one['y'] // 256 * 3 + one['x'] // 256
      start, count = page.dataoffsets[number], page.databytecounts[number]
      tiff.filehandle.seek(start)
      stored = tiff.filehandle.read(count)
      pixels = page.asarray()
    scan = stored[stored.index(b'\xff\xda') :]
    assert one['image'].endswith(scan)
    square = np.s_[one['y'] : one['y'] + 256, one['x'] : one['x'] + 256]
    assert (images.decode(one['image']) == pixels[square]).all()


def test_tiles_without_loss_and_overlapping(folder, tmp_path):
  out = tmp_path / 'R'
  config = _config(folder, 100, stride=50, format='png', tissue=0.9)
  tile.tile(config, out, serially)
  opened = records.open_records(out)
  assert opened.about['formats'] == ['png']
  group = opened.index['group'].to_pylist()[0]
  rows = opened.select(f"group == '{group}'").tolist()
  with reader.open_slide(_path(folder, group)) as slide:
    for row in rows:
      one = opened[row]
      assert one['x'] % 50 == one['y'] % 50 == 0
      expected = slide.read(one['x'], one['y'], 100, 100)
      assert (images.decode(one['image']) == expected).all()
  assert len({opened[row]['x'] for row in rows}) > 4


def test_the_quality_is_that_of_jpeg(folder, opened, tmp_path):
  one = opened[0]
  with reader.open_slide(_path(folder, one['group'])) as slide:
    pixels = slide.read(one['x'], one['y'], 128, 128)
  assert one['image'] == imagecodecs.jpeg8_encode(pixels, 90)


def test_tiles_at_another_scale(folder, tmp_path):
  out = tmp_path / 'R'
  failures = tile.tile(_config(folder, 64, mpp=0.45), out, serially)
  assert len(failures) == 1
  opened = records.open_records(out)
  for row in (0, len(opened) - 1):
    one = opened[row]
    assert np.isclose(one['mpp'], 0.45)
    with reader.open_slide(_path(folder, one['group'])) as slide:
      assert one['x'] % round(64 * 0.45 / slide.mpp) == 0
      pixels = slide.region(one['x'], one['y'], 64, 64, 0.45).pixels
    assert one['image'] == imagecodecs.jpeg8_encode(pixels, 90)
  lesions = opened.select(f"group == '{TUMOURS[0]}' and lesion > 0.3")
  one = opened[int(lesions[0])]
  mask = images.decode_mask(one['mask'])
  assert mask.shape == (64, 64) and np.isclose(mask.mean(), one['lesion'])


def test_masks_fit_tiles_of_a_slide_whose_pixels_are_not_square(tmp_path):
  pixels = np.full((900, 900, 3), (190, 100, 170), np.uint8)
  pixels[300:500, 400:800] = (40, 30, 120)
  path = tmp_path / 'a.tif'
  tifffile.imwrite(path, pixels, photometric='rgb', tile=(256, 256))
  ring = np.array([(400.0, 300), (800, 300), (800, 500), (400, 500)])
  polygons = [annotations.Polygon(ring)]
  tiling = slide_tiles.Tiling(64, 0.5, mpp=0.8, format='png')
  with reader.open_slide(path, (0.25, 0.32)) as slide:
    tiles = slide_tiles.survey(slide, polygons, tiling)
    found = slide_tiles.read_tiles(
      slide, polygons, tiles, tiling, {'group': 'a'}
    )
    masks, dark = zip(
      *(
        (
          imagecodecs.png_decode(one['mask']) > 0,
          imagecodecs.png_decode(one['image'])[..., 0] < 115,
        )
        for one in found
        if one['lesion']
      ),
      strict=True,
    )
  assert np.sum(masks) > 8000
  assert np.not_equal(masks, dark).mean() < 0.001


def test_a_scale_that_is_nearly_the_slides_own_is_not_interpolated(folder):
  tiling = slide_tiles.Tiling(64, 0.5, mpp=0.24)
  with reader.open_slide(_path(folder, NORMALS[0])) as slide:
    assert tiling.scale(slide) == 1
    assert dataclasses.replace(tiling, mpp=0.486).scale(slide) == 0.486 / 0.243
    with pytest.raises(reader.SlideError, match='too coarse for tiles at 0.1'):
      dataclasses.replace(tiling, mpp=0.1).scale(slide)


def test_a_slide_that_is_too_coarse_is_a_failure(folder, tmp_path):
  found = _plan(
    folder, tmp_path, mpp=0.182
  )  # 1.25 finer than 0.226, not 0.243.
  assert not found[NORMALS[3]].found.failures
  (failure,) = found[NORMALS[0]].found.failures
  assert 'too coarse' in failure.error


def test_a_slide_that_cannot_be_opened_is_a_line(prepared, opened):
  (line,) = (prepared / 'failures.jsonl').read_text().splitlines()
  failure = json.loads(line)
  assert failure['item'] == 'broken' and 'broken.svs' in failure['error']
  rows = {row['group']: row for row in opened.slides.to_pylist()}
  assert len(rows) == 7 and rows['broken']['width'] == 0
  assert rows[NORMALS[0]]['width'] == 640
  assert np.isclose(rows[NORMALS[3]]['mpp'], 0.226)


def test_sick_slides_are_for_testing_and_others_by_chance(opened):
  rows = {row['group']: row for row in opened.slides.to_pylist()}
  for group in TUMOURS:
    assert rows[group]['split'] == 'test' and rows[group]['label'] == 1
  splits = [rows[group]['split'] for group in NORMALS]
  assert 'train' in splits and 'validation' in splits
  assert all(rows[group]['label'] == 0 for group in NORMALS)


def test_however_few_there_are_some_are_for_each_use(folder, tmp_path):
  """Two patients, of whom chance would send both elsewhere with train=0.01.

  Slides that can't be opened, or show only glass, do not count.
  """
  (tmp_path / 'slides').mkdir()
  for name in (*NORMALS[2:], TUMOURS[0]):
    (tmp_path / f'slides/{name}.tif').symlink_to(_path(folder, name))
  for number in range(9):
    (tmp_path / f'slides/broken{number}.svs').touch()
    path = tmp_path / f'slides/glass{number}.tif'
    phantom.write_slide(path, np.full((300, 300, 3), 240, np.uint8), 0.25)
  annotations = str(folder / 'outlines')
  config = _config(tmp_path, annotations=annotations, train=0.01)
  found = _plan(folder, tmp_path, config)
  splits = [found[name].split for name in NORMALS[2:]]
  assert sorted(splits) == ['train', 'validation']
  others = [one.split for name, one in found.items() if name not in NORMALS]
  assert set(others) == {'test'} and len(others) == 19


def test_a_slide_of_glass_goes_where_its_patient_goes(folder, tmp_path):
  (tmp_path / 'slides').mkdir()
  for name in NORMALS[2:]:
    (tmp_path / f'slides/{name}.tif').symlink_to(_path(folder, name))
    path = tmp_path / f'slides/{name}_b.tif'
    phantom.write_slide(path, np.full((300, 300, 3), 240, np.uint8), 0.25)
  found = _plan(
    folder, tmp_path, _config(tmp_path, annotations='', group='^(.{10})')
  )
  for name in NORMALS[2:]:
    assert found[name].split == found[f'{name}_b'].split != 'test'


def test_the_patients_of_a_split_are_halved(folder, tmp_path):
  table = dict.fromkeys((*NORMALS, *TUMOURS, 'broken'), 'train')
  splits = _table(tmp_path / 's.csv', 'split', table)
  found = _plan(folder, tmp_path, splits=splits)
  domains = [one.columns['domain'] for one in found.values()]
  assert sorted(domains) == ['a', 'a', 'a', 'a', 'b', 'b', 'b']


def test_patients_are_in_one_split(folder, tmp_path):
  found = _plan(folder, tmp_path, group='(.)..$')  # Of *_001 it is 0.
  assert {found[g].split for g in (*NORMALS[:3], *TUMOURS)} == {'test'}
  assert found[NORMALS[3]].split != 'test'


def _table(path: pathlib.Path, column: str, values: dict[str, str]):
  lines = [f'slide,{column}', *(f'{k},{v}' for k, v in values.items())]
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


def test_tables_of_splits_and_labels(folder, tmp_path):
  names = ('broken', *NORMALS, *TUMOURS)
  given = ('test', 'train', 'val', 'test', 'train', 'test', 'train')
  splits = dict(zip(names, given, strict=True))
  labels = {name: int(name not in NORMALS[:2]) for name in names}
  labels[f'{NORMALS[0]}.tif'] = labels.pop(NORMALS[0])  # A file will do too.
  labels[f'{NORMALS[1]}.TIF'] = labels.pop(NORMALS[1])
  found = _plan(
    folder,
    tmp_path,
    splits=_table(tmp_path / 's.csv', 'split', splits),
    labels=_table(tmp_path / 'l.csv', 'label', labels),
  )
  # A sick one in training is the user's wish.
  assert {name: one.split for name, one in found.items()} == splits | {
    NORMALS[1]: 'validation'
  }
  assert found[NORMALS[0]].label == 0 and found[NORMALS[2]].label == 1
  # Sick as a whole; which of its tiles, nobody knows.
  assert found[NORMALS[2]].columns['label'] == -1
  assert 'label' not in found[TUMOURS[0]].columns


@pytest.mark.parametrize(
  ('column', 'change', 'said'),
  [
    ('label', {'tumor_001': None}, 'does not list all slides; it lacks tumor_'),
    ('label', {'other': '0'}, 'lists slides that are not there: other'),
    ('label', {'tumor_001': 'sick'}, "No label .*tumor_001.*'sick'"),
    ('label', {'tumor_001': '0'}, 'has the label 0, and .*outlines a lesion'),
    ('split', {'normal_001': 'trian'}, "Did you mean 'train'"),
    ('split', {'normal_001.svs': 'test'}, 'lists the slide normal_001 twice'),
  ],
)
def test_tables_that_are_wrong(folder, tmp_path, column, change, said):
  names = ('broken', *NORMALS, *TUMOURS)
  default = {'label': '1', 'split': 'train'}[column]
  values = dict.fromkeys(names, default) | change
  values = {k: v for k, v in values.items() if v is not None}
  table = _table(tmp_path / 'table.csv', column, values)
  with pytest.raises(UserError, match=said):
    _plan(folder, tmp_path, **{f'{column}s': table})


def test_a_table_without_its_column(folder, tmp_path):
  table = _table(tmp_path / 'table.csv', 'name', {})
  with pytest.raises(UserError, match='has the columns slide, name; slide and'):
    _plan(folder, tmp_path, splits=table)
  with pytest.raises(UserError, match='There is no table'):
    _plan(folder, tmp_path, splits=f'{table}.csv')


def test_slides_of_one_name(folder, tmp_path):
  (tmp_path / 'slides').symlink_to(folder / 'slides')
  root = tmp_path / 'more/slides'
  root.mkdir(parents=True)
  for name in ('a.svs', 'deep/a.tif'):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).touch()
  config = tile.data_config(root, 64)
  (one,) = _plan(folder, tmp_path, config).values()
  assert one.label == -1 and not len(one.tiles)
  (failure,) = one.found.failures
  assert 'a.svs and ' in failure.error and 'of one name' in failure.error
  before = slides.fingerprint(config)
  (root / 'deep/a.tif').rename(root / 'deep/b.tif')
  assert slides.fingerprint(config) != before
  assert len(_plan(folder, tmp_path / 'again', config)) == 2


def test_annotations_that_do_not_fit(folder, tmp_path):
  outlines = shutil.copytree(folder / 'outlines', tmp_path / 'outlines')

  def find(annotations):
    options = slides.OPTIONS | {'annotations': str(annotations)}
    return slides.find(folder / 'slides', options)

  assert sum(bool(one.annotation) for one in find(outlines)) == 2
  shutil.copy(outlines / 'tumor_001.xml', outlines / 'tumor_009.xml')
  assert sum(bool(one.annotation) for one in find(outlines)) == 2
  config = _config(folder, annotations=str(outlines))
  (failure,) = slides.failures(config)
  assert 'tumor_009.xml belongs to no slide' in failure.error
  (outlines / 'tumor_009.xml').rename(outlines / 'tumor_001.geojson')
  assert not slides.failures(config)
  twice = _plan(folder, tmp_path, config)['tumor_001']
  (failure,) = twice.found.failures
  assert 'two annotations' in failure.error and twice.label == -1
  table = _table(tmp_path / 'a.csv', 'annotation', {'tumor_001': 'no.xml'})
  with pytest.raises(UserError, match='1 annotations that are missing.*no.xml'):
    find(table)
  path = 'outlines/tumor_001.xml'
  table = _table(tmp_path / 'a.csv', 'annotation', {'tumor_009': path})
  with pytest.raises(UserError, match='slides that are missing'):
    find(table)
  named = {'tumor_001.tif': path, 'tumor_002': ''}  # This one has none.
  table = _table(tmp_path / 'a.csv', 'annotation', named)
  found = {one.group: one.annotation for one in find(table)}
  assert pathlib.Path(found['tumor_001']).samefile(tmp_path / path)
  assert not found['tumor_002']
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='holds no annotations of these'):
    find(tmp_path / 'empty')


def test_an_annotation_that_is_none_costs_its_slide(folder, tmp_path):
  outlines = shutil.copytree(folder / 'outlines', tmp_path / 'outlines')
  (outlines / 'tumor_001.xml').write_text('<ASAP_Annotations><')
  found = _plan(folder, tmp_path, annotations=str(outlines))
  (failure,) = found['tumor_001'].found.failures
  assert 'tumor_001.xml' in failure.error
  assert found['tumor_001'].label == 1 and not found['tumor_002'].found.failures


def _content(directory: pathlib.Path) -> dict[str, bytes]:
  files = [path for path in directory.rglob('*') if path.is_file()]
  return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def test_stopped_it_goes_on_where_it_was(folder, prepared, tmp_path):
  out, begun = tmp_path / 'R', []

  def stop(tasks, name, units):
    """Does all surveys, and three shards."""
    left = [task for task in tasks if not task.done]
    begun.append(len(left))
    serially(left[:3] if units == 'tiles' else left, name, units)
    if units == 'tiles':
      raise KeyboardInterrupt

  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      tile.tile(_config(folder), out, stop)
    assert not out.exists()
  assert begun == [7, 7, 0, 4]
  tile.tile(_config(folder), out, serially)
  assert _content(out) == _content(prepared)
  assert tile.tile(_config(folder), out, stop)  # There is nothing to do.
  assert len(begun) == 4


def test_begun_with_other_options_it_is_refused(folder, prepared, tmp_path):
  with pytest.raises(UserError, match=r'size \(then 128, now 64\).*Remove it'):
    tile.tile(_config(folder, 64), prepared, serially)

  def stop(tasks, name, units):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    tile.tile(_config(folder), tmp_path / 'R', stop)
  with pytest.raises(UserError, match='R.unfinished was begun with.*tissue'):
    tile.tile(_config(folder, tissue=0.9), tmp_path / 'R', serially)


def test_a_place_that_is_taken(folder, tmp_path):
  (tmp_path / 'mine.txt').touch()
  with pytest.raises(UserError, match='there already and is no data set'):
    tile.tile(_config(folder), tmp_path, serially)
  with pytest.raises(UserError, match='mine.txt/R cannot be written'):
    tile.tile(_config(folder), tmp_path / 'mine.txt/R', serially)


def test_a_launch_finds_what_was_prepared(folder, prepared, tmp_path):
  config = ConfigDict({'name': 'slides', 'path': str(prepared), 'options': {}})
  assert write.prepare(config) == prepared
  config.name = 'folder'
  with pytest.raises(UserError, match='prepared data set of slides'):
    write.prepare(config)
  config.name, config.path = 'slides', str(tmp_path / 'R')
  (tmp_path / 'R.unfinished').mkdir()
  with pytest.raises(UserError, match='R is unfinished; call `jaxmed tile`'):
    write.prepare(config)


def test_slides_that_were_moved_are_found_where_they_are(folder, tmp_path):
  before, after = tmp_path / 'before', tmp_path / 'after'
  shutil.copytree(folder, before)
  (before / 'slides/broken.svs').unlink()
  config = _config(before)
  config.dir = str(tmp_path / 'prepared')
  made = write.prepare(config, work=serially)
  before.rename(after)
  config.path = str(after / 'slides')
  config.options.annotations = str(after / 'outlines')
  assert write.prepare(config, work=serially) == made
  rows = records.open_records(made).slides.to_pylist()
  assert len(rows) == 6
  for row in rows:
    assert row['path'].startswith(str(after / 'slides'))
    outline = after / f'outlines/{row["group"]}.xml'
    assert row['annotation'] == (str(outline) if outline.exists() else '')
  assert not list(made.glob('.*partial'))


def test_a_dry_run_knows_all_and_reads_no_tile(
  folder, opened, monkeypatch, tmp_path
):
  for name in ('read', 'region', 'encoded_tile'):
    monkeypatch.setattr(reader.Slide, name, None)
  text, failures = tile.dry_run(_config(folder), serially)
  assert len(failures) == 1
  lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
  rows = opened.index.to_pylist()
  for group in (*NORMALS, *TUMOURS):
    mine = [row for row in rows if row['group'] == group]
    lesions = sum(row['label'] for row in mine)
    assert lines[group][2:4] == [str(len(mine)), str(lesions)]
    assert lines[group][0] == mine[0]['split']
  assert lines['all'][0] == str(len(rows))
  megabytes = opened.about['bytes'] / 1e6
  assert 0.5 < float(lines['all'][2]) / megabytes < 2
  assert lines['broken'][-3:] == ['cannot', 'be', 'read']


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'tisue': 0.5}, "Did you mean 'tissue'"),
    ({'format': 'jpg'}, "Did you mean 'jpeg'"),
    ({'method': 'ostu'}, "Did you mean 'otsu'"),
    ({'tissue': 1.5}, 'tissue of the data set slides is 1.5'),
    ({'quality': 0}, 'quality of the data set slides is 0'),
    ({'train': 0.8, 'validation': 0.3}, 'out of bounds'),
  ],
)
def test_options_that_are_wrong(folder, options, said):
  with pytest.raises(UserError, match=said):
    slides.fingerprint(_config(folder, **options))


def test_folders_that_are_wrong(tmp_path):
  for path, said in (
    ('', 'needs --config.data.path'),
    (tmp_path / 'none', 'There is no folder .*none, where'),
    (tmp_path, 'holds no slides. Expected files that end in one of .svs'),
  ):
    config = ConfigDict(
      {'name': 'slides', 'path': str(path), 'size': 64, 'options': {}}
    )
    with pytest.raises(UserError, match=said):
      slides.fingerprint(config)
