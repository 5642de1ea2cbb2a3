import functools
import io
import pathlib
import subprocess
import sys

import numpy as np
import openslide
import pytest
import tifffile
from ml_collections import ConfigDict
from PIL import Image
from scipy import ndimage
from skimage import measure, metrics
from sklearn.metrics import roc_auc_score

from jaxmed import errors
from jaxmed.configs import defaults
from jaxmed.datasets import (
  phantom,
  phantom_scanner,
  phantom_tissue,
  slide_tiles,
)
from jaxmed.datasets.shards import Failure
from jaxmed.slides import annotations, grid, reader, tissue


def _data(preset='tiny', **options) -> ConfigDict:
  config = getattr(defaults, preset)(defaults.defaults('munit', preset))
  config.data.options.update(options)
  return config.data


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """The tiny data set's directory, shards and examples, by slide."""
  directory = tmp_path_factory.mktemp('tiny')
  shards = phantom.shards(_data(), directory)
  return directory, {shard.name: list(shard.examples()) for shard in shards}


def test_shards_are_slides_of_both_scanners():
  shards = phantom.shards(_data('phantom'), pathlib.Path('d'))
  assert len(shards) == 3 + 3 + 1 + 3 + 4
  names = [shard.name for shard in shards]
  assert len(set(names)) == len(names)
  assert {s.name[-1] for s in shards if s.split == 'train'} == {'A', 'B'}
  assert {s.name[-1] for s in shards if s.split != 'train'} == {'A'}
  rows = phantom.slides(_data('phantom'), pathlib.Path('d'))
  assert [row['group'] for row in rows] == names
  assert sum(row['label'] for row in rows) == 4
  assert all(bool(row['annotation']) == bool(row['label']) for row in rows)


def test_slides_with_lesions_for_training_are_others_than_for_testing():
  plain, more = (
    phantom.slides(_data('phantom', train_lesion=n), pathlib.Path('d'))
    for n in (0, 2)
  )
  added = [row for row in more if row not in plain]
  assert [row for row in more if row in plain] == plain
  assert [(r['split'], r['label'], r['domain']) for r in added] == [
    ('train', 1, 'A')
  ] * 2
  assert len({row['group'] for row in more}) == len(more)


def test_artefacts_are_on_sick_and_on_healthy_slides():
  slides = phantom._slides(_data('phantom'))
  for artefact in ('pen', 'fold'):
    having = [one for one in slides if getattr(one.plan, artefact)]
    assert {bool(one.plan.lesions) for one in having} == {True, False}
    assert {one.split for one in having} >= {'train', 'test'}
    assert 0 < len(having) < len(slides) / 2


def test_slides_with_lesions_for_other_uses_are_new_ones():
  plain = {one.group: one for one in phantom._slides(_data())}
  options = {'train_lesion': 2, 'validation_lesion': 1}
  more = {one.group: one for one in phantom._slides(_data(**options))}
  new = [one for group, one in more.items() if group not in plain]
  assert set(plain) < set(more)
  assert [one.split for one in new] == ['train', 'train', 'validation']
  assert all(one.plan.lesions for one in new)
  assert all(one.plan.scanner.name == 'A' for one in new)
  for group, one in plain.items():  # Nothing that was there is drawn anew.
    assert more[group] == one


def test_the_fingerprint_knows_all_options():
  base = phantom.fingerprint(_data())
  assert phantom.fingerprint(_data()) == base
  assert phantom.fingerprint(_data(seed=1)) != base
  with pytest.raises(errors.UserError, match="Did you mean 'side'"):
    phantom.fingerprint(_data(sides=512))
  with pytest.raises(errors.UserError, match='at least 256'):
    phantom.shards(_data(side=100), pathlib.Path('d'))
  with pytest.raises(errors.UserError, match='micrometres'):
    phantom.shards(_data(mpp=5.0), pathlib.Path('d'))


