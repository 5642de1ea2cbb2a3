import numpy as np
import pytest
import tifffile

from jaxmed.datasets import slide_tiles
from jaxmed.slides import annotation_files, annotations, geojson, reader
from jaxmed.slides.annotations import AnnotationError, Polygon

SQUARE = np.array([(10.0, 10), (50, 10), (50, 40), (10, 40)])
SIZE = (100, 80)


def _write_all(folder):
  """The same lesion in each format."""
  annotations.write_xml(folder / 'a.xml', [Polygon(SQUARE)])
  geojson.write_geojson(folder / 'b.geojson', [Polygon(SQUARE)])
  geojson.write_geojson(folder / 'c.json', [Polygon(SQUARE)])
  pixels = annotations.rasterise([Polygon(SQUARE)], *SIZE)
  for name in ('d_mask.tif', 'e_Mask.tiff'):
    tifffile.imwrite(folder / name, pixels.astype(np.uint8) * 255)
  return pixels


def test_each_format_is_found_and_gives_the_same_lesion(tmp_path):
  pixels = _write_all(tmp_path)
  named = annotation_files.by_slide(tmp_path)
  for stem in 'abcde':
    path = annotation_files.find_annotation(named, f'slides/{stem}.svs')
    polygons = annotation_files.read_annotation(path, SIZE)
    again = annotations.rasterise(polygons, *SIZE)
    np.testing.assert_array_equal(again, pixels)
    lesion = annotation_files.lesion_pixels(path, SIZE, 10)
    np.testing.assert_array_equal(lesion, pixels[5::10, 5::10])
  assert annotation_files.find_annotation(named, 'slides/f.svs') is None


@pytest.mark.parametrize('size', [(1003, 777), (1000, 671), (1024, 800)])
def test_lesions_lie_alike_in_outlines_and_masks(tmp_path, size):
  ring = np.array([(100.0, 50), (993, 80), (700, 660), (150, 500)])
  annotations.write_xml(tmp_path / 'a.xml', [Polygon(ring)])
  pixels = annotations.rasterise([Polygon(ring)], *size)
  tifffile.imwrite(tmp_path / 'b_mask.tif', pixels.astype(np.uint8))
  drawn, mask = (
    annotation_files.lesion_pixels(tmp_path / name, size, 32)
    for name in ('a.xml', 'b_mask.tif')
  )
  # A mask's pixel has the centre half a pixel away; it is as many at 1024.
  assert (mask != drawn).sum() < 5 and drawn.sum() > 300


def test_two_annotations_of_a_slide(tmp_path):
  _write_all(tmp_path)
  tifffile.imwrite(tmp_path / 'a_mask.tif', np.zeros(SIZE[::-1], np.uint8))
  with pytest.raises(AnnotationError, match='a.xml and .*a_mask.tif'):
    annotation_files.find_annotation(
      annotation_files.by_slide(tmp_path), 'a.svs'
    )
  with pytest.raises(AnnotationError, match='no folder of annotations'):
    annotation_files.by_slide(tmp_path / 'absent')


def test_annotations_without_a_slide(tmp_path):
  _write_all(tmp_path)
  (tmp_path / 'a.svs').touch()
  (tmp_path / 'notes.txt').touch()
  found = annotation_files.without_slide(
    annotation_files.by_slide(tmp_path), ['x/a.svs', 'x/c.tif', 'x/d.tif']
  )
  assert [str(error).split(' ')[0] for error in found] == [
    str(tmp_path / 'b.geojson'),
    str(tmp_path / 'e_Mask.tiff'),
  ]


def test_large_letters_links_to_nothing_and_hidden_files(tmp_path):
  annotations.write_xml(tmp_path / 'a.XML', [Polygon(SQUARE)])
  geojson.write_geojson(tmp_path / 'b.GeoJSON', [Polygon(SQUARE)])
  tifffile.imwrite(tmp_path / 'c_MASK.TIF', np.full(SIZE[::-1], 1, np.uint8))
  (tmp_path / 'd.xml').symlink_to('nothing.xml')
  (tmp_path / 'e.xml').mkdir()
  (tmp_path / '._a.xml').write_bytes(bytes(9))  # As macOS leaves them.
  slides = [f'{stem}.svs' for stem in 'abcde']
  lying = annotation_files.by_slide(tmp_path)
  found = [annotation_files.find_annotation(lying, one) for one in slides]
  names = [path and path.name for path in found]
  assert names == ['a.XML', 'b.GeoJSON', 'c_MASK.TIF', 'd.xml', None]
  for path in found[:3]:
    assert annotation_files.read_annotation(path, SIZE)
  with pytest.raises(AnnotationError, match='no annotation at .*d.xml'):
    annotation_files.read_annotation(found[3], SIZE)
  assert not annotation_files.without_slide(lying, slides)


def test_which_classes_are_lesions(tmp_path):
  path = tmp_path / 'a.geojson'
  groups = ('Tumor', 'Stroma', 'Region*', 'Ignore*', '_2')
  geojson.write_geojson(path, [Polygon(SQUARE, group) for group in groups])
  named = lambda wanted: [
    p.group for p in annotation_files.read_annotation(path, groups=wanted)
  ]
  assert named(None) == ['Tumor', 'Stroma', 'Ignore*', '_2']
  assert named(['tumor']) == ['Tumor', 'Ignore*', '_2']
  assert named(['Region*', 'Stroma']) == ['Stroma', 'Region*', 'Ignore*', '_2']


def test_beside_the_slide_and_across_its_border(tmp_path):
  path = tmp_path / 'a.xml'
  annotations.write_xml(path, [Polygon(SQUARE), Polygon(SQUARE + (60, 0))])
  assert len(annotation_files.read_annotation(path, SIZE)) == 2
  assert len(annotation_files.read_annotation(path)) == 2
  with pytest.raises(AnnotationError, match='outside the slide, at x 70'):
    annotation_files.read_annotation(path, (60, 80))


def test_a_mask_needs_the_size_of_its_slide(tmp_path):
  _write_all(tmp_path)
  with pytest.raises(AnnotationError, match='without the size'):
    annotation_files.read_annotation(tmp_path / 'd_mask.tif')


def test_tiles_of_a_slide_with_a_mask_are_those_of_its_outlines(
  small, tmp_path
):
  """What a data set sees doesn't hang on how the lesion was stored."""
  labels = []
  with reader.open_slide(small.path) as slide:
    polygons = slide_tiles.read_outlines(small.annotation, slide.size)
    mask = annotations.lesion_mask(polygons, slide.size, 1).pixels
    path = tmp_path / 'small_mask.tif'
    tifffile.imwrite(path, mask.astype(np.uint8), tile=(128, 128))
    for source in (small.annotation, path):
      polygons = slide_tiles.read_outlines(source, slide.size)
      tiling = slide_tiles.Tiling(64, 0.1)
      tiles = slide_tiles.tile_slide(slide, polygons, tiling, {'group': 's'})
      labels.append([tile['lesion'] for tile in tiles])
    assert slide_tiles.read_outlines(None, slide.size) == []
  assert labels[0] == labels[1] and max(labels[0]) > 0.5
