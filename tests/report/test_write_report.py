"""The report of whole, partial, odd and hostile runs."""

import json
import re
import shutil
import urllib.parse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxmed.errors import UserError
from jaxmed.report import images, sections, write_report
from jaxmed.report.gallery import place
from jaxmed.report.load import load
from tests.report.fabricate import OPTIONAL, change, config, number
from tests.report.page import Page

SECTIONS = (
  'results',
  'lesions',
  'slides',
  'examples',
  'training',
  'data',
  'config',
  'provenance',
  'speed',
  'failures',
)


def read(folder, **options) -> Page:
  return Page(write_report(folder, **options).read_text('utf-8'))


@pytest.fixture(scope='module')
def page(finished):
  return read(finished)


def check(page: Page) -> None:
  """What holds of every report."""
  assert not page.faults
  leaks = re.findall(
    r'(?<![\w-])(nan|NaN|None|inf|undefined)(?![\w-])', page.text
  )
  assert not leaks
  links = [
    attributes[name]
    for _, attributes in page.elements
    for name in ('src', 'href', 'xlink:href', 'action', 'data', 'srcset')
    if name in attributes
  ]
  outside = [
    link
    for link in links
    if not link.startswith(('data:image/', '#')) and ':' in link
  ]
  assert not outside
  ids = [a['id'] for _, a in page.elements if 'id' in a]
  assert len(ids) == len(set(ids))
  for link in links:
    assert not link.startswith('#') or link[1:] in ids
  assert all(image.get('alt') for image in page.all('img'))
  assert all(
    'aria-label' in svg or svg.get('aria-hidden') == 'true'
    for svg in page.all('svg')
  )
  assert all('scope' in head for head in page.all('th'))


def test_a_whole_run_has_every_section(page):
  check(page)
  ids = {a.get('id') for a in page.all('section')}
  assert ids >= set(SECTIONS)
  plots = [svg for svg in page.all('svg') if svg.get('class') == 'plot']
  # Curves, FROC, histograms, training, further.
  assert len(plots) == 2 + 1 + 3 + 3 + 2
  assert len(page.all('img')) == 7 * 2 + 16 * 4


def test_size_stays_small(finished):
  assert write_report(finished).stat().st_size < 2_000_000


def test_nothing_is_fetched_from_elsewhere(finished):
  source = write_report(finished).read_text('utf-8')
  assert 'http' not in source.replace('http-equiv', '')
  assert '@import' not in source
  assert not re.search(r'url\((?!#)', source)
  assert "default-src 'none'" in source


@pytest.mark.parametrize('missing', OPTIONAL)
def test_any_optional_file_may_be_missing(run, missing):
  (run / missing).unlink()
  check(read(run))


def test_all_optional_files_may_be_missing(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(config()))
  (tmp_path / 'results.json').write_text(json.dumps({}))
  page = read(tmp_path)
  check(page)
  assert 'the AUROC is not defined: the run has no AUROC' in page.text
  assert 'train.jsonl is missing or empty' in page.text
  assert 'provenance.json is missing' in page.text
  assert 'scores.parquet is missing' in page.text


@pytest.mark.parametrize('name', ['config.json', 'results.json'])
def test_the_two_required_files_are_asked_for(run, name):
  (run / name).unlink()
  with pytest.raises(UserError, match=f'has no {name}'):
    write_report(run)
  (run / name).write_text('{"cut": ')
  with pytest.raises(UserError, match='cannot be read as JSON'):
    write_report(run)
  (run / name).write_text('[]')
  with pytest.raises(UserError, match='not an object'):
    write_report(run)
  assert not (run / 'report.html').exists()


