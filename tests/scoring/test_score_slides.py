"""Slides as one stream: what is scored, kept, resumed and told of failures."""

import dataclasses
import json
import pathlib
import threading
import types

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from jaxmed import command, learn, workdir
from jaxmed.commands import cli
from jaxmed.configs import patchcore
from jaxmed.datasets import phantom, tables, write
from jaxmed.datasets.records import open_records
from jaxmed.errors import UserError
from jaxmed.evaluate_lesions import read_detections
from jaxmed.metrics.lesions import suppress
from jaxmed.provenance import Provenance
from jaxmed.scoring import (
  score_files,
  score_records,
  score_slides,
  slide_files,
  slide_stream,
  slide_work,
)
from jaxmed.scoring.score import Run
from jaxmed.slides import (
  annotations,
  blend,
  geojson,
  grid,
  heatmap,
  layers,
  map_files,
  tissue,
)
from jaxmed.slides.reader import open_slide
from tests.test_command import pictures

SIDE = 32
BATCH = 16
SIZE = (704, 520)
MAP = 'nearest'
DRAW = slide_files.draw  # Most tests do without.


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  return trained(tmp_path_factory.mktemp('run'))


def trained(place: pathlib.Path) -> Run:
  """A PatchCore of noise, with its normals scored."""
  config = patchcore.get_config('tiny')
  folders = patchcore.get_config('folder')
  for name in ('name', 'options', 'cohorts', 'validation', 'test'):
    config.data[name] = folders.data[name]
  pictures(place / 'images', size=SIDE)
  config.data.path = str(place / 'images')
  config.data.dir = str(place / 'prepared')
  config.model.coreset_size = 8
  config.score.batch = BATCH
  config.score.dense = MAP
  data = write.prepare(config.data, progress=False)
  folder, one = place / 'run', jax.devices()[:1]
  folder.mkdir()
  workdir.settle(folder, config, fresh=False)
  learn.train(config, folder, data, Provenance(folder), one)
  run = Run(folder, one)
  score_records.score_records(run, open_records(data))
  return run


@pytest.fixture(scope='module')
def folder(loaded):
  return loaded.folder


@pytest.fixture
def run(loaded):
  """With settings that a test may change; compiled once for all."""
  before = loaded.config.score.to_dict()
  loaded.config.score.dense = ''
  loaded.config.score.nms_radius = 40.0
  yield loaded
  loaded.config.score.update(before)


@pytest.fixture(scope='module')
def slides(tmp_path_factory):
  """Three with a round piece of tissue each, of different colours."""
  place = tmp_path_factory.mktemp('slides')
  for number, name in enumerate(('a', 'b', 'c')):
    write_slide(place / f'{name}.tif', number)
  return place


