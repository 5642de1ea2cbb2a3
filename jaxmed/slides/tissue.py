"""Finds the tissue of a slide stained with haematoxylin and eosin.

Two methods of `tissue_mask` are published ones: see codait.py and otsu.py. The
one here is the default. At a few micrometres per pixel, tissue is what absorbs
green light. Both dyes absorb green more than red, which tells them from blue,
green and black pen; eosin and haematoxylin leave blue light alone more than a
red pen does.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image
from scipy import ndimage

from jaxmed import errors
from jaxmed.slides import codait, grid, otsu, reader

METHODS = ('stain', 'codait', 'otsu')
MPP = 4.0  # Of the mask.
ABSORBS = 0.12  # Optical density (natural logarithm) of the palest tissue.
INK = 0.35  # Of the palest pen that is told from tissue by its colour.
INK_MARGIN = 12.0  # Micrometres around a pen stroke that are not trusted.
SMALLEST_TISSUE = 3000.0  # Square micrometres; less is dust.
SMALLEST_HOLE = 300.0  # A smaller hole belongs to the tissue: a capillary.
BAND = 256  # Rows whose densities are in memory at a time.
OUTLINE = (27, 158, 90)  # Green, which no stain has.


def tissue_mask(
  slide: reader.Slide,
  method: str = 'stain',
  mpp: float | None = None,
  strict: bool = False,
) -> grid.Mask:
  """The slide's tissue, pen marks excluded.

  method: 'stain'; 'codait' (see codait.py); or 'otsu' (see otsu.py).
  mpp: of the mask, about. By default what the method was made for: 4 um, a
    thirty-second or a sixty-fourth of level 0.
  strict: also do what the authors of 'codait' did by mistake.
  """
  if method not in METHODS:
    raise errors.unknown('tissue method', method, METHODS)
  if strict and method != 'codait':
    raise errors.UserError(
      f"strict=True repeats slips of the method 'codait'; {method!r} has none."
    )
  if mpp is not None and not mpp > 0:
    raise errors.UserError(
      f'A tissue mask needs mpp above 0 micrometres per pixel, got {mpp}.'
    )
  natural = {'codait': codait.DOWNSAMPLE, 'otsu': otsu.DOWNSAMPLE}
  downsample = natural.get(method, MPP / slide.mpp)
  if mpp is not None:
    downsample = mpp / slide.mpp
  downsample = max(1.0, downsample)
  pixels = slide.overview(downsample)
  if method == 'stain':
    found = find_tissue(pixels, slide.mpp * downsample)
  elif method == 'codait':
    # The smallest part keeps its area, whatever the mask's scale.
    smallest = codait.SMALLEST * (codait.DOWNSAMPLE / downsample) ** 2
    found = codait.slide_filter(pixels, smallest, strict)
  else:
    found = otsu.otsu_mask(pixels)
  return grid.Mask(found, slide.size)


def outlined(
  thumbnail: UInt8[np.ndarray, 'height width 3'], mask: grid.Mask
) -> UInt8[np.ndarray, 'height width 3']:
  """The thumbnail with a line around the tissue; all else is faded."""
  height, width = thumbnail.shape[:2]
  pixels = Image.fromarray(mask.pixels.astype(np.uint8) * 255)
  inside = np.asarray(pixels.resize((width, height), Image.BOX)) > 127
  thick = max(2, round(max(height, width) / 500))
  line = _around(inside, thick) & ~inside
  faded = 255 - (255 - thumbnail) // 3
  picture = np.where(inside[..., None], thumbnail, faded)
  picture[line] = OUTLINE
  return picture


def find_tissue(
  image: UInt8[np.ndarray, 'height width 3'], mpp: float
) -> Bool[np.ndarray, 'height width']:
  """Tissue of a picture of a whole slide; see `tissue_mask`."""
  glass = _glass(image)
  ink, tissue = (np.empty(image.shape[:2], bool) for _ in range(2))
  for top in range(0, len(image), BAND):
    rows = slice(top, top + BAND)
    density = optical_density(image[rows], glass)
    ink[rows] = find_ink(density)
    tissue[rows] = density[..., 1] > ABSORBS
  ink = _around(_opened(ink), INK_MARGIN / mpp)
  tissue = _opened(tissue & ~ink)
  tissue = _without_small(tissue, SMALLEST_TISSUE / mpp**2)
  holes = ~tissue & ~ink
  return tissue | (holes & ~_without_small(holes, SMALLEST_HOLE / mpp**2))


def optical_density(
  image: UInt8[np.ndarray, 'height width 3'],
  glass: Sequence[float] | None = None,
) -> Float32[np.ndarray, 'height width 3']:
  """Absorbed light, as minus the logarithm of its share of the glass's."""
  glass = _glass(image) if glass is None else glass
  values = np.arange(1, 257, dtype=np.float32)  # Few logarithms are needed.
  planes = np.empty((3, *image.shape[:2]), np.float32)
  for channel, white in enumerate(glass):
    table = -np.log(values / np.float32(white + 1))
    planes[channel] = table[image[..., channel]]
  return np.moveaxis(planes, 0, -1)