def test_openslide_opens_it_with_its_pixel_size(tiny):
  directory, _ = tiny
  row = phantom.slides(_data(), directory)[0]
  slide = openslide.OpenSlide(row['path'])
  assert float(slide.properties['openslide.mpp-x']) == row['mpp'] == 0.5
  assert slide.dimensions == (row['width'], row['height'])
  assert slide.level_dimensions == ((512, 512), (128, 128))
  fine = np.asarray(slide.read_region((0, 0), 0, (512, 512)))[..., :3]
  coarse = np.asarray(slide.read_region((0, 0), 1, (128, 128)))[..., :3]
  means = fine.reshape(128, 4, 128, 4, 3).mean((1, 3))
  gray = [levels.mean(-1).ravel() for levels in (means, coarse)]
  assert np.corrcoef(gray)[0, 1] > 0.995


def test_examples_are_tiles_of_their_slide(tiny):
  directory, examples = tiny
  name = 'test_001_A'
  path = directory / 'slides' / f'{name}.tif'
  polygons = annotations.read_xml(path.with_suffix('.xml'))
  whole = annotations.rasterise(polygons, 512, 512)
  with reader.open_slide(path) as slide:
    for example in examples[name]:
      x, y = example['x'], example['y']
      image = np.asarray(Image.open(io.BytesIO(example['image'])))
      pixels = slide.read(x, y, 32, 32).astype(int)
      assert image.shape == (32, 32, 3) and x % 32 == y % 32 == 0
      assert np.abs(image - pixels).mean() < 6
      inside = whole[y : y + 32, x : x + 32]
      assert example['lesion'] == pytest.approx(inside.mean(), abs=1e-6)
      assert example['label'] == inside.any()
      assert bool(example['mask']) == inside.any()
      if example['mask']:
        mask = np.asarray(Image.open(io.BytesIO(example['mask']))) > 0
        assert (mask == inside).all()
      assert example['key'] == f'{name}/{x}_{y}'
      assert example['mpp'] == 0.5 and example['domain'] == 'A'


def test_the_tiny_preset_has_enough_of_everything(tiny):
  _, examples = tiny

  def count(name, test):
    return sum(one['tissue'] >= 0.9 and test(one) for one in examples[name])

  for name in ('train_000_A', 'train_000_B', 'validation_000_A', 'test_000_A'):
    assert count(name, lambda one: one['label'] == 0) >= 32
    assert not any(one['label'] for one in examples[name])
  assert count('test_001_A', lambda one: one['lesion'] >= 0.8) >= 16
  assert count('test_001_A', lambda one: one['label'] == 0) >= 16


@pytest.mark.parametrize('level', [0, 1])
def test_tiles_that_cannot_be_read_are_failures(tiny, tmp_path, level):
  directory, examples = tiny
  content = bytearray((directory / 'slides/train_000_A.tif').read_bytes())
  path = tmp_path / 'damaged.tif'
  path.write_bytes(content)
  with tifffile.TiffFile(path) as tiff:
    page = tiff.pages[level]
    start, count = page.dataoffsets[0], page.databytecounts[0]
  content[start : start + count] = bytes(count)
  path.write_bytes(content)
  tiling = slide_tiles.Tiling(32, 0.1, passthrough=False)
  with reader.open_slide(path) as slide:
    found = list(slide_tiles.tile_slide(slide, [], tiling, {'group': 'g'}))
  failed = [one for one in found if isinstance(one, Failure)]
  if level == 1:  # Where the tissue is looked for: the slide can't be tiled.
    assert found == failed and failed[0].item == 'g' and failed[0].level == 1
    return
  places = {one['key'].split('/')[1]: one for one in examples['train_000_A']}
  lost = [one for one in places.values() if max(one['x'], one['y']) < 256]
  assert len(failed) == len(lost) > 10
  assert all(one.error and one.level == 0 for one in failed)
  assert {one.item.split('/')[1] for one in failed} < set(places)
  assert len(found) == len(places)


@functools.cache
def _drawn(seed, side, domain='A', **more):
  plan = phantom_tissue.Plan(
    (seed,), side, side, 0.5, phantom_scanner.SCANNERS[domain], **more
  )
  return phantom_tissue.draw(plan)


