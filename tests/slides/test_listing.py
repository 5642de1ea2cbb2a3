import os
import pathlib

import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.slides import listing, map_files


def test_what_may_be_a_slide_is_found_by_name(tmp_path, monkeypatch):
  for path in (
    *('a.svs', 'deep/er/b.1.TIFF', 'deep/a.tif', 'a_mask.tif', 'a.png'),
    *('.hidden.svs', '.cache/c.svs', 'outlines/d.tif', 'e.svs/f.txt'),
  ):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
  (tmp_path / 'link.svs').symlink_to('nothing.svs')
  found = listing.find_slides(tmp_path, tmp_path / 'outlines')
  assert {name: len(paths) for name, paths in found.items()} == {
    'a': 2,
    'b.1': 1,
    'link': 1,
  }
  monkeypatch.chdir(tmp_path)
  here = pathlib.Path('../', tmp_path.name)
  assert listing.find_slides(tmp_path, here / 'outlines') == found
  assert listing.same_name(found['link']) == ''
  said = listing.same_name(found['a'])
  assert 'a.svs and ' in said and 'deep/a.tif are two slides' in said


def test_folders_that_are_none(tmp_path):
  with pytest.raises(UserError, match='holds no slides. Expected .*svs'):
    listing.find_slides(tmp_path)
  with pytest.raises(UserError, match="no can't be read: No such"):
    listing.find_slides(tmp_path / 'no')


def test_linked_folders_are_looked_into_once(tmp_path):
  place, elsewhere = tmp_path / 'slides', tmp_path / 'elsewhere'
  for folder in (place / 'own', elsewhere / 'more'):
    folder.mkdir(parents=True)
  (place / 'own/a.svs').touch()
  (elsewhere / 'more/b.CZI').touch()
  (place / 'linked').symlink_to(elsewhere)
  (place / 'linked_too').symlink_to(elsewhere)
  (place / 'before').symlink_to(place / 'own')
  (place / 'own/up').symlink_to(tmp_path)
  found = listing.find_slides(place)
  assert found == {
    'a': [place / 'own/a.svs'],
    'b': [place / 'linked/more/b.CZI'],
  }


def test_maps_of_scores_that_lie_among_slides_are_none(tmp_path):
  for name in ('a.ome.tif', 'b.ome.tif', 'c_mask.svs', 'd_Mask.TIFF'):
    (tmp_path / name).touch()
  map_files.write_ome(tmp_path / 'a.ome.tif', {'x': np.eye(9)}, (1.0, 1.0))
  assert list(listing.find_slides(tmp_path)) == ['b.ome', 'c_mask']


def test_a_name_that_no_table_can_take(tmp_path):
  (tmp_path / os.fsdecode(b'\xe4.svs')).touch()
  with pytest.raises(UserError, match='xe4.svs. is not in UTF-8; rename it'):
    listing.find_slides(tmp_path)
