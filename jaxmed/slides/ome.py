"""What an OME-TIFF's XML says: which of its images is the slide, and its scale.

Such a file may hold the label and the macro image as further images; they are
told by their names and left alone.
"""

import re

import defusedxml.ElementTree
import tifffile

# As words of their own, also as in SlideLabel or MacroImage: a slide may be of
# macrophages, or unlabelled.
ASIDE = re.compile(
  '((?<![A-Za-z])(?i:label|macro|overview|thumbnail)'
  '|Label|Macro|Overview|Thumbnail)(?i:s|image)?(?![A-Za-z])'
)
MICROMETRES = {
  'µm': 1.0,
  'μm': 1.0,  # Another letter that looks the same.
  'um': 1.0,
  'nm': 1e-3,
  'mm': 1e3,
  'cm': 1e4,
  'm': 1e6,
  'Å': 1e-4,
  'pm': 1e-6,
  'in': 25400.0,
}


def main_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
  """The largest image that isn't named as a picture of the glass."""
  found = [series for series in tiff.series if not ASIDE.search(series.name)]
  if not found:
    raise ValueError('its OME-XML names no image but labels')
  series = max(found, key=lambda one: one.keyframe.imagewidth)
  if len(series.pages) != 1:
    raise ValueError(
      f'its image {series.name!r} has {len(series.pages)} planes '
      f'({series.axes} of {series.shape}); expected one of RGB'
    )
  return series


def pixel_size(
  tiff: tifffile.TiffFile, page: tifffile.TiffPage
) -> tuple[str, str]:
  """Micrometres per pixel in x and y of the image with the page's size."""
  root = defusedxml.ElementTree.fromstring(tiff.ome_metadata)
  for pixels in root.findall('.//{*}Pixels'):
    size = pixels.get('SizeX'), pixels.get('SizeY')
    if size == (str(page.imagewidth), str(page.imagelength)):
      x, y = _length(pixels, 'X'), _length(pixels, 'Y')
      return (x, y) if x or y else ('', '')
  return '', ''


def _length(pixels, axis: str) -> str:
  value = pixels.get(f'PhysicalSize{axis}')
  unit = MICROMETRES.get(pixels.get(f'PhysicalSize{axis}Unit', 'µm'))
  if value is None or unit is None:
    return ''
  try:
    return str(float(value) * unit)
  except ValueError:
    return value
