"""Pictures inside the page, made small enough that the page stays light."""

import base64
import io
import pathlib
import warnings

import numpy as np
from PIL import Image

BUDGET = 3_500_000  # Bytes of all pictures, as they stand in the page.
PIXELS = 50_000_000  # A larger picture is not opened: maps are thumbnails.


class Pictures:
  """Turns image files into data URIs until the page's budget is spent."""

  def __init__(self, budget: int = BUDGET):
    self._left = budget
    self.left_out = 0

  def embed(self, path: pathlib.Path | None, side: int) -> dict:
    """{uri, width, height}, or {missing: why}; longer side: `side` px."""
    if path is None:
      return {'missing': 'no file'}
    try:
      image = _open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
      return {'missing': 'unreadable'}
    return self.embed_image(image, side)

  def embed_image(self, image: Image.Image, side: int) -> dict:
    """The same of an image that is in memory."""
    if max(image.size) > side:
      image.thumbnail((side, side), Image.Resampling.LANCZOS)
    uri = _encode(image)
    if len(uri) > self._left:
      self.left_out += 1
      return {'missing': 'left out to keep this file small'}
    self._left -= len(uri)
    return {'uri': uri, 'width': image.width, 'height': image.height}


def _open(path: pathlib.Path) -> Image.Image:
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    with Image.open(path) as image:
      if image.width * image.height > PIXELS:
        raise ValueError(f'{path.name} has {image.size} px')
      image.load()
      if image.mode.startswith('I') or image.mode == 'F':  # 16 bit, float.
        values = np.asarray(image, np.float64)
        scale = 255 / max(values.max(), 1e-12)
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
      if image.mode in ('1', 'L'):
        return image.convert('L')
      alpha = image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
      return image.convert('RGBA' if alpha else 'RGB')


def _encode(image: Image.Image) -> str:
  """Small pictures stay exact; larger ones become WebP of high quality."""
  stream = io.BytesIO()
  if max(image.size) <= 96:
    kind = 'png'
    image.save(stream, 'PNG', optimize=True)
  else:
    kind = 'webp'
    image.save(stream, 'WEBP', quality=82, method=4)
  data = base64.b64encode(stream.getvalue()).decode('ascii')
  return f'data:image/{kind};base64,{data}'
