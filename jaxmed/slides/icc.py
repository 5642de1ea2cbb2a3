"""A scanner's colours as sRGB, by the ICC profile that it wrote."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

Transform = Callable[[np.ndarray], np.ndarray]


def to_srgb(profile: bytes) -> Transform:
  """A function from pixels in the profile's colours to pixels in sRGB.

  Raises ValueError for a profile that is none, or not of RGB.
  """
  try:
    known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(
      known,
      ImageCms.createProfile('sRGB'),
      'RGB',
      'RGB',
      ImageCms.getDefaultIntent(known),
    )
  except (ImageCms.PyCMSError, OSError) as error:
    raise ValueError(str(error)) from error

  def apply(pixels: np.ndarray) -> np.ndarray:
    image = ImageCms.applyTransform(Image.fromarray(pixels), transform)
    return np.array(image)

  return apply
