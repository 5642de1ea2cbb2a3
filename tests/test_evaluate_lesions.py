"""From slides.parquet, annotations and detections to results['froc']."""

import importlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import defaults
from jaxmed import beforehand, command, evaluate, workdir
from jaxmed.commands import cli
from jaxmed.errors import UserError
from jaxmed.evaluate_lesions import read_detections
from jaxmed.slides import annotations, geojson
from tests.test_evaluate import scored

WIDTH, HEIGHT = 6400, 4810  # Not whole pixels of 1/32.
LARGE = (640, 640, 1600, 1600)  # Left, top, right, bottom, level-0 px.
OTHER = (3200, 2560, 4480, 3200)
CELLS = (5120, 320, 5280, 480)  # 39 µm across: ITC, though grown.
INSIDE, BESIDE = (1000, 1000), (3000, 400)


def square(left, top, right, bottom) -> annotations.Polygon:
  corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
  return annotations.Polygon(np.array(corners, float))


class Folder:
  """A run's folder that is filled slide by slide."""

  def __init__(self, path):
    self.path, self.rows = path, []
    (path / 'detections').mkdir()
    scored(path)

  def add(self, group, detections=(), boxes=(), score=0.5, **more):
    """A slide; with boxes it has a tumour."""
    annotation = ''
    if boxes:
      annotation = f'{group}.xml'
      drawn = [square(*box) for box in boxes]
      annotations.write_xml(self.path / annotation, drawn)
    text = ''.join(f'{p},{x},{y}\n' for p, (x, y) in detections)
    (self.path / f'detections/{group}.csv').write_text(text)
    self.rows.append(
      {
        'group': group,
        'path': f'{group}.tif',
        'label': int(bool(boxes)),
        'annotation': annotation,
        'width': WIDTH,
        'height': HEIGHT,
        'mpp': 0.243,
        'tiles': 9,
        'tiles_failed': 0,
        'reason': '',
        'score.good': score,
      }
      | more
    )

  def write(self) -> None:
    table = pa.Table.from_pylist(self.rows)
    pq.write_table(table, self.path / 'slides.parquet')

  def evaluate(self, **settings) -> dict:
    self.write()
    config = defaults.choose('munit', 'tiny', {'tiny': defaults.tiny})
    config.eval.protocol = 'camelyon16'
    config.eval.resamples = 100
    config.eval.update(settings)
    found = evaluate.evaluate(self.path, config)
    assert json.loads((self.path / 'results.json').read_text()) == found
    return found


@pytest.fixture
def folder(tmp_path) -> Folder:
  """Three lesions, of which two are found, and one ITC, on four slides."""
  found = Folder(tmp_path)
  found.add(
    'tumour_1',
    [(0.75, INSIDE), (0.5, (1100, 1100)), (0.875, BESIDE), (1.0, (5150, 350))],
    [LARGE, OTHER, CELLS],
    0.9,
  )
  found.add('tumour_2', [(0.25, INSIDE)], [LARGE], 0.4)
  found.add('normal_1', [(0.5, BESIDE), (0.125, INSIDE)], score=0.5)
  found.add('normal_2', score=0.1)
  return found


@pytest.mark.parametrize('strict', [True, False])
def test_the_froc_by_hand(folder, strict):
  results = folder.evaluate(strict=strict)
  found = results['froc']
  # By falling confidence: false .875, true .75, false .5, true .25, false .125
  at = {rate: n['value'] for rate, n in found['sensitivity_at'].items()}
  third = pytest.approx(1 / 3)
  both = pytest.approx(2 / 3)
  assert at == {
    '0.25': third, '0.5': both, '1': both, '2': both, '4': both, '8': both
  }  # fmt: skip
  score = found['score']
  assert score['value'] == pytest.approx((1 / 3 + 5 * 2 / 3) / 6)
  assert (score['n'], score['positives'], score['groups']) == (4, 3, 4)
  assert score['low'] <= score['value'] <= score['high']
  assert (found['lesions'], found['itc'], found['slides']) == (3, 1, 4)
  assert (found['tumour_slides'], found['detections']) == (2, 7)
  assert found['excluded'] == [] and found['strict'] is strict
  assert len(found['curve']['low']) == len(found['curve']['sensitivity'])
  assert found['auroc']['value'] == 0.75
  by_slide = {one['group']: one for one in found['by_slide']}
  assert by_slide['tumour_1'] == {
    'group': 'tumour_1',
    'label': 1,
    'mpp': 0.243,
    'lesions': 2,
    'itc': 1,
    'found': 1,
    'detections': 4,
    'false': 1,
  }
  assert by_slide['normal_1']['false'] == 2
  shown = evaluate.table(results)
  assert 'FROC score 0.611 [' in shown and '3 lesions and 1 ITC' in shown
  assert 'slide AUROC 0.750' in shown and '0.25: 0.333' in shown


