"""LPIPS in one line: known answers, ranges, batches, refusals."""

import functools

import numpy as np
import pytest
from PIL import Image

import jaxmed
from jaxmed.errors import UserError
from jaxmed.nn import lpips

RNG = np.random.default_rng(0)
X, Y = RNG.random((2, 3, 24, 20, 3), np.float32)

random = functools.partial(jaxmed.lpips, weights='random')


@pytest.fixture
def real(shared):
  """LPIPS by the trained SqueezeNet, and where the images are."""
  weights = shared('data/weights/squeezenet1_1.npz')
  return (
    functools.partial(jaxmed.lpips, weights=weights),
    shared('data/lpips_images'),
  )


def test_known_answers(real):
  compare, folder = real
  found = [
    compare(folder / 'ex_ref.png', folder / name)
    for name in ('ex_p0.png', 'ex_p1.png')
  ]
  assert found == pytest.approx([0.7112112, 0.14793518], rel=1e-4)
  images = [
    np.asarray(Image.open(folder / name).convert('RGB'))
    for name in ('ex_ref.png', 'ex_p0.png')
  ]
  signed = [image / np.float32(127.5) - 1 for image in images]
  assert compare(*signed, range=(-1, 1)) == pytest.approx(found[0], rel=1e-4)
  mapped = compare(*images, spatial=True)
  assert mapped.shape == images[0].shape[:2]


def test_the_range_is_what_it_says():
  found = random(X, Y)
  assert found.shape == (3,) and (found > 0).all()
  np.testing.assert_allclose(
    random(2 * X - 1, 2 * Y - 1, range=(-1, 1)), found, rtol=1e-4
  )
  np.testing.assert_allclose(
    random(255 * X, 255 * Y, range=(0, 255)), found, rtol=1e-4
  )
  sixteen = [np.round(65535 * z).astype(np.uint16) for z in (X, Y)]
  np.testing.assert_allclose(random(*sixteen), found, rtol=1e-3)
  assert abs(random(X, Y, range=(-1, 1)) - found).max() > 1e-3


def test_images_of_8_and_16_bits_may_lie_in_one_list():
  eight = np.round(255 * X[:2]).astype(np.uint8)
  mixed = [eight[0], eight[1].astype(np.uint16) * 257]
  np.testing.assert_allclose(
    random(mixed, list(Y[:2])), random(eight, Y[:2]), rtol=1e-5
  )


def test_one_image_a_list_and_a_stack_are_the_same():
  whole = random(X, Y)
  one = random(X[0], Y[0])
  assert one.shape == () and one == pytest.approx(whole[0], rel=1e-5)
  np.testing.assert_allclose(random(list(X), list(Y)), whole, rtol=1e-6)
  gray = random(X[0, ..., 0], Y[0, ..., 0])
  three = random(*(z[0, ..., :1].repeat(3, -1) for z in (X, Y)))
  assert gray == pytest.approx(three, rel=1e-5)


def test_more_than_goes_at_once_is_the_same(monkeypatch):
  whole = random(X, Y)
  monkeypatch.setattr('jaxmed.perceptual.AT_ONCE', 2 * 24 * 20)
  np.testing.assert_allclose(random(X, Y), whole, rtol=1e-5)


def test_a_network_is_loaded_once(monkeypatch):
  random(X, Y)
  monkeypatch.setattr('jaxmed.pretrained.load', None)
  random(Y, X)


@pytest.mark.parametrize(
  ('call', 'says'),
  [
    (lambda: random(2 * X - 1, Y), r'in \[0, 1\] but hold values from -'),
    (lambda: random(255 * X, Y), r'give their range, e.g. range=\(-1, 1\)'),
    (lambda: random(np.where(X > 0.9, np.nan, X), Y), 'NaN or infinite'),
    (lambda: random(np.where(X > 0.9, np.inf, X), Y), 'NaN or infinite'),
    (lambda: random(X[:, :1, :1], Y[:, :1, :1]), 'images of 17 px at least'),
    (lambda: random(X, Y[:, :20]), 'of one shape, but got'),
    (lambda: random(X[0], Y), 'of one shape, but got'),
    (lambda: random([X[0], X[1, :20]], Y), r'got \[20, 20, 3\], \[24, 20, 3\]'),
    (lambda: random([], []), 'got none'),
    (lambda: random(X[0, :0], Y[0, :0]), r'got \[0, 20, 3\]'),
    (lambda: random(X[0, 0, 0], Y[0, 0, 0]), r'got \[3\]'),
    (lambda: random(X, Y, range=(1, 0)), 'is empty'),
    (lambda: random(X, Y, range=5), 'range=5 is no pair of numbers'),
    (lambda: random(X, Y, range=(1, 2, 3)), 'is no pair of numbers'),
    (lambda: random(X, None), 'An image is missing'),
    (lambda: random(X, Y, network='vgg19'), "Did you mean 'vgg'"),
    (lambda: random(X.astype(np.int64), Y), 'not int64'),
    (lambda: random(X[..., :2], Y[..., :2]), 'not 2 channels'),
  ],
)
def test_what_cannot_be_is_one_sentence(call, says):
  with pytest.raises(UserError, match=says) as caught:
    call()
  assert str(caught.value).count('. ') <= 2


def test_weights_that_are_not_here_are_said(monkeypatch, tmp_path):
  monkeypatch.setenv('JAXMED_WEIGHTS', str(tmp_path))
  with pytest.raises(UserError, match='jaxmed weights fetch alexnet'):
    jaxmed.lpips(*RNG.random((2, 40, 40, 3)), network='alex')
  assert set(lpips.KINDS) == {'alex', 'vgg', 'squeeze'}
