"""Finds the tissue of a slide stained with haematoxylin and eosin.

At a few micrometres per pixel, tissue is what absorbs green light. Both dyes
absorb green more than red, which tells them from blue, green and black pen;
eosin and haematoxylin leave blue light alone more than a red pen does.
"""

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from jaxmed.slides import grid, reader

MPP = 4.0  # Of the mask.
ABSORBS = 0.12  # Optical density (natural logarithm) of the palest tissue.
INK = 0.35  # Of the palest pen that is told from tissue by its colour.
INK_MARGIN = 12.0  # Micrometres around a pen stroke that are not trusted.
SMALLEST_TISSUE = 3000.0  # Square micrometres; less is dust.
SMALLEST_HOLE = 300.0  # A smaller hole belongs to the tissue: a capillary.


def tissue_mask(slide: reader.Slide, mpp: float = MPP) -> grid.Mask:
  """The slide's tissue, pen marks excluded, at about `mpp`."""
  downsample = max(1.0, mpp / slide.mpp)
  pixels = slide.overview(downsample)
  return grid.Mask(find_tissue(pixels, slide.mpp * downsample), slide.size)


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
