"""Tiles drawn at random, and the places that NCRF and FW-RD take.

Nothing is read: masks say what a tile holds (see grid.py). The same seed draws
the same tiles, and fewer of them are the first of more.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxmed import errors
from jaxmed.slides import grid

ROUNDING = 1e-6  # Of a covered fraction.
BATCH = 1 << 12  # Places drawn at a time.
TRIES = 32  # Places that fit, drawn for each that is asked for.
FRUITLESS = 64  # Batches without any new place, after which none is expected.
# Of NCRF and FW-RD: patches at level 0, chosen on a mask at level 6.
PATCH = 256
APART = 128  # Pixels between training patches, in x or in y.
NEIGHBOURS = 2  # Pixels of the mask to the four diagonal neighbours.
ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class Places:
  """Square tiles anywhere; all lengths in pixels of level 0.

  x, y: of the upper left corners.
  """

  tile: int
  x: Int32[np.ndarray, ' places']
  y: Int32[np.ndarray, ' places']

  def __len__(self) -> int:
    return len(self.x)


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What fraction of a tile a mask has to cover: `least` to `most`."""

  mask: grid.Mask
  least: float = 0.0
  most: float = 1.0

  def fits(
    self, x: np.ndarray, y: np.ndarray, tile: int
  ) -> Bool[np.ndarray, '*places']:
    covered = grid.coverage_at(self.mask, x, y, tile)
    low, high = self.least - ROUNDING, self.most + ROUNDING
    return (covered >= low) & (covered <= high)


def sample(
  size: tuple[int, int],
  tile: int,
  count: int,
  wanted: Sequence[Wanted],
  *,
  seed: int | Sequence[int],
  stride: int | None = None,
  apart: int = 1,
) -> Places:
  """Draws whole tiles of a slide, each place as likely as any other.

  size: (width, height) of level 0.
  count: of tiles; there are fewer where no more can be found.
  wanted: what masks have to cover of each, such as
    [Wanted(tissue, least=0.9), Wanted(lesion, most=0)].
  seed: the same one draws the same tiles, in the same order.
  stride: of the grid on which tiles lie; by default they lie anywhere.
  apart: pixels between two corners, in x or in y, at least; `tile` forbids
    that tiles overlap. No two tiles are the same.
  """
  for name, value in (('tile', tile), ('apart', apart), ('stride', stride)):
    if value is not None and value < 1:
      raise errors.UserError(
        f'Sampling needs {name} of at least 1 px, got {value}.'
      )
  for each in wanted:
    if tuple(each.mask.size) != tuple(size):
      raise errors.UserError(
        f'A slide of {size} px was given a mask of one of {each.mask.size} px.'
      )
  rng = np.random.default_rng(seed)
  if stride is None:
    drawn = _anywhere(rng, size, tile, wanted)
  else:
    drawn = _on_grid(rng, grid.tile_grid(size, tile, stride), wanted)
  return Places(tile, *_distant(drawn, count, apart))


def scoring_places(mask: grid.Mask, tile: int = PATCH) -> Places:
  """A tile around the centre of every marked pixel of a mask.

  They are in the order of the mask's pixels: `scores[mask.pixels] = ...` makes
  a map. At level 6 this is where NCRF and FW-RD score: at (i + 1/2) 64.
  """
  row, column = np.nonzero(mask.pixels)
  across, down = mask.downsample
  x = np.floor((column + 0.5) * across) - tile // 2
  y = np.floor((row + 0.5) * down) - tile // 2
  return Places(tile, x.astype(np.int32), y.astype(np.int32))


def training_places(
  mask: grid.Mask,
  count: int,
  seed: int,
  *,
  tile: int = PATCH,
  apart: int = APART,
  strict: bool = False,
) -> Places:
  """FW-RD's training patches: within the mask, and not too near each other.

  mask: of tissue or tumour at level 6. The four diagonal neighbours, two
    pixels away, of a patch's centre are marked too.
  count: there are fewer where no more can be found.
  strict: draw as the authors' code does, from NumPy's old generator. There
    neighbours beyond the left and upper border are looked for at the opposite
    one, pixels near the right and lower border need no neighbours, patches
    within `apart` of the upper left corner are dropped, and after ten rounds
    of draws with replacement there may be too few.

  As in the authors' code, centres are at i 64, half a pixel of the mask before
  those of `scoring_places`.
  """
  across, down = mask.downsample
  inside = surrounded(mask.pixels, wrap=strict)
  column, row = np.nonzero(inside.T)  # In the authors' order: by x.
  centres = np.stack([np.floor(column * across), np.floor(row * down)])
  centres = centres.astype(np.int64)
  if strict:
    x, y = _authors_draw(centres.T, count, seed, apart).T
  else:
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(centres, axis=1)
    x, y = _distant(iter([shuffled]), count, apart)
  half = tile // 2
  return Places(tile, (x - half).astype(np.int32), (y - half).astype(np.int32))