def test_a_seed_gives_the_same_pixels_here_and_in_another_process(tmp_path):
  plan = phantom_tissue.Plan(
    (5,), 300, 260, 0.5, phantom_scanner.SCANNERS['B'], (60.0,), True, True
  )
  one, two = phantom_tissue.draw(plan), phantom_tissue.draw(plan)
  assert one.pixels.shape == (260, 300, 3)
  assert (one.pixels == two.pixels).all()
  phantom.write_slide(tmp_path / 'one.tif', one.pixels, 0.5)
  program = (
    'import pathlib, sys\n'
    'from jaxmed.datasets import phantom, phantom_scanner, phantom_tissue\n'
    "scanner = phantom_scanner.SCANNERS['B']\n"
    'plan = phantom_tissue.Plan(\n'
    '  (5,), 300, 260, 0.5, scanner, (60.0,), True, True)\n'
    'drawn = phantom_tissue.draw(plan)\n'
    'phantom.write_slide(pathlib.Path(sys.argv[1]), drawn.pixels, 0.5)\n'
  )
  path = tmp_path / 'two.tif'
  subprocess.run([sys.executable, '-c', program, path], check=True)
  assert path.read_bytes() == (tmp_path / 'one.tif').read_bytes()
  other = phantom_tissue.Plan((6,), 300, 260, 0.5, plan.scanner)
  assert (phantom_tissue.draw(other).pixels != one.pixels).mean() > 0.5


def test_a_slide_is_not_drawn_again(tiny, monkeypatch):
  directory, examples = tiny
  monkeypatch.setattr(phantom_tissue, 'draw', None)
  shard = phantom.shards(_data(), directory)[0]
  again = list(shard.examples())
  assert [one['image'] for one in again] == [
    one['image'] for one in examples[shard.name]
  ]


