"""What anyone could measure of an image without learning anything.

A method that does not beat these has found brightness, contrast or sharpness,
not disease. `blur` is what an untrained low-pass filter would score as a
reconstruction: 1 - SSIM of the gray image and its blurred copy. None of them
has a direction of its own: the evaluation gives both.
"""

import imagecodecs
import numpy as np
from jaxtyping import Float, UInt8, UInt16
from scipy import ndimage

Images = UInt8[np.ndarray, 'b h w c'] | UInt16[np.ndarray, 'b h w c']

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601.
BLUR = 1.3  # Sigma in px, about what a small autoencoder keeps.
JPEG_QUALITY = 80


def trivial(images: Images) -> dict[str, Float[np.ndarray, ' b']]:
  """Every baseline of each image, on the scale of images in [0, 1]."""
  images = np.asarray(images)
  unit = images.astype(np.float64) / np.iinfo(images.dtype).max
  gray = unit @ LUMA if unit.shape[3] == 3 else unit.mean(axis=3)
  found = {
    'mean_intensity': gray.mean(axis=(1, 2)),
    'contrast': gray.std(axis=(1, 2)),
    'gradient': _gradient(gray),
    'laplacian_energy': _laplacian(gray),
    'blurred_ssim': _blur(gray),
    'jpeg_size': np.array([_jpeg_size(image) for image in images], float),
    'png_size': np.array([_png_size(image) for image in images], float),
  }
  if images.shape[3] == 3:
    found |= {
      name: unit[..., i].mean(axis=(1, 2))
      for i, name in enumerate(('red', 'green', 'blue'))
    }
    found['saturation'] = _saturation(unit)
  return found


def _gradient(gray: np.ndarray) -> np.ndarray:
  """Mean absolute difference of neighbours."""
  down = np.abs(np.diff(gray, axis=1)).sum(axis=(1, 2))
  across = np.abs(np.diff(gray, axis=2)).sum(axis=(1, 2))
  pairs = 2 * gray[0].size - sum(gray.shape[1:])
  return (down + across) / max(pairs, 1)


def _laplacian(gray: np.ndarray) -> np.ndarray:
  """Mean square of the Laplacian: the energy of the finest detail."""
  values = sum(
    ndimage.correlate1d(gray, [1.0, -2.0, 1.0], axis=axis) for axis in (1, 2)
  )
  return np.square(values).mean(axis=(1, 2))


def _blur(gray: np.ndarray) -> np.ndarray:
  """1 - SSIM (Gaussian window, sigma 1.5) against the blurred copy."""
  x, y = gray, ndimage.gaussian_filter(gray, (0, BLUR, BLUR))

  def window(values):
    return ndimage.gaussian_filter(values, (0, 1.5, 1.5), truncate=3.5)

  mean_x, mean_y = window(x), window(y)
  variances = window(x * x + y * y) - mean_x**2 - mean_y**2
  covariance = window(x * y) - mean_x * mean_y
  c1, c2 = 0.01**2, 0.03**2
  values = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
    (mean_x**2 + mean_y**2 + c1) * (variances + c2)
  )
  if min(gray.shape[1:]) > 10:  # Smaller than the window: border and all.
    values = values[:, 5:-5, 5:-5]
  return 1 - values.mean(axis=(1, 2))


def _saturation(unit: np.ndarray) -> np.ndarray:
  """Mean saturation of the HSV model."""
  most, least = unit.max(axis=3), unit.min(axis=3)
  share = np.divide(most - least, most, np.zeros_like(most), where=most > 0)
  return share.mean(axis=(1, 2))


def _jpeg_size(image: np.ndarray) -> int:
  if image.dtype != np.uint8:
    image = (image >> 8).astype(np.uint8)
  return len(imagecodecs.jpeg8_encode(_flat(image), level=JPEG_QUALITY))


def _png_size(image: np.ndarray) -> int:
  return len(imagecodecs.png_encode(_flat(image)))


def _flat(image: np.ndarray) -> np.ndarray:
  """Gray or RGB as it is, any other number of channels side by side."""
  if image.shape[2] == 3:
    return np.ascontiguousarray(image)
  return np.ascontiguousarray(np.moveaxis(image, 2, 1).reshape(len(image), -1))
