import numpy as np

from jaxmed.slides import detections


def test_places_are_whole_and_confidences_exact(tmp_path):
  rows = np.array([(np.float32(0.1), 97_000, 12), (1e-9, 0, 200_123)])
  path = tmp_path / 'test_001.csv'
  detections.write_detections(path, rows)
  assert path.read_text() == '0.100000001,97000,12\n1e-09,0,200123\n'
  assert list(tmp_path.iterdir()) == [path]
  found = np.loadtxt(path, delimiter=',')
  assert (found[:, 0].astype('f4') == rows[:, 0].astype('f4')).all()


def test_a_slide_without_any_has_an_empty_file(tmp_path):
  path = tmp_path / 'none.csv'
  detections.write_detections(path, np.zeros((0, 3)))
  assert path.read_bytes() == b''