def write_slide(path: pathlib.Path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  width, height = SIZE
  pixels = np.full((height, width, 3), 238, np.float32)
  y, x = np.ogrid[:height, :width]
  inside = (x - 330 - 20 * seed) ** 2 + (y - 250) ** 2 < (170 - 10 * seed) ** 2
  pixels[inside] = (190, 100 + 20 * seed, 170)
  pixels[inside] += 20 * rng.standard_normal((inside.sum(), 3))
  phantom.write_slide(path, np.clip(pixels, 0, 255).astype(np.uint8), 0.5)


@pytest.fixture(autouse=True, scope='module')
def _once(loaded):
  """The log stays as it is, and what was compiled is not compiled again."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(command, 'set_up', lambda: None)
    patch.setattr(score_files, 'Run', lambda folder: loaded)
    yield


def brute(run, path, tile, corners, tissue):
  """Each tile read and scored by itself."""
  scores = np.full(tissue.shape, np.nan, np.float32)
  maps = []
  with open_slide(path) as slide:
    for row, column in np.argwhere(tissue).tolist():
      x, y = corners(row, column)
      found = run.score([slide.read(x, y, tile, tile)])
      scores[row, column] = found.scores['nearest'][0]
      maps.append((x, y, found.maps[MAP][0]))
  return scores, maps


def covered(path, squares, method='stain'):
  with open_slide(path) as slide:
    return grid.coverage(tissue.tissue_mask(slide, method), squares) >= 0.5


def stream(run, paths, dense=None):
  jobs = [
    slide_stream.Job(path, dense=dense and dense / path.stem) for path in paths
  ]
  return [found for _, found in slide_stream.score_each(run, jobs)]


def test_it_is_what_tiles_one_by_one_give(run, slides):
  path = slides / 'a.tif'
  tiles = grid.tile_grid(SIZE, SIDE)
  tissue = covered(path, tiles)
  expected, _ = brute(
    run, path, SIDE, lambda r, c: (c * SIDE, r * SIDE), tissue
  )
  found = run.score_slide(path)
  np.testing.assert_allclose(found.maps['nearest'], expected, rtol=1e-5)
  assert found.tiles == tissue.sum() > 50 and not found.reason
  assert found.scores['nearest'] == np.nanmax(found.maps['nearest'])
  assert found.size == SIZE and found.mpp == 0.5


def test_slides_share_batches_and_not_one_bit(run, slides, monkeypatch):
  paths = [slides / f'{name}.tif' for name in 'abc']
  alone = [stream(run, [path])[0] for path in paths]
  batches = []
  place = run.place
  monkeypatch.setattr(
    run, 'place', lambda x, n: batches.append(len(x)) or place(x, n)
  )
  together = stream(run, paths)
  for one, other in zip(alone, together, strict=True):
    assert one.tiles % BATCH  # Its last batch holds tiles of the next.
    np.testing.assert_array_equal(one.maps['nearest'], other.maps['nearest'])
  total = sum(found.tiles for found in together)
  assert len(batches) == -(-total // BATCH)
  assert set(batches[:-1]) == {BATCH}


def test_it_compiles_once_while_the_first_slides_are_opened(
  folder, slides, monkeypatch
):
  run = Run(folder, jax.devices()[:1])
  compiling, traced, in_time = threading.Event(), [], []
  score, tissue_of = run.method.score, slide_work.tissue_mask

  def traced_score(*given):
    compiling.set()
    traced.append(given)
    return score(*given)

  def late_tissue(*given):
    in_time.append(compiling.wait(60))
    return tissue_of(*given)

  run.method = dataclasses.replace(run.method, score=traced_score)
  assert run.names and len(traced) == 1  # For the names alone.
  compiling.clear()
  monkeypatch.setattr(slide_work, 'tissue_mask', late_tissue)
  stream(run, [slides / 'a.tif', slides / 'b.tif'])
  stream(run, [slides / 'c.tif'])
  assert in_time == [True] * 3 and len(traced) == 2


def test_ncrfs_tiles_lie_around_the_pixels_of_level_6(run, slides):
  path = slides / 'b.tif'
  run.config.score.scheme = 'ncrf'
  squares = grid.tile_grid(SIZE, 64)
  tissue = covered(path, squares, 'otsu')
  corners = lambda r, c: (int((c + 0.5) * 64) - 16, int((r + 0.5) * 64) - 16)
  expected, _ = brute(run, path, SIDE, corners, tissue)
  found = run.score_slide(path)
  assert tissue.sum() > 10
  np.testing.assert_allclose(found.maps['nearest'], expected, rtol=1e-5)
  np.testing.assert_array_equal(found.over('nearest').squares(), expected)
  run.config.score.stride = 16  # Tiles then lie beyond the border.
  with open_slide(path) as slide:
    assert slide.read(-8, -8, SIDE, SIDE).shape == (SIDE, SIDE, 3)
    work = slide_work.Work(run, slide)
  work.places = np.array([[0, 0]])
  assert work._corner(0) == (-8, -8)


def test_tiles_that_lie_apart_are_in_the_middle_of_their_squares(run, slides):
  path = slides / 'b.tif'
  run.config.score.stride = 80
  squares = grid.tile_grid(SIZE, 80)
  corners = lambda r, c: (c * 80 + 24, r * 80 + 24)
  expected, _ = brute(run, path, SIDE, corners, covered(path, squares))
  found = run.score_slide(path)
  assert found.tiles > 10
  np.testing.assert_allclose(found.maps['nearest'], expected, rtol=1e-5)
  np.testing.assert_array_equal(found.over('nearest').squares(), expected)


@pytest.fixture
def coarse(run, monkeypatch):
  """A run that was trained at 1.25 um, and slides of 0.5."""
  monkeypatch.setattr(run, 'mpp', 1.25)
  return run


def test_a_finer_slide_is_read_at_the_scale_of_training(
  coarse, slides, tmp_path
):
  path, side = slides / 'a.tif', 80
  tiles = grid.tile_grid(SIZE, side)
  tissue = covered(path, tiles)
  expected = np.full(tissue.shape, np.nan, np.float32)
  blended = blend.Blend(tmp_path / 'map', (282, 208), SIDE, 3)
  with open_slide(path) as slide:
    for row, column in np.argwhere(tissue).tolist():
      x, y = column * side, row * side
      pixels = slide.region(x, y, SIDE, SIDE, 1.25).pixels
      found = coarse.score([pixels])
      expected[row, column] = found.scores['nearest'][0]
      blended.add(column * SIDE, row * SIDE, found.maps[MAP][0])
  coarse.config.score.dense = MAP
  (found,) = stream(coarse, [path], tmp_path)
  assert found.tiles > 10
  np.testing.assert_allclose(found.maps['nearest'], expected, rtol=1e-5)
  np.testing.assert_allclose(found.dense, blended.finish(), rtol=1e-4)
  assert found.downsample == 3 * 2.5 and found.grid.stride == side


def test_files_of_a_finer_slide_have_its_own_scale(coarse, slides, tmp_path):
  coarse.config.score.dense = MAP
  path, unscored = score(coarse.folder, slides, tmp_path)
  assert not unscored
  for row in pq.read_table(path).to_pylist():
    assert row['mpp'] == 0.5 and row['tiles']
  for name, scale in (('a.ome.tif', 40.0), (f'a_{MAP}.ome.tif', 3.75)):
    with tifffile.TiffFile(tmp_path / name) as file:
      about = tifffile.xml2dict(file.ome_metadata)['OME']['Image']['Pixels']
    assert about['PhysicalSizeX'] == pytest.approx(scale)
  found = read_detections(tmp_path / 'detections/a.csv')
  assert len(found) and (found[:, 1:] < SIZE).all()


def test_a_coarser_slide_is_refused(run, slides, tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'mpp', 0.25)
  path, unscored = score(run.folder, slides, tmp_path)
  assert unscored == 3
  reason = pq.read_table(path)['reason'].to_pylist()[0]
  assert '0.5 µm per pixel, coarser than the 0.25' in reason


def test_a_pixel_map_is_blended_from_overlapping_tiles(run, slides, tmp_path):
  path = slides / 'a.tif'
  run.config.score.update({'dense': MAP, 'stride': 20, 'map_mpp': 2.0})
  tiles = grid.tile_grid(SIZE, SIDE, 20)
  tissue = covered(path, tiles)
  _, maps = brute(run, path, SIDE, lambda r, c: (c * 20, r * 20), tissue)
  expected = blend.Blend(tmp_path / 'expected', SIZE, SIDE, 4)
  for one in maps:
    expected.add(*one)
  found, other = stream(run, [path, slides / 'b.tif'], tmp_path)
  assert found.downsample == 4 and found.dense.shape == (130, 176)
  np.testing.assert_allclose(found.dense, expected.finish(), rtol=1e-4)
  assert np.isfinite(other.dense).any()


def score(folder, slides, out, **more):
  return score_files.score_folder(
    folder, slides, more.get('annotations'), out, None
  )


@pytest.fixture(autouse=True)
def _undrawn(scored, monkeypatch):
  """Pictures take the longest; those of `scored` are enough."""
  monkeypatch.setattr(slide_files, 'draw', lambda *_: None)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def scored(folder, slides, tmp_path_factory):
  """The whole folder by the command, with pixel maps."""
  out = tmp_path_factory.mktemp('scored')
  argv = ['score', '--workdir', folder, '--slides', slides, '--out', out]
  assert cli.main([str(word) for word in argv]) == 0
  return out


def test_a_folder_gives_a_table(scored, loaded, slides):
  table = pq.read_table(scored / 'slides.parquet')
  assert table.column_names == [
    *('group', 'path', 'annotation', 'label', 'tiles', 'tiles_failed'),
    *('tiles_unnormalised', 'reason', 'width', 'height', 'mpp'),
    'exhaustive',
    *('score.nearest', 'mean.nearest'),
    *('slide.mean_above.nearest', 'slide.top_k.nearest'),
  ]
  rows = table.to_pylist()
  assert [row['group'] for row in rows] == ['a', 'b', 'c']
  threshold = loaded.calibration['nearest']['threshold']
  for row in rows:
    found = loaded.score_slide(row['path'])
    values = found.maps['nearest'][np.isfinite(found.maps['nearest'])]
    above = values[values >= threshold]
    assert row['tiles'] == len(values) and row['label'] == -1
    assert (row['width'], row['height'], row['mpp']) == (*SIZE, 0.5)
    for column, expected in {
      'score': values.max(),
      'mean': values.mean(),
      'slide.mean_above': above.mean() if len(above) else 0,
      'slide.top_k': np.sort(values)[-10:].mean(),
    }.items():
      assert row[f'{column}.nearest'] == pytest.approx(expected, rel=1e-5)


def test_every_slide_is_drawn(scored):
  for group in 'abc':
    with Image.open(scored / f'{group}_overlay.png') as picture:
      assert picture.size[0] == 900 + 130
    with Image.open(scored / f'{group}_thumbnail.png') as picture:
      assert picture.size == SIZE


def test_colours_end_where_a_sample_of_each_slide_says(run, monkeypatch):
  rng = np.random.default_rng(0)
  maps = {group: rng.random((300, 200)) for group in 'ab'}
  maps['b'][:, 7:] = np.nan
  maps['none'] = np.full((4, 4), np.nan)
  shown = lambda run, folder, facts, most: (maps[facts['group']], 1)
  monkeypatch.setattr(slide_files, '_shown', shown)
  slides = [{'group': group} for group in maps]
  highest = slide_files.highest_drawn(run, pathlib.Path(), slides)
  assert highest == pytest.approx(0.995, abs=0.003)
  monkeypatch.setattr(slide_files, 'SAMPLED', 10**6)
  all_ = np.concatenate([m[np.isfinite(m)] for m in maps.values()])
  highest = slide_files.highest_drawn(run, pathlib.Path(), slides)
  assert highest == pytest.approx(np.quantile(all_, 0.995))


def test_rules_of_few_tiles_and_of_none(run):
  run.config.score.update({'above': 2.0, 'top_k': 2})
  values = np.array([[1.0, np.nan], [2.0, 4.0]])
  found = slide_files.rule_scores(run, 'nearest', values)
  assert found == {'max': 4, 'mean': 7 / 3, 'mean_above': 3, 'top_k': 3}
  found = slide_files.rule_scores(run, 'nearest', values[:1])
  assert found == {'max': 1, 'mean': 1, 'mean_above': 0, 'top_k': 1}
  found = slide_files.rule_scores(run, 'nearest', values[:1, 1:])
  assert np.isnan(list(found.values())).all()
  # Log-odds are negative: a slide with nothing above has no more than others.
  run.config.score.above = -4.0
  found = slide_files.rule_scores(run, 'nearest', -values - 7)
  assert found['mean_above'] == -4
  found = slide_files.rule_scores(run, 'nearest', -values)
  assert found['mean_above'] == -7 / 3


def test_maps_have_the_slides_scale(scored, loaded, slides):
  found = loaded.score_slide(slides / 'a.tif')
  for name, size, shape, channel in (
    ('a.ome.tif', 16.0, (16, 22), 'nearest'),
    (f'a_{MAP}.ome.tif', 4.0, (65, 88), MAP),
  ):
    with tifffile.TiffFile(scored / name) as file:
      about = tifffile.xml2dict(file.ome_metadata)['OME']['Image']['Pixels']
      values = file.asarray()
    assert about['PhysicalSizeX'] == about['PhysicalSizeY'] == size
    assert about['Channel']['Name'] == channel
    assert values.squeeze().shape == shape
  values, _ = map_files.read_ome(scored / 'a.ome.tif')
  np.testing.assert_array_equal(values['nearest'], found.maps['nearest'])


def test_outlines_and_detections_are_of_the_map(scored, loaded):
  name = f'map.{MAP}'
  known = loaded.calibration[name]
  drawn = 0
  for group in 'abc':
    values = map_files.read_ome(scored / f'{group}_{MAP}.ome.tif')[0][MAP]
    above = np.nan_to_num(values, nan=-np.inf) > known['threshold']
    polygons = geojson.read_geojson(scored / f'{group}.geojson')
    mask = annotations.rasterise(polygons, 88, 65, downsample=8)
    np.testing.assert_array_equal(mask, above)
    features = json.loads((scored / f'{group}.geojson').read_text())['features']
    numbers = [f['properties']['measurements'] for f in features]
    area = sum(one['Area µm^2'] for one in numbers)
    assert area == pytest.approx(above.sum() * 4.0**2)
    if numbers:
      drawn += 1
      assert numbers[0][f'{name} max'] == pytest.approx(values[above].max())
    radius = round(loaded.config.score.nms_radius / 4)
    expected = suppress(values, radius, known['value'][50], 8)
    found = read_detections(scored / f'detections/{group}.csv')
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found[:, 0] > known['value'][50]).all()
  assert drawn


def test_the_same_command_does_nothing_twice(
  scored, folder, slides, monkeypatch
):
  table = pq.read_table(scored / 'slides.parquet')
  (scored / 'b.json').unlink()
  seen = []
  save = slide_files.save
  monkeypatch.setattr(
    slide_files,
    'save',
    lambda run, folder, out, facts, found: (
      seen.append(facts['group']) or save(run, folder, out, facts, found)
    ),
  )
  assert score(folder, slides, scored) == (scored / 'slides.parquet', 0)
  assert seen == ['b']
  assert pq.read_table(scored / 'slides.parquet').equals(table)
  hidden = [p.name for p in scored.iterdir() if p.name.startswith('.')]
  assert hidden == ['.lock']


def test_interrupted_it_keeps_what_is_whole(
  scored, folder, slides, tmp_path, monkeypatch
):
  save = slide_files.save

  def interrupted(run, folder, out, facts, found):
    if facts['group'] == 'b':
      raise KeyboardInterrupt
    save(run, folder, out, facts, found)

  with monkeypatch.context() as patch:
    patch.setattr(slide_files, 'save', interrupted)
    with pytest.raises(KeyboardInterrupt):
      score(folder, slides, tmp_path)
  assert (tmp_path / 'a.json').exists()
  assert not (tmp_path / 'b.json').exists()
  assert not (tmp_path / 'slides.parquet').exists()
  score(folder, slides, tmp_path)
  ours, theirs = (
    pq.read_table(out / 'slides.parquet') for out in (tmp_path, scored)
  )
  assert ours.equals(theirs)


def test_two_do_not_write_into_one_folder(folder, slides, tmp_path):
  said = 'out is in use by process .*; wait for it, or give another --out'
  with workdir.claim(tmp_path / 'out'):
    with pytest.raises(UserError, match=said):
      score(folder, slides, tmp_path / 'out')
    with pytest.raises(UserError, match=said):
      files = [slides / 'a.tif']
      score_files.score_files(folder, files, tmp_path / 'out', None)
  assert [path.name for path in (tmp_path / 'out').iterdir()] == ['.lock']


def test_other_settings_are_not_mixed(scored, folder, slides, tmp_path):
  with pytest.raises(UserError, match='scored otherwise: mpp was None'):
    score_files.score_folder(folder, slides, None, scored, 0.5)


def test_a_run_that_was_moved_goes_on(
  scored, loaded, folder, slides, tmp_path, monkeypatch
):
  (tmp_path / 'moved').symlink_to(folder)
  monkeypatch.setattr(loaded, 'folder', tmp_path / 'moved')
  assert score(folder, slides, scored)[1] == 0
  settled = workdir.read_json(scored / score_files.SETTLED)
  assert settled['run'] == str(tmp_path / 'moved')


def test_a_folders_results_are_not_written_over(scored, folder, slides):
  with pytest.raises(UserError, match='of a folder of slides'):
    score_files.score_files(folder, [slides / 'a.tif'], scored, None)


def test_by_default_results_lie_under_the_folders_name(
  folder, some, monkeypatch
):
  path, unscored = score(folder, some, None)
  assert not unscored and path == folder / 'scored/some/slides.parquet'
  monkeypatch.chdir(some)
  path, unscored = score_files.score_files(
    folder, [pathlib.Path('a.tif')], None, None
  )
  (row,) = pq.read_table(path).to_pylist()
  assert path == folder / 'scored/scores.parquet' and not unscored
  table = pq.read_table(path.parent / 'slides.parquet').to_pylist()
  assert row['score.nearest'] == table[0]['score.nearest']
  assert 0 <= row['calibrated.nearest'] <= 1 and row['tiles'] > 50
  assert row['file'] == 'a.tif'  # As it was named.


@pytest.fixture
def some(slides, tmp_path):
  """A folder with one whole slide, to add broken ones to."""
  place = tmp_path / 'some'
  place.mkdir()
  (place / 'a.tif').write_bytes((slides / 'a.tif').read_bytes())
  return place


def break_tile(path: pathlib.Path, number: int) -> None:
  """Zeros in the place of a JPEG tile of level 0."""
  with tifffile.TiffFile(path) as file:
    page = file.pages[0]
    start, count = page.dataoffsets[number], page.databytecounts[number]
  with path.open('r+b') as file:
    file.seek(start)
    file.write(bytes(count))


def test_what_fails_is_told_and_the_others_go_on(
  folder, some, slides, tmp_path, caplog
):
  out = tmp_path / 'out'
  (some / 'empty.svs').touch()
  for name in ('hurt', 'worse'):
    (some / f'{name}.tif').write_bytes((slides / 'b.tif').read_bytes())
  break_tile(some / 'hurt.tif', 4)
  (some / 'z.tif').write_bytes((slides / 'c.tif').read_bytes())
  argv = ['score', '--workdir', folder, '--slides', some, '--out', out]
  assert cli.main([str(word) for word in argv]) == 1
  rows = {
    r['group']: r for r in pq.read_table(out / 'slides.parquet').to_pylist()
  }
  assert list(rows) == ['a', 'empty', 'hurt', 'worse', 'z']
  assert "can't be opened as a slide" in rows['empty']['reason']
  assert rows['empty']['score.nearest'] is None and not rows['empty']['tiles']
  hurt = rows['hurt']
  assert 0 < hurt['tiles_failed'] < hurt['tiles']
  said = f'{hurt["tiles_failed"]} of {hurt["tiles"]} tiles could not be read'
  assert hurt['reason'] == said and hurt['score.nearest'] is None
  for name in ('a', 'worse', 'z'):
    assert rows[name]['score.nearest'] > 0 and not rows[name]['reason']
  failed = lines(out / 'failures.jsonl')
  assert len(failed) == 1 + hurt['tiles_failed']
  assert failed[0]['item'].endswith('empty.svs')
  assert all(one['stage'] == 'score slides' for one in failed)
  inside = [one for one in failed if 'x' in one]
  assert len(inside) == hurt['tiles_failed']
  assert all(256 <= one['x'] < 512 for one in inside)
  assert '2 of 5 slides have no score' in caplog.text


def test_a_slide_that_was_mended_is_tried_again(folder, some, slides, tmp_path):
  out, late = tmp_path / 'out', some / 'late.tif'
  late.write_bytes(b'not yet')
  assert score(folder, some, out)[1] == 1
  late.write_bytes((slides / 'b.tif').read_bytes())
  assert score(folder, some, out)[1] == 0
  assert not lines(out / 'failures.jsonl')


def test_another_file_of_a_name_is_another_slide(
  folder, some, slides, tmp_path
):
  out = tmp_path / 'out'
  score(folder, some, out)
  (before,) = pq.read_table(out / 'slides.parquet').to_pylist()
  moved = tmp_path / 'moved'
  some.rename(moved)
  score(folder, moved, out)
  (same,) = pq.read_table(out / 'slides.parquet').to_pylist()
  assert same == before | {'path': str(moved / 'a.tif')}
  (moved / 'a.tif').write_bytes((slides / 'b.tif').read_bytes())
  score(folder, moved, out)
  (other,) = pq.read_table(out / 'slides.parquet').to_pylist()
  assert other['score.nearest'] != before['score.nearest']
  score(folder, slides, tmp_path / 'alone')
  alone = pq.read_table(tmp_path / 'alone/slides.parquet').to_pylist()[1]
  assert other['score.nearest'] == alone['score.nearest']


def test_a_slide_of_one_tile_and_one_that_is_smaller(folder, tmp_path, run):
  place = tmp_path / 'small'
  place.mkdir()
  rng = np.random.default_rng(0)
  noise = rng.integers(-20, 20, (SIDE, SIDE, 3))
  pixels = ((190, 100, 170) + noise).astype(np.uint8)
  run.config.score.tissue = 0.0
  phantom.write_slide(place / 'one.tif', pixels, 0.5)
  phantom.write_slide(place / 'smaller.tif', pixels[:, :-1].copy(), 0.5)
  assert score(folder, place, tmp_path / 'out')[1] == 1
  one, smaller = pq.read_table(tmp_path / 'out/slides.parquet').to_pylist()
  assert one['tiles'] == 1 and one['score.nearest'] > 0
  assert '31 x 32 px is smaller than a tile' in smaller['reason']
  assert not smaller['tiles'] and smaller['score.nearest'] is None


def test_names_of_slides_that_are_names_of_other_files(
  folder, some, slides, tmp_path, monkeypatch
):
  monkeypatch.setattr(slide_files, 'draw', DRAW)
  (some / 'a_layers.tif').write_bytes((slides / 'b.tif').read_bytes())
  tables = []
  for _ in range(2):
    path, unscored = score(folder, some, tmp_path / 'out')
    assert not unscored
    tables.append(pq.read_table(path))
  assert tables[0].equals(tables[1]) and len(tables[0]) == 2
  assert 'tissue' in workdir.read_json(tmp_path / 'out/a_layers.json')
  (some / 'scored.tif').write_bytes((slides / 'b.tif').read_bytes())
  with pytest.raises(UserError, match='scored.tif would be .* rename it'):
    score(folder, some, tmp_path / 'out')


def test_few_tiles_may_fail(folder, some, slides, tmp_path, monkeypatch, run):
  break_tile(some / 'a.tif', 4)
  run.config.score.max_failed = 0.9
  with open_slide(some / 'a.tif') as slide:
    found = slide_stream.score_slide(run, slide)
  whole = run.score_slide(slides / 'a.tif').maps['nearest']
  known = np.isfinite(found.maps['nearest'])
  assert 0 < len(found.failures) == np.isfinite(whole).sum() - known.sum()
  assert not found.reason
  np.testing.assert_array_equal(found.maps['nearest'][known], whole[known])
  np.testing.assert_array_equal(found.failed, np.isfinite(whole) & ~known)


def test_tiles_that_failed_are_marked_on_the_pictures(some, tmp_path, run):
  break_tile(some / 'a.tif', 4)
  run.config.score.max_failed = 0.9
  with open_slide(some / 'a.tif') as slide:
    found = slide_stream.score_slide(run, slide)
  facts = {'group': 'a', 'annotation': '', 'label': -1, 'path': 'a.tif'}
  slide_files.save(run, tmp_path, tmp_path, facts, found)
  facts = slide_files.done(tmp_path, facts)
  DRAW(run, tmp_path, facts, 1.0)
  rings = workdir.read_json(tmp_path / 'a_layers.json')['failed']
  shapes = [annotations.Polygon(layers.corners(ring)) for ring in rings]
  rows, columns = found.failed.shape
  seen = annotations.rasterise(shapes, columns, rows, downsample=SIDE)
  np.testing.assert_array_equal(seen, found.failed)
  with_marks = np.asarray(Image.open(tmp_path / 'a_overlay.png'))
  DRAW(run, tmp_path, facts | {'failed': []}, 1.0)
  without = np.asarray(Image.open(tmp_path / 'a_overlay.png'))
  changed = (with_marks != without).any(axis=-1)
  step = heatmap.LONGEST / SIZE[0] * SIDE  # Pixels of the picture a tile.
  for name, drawn in (('rows', changed.any(1)), ('columns', changed.any(0))):
    failed = found.failed.any(axis=1 if name == 'rows' else 0)
    ends = np.flatnonzero(failed)[[0, -1]] + [0, 1]
    np.testing.assert_allclose(
      np.flatnonzero(drawn)[[0, -1]], ends * step, atol=3, err_msg=name
    )


def test_annotations_give_labels(folder, slides, tmp_path, caplog):
  drawn, out = tmp_path / 'annotations', tmp_path / 'out'
  drawn.mkdir()
  ring = np.array([(300.0, 200.0), (360, 200), (330, 260)])
  annotations.write_xml(drawn / 'a.xml', [annotations.Polygon(ring)])
  (drawn / 'c.xml').write_text('<no')
  (drawn / 'other.xml').write_text('<ASAP_Annotations/>')
  _, failed = score(folder, slides, out, annotations=drawn)
  assert failed == 2
  rows = pq.read_table(out / 'slides.parquet').to_pylist()
  assert [row['label'] for row in rows] == [1, 0, -1]
  assert [bool(row['annotation']) for row in rows] == [True, False, False]
  failed = [one['error'] for one in lines(out / 'failures.jsonl')]
  assert len(failed) == 2
  assert any('other' in text for text in failed)
  assert any('c.xml' in text for text in failed)
  assert 'taken for normal' not in caplog.text
  other = tmp_path / 'nothing'
  other.mkdir()
  score(folder, slides, tmp_path / 'normal', annotations=other)
  assert f'annotation in {other}; all are taken for normal' in caplog.text


def test_a_launch_tells_of_slides_that_were_never_opened(
  folder, slides, run, tmp_path, monkeypatch
):
  (tmp_path / 'gone.xml').write_text('<no')
  rows = [
    {'group': 'a', 'path': str(slides / 'a.tif'), 'label': 1, 'mpp': 0.5},
    {'group': 'gone', 'path': str(tmp_path / 'gone.svs'), 'label': 0},
  ]
  width, height = SIZE
  rows[0] |= {'annotation': 'gone.xml', 'width': width, 'height': height}
  rows[0] |= {'exhaustive': False}
  rows[1] |= {'annotation': '', 'width': 0, 'height': 0, 'mpp': float('nan')}
  rows = [{'split': 'test'} | row for row in rows]
  table = pa.Table.from_pylist(rows, pa.schema(list(tables.SLIDES.items())))
  monkeypatch.setattr(run, 'folder', tmp_path / 'run')
  records = types.SimpleNamespace(slides=table, directory=tmp_path)
  score_slides.score_slides(run, records)
  whole, gone = pq.read_table(tmp_path / 'run/slides.parquet').to_pylist()
  assert whole['score.nearest'] > 0 and whole['exhaustive'] is False
  assert 'There is no slide' in gone['reason'] and 'gone.svs' in gone['reason']
  assert gone['score.nearest'] is None and gone['exhaustive'] is None
  assert score_slides.unscored(tmp_path / 'run') == 1
  failed = lines(tmp_path / 'run/failures.jsonl')
  assert 'gone.xml' in failed[0]['error'] and 'gone.svs' in failed[1]['error']


def test_slides_of_one_name_are_told_and_the_others_go_on(
  folder, some, slides, tmp_path
):
  out, deep = tmp_path / 'out', some / 'deep'
  deep.mkdir()
  for place in (some / 'twin.svs', some / 'twin.tif', deep / 'z.1.tif'):
    place.write_bytes((slides / 'b.tif').read_bytes())
  assert score(folder, some, out)[1] == 1
  rows = pq.read_table(out / 'slides.parquet').to_pylist()
  assert [row['group'] for row in rows] == ['a', 'twin', 'z.1']
  assert [bool(row['reason']) for row in rows] == [False, True, False]
  (failed,) = lines(out / 'failures.jsonl')
  assert 'twin.svs and ' in failed['error']
  assert 'twin.tif are two slides' in failed['error']
  (some / 'twin.tif').unlink()
  assert score(folder, some, out)[1] == 0


def test_a_folder_without_slides(folder, tmp_path):
  with pytest.raises(UserError, match='holds no slides. Expected files'):
    score(folder, tmp_path, tmp_path / 'out')


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    (['--slides', 'no'], "can't be read"),
    ([], 'either files to score or a folder'),
    (['--slides', 'x', 'y'], 'either files to score or a folder'),
    (['--annotations', 'x', 'y'], '--annotations goes with --slides'),
  ],
)
def test_command_lines_that_say_nothing(folder, argv, said, capsys):
  assert cli.main(['score', '--workdir', str(folder), *argv]) == 2
  assert said in capsys.readouterr().err