def test_holes_are_filled_and_the_last_partial_pixels_count(folder):
  hole = annotations.Polygon(square(900, 900, 1200, 1200).points, '_2')
  annotations.write_xml(
    folder.path / 'tumour_2.xml',
    [square(*LARGE), hole, square(3200, 4300, 6400, 4810)],
  )
  text = '0.5,1000,1000\n0.25,6399,4809\n'
  (folder.path / 'detections/tumour_2.csv').write_text(text)
  by_slide = folder.evaluate()['froc']['by_slide']
  assert by_slide[1]['lesions'] == by_slide[1]['found'] == 2


def test_slides_that_do_not_count_are_named(folder):
  folder.add('test_049', [(1.0, INSIDE)], [LARGE], 0.0)
  folder.add('test_114', [(1.0, BESIDE)], [LARGE], 0.3)
  folder.add(
    'torn', score=None, boxes=[LARGE], reason='9 of 9 tiles could not be read'
  )
  folder.add('unknown', label=-1)
  folder.add('undrawn', label=1)
  folder.add('broken', boxes=[LARGE])
  (folder.path / 'broken.xml').write_text('<ASAP_Annotations>')
  for group in ('torn', 'undrawn'):
    (folder.path / f'detections/{group}.csv').unlink()
  (folder.path / 'detections/nobody.csv').touch()
  results = folder.evaluate()
  found = results['froc']
  assert found['slides'] == 4 and found['lesions'] == 3
  reasons = {x['group']: x['reason'] for x in found['excluded']}
  assert 'duplicate' in reasons['test_049']
  assert 'not all annotated' in reasons['test_114']
  assert reasons['torn'] == '9 of 9 tiles could not be read'
  assert 'not known whether' in reasons['unknown']
  assert 'no annotation' in reasons['undrawn']
  assert 'broken.xml is no annotation' in reasons['broken']
  assert len(reasons) == 6
  # The duplicate has no part in the AUROC; the slide half annotated has.
  assert (found['auroc']['n'], found['auroc']['positives']) == (7, 5)
  text = ' '.join(results['warnings'])
  assert '4 of 10 slides are left out of the FROC' in text
  assert 'nobody.csv' in text
  shown = evaluate.table(results)
  assert '6 left out' in shown
  for group, reason in reasons.items():
    assert f'left out: {group}, {reason}' in shown


def test_where_the_table_says_what_is_annotated_names_do_not(folder):
  folder.add('test_114', [(0.9, INSIDE)], [LARGE], 0.3)
  folder.add('test_010', [(0.9, INSIDE)], [LARGE], 0.3)
  for row in folder.rows:
    row['exhaustive'] = row['group'] != 'test_010'
  folder.rows[2]['exhaustive'] = None  # Nobody says; its name is no reason.
  results = folder.evaluate()
  (excluded,) = results['froc']['excluded']
  assert excluded['group'] == 'test_010'
  assert 'not all annotated' in excluded['reason']
  assert 'left out' not in ' '.join(results['warnings'])


def test_lesions_may_be_drawn_in_qupath(folder):
  before = folder.evaluate()['froc']
  for row in folder.rows[:2]:
    path = folder.path / row['annotation']
    drawn = annotations.read_xml(path)
    geojson.write_geojson(path.with_suffix('.geojson'), drawn)
    path.unlink()
    row['annotation'] = f'{path.stem}.geojson'
  assert folder.evaluate()['froc'] == before


def test_the_scale_is_the_slides_own_unless_strict(folder):
  """At 2 µm per pixel all is larger: the ITC is a lesion then."""
  for row in folder.rows:
    row['mpp'] = 2.0
  results = folder.evaluate(strict=False)
  assert (results['froc']['lesions'], results['froc']['itc']) == (4, 0)
  assert 'official script' not in ' '.join(results['warnings'])
  results = folder.evaluate(strict=True)
  assert (results['froc']['lesions'], results['froc']['itc']) == (3, 1)
  assert 'have another scale, the first tumour_1 with 2:' in ' '.join(
    results['warnings']
  )
  folder.rows[0]['mpp'] = None
  results = folder.evaluate(strict=False)
  reasons = [x['reason'] for x in results['froc']['excluded']]
  assert reasons == ['its micrometres per pixel are not known']
  assert folder.evaluate(strict=True)['froc']['slides'] == 4


