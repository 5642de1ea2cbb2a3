import numpy as np
import pytest

from jaxmed.slides import detections


def test_what_is_written_is_read(tmp_path):
  rows = np.array([(np.float32(0.1), 97_000, 12), (1e-9, 0, 200_123)])
  path = tmp_path / 'test_001.csv'
  detections.write_detections(path, rows)
  assert path.read_text() == '0.100000001,97000,12\n1e-09,0,200123\n'
  found = detections.read_detections(path)
  assert (found[:, 1:] == rows[:, 1:]).all()
  assert (found[:, 0].astype(np.float32) == rows[:, 0].astype('f4')).all()


def test_a_slide_without_any_has_an_empty_file(tmp_path):
  path = tmp_path / 'none.csv'
  detections.write_detections(path, np.zeros((0, 3)))
  assert path.read_bytes() == b''
  assert detections.read_detections(path).shape == (0, 3)


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('confidence,x,y\n', 'line 1, is'),
    ('0.5,1,2\n0.5,1\n', 'line 2, is'),
    ('nan,1,2\n', 'not finite'),
    (b'\xff\xfe', "can't be read"),
    (None, 'empty file'),
  ],
)
def test_what_is_no_list_of_detections(tmp_path, text, said):
  path = tmp_path / 'a.csv'
  if text is not None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(detections.DetectionsError, match=said):
    detections.read_detections(path)
