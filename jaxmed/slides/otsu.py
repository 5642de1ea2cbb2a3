"""NCRF's tissue mask: what Otsu's thresholds tell from glass, pen ink apart.

For a slide at level 6. The original keeps x on the first axis; here it is the
second, as everywhere.
"""

import numpy as np
from jaxtyping import Bool, Float64, UInt8

DOWNSAMPLE = 64
RGB_MIN = 50  # Darker is ink, or the scanner's black.
BINS = 256


def otsu_mask(
  image: UInt8[np.ndarray, 'height width 3'], rgb_min: int = RGB_MIN
) -> Bool[np.ndarray, 'height width']:
  """Saturated, not bright in all channels, and not dark in any."""
  *limits, saturated = otsu_thresholds(image)
  glass = np.ones(image.shape[:2], bool)
  light = np.ones(image.shape[:2], bool)
  for channel, limit in zip(np.moveaxis(image, -1, 0), limits, strict=True):
    glass &= channel > limit
    light &= channel > rgb_min
  return (saturation(image) > saturated) & ~glass & light


def otsu_thresholds(
  image: UInt8[np.ndarray, 'height width 3'],
) -> tuple[float, float, float, float]:
  """Of red, green, blue (0 to 255), and of the saturation (0 to 1)."""
  channels = [*np.moveaxis(image, -1, 0), saturation(image)]
  return tuple(float(otsu_threshold(channel)) for channel in channels)


def otsu_threshold(values: np.ndarray) -> float:
  """What best splits the values in two; the upper part lies above it.

  Whole numbers have a bin each, other ones 256 bins from least to largest, of
  which the centre counts.
  """
  least, largest = values.min(), values.max()
  if least == largest:
    return least
  if values.dtype.kind in 'iu':
    centres = np.arange(int(least), int(largest) + 1)
    counts = np.bincount(values.ravel())[centres[0] :]
  else:
    counts, borders = np.histogram(values, BINS)
    centres = (borders[1:] + borders[:-1]) / 2
  # scikit-image counts in float32, which decides between near equals.
  counts = counts.astype(np.float32)
  below, above = counts.cumsum(), counts[::-1].cumsum()[::-1]
  moment = counts * centres
  mean_below = moment.cumsum() / below
  mean_above = (moment[::-1].cumsum() / above[::-1])[::-1]
  between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
  return centres[between.argmax()]


def saturation(
  image: UInt8[np.ndarray, 'height width 3'],
) -> Float64[np.ndarray, 'height width']:
  """That of HSV: the channels' spread, of the brightest; 0 for black."""
  brightest = image.max(axis=-1) * (1 / 255)
  spread = brightest - image.min(axis=-1) * (1 / 255)
  return np.divide(
    spread, brightest, out=np.zeros_like(spread), where=brightest > 0
  )