def test_nothing_half_written_has_a_slides_name(tmp_path, monkeypatch):
  monkeypatch.setattr(phantom, '_quarter', lambda pixels: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    phantom.write_slide(
      tmp_path / 'a.tif', np.zeros((600, 600, 3), np.uint8), 0.5
    )
  assert not list(tmp_path.iterdir())


def test_the_scale_of_cells_follows_the_pixel_size():
  """At 1 um a pixel the same slide has about the same mean colours."""
  fine = phantom_tissue.draw(
    phantom_tissue.Plan((8,), 512, 512, 0.5, phantom_scanner.SCANNERS['A'])
  )
  coarse = phantom_tissue.draw(
    phantom_tissue.Plan((8,), 256, 256, 1.0, phantom_scanner.SCANNERS['A'])
  )
  one = fine.pixels[128:384, 128:384].mean((0, 1))
  two = coarse.pixels[64:192, 64:192].mean((0, 1))
  np.testing.assert_allclose(one, two, atol=15)


def test_scanners_differ_in_colour_and_sharpness():
  one, two = _drawn(2, 512, 'A'), _drawn(2, 512, 'B')
  inside = (slice(150, 360), slice(150, 360))
  means = [d.pixels[inside].mean((0, 1)) for d in (one, two)]
  assert np.abs(means[0] - means[1]).max() > 5
  assert (one.pixels[4, 4] != two.pixels[4, 4]).any()
  contrast = [
    np.abs(ndimage.laplace(d.pixels[inside].mean(-1))).mean()
    / d.pixels[inside].mean(-1).std()
    for d in (one, two)
  ]
  assert contrast[0] > 1.15 * contrast[1]


def test_there_is_glass_around_the_tissue():
  drawn = _drawn(4, 768)
  border = np.concatenate([drawn.pixels[:4], drawn.pixels[-4:]])
  assert np.median(border) > 225
  assert (tissue.find_tissue(drawn.pixels[::8, ::8], 4.0)).mean() > 0.35


@pytest.mark.slow
def test_lesions_of_several_sizes_and_their_masks(tmp_path):
  """The major axis is what decides whether a lesion counts as isolated."""
  sizes = []
  for one in phantom._slides(_data('phantom')):
    if not one.plan.lesions:
      continue
    drawn = phantom_tissue.draw(one.plan)
    mask = annotations.rasterise(drawn.lesions, 640, 640, downsample=4)
    labels = measure.label(mask, connectivity=2)
    axes = [
      region.axis_major_length * 4 * one.plan.mpp
      for region in measure.regionprops(labels)
    ]
    assert len(axes) == len(one.plan.lesions)
    assert min(axes) < 275 < max(axes)
    sizes += axes
    path = tmp_path / 'a.xml'
    annotations.write_xml(path, drawn.lesions)
    again = annotations.rasterise(
      annotations.read_xml(path), 640, 640, downsample=4
    )
    assert (again == mask).all()
  assert min(sizes) > 100 and max(sizes) < 800


def _baselines(images):
  """What needs no model: 12 numbers of an image."""
  scaled = images.astype(np.float32) / 255
  gray = scaled @ np.array([0.299, 0.587, 0.114], np.float32)
  steps = np.diff(gray, axis=1), np.diff(gray, axis=2)

  def size(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, **options)
    return file.tell()

  def dissimilarity(image):
    blurred = ndimage.gaussian_filter(image, 1.3)
    return 1 - metrics.structural_similarity(
      image, blurred, data_range=1.0, gaussian_weights=True, sigma=1.5,
      use_sample_covariance=False,
    )  # fmt: skip

  return {
    'mean': gray.mean((1, 2)),
    'red': scaled[..., 0].mean((1, 2)),
    'green': scaled[..., 1].mean((1, 2)),
    'blue': scaled[..., 2].mean((1, 2)),
    'saturation': np.ptp(scaled, axis=-1).mean((1, 2)),
    'std': gray.std((1, 2)),
    'gradient': sum(np.abs(step).mean((1, 2)) for step in steps),
    'gradient squared': sum(np.square(step).mean((1, 2)) for step in steps),
    'laplacian': [np.square(ndimage.laplace(image)).mean() for image in gray],
    'blur ssim': [dissimilarity(image) for image in gray],
    'png': [size(image, format='PNG') for image in images],
    'jpeg': [size(image, format='JPEG', quality=80) for image in images],
  }


def _aurocs(seed, count, directory):
  """Of each baseline, in its better direction, on lesion slides' patches."""
  images, labels = [], []
  chosen = [one for one in phantom._slides(_data('phantom', seed=seed))]
  for one in [one for one in chosen if one.plan.lesions][:count]:
    for example in phantom.examples(one, 64, directory):
      clear = example['label'] == 0 or example['lesion'] >= 0.8
      if clear and example['tissue'] >= 0.9:
        images.append(np.asarray(Image.open(io.BytesIO(example['image']))))
        labels.append(example['label'])
  labels = np.array(labels)
  rng = np.random.default_rng(0)
  rows = np.concatenate(
    [rng.permutation(np.flatnonzero(labels == k))[:400] for k in (0, 1)]
  )
  found = {}
  for name, values in _baselines(np.stack(images)[rows]).items():
    area = roc_auc_score(labels[rows], values)
    found[name] = max(area, 1 - area)
  return found


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_no_simple_number_gives_the_lesions_away(seed, tmp_path):
  found = _aurocs(seed, 4, tmp_path)
  assert max(found.values()) <= 0.75, found


def test_no_simple_number_gives_the_lesions_of_one_slide_away(tmp_path):
  """One slide varies less than four: a looser bound, in the quick tier."""
  found = _aurocs(0, 1, tmp_path)
  assert max(found.values()) <= 0.85, found


@pytest.mark.slow
def test_pen_marks_stay_out_of_the_tissue(tmp_path):
  slides = [one for one in phantom._slides(_data('phantom')) if one.plan.pen]
  for one in slides[:2]:
    drawn = phantom_tissue.draw(one.plan)
    path = tmp_path / f'{one.group}.tif'
    phantom.write_slide(path, drawn.pixels, one.plan.mpp)
    with reader.open_slide(path) as slide:
      mask = tissue.tissue_mask(slide)
      image = slide.overview(8)
    ink = tissue.find_ink(tissue.optical_density(image))
    ink = ndimage.binary_opening(ink, np.ones((3, 3)))
    assert ink.sum() > 200
    tiles = grid.tile_grid(mask.size, 64)
    inked = grid.coverage(grid.Mask(ink, mask.size), tiles)
    covered = grid.coverage(mask, tiles)
    assert inked[covered >= 0.9].max() < 0.05
