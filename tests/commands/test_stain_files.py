"""`jaxmed stain` and `jaxmed.normalise_stain`."""

import imagecodecs
import numpy as np
import pytest
import tifffile

import jaxmed
from jaxmed import command
from jaxmed.commands import cli, stain_files
from jaxmed.datasets import phantom
from jaxmed.errors import UserError
from jaxmed.scoring.score_files import is_slide
from jaxmed.slides.reader import open_slide
from tests.ops.test_colour import H_AND_E, OTHER, normalised, picture

IMAGES = [picture(H_AND_E), picture(OTHER)]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(command, 'set_up', lambda: None)


def _save(path, pixels):
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(imagecodecs.png_encode(pixels))
  return path


def _stain(*argv) -> int:
  return cli.main(['stain', *map(str, argv)])


def _read(path):
  with open(path, 'rb') as file:
    return imagecodecs.png_decode(file.read())


def test_files_are_written_in_one_look(tmp_path, capsys):
  files = [
    _save(tmp_path / folder / 'a.png', pixels)
    for folder, pixels in zip(('one', 'two'), IMAGES, strict=True)
  ]
  white = _save(tmp_path / 'white.png', np.full((64, 64, 3), 255, np.uint8))
  assert _stain(*files, white, '--out', 'out') == 0
  assert capsys.readouterr().out.splitlines() == [
    'out/a.png',
    'out/a_2.png',
    'out/white.png: no stain of H&E, left as it was',
  ]
  expected, _ = normalised('macenko', np.stack([*IMAGES, IMAGES[0]]))
  for name, wanted in zip(('a', 'a_2'), expected, strict=False):
    found = _read(f'out/{name}.png')
    np.testing.assert_allclose(found, wanted * 255, atol=0.6)
  assert (_read('out/white.png') == 255).all()


def test_the_facade_does_the_same_and_takes_a_target(tmp_path):
  target = _save(tmp_path / 'target.png', IMAGES[0])
  (same,) = jaxmed.normalise_stain([target], target=target)
  assert np.abs(same.astype(float) - IMAGES[0]).mean() < 1
  words = IMAGES[1].astype(np.uint16) * 257
  (made,) = jaxmed.normalise_stain([words], 'reinhard', target)
  assert made.dtype == np.uint16
  before = np.abs(IMAGES[1].astype(float) - IMAGES[0]).mean()
  assert np.abs(made / 257 - IMAGES[0]).mean() < before / 2


def test_a_large_image_is_done_in_strips_with_one_stain(monkeypatch):
  whole = jaxmed.normalise_stain(IMAGES[:1])[0]
  monkeypatch.setattr(stain_files, 'MOST_PIXELS', 64 * 40)
  monkeypatch.setattr(stain_files, 'BAND', 8)
  strips = jaxmed.normalise_stain(IMAGES[:1])[0]
  assert np.abs(strips.astype(float) - whole).mean() < 3
  first, second = strips[:40].astype(float), strips[40:].astype(float)
  assert abs((first - whole[:40]).mean() - (second - whole[40:]).mean()) < 1


def test_of_a_slide_there_is_a_picture(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'slide.tif'
  phantom.write_slide(path, picture(H_AND_E, side=600), mpp=0.5)
  assert is_slide(path)
  monkeypatch.setattr(stain_files, 'SIDE', 128)
  assert _stain(path, '--out', 'out', '--method', 'reinhard') == 0
  with open_slide(path) as slide:
    expected = slide.thumbnail(128)
  found = _read('out/slide.png')
  assert found.shape == expected.shape
  assert (found != expected).any()
  assert 'left' not in capsys.readouterr().out


def test_mistakes_are_one_sentence(tmp_path, capsys):
  good = _save(tmp_path / 'good.png', IMAGES[0])
  _save(tmp_path / 'gray.png', IMAGES[0][..., 0].copy())
  (tmp_path / 'text.png').write_text('text')
  for argv, said in {
    ('none.png', '--out', 'out'): 'There is no file none.png',
    ('text.png', '--out', 'out'): 'text.png is unreadable',
    ('gray.png', '--out', 'out'): 'gray.png has shape (64, 64, 1)',
    ('good.png', '--out', 'good.png'): 'cannot be used',
    ('good.png', '--out', '.'): 'would be written over',
    ('good.png', '--out', 'o', '--method=macenco'): "Did you mean 'macenko'",
    ('good.png', '--out', 'o', '--target=gray.png'): 'no image of H&E',
  }.items():
    assert _stain(*argv) == 2
    assert said in capsys.readouterr().err
  np.testing.assert_array_equal(_read(good), IMAGES[0])
  with pytest.raises(UserError, match='number 0 has shape'):
    jaxmed.normalise_stain([np.zeros((4, 4, 3))])
  with pytest.raises(UserError, match='known: macenko, reinhard'):
    jaxmed.normalise_stain(IMAGES, '')


def test_what_cannot_be_read_does_not_stop_the_others(tmp_path, capsys):
  (tmp_path / 'text.png').write_text('text')
  slide = tmp_path / 'slide.tif'
  phantom.write_slide(slide, picture(H_AND_E, side=600), mpp=0.5)
  broken = tmp_path / 'broken.tif'
  broken.write_bytes(slide.read_bytes())
  with tifffile.TiffFile(slide) as file, broken.open('r+b') as other:
    for page in file.pages:
      other.seek(page.dataoffsets[0])
      other.write(bytes(page.databytecounts[0]))
  files = 'text.png', broken, _save(tmp_path / 'good.png', IMAGES[0])
  assert _stain(*files, '--out', 'out') == 1
  said = capsys.readouterr()
  assert said.out == 'out/good.png\n'
  assert 'text.png is unreadable' in said.err
  assert f"Can't read {broken} at level" in said.err
  assert _stain(broken, '--out', 'out') == 2
