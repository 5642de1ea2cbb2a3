"""The slide that the benchmark of gigapixels makes, in small."""

import numpy as np
import openslide
import pytest

from benchmarks import gigapixel
from jaxmed.slides import grid, reader, tissue

WIDTH, HEIGHT = 3000, 2300
GRAY = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  path = tmp_path_factory.mktemp('gigapixel') / 'slide.tif'
  layout = gigapixel.write_gigapixel(
    path, WIDTH, HEIGHT, mpp=0.5, share=0.3, block=512, regions=1, seed=1
  )
  assert [p.name for p in path.parent.iterdir()] == ['slide.tif']
  return path, layout


def test_openslide_opens_it_and_reads_what_is_decoded_directly(made):
  path, _ = made
  with openslide.OpenSlide(path) as slide:
    assert slide.dimensions == (WIDTH, HEIGHT)
    assert slide.level_count == 3
    assert float(slide.properties['openslide.mpp-x']) == pytest.approx(0.5)
    theirs = np.asarray(slide.read_region((900, 700), 0, (900, 800)))[..., :3]
  with reader.open_slide(path) as slide:
    assert slide.direct and slide.mpp == pytest.approx(0.5)
    ours = slide.read(900, 700, 900, 800)
  assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_levels_agree(made):
  with reader.open_slide(made[0]) as slide:
    fine = slide.read(0, 0, *slide.size).astype(float)
    for level, plane in list(enumerate(slide.levels))[1:]:
      side = round(plane.downsample)
      coarse = slide.read(0, 0, plane.width, plane.height, level)
      cut = fine[: plane.height * side, : plane.width * side]
      cut = cut.reshape(plane.height, side, plane.width, side, 3)
      # Brightness: colours have half the resolution in the JPEG.
      means = cut.mean(axis=(1, 3)) @ GRAY
      difference = np.abs(means - coarse @ GRAY).mean()
      assert difference < 2
      assert (coarse @ GRAY).std() > 20
      shifted = np.abs(np.roll(means, 1, axis=0) - coarse @ GRAY).mean()
      assert shifted > 2 * difference


def test_tissue_is_found_where_it_was_put(made):
  path, layout = made
  blocks = layout.kinds
  assert blocks.shape == (5, 6)
  assert (blocks > 0).sum() == 9
  assert len(np.unique(blocks[blocks > 0])) > 2  # Turned in several ways.
  with reader.open_slide(path) as slide:
    for method in tissue.METHODS:
      mask = tissue.tissue_mask(slide, method, mpp=8.0)
      inner = grid.tile_grid(slide.size, layout.block)
      covered = grid.coverage(mask, inner)
      put = blocks[: inner.rows, : inner.columns] > 0
      assert put.any()
      assert covered[put].min() > 0.3, method
      assert covered[~put].max() < 0.02, method


def test_the_same_arguments_give_the_same_file(made, tmp_path):
  path, layout = made
  again = gigapixel.write_gigapixel(
    tmp_path / 'again.tif',
    *(WIDTH, HEIGHT),
    mpp=0.5,
    share=0.3,
    block=512,
    regions=1,
    seed=1,
  )
  assert (again.kinds == layout.kinds).all()
  assert (tmp_path / 'again.tif').read_bytes() == path.read_bytes()


def test_what_it_prints(made, capsys):
  gigapixel.measure(made[0])
  shown = capsys.readouterr().out
  for name in ('tissue, stain', 'tissue, codait', 'tissue, otsu', 'grid 256'):
    assert name in shown


def test_blocks_that_tiles_cannot_fill(tmp_path):
  for block in (128, 768):
    with pytest.raises(ValueError, match='power of two'):
      gigapixel.write_gigapixel(tmp_path / 'no.tif', 999, 999, block=block)
