"""Phantom slides, drawn once for all tests of data sets."""

import pathlib

import pytest

from tests.datasets import fabricate_camelyon16


@pytest.fixture(scope='session')
def camelyon(tmp_path_factory) -> pathlib.Path:
  """A folder in the layout of Camelyon16. Tests that change it copy it."""
  folder = tmp_path_factory.mktemp('camelyon16') / 'published'
  return fabricate_camelyon16.fabricate(folder)
