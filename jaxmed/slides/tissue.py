"""Finds the tissue of a slide stained with haematoxylin and eosin.

`tissue_mask` has three methods. 'codait' and 'otsu' are published ones, in
modules of their own. 'stain' is ours: at a few micrometres per pixel, tissue is what absorbs green light. Both dyes
absorb green more than red, which tells them from blue, green and black pen;
eosin and haematoxylin leave blue light alone more than a red pen does.
"""

import numpy as np
from jaxtyping import Bool, Float32, UInt8
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


def find_tissue(
  image: UInt8[np.ndarray, 'height width 3'], mpp: float
) -> Bool[np.ndarray, 'height width']:
  """Tissue of a picture of a whole slide; see `tissue_mask`."""
  density = optical_density(image)
  ink = find_ink(density)
  ink = ndimage.binary_opening(ink, np.ones((2, 2)))
  if ink.any():
    distance = ndimage.distance_transform_edt(~ink)
    ink = distance * mpp <= INK_MARGIN
  tissue = (density[..., 1] > ABSORBS) & ~ink
  tissue = ndimage.binary_opening(tissue, np.ones((2, 2)))
  tissue = _without_small(tissue, SMALLEST_TISSUE / mpp**2)
  holes = ~tissue & ~ink
  return tissue | (holes & ~_without_small(holes, SMALLEST_HOLE / mpp**2))


def optical_density(
  image: UInt8[np.ndarray, 'height width 3'],
) -> Float32[np.ndarray, 'height width 3']:
  """Absorbed light, as minus the logarithm of its share of the glass's."""
  # Glass is the brightest thing on a slide, if the slide shows any.
  glass = np.percentile(image.reshape(-1, 3), 99, axis=0)
  glass = np.clip(glass, 225, 255).astype(np.float32)
  return -np.log((image.astype(np.float32) + 1) / (glass + 1))


def find_ink(
  density: Float32[np.ndarray, 'height width 3'],
) -> Bool[np.ndarray, 'height width']:
  """Pen of any colour: absorption that the two dyes can't mix."""
  red, green, blue = np.moveaxis(density, -1, 0)
  cold = (red > INK) & (red > 1.15 * green)  # Blue and green pen.
  gray = (blue > 2 * INK) & (np.minimum(red, blue) > 0.85 * green)
  warm = (blue > INK) & (blue > 0.65 * green) & (red < 0.5 * blue)
  return cold | gray | warm


def _without_small(
  mask: Bool[np.ndarray, 'height width'], pixels: float
) -> Bool[np.ndarray, 'height width']:
  """The mask less its connected parts of fewer than `pixels` pixels."""
  labels, count = ndimage.label(mask)
  sizes = np.bincount(labels.ravel(), minlength=count + 1)
  keep = sizes >= pixels
  keep[0] = False
  return keep[labels]