def surrounded(
  pixels: Bool[np.ndarray, 'height width'], wrap: bool
) -> Bool[np.ndarray, 'height width']:
  """Marked pixels whose four diagonal neighbours are marked."""
  far = NEIGHBOURS
  padded = np.pad(pixels, far, mode='wrap' if wrap else 'constant')
  inside = pixels.copy()
  for rows in (slice(2 * far, None), slice(-2 * far)):
    for columns in (slice(2 * far, None), slice(-2 * far)):
      inside &= padded[rows, columns]
  if wrap:  # An index beyond the end is an error, which keeps the pixel.
    inside[-far:] = pixels[-far:]
    inside[:, -far:] = pixels[:, -far:]
  return inside


def _authors_draw(
  centres: Int64[np.ndarray, 'n 2'], count: int, seed: int, apart: int
) -> Int64[np.ndarray, 'places 2']:
  """Rounds of draws; of two that are too near the later becomes (0, 0).

  (0, 0) stands for nothing, is among the first round's, and repels as well.
  """
  rng = np.random.RandomState(seed)
  found = np.zeros((1, 2), np.int64)
  for _ in range(ROUNDS):
    if len(found) >= count:
      break
    more = centres
    if len(centres) > count:
      more = centres[rng.randint(len(centres), size=count)]
    found = np.concatenate([found, more])
    for i, place in enumerate(found):
      near = (np.abs(found[i + 1 :] - place) < apart).all(axis=1)
      found[i + 1 :][near] = 0
    found = found[found.sum(axis=1) != 0]
  return found[:count]


def _on_grid(
  rng: np.random.Generator, tiles: grid.Grid, wanted: Sequence[Wanted]
) -> Iterator[Int64[np.ndarray, '2 places']]:
  """All tiles of a grid that fit, shuffled."""
  x, y = tiles.x[None, :], tiles.y[:, None]
  fits = np.ones((tiles.rows, tiles.columns), bool)
  for each in wanted:
    fits &= each.fits(x, y, tiles.tile)
  row, column = rng.permutation(np.argwhere(fits)).T
  yield np.stack([tiles.x[column], tiles.y[row]])


def _anywhere(
  rng: np.random.Generator,
  size: tuple[int, int],
  tile: int,
  wanted: Sequence[Wanted],
) -> Iterator[Int64[np.ndarray, '2 places']]:
  """Endless batches of places that fit.

  Corners are drawn from cells; those where nothing can fit are left out, so
  that little tissue on a large slide is found as fast as much.
  """
  x, y, width, height = _cells(size, tile, wanted)
  corners = width * height
  if not len(corners):
    return
  last = corners.cumsum()
  while True:
    number = rng.integers(0, last[-1], BATCH)
    cell = np.searchsorted(last, number, 'right')
    number -= last[cell] - corners[cell]
    place = np.stack(
      [x[cell] + number % width[cell], y[cell] + number // width[cell]]
    )
    fits = np.ones(BATCH, bool)
    for each in wanted:
      fits &= each.fits(*place, tile)
    yield place[:, fits]


def _cells(size, tile: int, wanted) -> tuple[np.ndarray, ...]:
  """x, y, width and height of cells of corners from which a tile may fit.

  All tiles with their corner in a cell lie in one square, and cover no more
  than the square holds.
  """
  cell = max(1, tile // 4)
  sides = [side - tile + 1 for side in size]  # How many corners there are.
  if min(sides) < 1:
    return (np.zeros(0, np.int64),) * 4
  x, y = (np.arange(0, side, cell) for side in sides)
  may = np.ones((len(y), len(x)), bool)
  square = tile + cell - 1
  for each in wanted:
    held = grid.coverage_at(each.mask, x[None, :], y[:, None], square)
    may &= held * (square / tile) ** 2 >= each.least - ROUNDING
  row, column = np.nonzero(may)
  x, y = x[column], y[row]
  return x, y, np.minimum(cell, sides[0] - x), np.minimum(cell, sides[1] - y)


def _distant(
  drawn: Iterator[Int64[np.ndarray, '2 places']], count: int, apart: int
) -> tuple[Int32[np.ndarray, ' places'], Int32[np.ndarray, ' places']]:
  """The first places of which no two are nearer than `apart` in x and y.

  Squares of that side hold one place each, so that only the nine around a
  place need be looked at.
  """
  taken, tried, fruitless = {}, 0, 0
  around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
  for batch in drawn:
    before = len(taken)
    for x, y in batch.T.tolist():
      if len(taken) >= count:
        break
      i, j = x // apart, y // apart
      near = (taken.get((i + di, j + dj)) for di, dj in around)
      if not any(
        other and max(abs(other[0] - x), abs(other[1] - y)) < apart
        for other in near
      ):
        taken[i, j] = x, y
    tried += batch.shape[1]
    fruitless = 0 if len(taken) > before else fruitless + 1
    # Where there is room for few more, most draws are too near another.
    full = fruitless == FRUITLESS or tried > TRIES * count + BATCH
    if len(taken) >= count or full:
      break
  chosen = np.array(list(taken.values()), np.int32).reshape(-1, 2)
  return chosen[:, 0], chosen[:, 1]