def test_the_page_is_whole_or_not_there(run, monkeypatch):
  write_report(run)
  before = (run / 'report.html').read_text()
  change(run, 'results.json', lambda r: r.update(warnings=['Something new.']))

  def fail(source, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.replace', fail)
  with pytest.raises(OSError, match='No space'):
    write_report(run)
  assert (run / 'report.html').read_text() == before
  assert not list(run.glob('.report*'))


def test_an_undefined_metric_says_why(run):
  reason = 'the test set has one class'

  def undefine(results):
    nothing = number(None, reason=reason)
    results['image']['cycle_ssim']['auroc'] = nothing
    results['trivial']['contrast']['auroc'] = nothing

  change(run, 'results.json', undefine)
  page = read(run)
  check(page)
  assert f'the AUROC is not defined: {reason}.' in page.text
  assert page.text.count(f'not defined: {reason}') >= 3


HOSTILE = '<script>alert("x")</script>&\'"'


def test_names_are_escaped_everywhere(run):
  def rename(results):
    for part in ('image', 'thresholds', 'curves'):
      results[part][HOSTILE] = results[part].pop('cycle_ssim')
    results['primary'] = HOSTILE
    results['counts'][0]['group'] = HOSTILE
    results['warnings'] = [HOSTILE]
    results['pixel'] = {HOSTILE: {'auroc': number(None, reason=HOSTILE)}}

  def rename_examples(examples):
    for example in examples:
      example.update(key=HOSTILE, group=HOSTILE, rank=HOSTILE)

  change(run, 'results.json', rename)
  change(run, 'examples.json', rename_examples)
  change(run, 'config.json', lambda c: c.update(method=HOSTILE))
  change(run, 'provenance.json', lambda p: p.update(commit=HOSTILE))
  with (run / 'failures.jsonl').open('a') as file:
    file.write(json.dumps({'stage': HOSTILE, 'item': HOSTILE}) + '\n')
  with (run / 'train.jsonl').open('w') as file:
    row = {'phase': HOSTILE, 'step': 1, f'{HOSTILE}/loss': 1.0}
    file.write(json.dumps(row) + '\n')
  for name, column in (('slides', 'group'), ('scores', 'domain')):
    table = pq.read_table(run / f'{name}.parquet').to_pylist()
    table[0][column] = HOSTILE
    table = [
      {k.replace('cycle_ssim', HOSTILE): v for k, v in row.items()}
      for row in table
    ]
    pq.write_table(pa.Table.from_pylist(table), run / f'{name}.parquet')
  page = read(run)
  check(page)
  assert len(page.all('script')) == 1
  assert page.text.count('<script>alert("x")</script>') > 20


def test_examples_outside_the_run_are_not_read(run):
  secret = run.parent / 'secret.png'
  Image.new('RGB', (8, 8)).save(secret)

  def escape(examples):
    examples[0]['panels'] = {'input': '../secret.png', 'map': str(secret)}

  change(run, 'examples.json', escape)
  page = read(run)
  check(page)
  assert page.text.count('no file') == 2


def test_broken_and_missing_pictures_say_so(run):
  paths = sorted((run / 'examples').glob('*.png'))
  paths[0].write_bytes(paths[0].read_bytes()[:60])
  paths[1].unlink()
  page = read(run)
  check(page)
  assert 'unreadable' in page.text and 'no file' in page.text


def test_fewer_examples_can_be_asked_for(run):
  page = read(run, examples=1)
  assert sum(a.get('class') == 'card example' for a in page.all('article')) == 4


def test_an_extreme_is_not_called_a_mistake(run):
  """All anomalous examples are above the threshold, two normal ones too."""
  high = json.loads((run / 'results.json').read_text())['thresholds']
  high = high['cycle_ssim']['value'] + 0.1

  def edit(rows):
    normal = [row for row in rows if row['rank'] == 'highest normal']
    sick = [row for row in rows if row['label'] == 1]
    for row in rows:
      row['scores']['cycle_ssim'] = -1.0
    for row in sick + normal[:2]:
      row['scores']['cycle_ssim'] = high

  change(run, 'examples.json', edit)
  text = read(run).text
  for said in (
    'The anomalous images with the highest scores; 4 of these 4: found.',
    'The anomalous images with the lowest scores; 0 of these 4: missed.',
    'The normal images with the highest scores; 2 of these 4: false alarms.',
    'The normal images with the lowest scores; 4 of these 4: called normal.',
  ):
    assert said in text
  change(run, 'results.json', lambda v: v.pop('thresholds'))
  assert 'The anomalous images with the lowest scores.' in read(run).text


def test_another_score_may_be_put_first_afterwards(run):
  page = read(run)
  assert 'primary, chosen beforehand' in page.text
  again = {'primary': 'latent', 'beforehand': 'cycle_ssim'}
  change(run, 'results.json', lambda v: v.update(again))
  page = read(run)
  check(page)
  assert 'primary, chosen afterwards' in page.text
  assert 'chosen beforehand' not in page.text
  assert 'The extremes of each class by the score “cycle_ssim”' in page.text


def test_of_equal_normals_none_lies_below(run):
  grid = {'quantile': [0, 0.5, 1], 'value': [2.0, 2.0, 2.0]}
  change(run, 'calibration.json', lambda v: v.update(cycle_ssim=grid))
  loaded = load(run)
  assert place(loaded, 'cycle_ssim', 2.0).startswith('above less than 1 %')
  grid['value'][0] = 1.0
  change(run, 'calibration.json', lambda v: v.update(cycle_ssim=grid))
  assert (
    place(load(run), 'cycle_ssim', 2.0) == 'above 50 % of validation normals'
  )
  assert place(load(run), 'cycle_ssim', 2.1) == 'above all validation normals'


def test_slides_that_are_not_as_they_were_evaluated(run):
  said = 'Slides have been scored, or labelled, since they were evaluated'
  assert said not in read(run).text
  table = pq.read_table(run / 'slides.parquet').to_pylist()
  for rows in (table + [table[0] | {'group': 'new'}], table):
    pq.write_table(pa.Table.from_pylist(rows), run / 'slides.parquet')
    assert (said in read(run).text) == (len(rows) > len(table))
  table[0]['label'] = 1 - table[0]['label']
  pq.write_table(pa.Table.from_pylist(table), run / 'slides.parquet')
  assert said in read(run).text


def test_slides_that_are_cut_elsewhere_than_images(run):
  assert 'by which they were scored' not in read(run).text
  change(
    run,
    'results.json',
    lambda v: v['thresholds']['cycle_ssim'].update(quantile=0.8),
  )
  page = read(run)
  check(page)
  assert 'are the quantile 0.8 of the validation normals' in page.text
  assert 'outlines of slides 0.95, by which they were scored' in page.text


def test_damaged_files_are_named(run):
  (run / 'calibration.json').write_text('{')
  (run / 'slides.parquet').write_bytes(b'no parquet')
  (run / 'scores.parquet').write_bytes(b'no parquet')
  log = (run / 'train.jsonl').read_text()
  (run / 'train.jsonl').write_text('{"phase"\n' + log + '{"phase": "mun')
  page = read(run)
  check(page)
  assert 'calibration.json could not be read' in page.text
  assert 'slides.parquet could not be read' in page.text
  assert 'train.jsonl: 1 lines could not be read' in page.text  # Not the cut.


def test_random_weights_stand_in_red_above_everything(run):
  weights = [{'part': 'trunk', 'network': 'small', 'weights': 'random'}]
  change(run, 'provenance.json', lambda p: p.update(weights=weights))
  page = read(run)
  check(page)
  assert 'banner bad' in [p.get('class') for p in page.all('p')]
  assert page.text.index('Random weights: small') < page.text.index('AUROC of')


def test_trained_weights_come_with_source_licence_and_hash(run):
  facts = {
    'part': 'trunk',
    'network': 'resnet18',
    'weights': 'imagenet',
    'source': 'https://example.org/resnet18.pth',
    'sha256': 'ab' * 32,
    'licence': 'BSD-3-Clause',
  }
  origin = {'run': '/runs/one', 'method': 'munit', 'parts': ['generator']}
  change(
    run,
    'provenance.json',
    lambda p: p.update(weights=[facts], init_from=origin),
  )
  page = read(run)
  check(page)
  for text in (*facts.values(), 'generator of /runs/one (munit)'):
    assert text in page.text
  assert 'Random weights' not in page.text


def test_config_changes(run):
  assert 'train.steps 600 900' in read(run).text
  change(run, 'config.json', lambda c: c.update(changed={}))
  assert 'Exactly the preset “phantom”' in read(run).text
  change(run, 'config.json', lambda c: c.pop('changed'))
  assert 'does not say what differs' in read(run).text


def test_a_log_of_several_phases_with_gaps(run):
  rows = [
    {'phase': 'wgan', 'step': s, 'critic/loss': float('nan') if s == 3 else s}
    for s in range(1, 2000)
  ] + [{'phase': 'encoder', 'step': 1, 'encoder/loss': 0.5, 'lr': None}]
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (run / 'train.jsonl').write_text(lines)
  page = read(run)
  check(page)
  assert 'Phase “wgan” 1 999 steps' in page.text
  assert 'Phase “encoder” 1 steps' in page.text
  assert 'Each point is the mean of about 8 logs' in page.text


def test_a_slide_has_layers_and_links(run):
  page = read(run)
  check(page)
  kinds = [a['class'] for a in page.all('g') if 'layer' in a.get('class', '')]
  # Of four slides, the last two have lesions.
  assert kinds.count('layer tissue') == 4
  assert kinds.count('layer annotations') == kinds.count('layer above') == 2
  assert kinds.count('layer detections') == 2
  assert kinds.count('layer failed') == 1
  (hatched,) = [
    a['fill'] for a in page.all('path') if 'url' in a.get('fill', '')
  ]
  (pattern,) = page.all('pattern')
  assert hatched == f'url(#{pattern["id"]})'
  assert 'tiles that could not be read' in page.text
  assert len([a for a in page.all('circle') if a['cx'] == '1800']) == 2
  assert '0.375 at 1800, 1000' in page.text
  heat = [a for a in page.all('img') if a.get('class') == 'heat']
  assert {a['style'] for a in heat} == {'width:102.400%;height:102.400%'}
  linked = {a.get('href') for a in page.all('a')}
  assert 'detections/test_000.csv' in linked
  assert 'maps/test_003_overlay.png' in linked
  assert not any('ome' in (link or '') for link in linked)  # There is none.
  assert 'the mark is the threshold, 0.25' in page.text


def test_slides_scored_before_there_were_layers(run):
  for path in (run / 'maps').glob('*_layers.json'):
    broken = '{"size": [0, 0]}' if '000' in path.name else 'no JSON'
    path.write_text(broken)
  page = read(run)
  check(page)
  assert not [a for a in page.all('g') if 'layer' in a.get('class', '')]
  assert len([a for a in page.all('img') if a.get('class') == 'overlay']) == 4


@pytest.mark.parametrize(
  'edit',
  [
    lambda about: about.pop('limits'),
    lambda about: about.update(limits=[1e12, 1e12]),
    lambda about: about.pop('map'),
  ],
)
def test_layers_that_cannot_be_drawn_are_one_picture(run, edit):
  change(run, 'maps/test_003_layers.json', edit)
  page = read(run)
  check(page)
  assert 'Heat map of slide test_003' in [a.get('alt') for a in page.all('img')]


def test_what_is_no_detection_is_passed_over(run):
  text = '0.5,10,20\nnan,1,2\nx,y\n' + '0.25,30,40\n' * 500
  (run / 'detections/test_000.csv').write_text(text)
  page = read(run)
  check(page)
  marked = [a for a in page.all('circle') if a['cx'] in ('10', '30')]
  assert len(marked) == 200 and marked[0]['cx'] == '10'
  assert '2 lines of detections/test_000.csv: no detection' in page.text


def test_many_slides_show_both_ends(run):
  rows = pq.read_table(run / 'slides.parquet').to_pylist()
  many = [rows[i % 3] | {'score.cycle_ssim': i / 100} for i in range(60)]
  pq.write_table(pa.Table.from_pylist(many), run / 'slides.parquet')
  page = read(run)
  check(page)
  shown = [a for a in page.all('figure') if a.get('class') == 'card slide']
  assert len(shown) == 24
  assert {a['id'] for a in shown} >= {'slide-0', 'slide-59'}
  assert 'those of 36 others are in maps/' in page.text
  assert page.text.count('no picture: only 24 slides have one here') == 36


def test_slides_are_ranked_by_the_rule_named_first(run):
  def order(page):
    links = [a['href'] for a in page.all('a') if 'href' in a]
    return [link for link in links if link.startswith('#slide-')]

  rows = pq.read_table(run / 'slides.parquet').to_pylist()
  for i, row in enumerate(rows):
    row['mean.cycle_ssim'] = i / 10
    row['score.cycle_ssim'] = -i / 10
  pq.write_table(pa.Table.from_pylist(rows), run / 'slides.parquet')
  highest = [f'#slide-{i}' for i in range(4)]
  assert order(read(run)) == highest
  change(run, 'results.json', lambda v: v.update(slide_rule='mean'))
  page = read(run)
  assert order(page) == highest[::-1]
  assert 'Test slides by cycle_ssim, mean, the highest first' in page.text
  assert 'cycle_ssim, mean 0.2' in page.text  # Under a picture.


@pytest.mark.parametrize('inside', [True, False])
def test_slides_that_were_scored_later(run, tmp_path, inside):
  """They lie as `jaxmed score --slides` leaves them."""
  folder = run / 'scored/näw' if inside else tmp_path / 'elsewhere'
  (run / 'maps').rename(tmp_path / 'maps')
  shutil.copytree(tmp_path / 'maps', folder)
  shutil.move(run / 'detections', folder / 'detections')
  rows = pq.read_table(run / 'slides.parquet').to_pylist()
  pq.write_table(pa.Table.from_pylist(rows[2:]), folder / 'slides.parquet')
  (folder / 'failures.jsonl').write_text('{"stage": "later", "item": "x"}\n')
  named = 'scored/näw' if inside else str(folder)
  change(run, 'results.json', lambda v: v.update(slides_folder=named))
  page = read(run)
  check(page)
  assert (
    f'Not the run’s own test slides: these are those of {named}' in page.text
  )
  shown = [
    a['id'] for a in page.all('figure') if a.get('class') == 'card slide'
  ]
  assert len(shown) == 2
  kinds = [a['class'] for a in page.all('g') if 'layer' in a.get('class', '')]
  assert kinds.count('layer detections') == kinds.count('layer above') == 2
  assert '1 in “later”' in page.text
  for name in ('test_003_overlay.png', 'detections/test_003.csv'):
    links = [a['href'] for a in page.all('a') if a['href'].endswith(name)]
    (link,) = map(urllib.parse.unquote, links)
    assert (run / link).resolve() == (folder / name).resolve()
  shutil.rmtree(folder)
  page = read(run)
  check(page)
  assert (
    f'The slides that were evaluated are not in {named} any more' in page.text
  )
  assert not [a for a in page.all('figure') if a.get('class') == 'card slide']


def test_pictures_that_were_left_out_are_named_with_their_slide(
  run, monkeypatch
):
  monkeypatch.setattr(sections, 'Pictures', lambda: images.Pictures(6000))
  page = read(run)
  check(page)
  why = 'left out to keep this file small'
  assert f'no picture of its heat map: {why}' in page.text
  assert f'no picture of the slide: {why}' in page.text
  (run / 'maps/test_000_thumbnail.png').unlink()
  (run / 'maps/test_000_overlay.png').unlink()
  (run / 'maps/test_000_layers.json').unlink()
  assert 'no picture: its files are missing' in read(run).text


def test_failures_beyond_the_hundredth_are_counted(run):
  with (run / 'failures.jsonl').open('a') as file:
    for i in range(147):
      file.write(json.dumps({'stage': 'prepare', 'item': f'{i}.png'}) + '\n')
  page = read(run)
  check(page)
  assert '150 in all: 3 in “score slides”, 147 in “prepare”' in page.text
  assert '50 more are in failures.jsonl' in page.text


def test_lesions_their_numbers_and_who_was_left_out(page, run):
  assert 'FROC score of lesions' in page.text
  assert 'Exactly the official script' in page.text
  assert 'Slides left out of the FROC: 1' in page.text
  assert 'test_006 31 of 1210 tiles could not be read' in page.text
  found = json.loads((run / 'results.json').read_text())['froc']
  text = read(run).text
  for rate, one in found['sensitivity_at'].items():
    span = f'{one["low"]:.3f}–{one["high"]:.3f}'
    assert f'{rate} {one["value"]:.3f} {span}' in text
  assert f'To be found: {found["lesions"]} lesion' in text


def test_a_froc_without_lesions_says_why(run):
  reason = 'there is no lesion to be found'
  nothing = number(None, reason=reason)

  def empty(results):
    results['froc'] |= {
      'score': nothing,
      'sensitivity_at': {'0.25': nothing},
      'curve': None,
      'strict': False,
      'excluded': [],
      'by_slide': [],
    }

  change(run, 'results.json', empty)
  page = read(run)
  check(page)
  assert f'not defined: {reason}' in page.text
  assert 'No slide was left out' in page.text
  assert 'each slide has its own scale' in page.text


def test_a_run_without_the_protocol_has_no_section_of_lesions(run):
  change(run, 'results.json', lambda results: results.pop('froc'))
  page = read(run)
  check(page)
  assert 'lesions' not in {a.get('id') for a in page.all('section')}
  assert '#lesions' not in {a.get('href') for a in page.all('a')}
