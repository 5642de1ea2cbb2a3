"""The tissue filters of CODAIT's deep-histopath, for slides and for tiles.

`slide_filter` is that of its wsi/filter.py: a pixel is tissue where it is not
too green, not gray and not pen; for a slide at 1/32. The older `tile_checks`
of its preprocessing.py look at one tile at a time: whether it is full of edges,
and whether it absorbs light. The numbers are the authors'.

A slip of theirs, at pixels whose channels add up to 256 or 512, can be had
with `strict=True`; see `tissue_share`.
"""

import math

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from scipy import ndimage

from jaxmed.slides import canny

Image = UInt8[np.ndarray, 'height width 3']
Marked = Bool[np.ndarray, 'height width']

DOWNSAMPLE = 32  # At which the slide filter was made.
GREEN = 200  # Tissue has less; above 90 % masked, the limit is raised.
GREEN_OVERMASK = 90.0
GRAY = 15  # Channels that differ by no more are gray.
SMALLEST = 500  # Pixels of a part at 1/32.
SMALLEST_OVERMASK = 95.0
# A pen's colour: above the limit in one channel, below it in another.
RED_PEN = (  # Red above, green and blue below.
  (150, 80, 90),
  (110, 20, 30),
  (185, 65, 105),
  (195, 85, 125),
  (220, 115, 145),
  (125, 40, 70),
  (200, 120, 150),
  (100, 50, 65),
  (85, 25, 45),
)
GREEN_PEN = (  # Red below, green and blue above.
  (150, 160, 140),
  (70, 110, 110),
  (45, 115, 100),
  (30, 75, 60),
  (195, 220, 210),
  (225, 230, 225),
  (170, 210, 200),
  (20, 30, 20),
  (50, 60, 40),
  (30, 50, 35),
  (65, 70, 60),
  (100, 110, 105),
  (165, 180, 180),
  (140, 140, 150),
  (185, 195, 195),
)
BLUE_PEN = (  # Red and green below, blue above.
  (60, 120, 190),
  (120, 170, 200),
  (175, 210, 230),
  (145, 180, 210),
  (37, 95, 160),
  (30, 65, 130),
  (130, 155, 180),
  (40, 35, 85),
  (30, 20, 65),
  (90, 90, 140),
  (60, 60, 120),
  (110, 110, 175),
)
PENS = (  # Rules, and which channels must lie above.
  (RED_PEN, (True, False, False)),
  (GREEN_PEN, (False, True, True)),
  (BLUE_PEN, (False, False, True)),
)
GRAY_WEIGHTS = (0.2125, 0.7154, 0.0721)
EDGE_RADIUS, DENSE_RADIUS = 10, 2  # By which the checks' marks grow.
BETA = 0.15  # Smallest optical density of tissue, in every channel.


def slide_filter(
  image: Image, smallest: float = SMALLEST, strict: bool = False
) -> Marked:
  """Tissue of a picture of a whole slide; `smallest` part in pixels."""
  kept = not_green(image) & not_gray(image) & ~pen(image)
  kept = without_small(kept, smallest)
  return kept & ~_wrapped(image) if strict else kept


def not_green(
  image: Image, limit: int = GREEN, avoid_overmask: bool = True
) -> Marked:
  """Where green is above 0 and below the limit.

  While that leaves 10 % or less, the limit is raised half way to 255.
  """
  green = image[..., 1]
  while True:
    kept = (green < limit) & (green > 0)
    enough = _masked_percent(kept) < GREEN_OVERMASK
    if enough or limit >= 255 or not avoid_overmask:
      return kept
    limit = math.ceil((255 - limit) / 2 + limit)


def not_gray(image: Image, tolerance: int = GRAY) -> Marked:
  """Where some two channels differ by more than the tolerance."""
  spread = image.max(axis=-1) - image.min(axis=-1)  # No uint8 wraps here.
  return spread > tolerance


def pen(image: Image) -> Marked:
  """Red, green or blue ink."""
  found = np.zeros(image.shape[:2], bool)
  for rules, above in PENS:
    for limits in rules:
      red, green, blue = (
        channel > limit if over else channel < limit
        for channel, limit, over in zip(
          np.moveaxis(image, -1, 0), limits, above, strict=True
        )
      )
      found |= red & green & blue
  return found


def without_small(
  kept: Marked, smallest: float = SMALLEST, avoid_overmask: bool = True
) -> Marked:
  """The mask less its parts (neighbours by sides) of fewer pixels.

  While that leaves 5 % or less, the smallest part is halved.
  """
  labels, count = ndimage.label(kept)
  sizes = np.bincount(labels.ravel(), minlength=count + 1)
  glass, sizes = sizes[0], sizes[1:]
  while True:
    large = sizes >= smallest
    masked = 100 - sizes[large].sum() / (glass + sizes.sum()) * 100
    if masked < SMALLEST_OVERMASK or smallest < 1 or not avoid_overmask:
      return np.concatenate([[False], large])[labels]
    smallest = smallest / 2


def tissue_share(image: Image, kept: Marked, strict: bool = False) -> float:
  """The share of pixels that are kept and not black.

  The original blackens the others and counts pixels whose channels do not add
  up to zero, in uint8: where they add up to 256 or 512 a pixel counts as
  masked. `strict` does the same.
  """
  black = _wrapped(image) if strict else ~image.any(axis=-1)
  return float((kept & ~black).mean())


def keep_tile(
  tile: Image, side: int, threshold: float, beta: float = BETA
) -> bool:
  """Whether a tile has the side, and enough tissue by both checks."""
  if tile.shape[:2] != (side, side):
    return False
  return all(check.mean() >= threshold for check in tile_checks(tile, beta))


def tile_checks(tile: Image, beta: float = BETA) -> tuple[Marked, Marked]:
  """Tissue by its edges, and by its optical density."""
  dense = optical_density(tile).min(axis=-1) >= beta
  return _grown(edges(tile), EDGE_RADIUS), _grown(dense, DENSE_RADIUS)


def edges(tile: Image) -> Marked:
  """Canny's edges of the tile in gray, dark as high."""
  gray = (tile * (1 / 255)) @ np.array(GRAY_WEIGHTS)
  return canny.canny(1 - gray)


def optical_density(tile: Image) -> Float64[np.ndarray, 'height width 3']:
  """Absorbed light; 240 is taken for glass, so that glass may be negative."""
  return -np.log((tile.astype(np.float64) + 1) / 240)


def _grown(mask: Marked, radius: int) -> Marked:
  """Closed and dilated by a disk, holes filled; beyond the border is nothing.

  A disk is a distance: two transforms stand for three passes of 317 pixels.
  """
  grown = _dilated(mask, radius)
  closed = ~_dilated(~grown, radius)
  return ndimage.binary_fill_holes(_dilated(closed, radius))


def _dilated(mask: Marked, radius: int) -> Marked:
  """All pixels within the radius of a marked one."""
  if not mask.any():
    return mask
  away = ndimage.distance_transform_edt(~mask)
  # Distances are roots of whole numbers.
  return np.rint(np.square(away)) <= radius**2


def _masked_percent(kept: Marked) -> float:
  return 100 - np.count_nonzero(kept) / kept.size * 100


def _wrapped(image: Image) -> Marked:
  """Where the channels add up to 0 in uint8: to 0, 256 or 512."""
  return image.sum(axis=-1, dtype=np.uint8) == 0