def test_a_lesion_too_small_for_the_level_is_said(folder):
  folder.add('speck', [(0.9, BESIDE)], [(3, 3, 5, 5)])
  results = folder.evaluate()
  assert results['froc']['by_slide'][-1]['false'] == 1
  assert '1 of 3 tumour slides have no lesion' in ' '.join(results['warnings'])


def test_nothing_but_normal_slides(tmp_path):
  folder = Folder(tmp_path)
  folder.add('normal', [(0.5, INSIDE)])
  found = folder.evaluate()
  assert found['froc']['score']['value'] is None
  assert 'no lesion' in found['froc']['score']['reason']
  assert found['froc']['curve'] is None
  assert 'FROC score none (there is no lesion' in evaluate.table(found)
  folder.rows[0]['label'] = -1
  found = folder.evaluate()
  assert found['froc']['slides'] == 0
  assert found['froc']['auroc']['reason'] == 'there are no labelled examples'


@pytest.mark.parametrize(
  ('text', 'line'),
  [
    ('Confidence,X,Y\n0.5,1,1\n', 'line 1'),
    ('0.5,1,1\n\n0.5,1\n', 'line 3'),
    ('0.5,1,1\n0.5,1,1,1\n', 'line 2'),
    ('nan,1,1\n', 'line 1'),
    ('0.5;1;1\n', 'line 1'),
    ('0.5\n', 'line 1'),
    ('0.5,1_000,1\n', 'line 1'),
  ],
)
def test_detections_that_are_none(folder, text, line):
  (folder.path / 'detections/normal_2.csv').write_text(text)
  with pytest.raises(UserError, match=f'normal_2.csv, {line}: .*confidence,x'):
    folder.evaluate()


def test_a_table_that_windows_wrote(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_bytes(b'\xef\xbb\xbf0.5,1,2\r\n0.25,3,4\r\n')
  found = read_detections(path)
  np.testing.assert_array_equal(found, [[0.5, 1, 2], [0.25, 3, 4]])


def test_what_is_missing_is_an_error_that_names_it(folder):
  path = folder.path / 'detections/normal_2.csv'
  path.write_bytes(b'\xff\xfe')
  with pytest.raises(UserError, match=r'normal_2\.csv cannot be read'):
    folder.evaluate()
  path.unlink()
  with pytest.raises(UserError, match=r'no detections/normal_2\.csv in'):
    folder.evaluate()
  for row in folder.rows:
    del row['annotation']
  with pytest.raises(UserError, match='no column annotation'):
    folder.evaluate()
  folder.write = lambda: (folder.path / 'slides.parquet').unlink()
  with pytest.raises(UserError, match=r'no slides\.parquet'):
    folder.evaluate()


def test_without_the_protocol_there_is_no_froc(folder):
  assert 'froc' not in folder.evaluate(protocol='')
  config = defaults.choose('munit', 'tiny', {'tiny': defaults.tiny})
  config.eval.protocol = 'camelyon17'
  with pytest.raises(UserError, match="Did you mean 'camelyon16'"):
    beforehand.check_config(config)


def test_the_command(folder, capsys, monkeypatch):
  monkeypatch.setattr(command, 'set_up', lambda: None)
  folder.write()
  config = defaults.choose('munit', 'tiny', {'tiny': defaults.tiny})
  workdir.write_json(folder.path / 'config.json', workdir.plain_config(config))
  argv = ['evaluate', '--workdir', str(folder.path)]
  assert cli.main(argv) == 0
  assert 'FROC' not in capsys.readouterr().out
  assert cli.main([*argv, '--protocol=camelyon16']) == 0
  assert 'lesions (official script): FROC' in capsys.readouterr().out
  assert cli.main([*argv, '--protocol=camelyon16', '--no-strict']) == 0
  assert 'lesions (not strict): FROC' in capsys.readouterr().out
  assert cli.main([*argv, '--protocol=camleyon']) == 2
  assert 'camelyon16' in capsys.readouterr().err


def test_only_camelyon16_asks_for_its_protocol():
  for name in command.config_names():
    module = importlib.import_module(f'jaxmed.configs.{name}')
    for preset in module.PRESETS:
      asked = module.get_config(preset).eval.protocol
      assert asked == ('camelyon16' if preset.startswith('camelyon16') else '')
