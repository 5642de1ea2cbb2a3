"""Every broken slide and annotation there is, in one folder with whole ones.

Those that are whole are tiled and scored as they would be alone; of each
broken one there is a line with its file and the reason.
"""

import collections
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxmed import command
from jaxmed.commands import cli
from jaxmed.datasets import phantom, records
from jaxmed.scoring import score_files, slide_files
from jaxmed.slides import annotations, listing
from tests.places import SHARED
from tests.scoring.test_score_slides import trained, write_slide
from tests.slides import annotation_corpus, corpus

pytestmark = pytest.mark.slow
WHOLE = ('whole_a', 'whole_b')
# Of which no folder tells: no suffix of slides, or no file; the option of mpp,
# which all slides have in common; and what only others than root can't read.
UNSEEN = ('absent', 'directory')
ROOT_READS = ('forbidden',)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  found = trained(tmp_path_factory.mktemp('run'))
  found.config.score.update({'dense': '', 'tissue': 0.0, 'stride': 160})
  return found


@pytest.fixture(autouse=True, scope='module')
def _once(run):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(command, 'set_up', lambda: None)
    patch.setattr(score_files, 'Run', lambda folder: run)
    patch.setattr(slide_files, 'draw', lambda *_: None)  # It takes longest.
    yield


@pytest.fixture(scope='module')
def healthy(tmp_path_factory) -> pathlib.Path:
  place = tmp_path_factory.mktemp('healthy')
  (place / 'slides').mkdir()
  (place / 'outlines').mkdir()
  for number, name in enumerate(WHOLE):
    write_slide(place / f'slides/{name}.tif', number)
  ring = np.array([(250.0, 200.0), (400, 200), (330, 300)])
  lesion = [annotations.Polygon(ring)]
  annotations.write_xml(place / f'outlines/{WHOLE[0]}.xml', lesion)
  return place


@pytest.fixture(scope='module')
def folder(healthy, tmp_path_factory) -> pathlib.Path:
  """The whole ones, and a folder for each broken one."""
  place = tmp_path_factory.mktemp('all') / 'all'
  shutil.copytree(healthy, place)
  for case in slide_cases():
    own = place / 'slides' / case.name
    own.mkdir()
    case.write(own)
  if (broken := SHARED / 'data/slides/broken.svs').exists():
    (place / 'slides/shared.svs').symlink_to(broken)
  for name in ('one/twin.svs', 'other/twin.tif'):
    (place / 'slides' / name).parent.mkdir()
    shutil.copy(place / f'slides/{WHOLE[1]}.tif', place / 'slides' / name)
  glass = place / 'glass.tif'
  write_glass(glass)
  for number, case in enumerate(annotation_cases()):
    name = f'drawn_{number:02d}'
    (place / f'slides/{name}.tif').symlink_to(glass)
    case.write(place / f'outlines/{name}{ending(case)}')
  shutil.copy(place / f'outlines/{WHOLE[0]}.xml', place / 'outlines/nobody.xml')
  return place


def write_glass(path: pathlib.Path) -> None:
  """Of the size that the annotations are of, with little tissue."""
  width, height = annotation_corpus.SIZE
  pixels = np.full((height, width, 3), 238, np.float32)
  pixels[256:384, 256:384] = (190, 100, 170)
  noise = np.random.default_rng(0).standard_normal(pixels.shape)
  pixels[256:384, 256:384] += 20 * noise[256:384, 256:384]
  phantom.write_slide(path, np.clip(pixels, 0, 255).astype(np.uint8), 0.5)


def slide_cases() -> list[corpus.Case]:
  left_out = UNSEEN + (ROOT_READS if os.geteuid() == 0 else ())
  return [
    case
    for case in corpus.CASES
    if case.name not in left_out
    and not case.name.startswith('option_mpp')
    and 'picture' not in case.name
    and 'photograph' not in case.name
    and case.name != 'no_pixel_size'
  ]


def annotation_cases() -> list[annotation_corpus.Case]:
  plain = annotation_corpus.Case('', '', print).read
  return [
    case
    for case in annotation_corpus.CASES
    if case.error
    and case.read.__code__ is plain.__code__
    and not case.name.startswith(('absent', 'folder', 'strange'))
  ]


def ending(case: annotation_corpus.Case) -> str:
  return f'_mask{case.suffix}' if 'tif' in case.suffix else case.suffix


def names_of(folder: pathlib.Path, case: corpus.Case) -> list[str]:
  """Of the slides that a case has written."""
  return list(listing.find_slides(folder / 'slides' / case.name))


def lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def tiled(folder, healthy, tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp('tiled')
  for place, code in ((healthy, 0), (folder, 1)):
    argv = ['tile', '--slides', place / 'slides', '--size=64', '--tissue=0']
    argv += ['--annotations', place / 'outlines', '--out', out / place.name]
    argv.append('--seed=1')
    assert cli.main([str(word) for word in argv]) == code
  return out


@pytest.fixture(scope='module')
def scored(folder, healthy, run, tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp('scored')
  for place, code in ((healthy, 0), (folder, 1)):
    argv = ['score', '--slides', place / 'slides', '--workdir', run.folder]
    argv += ['--annotations', place / 'outlines', '--out', out / place.name]
    assert cli.main([str(word) for word in argv]) == code
  return out


def test_there_are_enough_of_them():
  cases = [*slide_cases(), *annotation_cases()]
  assert len(cases) >= 80 and len(slide_cases()) >= 30


def test_whole_slides_are_tiled_as_if_alone(tiled, healthy):
  alone, among = (
    records.open_records(tiled / name) for name in (healthy.name, 'all')
  )
  for name in WHOLE:
    mine, others = (
      [one[row] for row in one.select(f"group == '{name}'").tolist()]
      for one in (alone, among)
    )
    assert len(mine) == len(others) > 10
    for first, second in zip(mine, others, strict=True):
      for key in ('key', 'image', 'mask', 'label', 'tissue', 'lesion'):
        assert first[key] == second[key]


def test_of_every_broken_slide_there_is_a_line_when_tiled(tiled, folder):
  failed = collections.defaultdict(list)
  for one in lines(tiled / 'all/failures.jsonl'):
    failed[one['item'].split('/')[0]].append(one)
  known = {'twin', 'annotation', 'shared'}
  for case in slide_cases():
    for name in names_of(folder, case):
      known.add(name)
      assert_said(case, ' '.join(one['error'] for one in failed[name]))
  for number, case in enumerate(annotation_cases()):
    (one,) = failed[f'drawn_{number:02d}']
    assert f'drawn_{number:02d}{ending(case)}' in one['error']
    assert re.search(case.error, one['error'], re.DOTALL), case
  assert 'two slides of one name' in failed['twin'][0]['error']
  assert 'nobody.xml belongs to no slide' in failed['annotation'][0]['error']
  if (folder / 'slides/shared.svs').exists():
    assert 'shared.svs' in failed['shared'][0]['error']
  assert not set(WHOLE) & set(failed)
  known |= {f'drawn_{i:02d}' for i in range(len(annotation_cases()))}
  assert set(failed) <= known


def assert_said(case: corpus.Case, said: str) -> None:
  """An option that the corpus opens it with may keep it from being said."""
  pattern = case.says if case.mpp is None else f'{case.says}|mpp='
  assert re.search(pattern, said), (case.name, said)


def test_whole_slides_are_scored_as_if_alone(scored, healthy):
  alone, among = (
    {
      row['group']: row
      for row in pq.read_table(scored / name / 'slides.parquet').to_pylist()
    }
    for name in (healthy.name, 'all')
  )
  for name in WHOLE:
    mine, others = alone[name], among[name]
    assert mine['score.nearest'] > 0
    for column in mine:
      if column not in ('path', 'annotation'):
        assert mine[column] == others[column]
    for ending in ('.ome.tif', '.geojson', '_thumbnail.png'):
      assert (scored / f'all/{name}{ending}').exists()
    assert mine['label'] == int(name == WHOLE[0])


def test_of_every_broken_slide_there_is_a_line_when_scored(scored, folder):
  rows = pq.read_table(scored / 'all/slides.parquet').to_pylist()
  rows = {row['group']: row for row in rows}
  assert set(rows) == set(listing.find_slides(folder / 'slides'))
  failed = lines(scored / 'all/failures.jsonl')
  by_slide = collections.defaultdict(list)
  for one in failed:
    by_slide[pathlib.Path(one['item']).stem].append(one['error'])
  for case in slide_cases():
    for name in names_of(folder, case):
      assert rows[name]['reason'] and rows[name]['score.nearest'] is None
      assert_said(case, ' '.join(by_slide[name]))
  assert 'two slides of one name' in rows['twin']['reason']
  unusable = ' '.join(by_slide['annotation'])
  assert 'nobody.xml' in unusable
  for number, case in enumerate(annotation_cases()):
    name = f'drawn_{number:02d}'
    assert f'{name}{ending(case)}' in unusable
    assert rows[name]['label'] == -1 and rows[name]['score.nearest'] > 0
  assert len(by_slide['annotation']) == 1 + len(annotation_cases())
