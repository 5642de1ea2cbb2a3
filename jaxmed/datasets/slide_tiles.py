"""The tiles of a slide as examples: what every data set of slides yields."""

import pathlib
from collections.abc import Iterator
from typing import Any

import imagecodecs
import numpy as np

from jaxmed.datasets import images
from jaxmed.datasets.shards import Example, Failure
from jaxmed.slides import (
  annotation_files,
  annotations,
  grid,
  reader,
  tissue,
)

QUALITY = 90  # Of a tile's JPEG.
LESION_MPP = 2.0  # At which tiles that touch a lesion are searched for.


def tile_slide(
  slide: reader.Slide,
  polygons: list[annotations.Polygon],
  size: int,
  least_tissue: float,
  columns: dict[str, Any],
) -> Iterator[Example | Failure]:
  """Tiles of level 0, side by side, that show at least some tissue.

  A tile is anomalous when an annotation covers the centre of one of its
  pixels; its mask says which. `columns` holds what is true of the whole slide.
  """
  tiles = grid.tile_grid(slide.size, size)
  try:
    mask = tissue.tissue_mask(slide)
  except reader.TileError as error:  # Without its tissue no tile is chosen.
    yield _failure(columns['group'], error)
    return
  covered = grid.coverage(mask, tiles)
  near = _near_lesion(slide, polygons, tiles)
  for row, column in np.argwhere(covered >= least_tissue).tolist():
    x, y = int(tiles.x[column]), int(tiles.y[row])
    key = f'{columns["group"]}/{x}_{y}'
    try:
      pixels = slide.read(x, y, size, size)
    except reader.TileError as error:
      yield _failure(key, error)
      continue
    mask, lesion = b'', 0.0
    if near[row, column]:
      inside = annotations.rasterise(polygons, size, size, x, y)
      lesion = float(inside.mean())
      mask = images.encode_mask(inside) if lesion else b''
    yield columns | {
      'key': key,
      'image': imagecodecs.jpeg8_encode(pixels, QUALITY),
      'mask': mask,
      'x': x,
      'y': y,
      'level': 0,
      'mpp': slide.mpp,
      'label': int(lesion > 0),
      'tissue': float(covered[row, column]),
      'lesion': lesion,
      'kind': 'lesion' if lesion else '',
    }


def _failure(item: str, error: reader.TileError) -> Failure:
  return Failure(item, error.reason, error.level, error.x, error.y)


def read_outlines(
  path: pathlib.Path | None, size: tuple[int, int] | None = None
) -> list[annotations.Polygon]:
  """The annotations of a slide of this size; none, if it has no file of them.

  A mask can't be read without the size, (width, height) of level 0.
  """
  return annotation_files.read_annotation(path, size) if path else []


def _near_lesion(slide, polygons, tiles: grid.Grid) -> np.ndarray:
  """Which tiles may hold a lesion's pixel: a coarse mask, grown by one."""
  if not polygons:
    return np.zeros((tiles.rows, tiles.columns), bool)
  downsample = max(1.0, LESION_MPP / slide.mpp)
  mask = annotations.lesion_mask(polygons, slide.size, downsample)
  grown = np.pad(mask.pixels, 1)
  grown = grown[:-2] | grown[1:-1] | grown[2:]
  grown = grown[:, :-2] | grown[:, 1:-1] | grown[:, 2:]
  return grid.coverage(grid.Mask(grown, mask.size), tiles) > 0
