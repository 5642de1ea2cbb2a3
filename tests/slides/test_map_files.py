import shutil
import warnings

import numpy as np
import pytest
import tifffile

from jaxmed.slides import map_files


@pytest.fixture
def maps():
  rng = np.random.default_rng(0)
  maps = {k: rng.random((530, 700), np.float32) for k in ('ssim', 'residual')}
  maps['ssim'][:90, 50:] = np.nan
  return maps


def test_tifffile_reads_what_was_written(tmp_path, maps):
  path = tmp_path / 'a.ome.tif'
  map_files.write_ome(path, maps, (16.0, 15.5))
  assert list(tmp_path.iterdir()) == [path]
  with tifffile.TiffFile(path) as file:
    assert file.is_ome and file.is_bigtiff
    (series,) = file.series
    assert series.axes == 'CYX' and series.dtype == np.float32
    sizes = [level.shape[1:] for level in series.levels]
    assert sizes == [(530, 700), (265, 350), (133, 175)]
    np.testing.assert_array_equal(series.asarray(), list(maps.values()))
    pixels = tifffile.xml2dict(file.ome_metadata)['OME']['Image']['Pixels']
    page = series.levels[0].pages[0]
    assert page.is_tiled and page.compression == tifffile.COMPRESSION(8)
    numerator, denominator = page.tags['XResolution'].value
    assert numerator / denominator == pytest.approx(1e4 / 16)
  assert (pixels['PhysicalSizeX'], pixels['PhysicalSizeY']) == (16.0, 15.5)
  assert pixels['PhysicalSizeXUnit'] == 'µm'
  assert [c['Name'] for c in pixels['Channel']] == ['ssim', 'residual']


def test_coarser_levels_are_means_of_what_is_known(tmp_path, maps):
  path = tmp_path / 'a.ome.tif'
  map_files.write_ome(path, maps, (1.0, 1.0))
  found, halved = map_files.read_ome(path, 100_000)
  assert halved == 1 and list(found) == ['ssim', 'residual']
  blocks = maps['ssim'].reshape(265, 2, 350, 2)
  with warnings.catch_warnings(action='ignore'):  # Of blocks without any.
    expected = np.nanmean(blocks, axis=(1, 3))
  assert np.isnan(expected).any()
  np.testing.assert_allclose(found['ssim'], expected, rtol=1e-6)
  whole, halved = map_files.read_ome(path)
  assert halved == 0
  np.testing.assert_array_equal(whole['residual'], maps['residual'])
  assert map_files.read_ome(path, 1)[1] == 2  # The coarsest there is.


@pytest.mark.parametrize('shape', [(1, 1), (3, 7), (256, 256), (257, 1)])
def test_one_map_of_any_size(tmp_path, shape):
  path = tmp_path / 'a.ome.tif'
  values = np.random.default_rng(0).random(shape, np.float32)
  map_files.write_ome(path, {'a b': values}, (0.5, 0.5))
  found, _ = map_files.read_ome(path)
  np.testing.assert_array_equal(found['a b'], values)


def test_bands_and_levels_on_disk_give_the_same(tmp_path, maps, monkeypatch):
  map_files.write_ome(tmp_path / 'a.ome.tif', maps, (1.0, 1.0))
  monkeypatch.setattr(map_files, 'IN_MEMORY', 5000)
  map_files.write_ome(tmp_path / 'b.ome.tif', maps, (1.0, 1.0))
  assert len(list(tmp_path.iterdir())) == 2
  for most in (None, 100_000, 1):
    one, other = (
      map_files.read_ome(tmp_path / f'{name}.ome.tif', most)[0] for name in 'ab'
    )
    for name in maps:
      np.testing.assert_array_equal(one[name], other[name])


def test_what_a_killed_one_has_left_does_not_stay(tmp_path, monkeypatch):
  path, values = tmp_path / 'a.ome.tif', {'x': np.ones((600, 300), np.float32)}
  left = tmp_path / '.a.ome.tif.levels'

  def killed(planes, folder):
    assert folder == left
    (folder / '0-0').write_bytes(bytes(9))
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(map_files, '_levels', killed)
    patch.setattr(shutil, 'rmtree', lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
      map_files.write_ome(path, values, (1.0, 1.0))
  assert [one.name for one in tmp_path.iterdir()] == [left.name]
  monkeypatch.setattr(map_files, 'IN_MEMORY', 8)
  map_files.write_ome(path, values, (1.0, 1.0))
  assert [one.name for one in tmp_path.iterdir()] == [path.name]
  assert (map_files.read_ome(path)[0]['x'] == 1).all()
