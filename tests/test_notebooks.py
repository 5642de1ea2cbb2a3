"""Every notebook runs from its first cell to its last."""

import pytest

from tests.places import ROOT

NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # Of the kernel's own libraries.
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  monkeypatch.setenv('JAXMED_DATA', str(tmp_path / 'data'))
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=1200, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute()
  pictures = [
    output
    for cell in notebook.cells
    for output in cell.get('outputs', ())
    if 'image/png' in output.get('data', {})
  ]
  assert len(pictures) >= 2
