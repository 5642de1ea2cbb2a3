import contextlib

import numpy as np
import pytest

from jaxmed import errors
from jaxmed.slides import grid, sampling
from jaxmed.slides.sampling import Wanted

SIZE = (640, 480)


def _mask(seed=0, share=0.5, cell=40, scale=8):
  """Blobs, of `cell` px of level 0, on a mask of `scale` px."""
  rng = np.random.default_rng(seed)
  coarse = rng.random((SIZE[1] // cell, SIZE[0] // cell)) < share
  pixels = coarse.repeat(cell // scale, 0).repeat(cell // scale, 1)
  return grid.Mask(pixels, SIZE)


def _counted(mask, places):
  """The covered fraction of each tile, by counting pixels of level 0."""
  across, down = (int(n) for n in mask.downsample)
  whole = mask.pixels.repeat(down, 0).repeat(across, 1)
  side = places.tile
  return np.array(
    [
      whole[y : y + side, x : x + side].mean()
      for x, y in zip(places.x, places.y, strict=True)
    ]
  )


@pytest.mark.parametrize('stride', [None, 16])
def test_what_is_drawn_is_what_is_wanted(stride):
  tissue, lesion = _mask(), _mask(1, 0.2)
  wanted = [Wanted(tissue, least=0.6), Wanted(lesion, 0.1, 0.5)]
  found = sampling.sample(SIZE, 48, 200, wanted, seed=3, stride=stride)
  assert len(found) == 200 or stride
  assert len(found) > 20 and found.x.dtype == found.y.dtype == np.int32
  assert (_counted(tissue, found) >= 0.6 - 1e-6).all()
  inside = _counted(lesion, found)
  assert (inside >= 0.1 - 1e-6).all() and (inside <= 0.5 + 1e-6).all()
  corners = set(zip(found.x.tolist(), found.y.tolist(), strict=True))
  assert len(corners) == len(found)
  assert found.x.min() >= 0 and found.x.max() + 48 <= SIZE[0]
  assert found.y.min() >= 0 and found.y.max() + 48 <= SIZE[1]
  if stride:
    assert not (found.x % stride).any() and not (found.y % stride).any()
  else:
    assert (found.x % 16).any()


def test_every_place_that_fits_is_found_and_equally_often(monkeypatch):
  """All of them, on a slide so small that they can be counted."""
  pixels = np.zeros((12, 16), bool)
  pixels[2:7, 3:9] = pixels[9:12, 12:16] = True
  mask = grid.Mask(pixels, (32, 24))  # 2 px of level 0 each.
  fits = [
    (x, y)
    for y in range(24 - 8 + 1)
    for x in range(32 - 8 + 1)
    if pixels.repeat(2, 0).repeat(2, 1)[y : y + 8, x : x + 8].mean() >= 0.7
  ]
  wanted = [Wanted(mask, least=0.7)]
  everything = sampling.sample((32, 24), 8, 10_000, wanted, seed=0)
  drawn = list(zip(everything.x.tolist(), everything.y.tolist(), strict=True))
  assert sorted(drawn) == sorted(fits)
  on_grid = sampling.sample((32, 24), 8, 10_000, wanted, seed=0, stride=3)
  drawn = list(zip(on_grid.x.tolist(), on_grid.y.tolist(), strict=True))
  assert sorted(drawn) == sorted((x, y) for x, y in fits if x % 3 == y % 3 == 0)
  # The first of each of many draws: chi-square with len(fits) - 1 degrees.
  monkeypatch.setattr(sampling, 'BATCH', 8)
  firsts = [sampling.sample((32, 24), 8, 1, wanted, seed=s) for s in range(900)]
  places = [(int(f.x[0]), int(f.y[0])) for f in firsts]
  expected = 900 / len(fits)
  counts = np.array([places.count(place) for place in fits])
  chi_square = ((counts - expected) ** 2 / expected).sum()
  assert chi_square < len(fits) + 4 * np.sqrt(2 * len(fits))


@pytest.mark.parametrize('stride', [None, 8])
def test_a_seed_draws_the_same_and_fewer_are_the_first_of_more(stride):
  wanted = [Wanted(_mask(), least=0.5)]
  many, few, other = (
    sampling.sample(SIZE, 32, count, wanted, seed=seed, stride=stride)
    for count, seed in ((500, 1), (20, 1), (500, 2))
  )
  assert (many.x[:20] == few.x).all() and (many.y[:20] == few.y).all()
  assert (many.x != other.x).any()


@pytest.mark.parametrize('stride', [None, 4])
def test_tiles_can_be_kept_apart(stride):
  wanted = [Wanted(_mask(), least=0.5)]
  found = sampling.sample(SIZE, 32, 60, wanted, seed=0, stride=stride, apart=32)
  away = np.maximum(
    np.abs(np.subtract.outer(found.x, found.x)),
    np.abs(np.subtract.outer(found.y, found.y)),
  )
  np.fill_diagonal(away, 32)
  assert len(found) == 60 and away.min() >= 32


def test_a_slide_without_such_tiles_gives_none():
  none = grid.Mask(np.zeros((60, 80), bool), SIZE)
  for stride in (None, 16):
    wanted = [Wanted(none, least=0.1)]
    assert not len(sampling.sample(SIZE, 32, 5, wanted, seed=0, stride=stride))
    assert not len(sampling.sample((20, 500), 32, 5, [], seed=0, stride=stride))
  # Two masks that exclude each other, though either allows every cell.
  mask = _mask()
  inverse = grid.Mask(~mask.pixels, SIZE)
  wanted = [Wanted(mask, least=0.7), Wanted(inverse, least=0.7)]
  assert not len(sampling.sample(SIZE, 32, 5, wanted, seed=0))


def test_little_tissue_on_a_large_slide_is_found():
  pixels = np.zeros((1000, 1200), bool)
  pixels[700:704, 31:35] = True
  mask = grid.Mask(pixels, (120_000, 100_000))
  wanted = [Wanted(mask, least=1.0)]
  found = sampling.sample(mask.size, 256, 300, wanted, seed=0)
  assert len(found) == 300
  assert found.x.min() >= 3100 and found.x.max() <= 3500 - 256
  assert found.y.min() >= 70_000 and found.y.max() <= 70_400 - 256


@pytest.mark.parametrize(
  'given', [{'tile': 0}, {'apart': 0}, {'stride': -2}, {'size': (64, 64)}]
)
def test_mistakes_are_named(given):
  size, tile = given.pop('size', SIZE), given.pop('tile', 32)
  with pytest.raises(errors.UserError, match='at least 1 px|mask of one of'):
    sampling.sample(size, tile, 5, [Wanted(_mask())], seed=0, **given)


def test_places_to_score_are_ncrfs():
  pixels = np.random.default_rng(0).random((7, 9)) < 0.5
  mask = grid.Mask(pixels, (9 * 64, 7 * 64))
  found = sampling.scoring_places(mask)
  expected = [
    (int((i + 0.5) * 64) - 128, int((j + 0.5) * 64) - 128)
    for j in range(7)
    for i in range(9)
    if pixels[j, i]
  ]
  assert list(zip(found.x, found.y, strict=True)) == expected
  scores = np.zeros(pixels.shape)
  scores[pixels] = found.x
  assert (scores[:, 4][pixels[:, 4]] == 4 * 64 + 32 - 128).all()


def _authors(mask, number, seed):
  """FW-RD's draw told pixel by pixel, x first; centres at level 0."""
  random = np.random.RandomState(seed)
  mask, hard = mask.T, mask.T.copy()
  for x, y in np.argwhere(mask):
    with contextlib.suppress(IndexError):
      hard[x, y] = (
        mask[x + 2, y + 2]
        and mask[x - 2, y - 2]
        and mask[x - 2, y + 2]
        and mask[x + 2, y - 2]
      )
  places, rounds = [(0, 0)], 0
  while len(places) < number and rounds < 10:
    rounds += 1
    centres = [tuple(64 * place) for place in np.argwhere(hard)]
    if len(centres) > number:
      chosen = random.randint(len(centres), size=number)
      centres = [centres[i] for i in chosen]
    places = places + centres
    for i in range(len(places)):
      for j in range(i + 1, len(places)):
        across = abs(places[i][0] - places[j][0]) >= 128
        down = abs(places[i][1] - places[j][1]) >= 128
        if not (across or down):
          places[j] = (0, 0)
    places = [place for place in places if sum(place)]
  return places[:number]


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('count', [3, 12, 400])
def test_training_places_are_fw_rds(seed, count):
  rng = np.random.default_rng(seed)
  pixels = rng.random((23, 31)) < 0.8
  pixels[:4, :4] = pixels[-4:] = pixels[:, -3:] = True
  mask = grid.Mask(pixels, (31 * 64, 23 * 64))
  strict = sampling.training_places(mask, count, seed, strict=True)
  centres = list(zip(strict.x + 128, strict.y + 128, strict=True))
  assert centres == _authors(pixels, count, seed)


def test_training_places_without_the_slips():
  pixels = np.random.default_rng(5).random((40, 30)) < 0.9
  mask = grid.Mask(pixels, (30 * 64, 40 * 64))
  found = sampling.training_places(mask, 10_000, 0)
  x, y = (found.x + 128) // 64, (found.y + 128) // 64
  assert x.min() >= 2 and x.max() < 28 and y.min() >= 2 and y.max() < 38
  for i in (-2, 0, 2):
    for j in (-2, 0, 2):
      assert pixels[y + j, x + i].all() or 0 in (i, j) and i != j
  near = (abs(np.subtract.outer(found.x, found.x)) < 128) & (
    abs(np.subtract.outer(found.y, found.y)) < 128
  )
  assert near.sum() == len(found)
  # Nothing more would fit.
  padded = np.pad(pixels, 2)
  inside = pixels & padded[4:, 4:] & padded[:-4, :-4]
  inside &= padded[4:, :-4] & padded[:-4, 4:]
  for j, i in np.argwhere(inside):
    away = np.maximum(abs(x - i), abs(y - j)) * 64
    assert away.min() < 128
  few = sampling.training_places(mask, 7, 0)
  assert (few.x == found.x[:7]).all() and len(few) == 7