def _glass(image: UInt8[np.ndarray, 'height width 3']) -> list[float]:
  """Each channel of the brightest thing on a slide, if it shows any glass."""
  whites = [_percentile(image[..., channel], 99) for channel in range(3)]
  return [float(np.clip(white, 225, 255)) for white in whites]


def _percentile(
  plane: UInt8[np.ndarray, 'height width'], share: float
) -> float:
  """As NumPy's, by counting."""
  counts = np.zeros(256, np.int64)
  for top in range(0, len(plane), BAND):
    counts += np.bincount(plane[top : top + BAND].ravel(), minlength=256)
  order = counts.cumsum()
  place = share / 100 * (plane.size - 1)
  low, high = np.searchsorted(order, (int(place), int(np.ceil(place))), 'right')
  return low + (high - low) * (place % 1)


def find_ink(
  density: Float32[np.ndarray, 'height width 3'],
) -> Bool[np.ndarray, 'height width']:
  """Pen of any colour: absorption that the two dyes can't mix."""
  red, green, blue = np.moveaxis(density, -1, 0)
  cold = (red > INK) & (red > 1.15 * green)  # Blue and green pen.
  gray = (blue > 2 * INK) & (np.minimum(red, blue) > 0.85 * green)
  warm = (blue > INK) & (blue > 0.65 * green) & (red < 0.5 * blue)
  return cold | gray | warm


def _opened(
  mask: Bool[np.ndarray, 'height width'],
) -> Bool[np.ndarray, 'height width']:
  """The pixels that lie in a marked square of four."""
  squares = mask[1:, 1:] & mask[1:, :-1] & mask[:-1, 1:] & mask[:-1, :-1]
  opened = np.zeros_like(mask)
  for rows in (slice(1, None), slice(-1)):
    for columns in (slice(1, None), slice(-1)):
      opened[rows, columns] |= squares
  return opened


def _around(
  mask: Bool[np.ndarray, 'height width'], radius: float
) -> Bool[np.ndarray, 'height width']:
  """All pixels within the radius of a marked one."""
  if not mask.any():
    return mask
  rows = len(mask)
  around = np.zeros_like(mask)
  for away in range(min(int(radius), rows - 1) + 1):
    reach = int(np.sqrt(radius**2 - away**2))
    wide = ndimage.maximum_filter1d(
      mask, 2 * reach + 1, axis=1, mode='constant'
    )
    around[away:] |= wide[: rows - away]
    around[: rows - away] |= wide[away:]
  return around


def _without_small(
  mask: Bool[np.ndarray, 'height width'], pixels: float
) -> Bool[np.ndarray, 'height width']:
  """The mask less its connected parts of fewer than `pixels` pixels."""
  labels, count = ndimage.label(mask)
  sizes = np.bincount(labels.ravel(), minlength=count + 1)
  keep = sizes >= pixels
  keep[0] = False
  return keep[labels]
