"""The `jaxmed` command on a finished run, and its refusals."""

import json
import os
import pathlib
import shutil
import sys

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

import jaxmed
from jaxmed import command, workdir
from jaxmed.commands import cli, doctor
from jaxmed.configs import patchcore
from jaxmed.datasets import phantom
from jaxmed.errors import UserError
from jaxmed.slides.reader import SlideError
from tests.test_command import pictures

SIDE = 16


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A PatchCore of noise: small, but gone the whole way."""
  folder = tmp_path_factory.mktemp('cli')
  config = patchcore.get_config('tiny')
  folders = patchcore.get_config('folder')
  for name in ('name', 'options', 'cohorts', 'validation', 'test'):
    config.data[name] = folders.data[name]
  pictures(folder / 'images')
  config.data.path = str(folder / 'images')
  config.data.dir = str(folder / 'prepared')
  config.data.size = SIDE
  config.model.coreset_size = 8
  config.score.batch = 8
  return jaxmed.train(config, folder / 'run')


@pytest.fixture(scope='module')
def slide(tmp_path_factory):
  """Of 512 x 384 px of 0.5 um: glass, and a square of stained tissue."""
  pixels = np.full((384, 512, 3), 244, np.uint8)
  noise = np.random.default_rng(2).integers(-9, 9, (192, 256, 3))
  pixels[96:288, 128:384] = (200, 120, 180) + noise
  path = tmp_path_factory.mktemp('slide') / 'slide.tif'
  phantom.write_slide(path, pixels, 0.5)
  return path


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  # It changes the log of the whole process; whole jobs are tested elsewhere.
  monkeypatch.setattr(command, 'set_up', lambda: None)


def _says(capsys, *argv) -> str:
  """The sentence in which a command ends."""
  assert cli.main([str(word) for word in argv]) == 2
  shown = capsys.readouterr()
  sentence, rest = shown.err.split('\n', 1)
  assert sentence.startswith('jaxmed: ') and sentence.endswith('.'), sentence
  assert not rest and not shown.out
  return sentence


def _png(path, shape=(SIDE, SIDE, 3), dtype=np.uint8):
  top = np.iinfo(dtype).max
  pixels = np.random.default_rng(1).integers(0, top, shape, dtype, True)
  path.write_bytes(imagecodecs.png_encode(pixels))
  return path


def test_images_are_scored_into_a_table_and_overlays(run, tmp_path, capsys):
  for folder in ('one', 'two'):
    (tmp_path / folder).mkdir()
  files = [
    _png(tmp_path / 'one/a.png', (20, 30, 3)),
    _png(tmp_path / 'two/a.png', (SIDE, SIDE)),  # Gray, of the same name.
    _png(tmp_path / 'b.png', (SIDE, SIDE, 4)),
  ]
  files += [_png(tmp_path / f'{i}.png') for i in range(7)]  # Two batches.
  files += files[:1]  # Named twice, it is scored twice, and kept once.
  argv = ['score', '--workdir', run.folder, '--out', 'out', *files]
  assert cli.main([str(word) for word in argv]) == 0
  assert 'scores.parquet' in capsys.readouterr().out
  table = pq.read_table('out/scores.parquet').to_pydict()
  assert table['file'] == [str(file) for file in files]
  found = run.score(files)
  np.testing.assert_allclose(table['score.nearest'], found.scores['nearest'])
  assert table['anomalous'] == found.anomalous.tolist()
  assert all(0 <= share <= 1 for share in table['calibrated.nearest'])
  for name in ('a', 'a_2', 'b', '6'):
    with Image.open(f'out/{name}_overlay.png') as image:
      assert image.size == (SIDE, SIDE) and image.mode == 'RGB'
  assert not pathlib.Path('out/a_3_overlay.png').exists()


def test_a_file_without_a_score_does_not_stop_the_others(run, tmp_path, capsys):
  good = _png(tmp_path / 'good.png')
  (tmp_path / 'broken.png').write_bytes(b'no image')
  (tmp_path / 'slide.svs').write_bytes(b'no slide')
  names = ['broken.png', good, 'slide.svs']
  argv = ['score', '--workdir', run.folder, '--out', 'out', *names]
  assert cli.main([str(word) for word in argv]) == 1
  table = pq.read_table('out/scores.parquet').to_pylist()
  rows = {row['file']: row for row in table}
  assert [row['file'] for row in table] == [str(name) for name in names]
  assert rows[str(good)]['reason'] == ''
  assert rows[str(good)]['anomalous'] is not None
  for name in ('broken.png', 'slide.svs'):
    assert name in rows[name]['reason'] and rows[name]['anomalous'] is None
  capsys.readouterr()
  says = _says(capsys, 'score', '--workdir', run.folder, tmp_path)
  assert 'is a folder; name its images' in says


def test_the_facade_scores_calibrates_and_says_yes_or_no(run, tmp_path):
  loaded = jaxmed.load(run.folder)
  table = pq.read_table(run.folder / 'scores.parquet').to_pydict()
  path = run.config.data.path
  files = [f'{path}/{key}' for key in table['key']]
  found = loaded.score(files)
  np.testing.assert_allclose(
    found.scores['nearest'], table['score.nearest'], rtol=1e-5
  )
  threshold = loaded.calibration['nearest']['threshold']
  np.testing.assert_array_equal(
    found.anomalous, found.scores['nearest'] > threshold
  )
  order = np.argsort(found.scores['nearest'])
  assert (np.diff(found.calibrated['nearest'][order]) >= 0).all()
  assert found.maps['nearest'].shape == (len(files), SIDE, SIDE)
  assert found.images.shape == (len(files), SIDE, SIDE, 3)
  alone = loaded.score(files[0], maps=())
  np.testing.assert_allclose(
    alone.scores['nearest'], found.scores['nearest'][:1], rtol=1e-5
  )
  assert not alone.maps
  with pytest.raises(UserError, match='There is no image'):
    loaded.score([])
  with pytest.raises(SlideError, match='There is no slide'):
    loaded.score_slide(tmp_path / 'none.svs')


def test_the_facade_takes_images_however_they_come(run, tmp_path):
  loaded = jaxmed.load(run.folder)
  dice = np.random.default_rng(3)
  eight = dice.integers(0, 256, (9, SIDE + 4, SIDE, 3), np.uint8)
  whole = loaded.score(eight, maps=()).scores['nearest']
  for images in (list(eight), (image for image in eight)):
    found = loaded.score(images, maps=()).scores['nearest']
    np.testing.assert_array_equal(found, whole)
  for image in (eight[0], eight[0, ..., :1], eight[0, ..., 0]):  # Not its rows.
    assert loaded.score(image, maps=()).images.shape == (1, SIDE, SIDE, 3)
  found = loaded.score(eight[0], maps=())
  np.testing.assert_allclose(found.scores['nearest'], whole[:1], rtol=1e-5)
  deep = loaded.score([*eight[:8], eight[8].astype(np.uint16) * 257], maps=())
  np.testing.assert_allclose(deep.scores['nearest'], whole, rtol=1e-3)
  np.testing.assert_array_equal(  # Of two batches, of 8 bits and of 16.
    deep.images, eight[:, 2:-2].astype(np.uint16) * 257
  )
  for images, said in (
    ([*eight, eight[0] / 255], 'Image number 9 has .* float64'),
    ([eight[0, :0]], r'shape \(0, 16, 3\)'),
    ([tmp_path], 'is unreadable: Is a directory'),
  ):
    with pytest.raises(UserError, match=said):
      loaded.score(images)


def test_a_file_that_is_no_image_is_named(run, tmp_path, capsys):
  _png(tmp_path / 'one.png', (1, 1, 3))
  whole = _png(tmp_path / 'whole.png').read_bytes()
  (tmp_path / 'cut.png').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'cut.tif').write_bytes(b'II*\0')
  (tmp_path / 'empty.png').touch()
  (tmp_path / 'slide.svs').write_bytes(b'no slide')
  tifffile.imwrite('float.tif', np.zeros((SIDE, SIDE), np.float32))
  tifffile.imwrite('five.tif', np.zeros((5, SIDE, SIDE), np.uint8))
  tifffile.imwrite(
    'channels.tif', np.zeros((SIDE, SIDE, 7), np.uint8), photometric='rgb'
  )
  for name, said in {
    'none.png': 'There is no file none.png',
    'one.png': 'one.png has 1 x 1 px, less than data.size = 16',
    'cut.png': 'cut.png is unreadable',
    'cut.tif': 'cut.tif is unreadable',
    'empty.png': 'empty.png is unreadable: the file is empty',
    'slide.svs': "slide.svs can't be opened as a slide",
    'float.tif': 'float.tif is unreadable: tiff of type float32',
    'five.tif': "five.tif can't be opened as a slide: it is a stack of 5",
    'channels.tif': 'channels.tif is unreadable',
  }.items():
    given = ['--workdir', run.folder, '--out', 'out', name]
    assert said in _says(capsys, 'score', *given)
  (tmp_path / 'file').touch()
  given = ['--workdir', run.folder, '--out', 'file', 'whole.png']
  assert 'cannot be used' in _says(capsys, 'score', *given)


def test_evaluate_and_report_redo_their_part_alone(run, capsys):
  where = ['--workdir', str(run.folder)]
  assert cli.main(['evaluate', *where]) == 0
  assert 'anew by: jaxmed report --workdir' in capsys.readouterr().out
  for name in ('results.json', 'report.html'):
    (run.folder / name).unlink()
  assert cli.main(['evaluate', *where, '--quantile=0.8']) == 0
  shown = capsys.readouterr().out
  assert 'nearest *' in shown and 'jaxmed report' not in shown
  results = workdir.read_json(run.folder / 'results.json')
  assert results['thresholds']['nearest']['quantile'] == 0.8
  assert cli.main(['report', *where]) == 0
  assert 'report.html' in capsys.readouterr().out
  assert '<html' in (run.folder / 'report.html').read_text()


def test_a_folder_that_is_no_run(tmp_path, capsys):
  (tmp_path / 'a.png').touch()
  for argv in (['score', 'a.png'], ['evaluate'], ['report']):
    said = _says(capsys, *argv, '--workdir', tmp_path / 'nowhere')
    assert 'no config.json' in said


def test_a_run_that_was_not_finished(tmp_path, capsys):
  workdir.settle(tmp_path, patchcore.get_config('tiny'), fresh=False)
  (tmp_path / 'a.png').touch()
  where = ['--workdir', tmp_path]
  assert 'launch it again to go on' in _says(capsys, 'score', 'a.png', *where)
  assert 'no scores.parquet' in _says(capsys, 'evaluate', *where)
  assert 'results.json' in _says(capsys, 'report', *where)


def test_options_out_of_bounds(run, capsys):
  for option, said in {
    '--primary=nearst': "Did you mean 'nearest'?",
    '--quantile=2': 'it has to be 0 to 1.',
    '--resamples=0': 'it has to be at least 1.',
  }.items():
    assert said in _says(capsys, 'evaluate', '--workdir', run.folder, option)


def test_one_class_has_no_auroc_and_a_reason(run, tmp_path, capsys):
  for name in ('config.json', 'scores.parquet'):
    shutil.copy(run.folder / name, tmp_path)
  table = pq.read_table(tmp_path / 'scores.parquet')
  zeros = pa.array(np.zeros(len(table)), table.schema.field('label').type)
  place = table.schema.get_field_index('label')
  table = table.set_column(place, 'label', zeros)
  pq.write_table(table, tmp_path / 'scores.parquet')
  assert cli.main(['evaluate', '--workdir', str(tmp_path)]) == 0
  shown = capsys.readouterr().out
  assert 'Warning: There is no AUROC' in shown and 'nan' not in shown
  auroc = json.loads((tmp_path / 'results.json').read_text())
  auroc = auroc['image']['nearest']['auroc']
  assert auroc['value'] is None and auroc['reason']


def test_debug_shows_the_traceback(tmp_path, capsys):
  argv = ['evaluate', '--workdir', str(tmp_path), '--debug']
  assert cli.main(argv) == 2
  assert 'Traceback' in capsys.readouterr().err


def test_tissue_is_drawn_and_its_share_printed(slide, tmp_path, capsys):
  argv = ['tissue', str(slide), '--out', 'shown.png', '--mask', 'mask.png']
  assert cli.main(argv) == 0
  shown = capsys.readouterr().out
  with Image.open('mask.png') as image:
    mask = np.asarray(image)
    assert image.size == (64, 48)
  assert f'Tissue: {mask.mean():.1%} of the slide' in shown
  assert 'of 0.04915 mm2' in shown and 'shown.png' in shown
  assert 0.2 < mask.mean() < 0.3
  with Image.open('shown.png') as image:
    assert image.size == (512, 384) and image.mode == 'RGB'
    assert (0, 0, 255) not in image.get_flattened_data()
  for method in ('codait', 'otsu'):
    more = ['--method', method, '--mask-mpp', '4', '--mpp', '0.25']
    assert cli.main([*argv, *more]) == 0
    assert 'of 0.01229 mm2' in capsys.readouterr().out
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'mask.png',
    'shown.png',
  ]


def test_tissue_that_cannot_be_shown(slide, tmp_path, capsys):
  out = ['--out', 'shown.png']
  said = _says(capsys, 'tissue', slide, *out, '--method', 'ozsu')
  assert "No tissue method 'ozsu'" in said
  said = _says(capsys, 'tissue', slide, '--out', 'no/where.png')
  assert "can't be written: No such file" in said
  assert 'There is no slide' in _says(capsys, 'tissue', 'none.svs', *out)
  said = _says(capsys, 'tissue', slide, *out, '--mpp', '0')
  assert 'mpp=0.0' in said
  said = _says(capsys, 'tissue', slide, *out, '--mask-mpp', '-1')
  assert 'above 0' in said
  with tifffile.TiffFile(slide) as tiff:
    first = tiff.pages[0].dataoffsets[0]
  broken = bytearray(slide.read_bytes())
  broken[first : first + 400] = bytes(400)
  (tmp_path / 'broken.tif').write_bytes(broken)
  said = _says(capsys, 'tissue', 'broken.tif', *out)
  assert "Can't read broken.tif at level 0, x 0, y 0" in said
  with pytest.raises(SystemExit):
    cli.main(['tissue', str(slide), '--out', 'shown.jpg'])
  assert 'does not end in .png' in capsys.readouterr().err
  assert not (tmp_path / 'shown.png').exists()


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    ([], 'score images or slides'),
    (['tissue'], 'stain (the default), codait or otsu'),
    (['score'], 'validation normals'),
    (['evaluate'], '--resamples N'),
    (['report'], 'report.html'),
    (['compare'], 'comparison.csv'),
    (['sweep'], '--seeds N,N,...'),
    (['stain'], 'haematoxylin'),
    (['doctor'], 'codecs'),
    (['weights', 'import'], '--network NETWORK'),
    (['launch'], '--config=CONFIG'),
  ],
)
def test_help_of_every_command(argv, said, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main([*argv, '--help'])
  assert ended.value.code == 0
  assert said in capsys.readouterr().out


@pytest.mark.parametrize('argv', [[], ['scor'], ['score'], ['report', '-x']])
def test_a_wrong_command_line_ends_in_2(argv, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(argv)
  assert ended.value.code == 2
  assert 'error: ' in capsys.readouterr().err


def test_the_doctor_names_what_is_missing(capsys, monkeypatch):
  assert cli.main(['doctor']) == 0
  shown = capsys.readouterr().out
  for name in (
    'jax 0.',
    'devices    8 x cpu',
    'OpenSlide',
    'weights    ',
    'missing    none',
  ):
    assert name in shown
  assert all(len(line) <= 80 for line in shown.splitlines())
  monkeypatch.setattr(doctor, 'CODECS', ('png', 'none'))
  monkeypatch.setitem(sys.modules, 'openslide', None)
  assert cli.main(['doctor']) == 1
  assert 'slides' in capsys.readouterr().out.splitlines()[-1]


def test_a_run_is_not_tested_on_images_that_have_changed(run, tmp_path):
  folder = tmp_path / 'run'
  shutil.copytree(run.folder, folder)
  for name in ('examples.json', 'scores.parquet', 'results.json'):
    (folder / name).unlink()
  config = workdir.load_config(folder)
  image = next(pathlib.Path(config.data.path).glob('*/*'))
  before = image.stat()
  os.utime(image, (0, 0))
  try:
    with pytest.raises(UserError, match='or give --fresh'):
      jaxmed.train(config, folder)
  finally:
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize('given', ['madvise', 'always', 'asks'])
def test_the_doctor_tells_of_large_pages(given, capsys, monkeypatch, tmp_path):
  modes = {'always': '[always] madvise never'}
  file = tmp_path / 'enabled'
  file.write_text(modes.get(given, 'always [madvise] never'))
  monkeypatch.setattr(doctor, 'PAGES', file)
  name, _, value = doctor.ASKING.partition('=')
  monkeypatch.setenv(name, value if given == 'asks' else 'glibc.pthread.rseq=0')
  assert cli.main(['doctor']) == 0
  assert (doctor.ASKING in capsys.readouterr().out) == (given == 'madvise')
