"""Masks of lesions in TIFF: 1 or 255 where a lesion is, 0 elsewhere.

A mask spans its slide, at the slide's resolution or a coarser one, often as a
pyramid of many gigabytes once decoded. Only pixels that are asked for are
kept, one tile at a time.
"""

import logging
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tifffile
from scipy import ndimage

from jaxmed.slides import grid
from jaxmed.slides.annotations import AnnotationError, Polygon, outlines

PIECE_BYTES = 128 << 20  # Of one decoded tile or strip, at most.
READ_BYTES = 16 << 20  # Of compressed tiles, at a time.
MARKS = (1, 255)  # ASAP writes 1, the official masks of Camelyon16 have 255.


def read_mask(
  path: str | os.PathLike,
  size: tuple[int, int],
  downsample: float,
  exact: bool = False,
) -> grid.Mask:
  """The mask of a slide of this (width, height), reduced `downsample` times.

  A pixel is marked where the mask is at its centre. That is looked up in the
  coarsest level of the pyramid that is as fine as what was asked for; of
  several channels the first counts. The mask's pixels span the slide; with
  `exact` they are just `downsample` wide, and the last may lie partly beyond.
  """
  path = pathlib.Path(path)
  logging.getLogger('tifffile').setLevel(logging.CRITICAL)
  shape = tuple(math.ceil(side / downsample) for side in size[::-1])
  span = tuple(size)
  if exact:
    span = shape[1] * downsample, shape[0] * downsample
  try:
    with tifffile.TiffFile(path) as tiff:
      levels = _levels(path, list(_pages(tiff)), size)
      fine = [p for p in levels if p.imagelength >= shape[0]]
      page = (fine or levels)[-1]
      return grid.Mask(_sample(path, page, shape, size, span), span)
  except AnnotationError:
    raise
  except FileNotFoundError as error:
    raise AnnotationError(f'There is no annotation at {path}.') from error
  except Exception as error:  # Codecs and tifffile have errors of many types.
    raise AnnotationError(
      f"{path} can't be read as a mask in TIFF ({error})."
    ) from error


def _pages(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
  """All of a file, also those that hang on others."""
  for page in tiff.pages:
    yield page
    yield from page.pages or ()


def _levels(
  path: pathlib.Path, pages: list, size: tuple[int, int]
) -> list[tifffile.TiffPage]:
  """The pages that span the slide, finest first."""
  width, height = size
  # Where sides are rounded, either may be wrong by a pixel.
  levels = [
    page
    for page in pages
    if abs(page.imagewidth / width - page.imagelength / height)
    <= 1.01 / min(size)
  ]
  if not levels:
    found = [f'{page.imagewidth} x {page.imagelength}' for page in pages[:3]]
    raise AnnotationError(
      f'{path} has {", ".join(found) or "no pixels"}, which is not of the '
      f'shape of its slide, {width} x {height}; is it the mask of another one?'
    )
  levels.sort(key=lambda page: -page.imagewidth)
  alike = [p for p in levels if p.samplesperpixel == levels[0].samplesperpixel]
  return [_checked(path, page) for page in alike]


def _checked(path: pathlib.Path, page: tifffile.TiffPage) -> tifffile.TiffPage:
  if page.dtype is None or page.dtype.kind not in 'bui':
    raise AnnotationError(
      f'{path} has pixels of type {page.dtype}, expected whole numbers.'
    )
  piece = page.chunks[-3:] if page.planarconfig == 1 else page.chunks[-2:]
  bytes_ = math.prod(piece) * page.dtype.itemsize
  if bytes_ > PIECE_BYTES:
    raise AnnotationError(
      f'{path} has pieces of {bytes_ >> 20} MB; save it in tiles, at most '
      f'{PIECE_BYTES >> 20} MB each.'
    )
  return page


def _sample(
  path: pathlib.Path,
  page: tifffile.TiffPage,
  shape: tuple[int, int],
  size: tuple[int, int],
  span: tuple[float, float],
) -> np.ndarray:
  """Which pixels of a picture of this shape have their centre on a mark.

  The picture spans so much of a slide of this size.
  """
  rows = _places(shape[0], span[1], size[1], page.imagelength)
  columns = _places(shape[1], span[0], size[0], page.imagewidth)
  marked = np.zeros(shape, bool)
  seen = set()

  def take(piece) -> None:
    """Keeps a decoded piece's part, in the thread that has decoded it."""
    pixels, (channel, _, y, x, _), (_, height, width, _) = piece
    if pixels is None or channel:  # A piece that is left out has zeros.
      return
    top, bottom = np.searchsorted(rows, (y, y + height))
    left, right = np.searchsorted(columns, (x, x + width))
    pixels = pixels[0, rows[top:bottom] - y][:, columns[left:right] - x, 0]
    if pixels.any():
      seen.update(np.unique(pixels).tolist())
      marked[top:bottom, left:right] = pixels != 0

  for _ in page.segments(func=take, buffersize=READ_BYTES):
    pass
  seen -= {0}
  if len(seen) > 1 or not seen <= set(MARKS):
    raise AnnotationError(
      f'{path} has pixels of {", ".join(map(str, sorted(seen)[:8]))}; a mask '
      'has 0 and either 1 or 255, stored without loss.'
    )
  return marked


def _places(count: int, span: float, whole: int, side: int) -> np.ndarray:
  """The pixel of a level's side at the centre of each of `count` parts.

  The level's side is that of `whole` pixels of the slide, the parts' of `span`.

  A level that halves another leaves out what is over, so that its pixels are
  a power of two wide, not a bit more; where its side allows this, it is so.
  """
  power = 2 ** round(math.log2(whole / side))
  width = power if abs(whole / power - side) < 1 else whole / side
  places = (np.arange(count) + 0.5) * span / count / width
  return np.minimum(places.astype(np.int64), side - 1)


def trace(mask: grid.Mask, group: str = 'Tumor') -> list[Polygon]:
  """Polygons around what is marked, each in one piece."""
  labels, _ = ndimage.label(mask.pixels)
  polygons = []
  for label, box in enumerate(ndimage.find_objects(labels), start=1):
    level = np.where(labels[box] == label, np.float32(0.5), np.float32(-0.5))
    origin = np.array([box[1].start, box[0].start]) * mask.downsample
    for polygon in outlines(level, mask.downsample):
      outer, *holes = (ring + origin for ring in polygon.rings)
      polygons.append(Polygon(outer, group, holes=tuple(holes)))
  return polygons
