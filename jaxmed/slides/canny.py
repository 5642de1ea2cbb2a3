"""Canny's edge detector, in the words of scikit-image and to its last pixel.

A blur, the gradient, the ridges of its magnitude, and of these the ones that
are strong somewhere. scikit-image is no dependency of ours; its ridges are
found pixel by pixel, here all at once.
"""

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage

Plane = Float64[np.ndarray, 'height width']

SIGMA = 1.0
# Of the magnitude of unnormalised Sobel gradients of an image in [0, 1]. The
# lower one is compared as float32 there.
LOW = float(np.float32(0.1))
HIGH = 0.2


def canny(
  image: Plane, sigma: float = SIGMA, low: float = LOW, high: float = HIGH
) -> Bool[np.ndarray, 'height width']:
  """Edges one pixel wide; none in the outermost pixels."""
  smooth = _blur(image, sigma)
  down = ndimage.sobel(smooth, axis=0)
  right = ndimage.sobel(smooth, axis=1)
  magnitude = np.sqrt(down * down + right * right)
  ridges = _ridges(down, right, magnitude) & (magnitude >= low)
  labels, count = ndimage.label(ridges, np.ones((3, 3)))
  strong = np.zeros(count + 1, bool)
  strong[labels[ridges & (magnitude >= high)]] = True
  return strong[labels]


def _blur(image: Plane, sigma: float) -> Plane:
  """Gaussian blur in which pixels beyond the border have no weight."""
  weight = ndimage.gaussian_filter(np.ones_like(image), sigma, mode='constant')
  smooth = ndimage.gaussian_filter(image, sigma, mode='constant')
  return smooth / (weight + np.finfo(np.float64).eps)


def _ridges(
  down: Plane, right: Plane, magnitude: Plane
) -> Bool[np.ndarray, 'height width']:
  """Where no magnitude along the gradient, on either side, is larger.

  A neighbour along the gradient lies between a pixel beside this one and one
  at its corner.
  """
  ridges = np.zeros(magnitude.shape, bool)
  if min(magnitude.shape) < 3:
    return ridges
  inner = np.s_[1:-1, 1:-1]
  here, down, right = magnitude[inner], down[inner], right[inner]
  rows, columns = magnitude.shape
  # The signs of zero are those of a negative number.
  falls = (down > 0) == (right > 0)
  steep, flat = np.abs(down), np.abs(right)
  vertical = np.where(falls, steep > flat, steep >= flat)
  long, short = np.maximum(steep, flat), np.minimum(steep, flat)
  weight = np.divide(short, long, out=np.zeros_like(long), where=long > 0)
  # Steps to the two neighbours on one side; on the other they are opposite.
  index = np.arange(rows * columns).reshape(rows, columns)[inner]
  corner = np.where(falls, columns + 1, 1 - columns)
  beside = np.where(vertical, np.where(falls, columns, -columns), 1)
  flattened = magnitude.ravel()
  largest = np.ones(here.shape, bool)
  for side in (1, -1):
    near = flattened[index + side * beside]
    far = flattened[index + side * corner]
    largest &= far * weight + near * (1.0 - weight) <= here
  ridges[inner] = largest
  return ridges
