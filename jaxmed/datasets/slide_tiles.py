"""The tiles of a slide as examples: what every data set of slides yields.

First a slide is surveyed: from its tissue at a coarse scale and its
annotations, and without reading a tile, it is known where tiles lie and how
much tissue and lesion each shows. Then those that are wanted are read.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import imagecodecs
import numpy as np
from jaxtyping import Bool, Float32, Int32

from jaxmed.datasets import images
from jaxmed.datasets.shards import Example, Failure
from jaxmed.slides import (
  annotation_files,
  annotations,
  grid,
  reader,
  sampling,
  tissue,
)

LESION_MPP = 2.0  # At which tiles that touch a lesion are searched for.
SAME_SCALE = 0.02  # Scanners' own pixel sizes are no better known than that.
# Bytes of a pixel of tissue, measured on patches of Camelyon16: of a JPEG by
# its quality, and of a PNG.
QUALITIES = (30, 50, 70, 80, 90, 95, 100)
JPEG_BYTES = (0.13, 0.17, 0.21, 0.26, 0.37, 0.51, 0.94)
PNG_BYTES = 1.95
ROW_BYTES = 600  # Of a record, beside its image.
FORMATS = ('jpeg', 'png')
ALL = 1 << 30  # Places: as many as there are.


def read_outlines(
  path: str | pathlib.Path | None, size: tuple[int, int]
) -> list[annotations.Polygon]:
  """Lesions of a slide of this (width, height); none, if it has no file."""
  return annotation_files.read_annotation(path, size) if path else []


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How tiles are cut from a slide and stored.

  Attributes:
    size: side of a tile in its pixels.
    least_tissue: share of a tile's area.
    stride: from tile to tile in their pixels; 0: side by side.
    mpp: micrometres per pixel of the tiles; 0: those of level 0.
    format: jpeg or png.
    quality: of a JPEG.
    passthrough: whether a JPEG tile of the file stays as it is, where it
      is just what is wanted.
    method: of `slides.tissue.tissue_mask`.
    places: grid, or fwrd: see slides/sampling.py.
    seed: of places that are drawn.
  """

  size: int
  least_tissue: float
  stride: int = 0
  mpp: float = 0.0
  format: str = 'jpeg'
  quality: int = 90
  passthrough: bool = True
  method: str = 'stain'
  places: str = 'grid'
  seed: int = 0

  def scale(self, slide: reader.Slide) -> float:
    """Pixels of level 0 per pixel of a tile; 1 if it is nearly that."""
    if not self.mpp or abs(self.mpp / slide.mpp - 1) <= SAME_SCALE:
      return 1.0
    if self.mpp * reader.FINER < slide.mpp:
      raise reader.SlideError(
        f'{slide.path} has {slide.mpp:.3g} µm per pixel, too coarse for tiles '
        f'at {self.mpp:.3g}.'
      )
    return self.mpp / slide.mpp

  def bytes(self) -> int:
    """About what a record takes on the disk."""
    each = np.interp(self.quality, QUALITIES, JPEG_BYTES)
    if self.format == 'png':
      each = PNG_BYTES
    return int(each * self.size**2) + ROW_BYTES


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Where some tiles lie, in pixels of level 0, and what they show.

  Attributes:
    x, y: of a tile's upper left corner.
    tissue: share of a tile's area.
    lesion: share of its pixels whose centre an annotation covers.
    draw: place in the order in which tiles were drawn; -1: they were not.
  """

  x: Int32[np.ndarray, ' n']
  y: Int32[np.ndarray, ' n']
  tissue: Float32[np.ndarray, ' n']
  lesion: Float32[np.ndarray, ' n']
  draw: Int32[np.ndarray, ' n']

  def __len__(self) -> int:
    return len(self.x)

  def __getitem__(self, which: np.ndarray) -> 'Tiles':
    return Tiles(*(column[which] for column in vars(self).values()))

  def rows(self) -> Iterator[dict[str, Any]]:
    """Each tile's columns of the index."""
    columns = (column.tolist() for column in vars(self).values())
    for values in zip(*columns, strict=True):
      yield dict(zip(vars(self), values, strict=True))

  @classmethod
  def at(cls, x, y, tissue, lesion) -> 'Tiles':
    """Tiles that were not drawn."""
    draw = np.full(len(x), -1, np.int32)
    return cls(
      x.astype(np.int32),
      y.astype(np.int32),
      tissue.astype(np.float32),
      lesion.astype(np.float32),
      draw,
    )

  @classmethod
  def joined(cls, parts: Sequence['Tiles']) -> 'Tiles':
    """All tiles of the parts, row by row of the slide."""
    columns = zip(
      *(vars(part).values() for part in (cls.none(), *parts)), strict=True
    )
    tiles = cls(*map(np.concatenate, columns))
    return tiles[np.lexsort((tiles.x, tiles.y))]

  @classmethod
  def none(cls) -> 'Tiles':
    return cls.at(*4 * [np.zeros(0)])


def survey(
  slide: reader.Slide, polygons: list[annotations.Polygon], tiling: Tiling
) -> Tiles:
  """The tiles that show enough tissue, on a grid or at FW-RD's places."""
  scale, mask = tiling.scale(slide), tissue.tissue_mask(slide, tiling.method)
  side = round(tiling.size * scale)
  if tiling.places == 'fwrd':
    x, y, sick = _fwrd_places(polygons, mask, side, tiling.seed)
  else:
    stride = round((tiling.stride or tiling.size) * scale)
    tiles = grid.tile_grid(slide.size, side, stride)
    x, y = (axis.ravel() for axis in np.meshgrid(tiles.x, tiles.y))
  covered = grid.coverage_at(mask, x, y, side)
  chosen = covered >= tiling.least_tissue
  x, y = x[chosen], y[chosen]
  lesion = np.zeros(len(x), np.float32)
  near = _near_lesion(slide, polygons, x, y, side)
  for i in np.flatnonzero(near).tolist():
    lesion[i] = _inside(polygons, x[i], y[i], tiling.size, scale).mean()
  tiles = Tiles.at(x, y, covered[chosen], lesion)
  if tiling.places == 'fwrd':
    return tiles[(lesion > 0) == sick[chosen]]
  return tiles


def _fwrd_places(
  polygons: list[annotations.Polygon], mask: grid.Mask, side: int, seed: int
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, ' n']]:
  """x, y and whether they are in the tumour, or in the tissue beside it.

  A tile of the latter may touch an outline with its border: then it is neither
  healthy nor chosen for its tumour.
  """
  height, width = mask.pixels.shape
  tumour = annotations.rasterise(
    polygons, width, height, downsample=mask.downsample
  )
  found = [
    sampling.training_places(grid.Mask(pixels, mask.size), ALL, seed, tile=side)
    for pixels in (tumour, mask.pixels & ~tumour)
  ]
  x, y = (
    np.concatenate([getattr(places, axis) for places in found])
    for axis in ('x', 'y')
  )
  return x, y, np.arange(len(x)) < len(found[0])


def _near_lesion(
  slide: reader.Slide,
  polygons: list[annotations.Polygon],
  x: Int32[np.ndarray, ' n'],
  y: Int32[np.ndarray, ' n'],
  side: int,
) -> Bool[np.ndarray, ' n']:
  """Which tiles may hold a lesion's pixel: a coarse mask, grown by one."""
  if not polygons:
    return np.zeros(len(x), bool)
  downsample = max(1.0, LESION_MPP / slide.mpp)
  mask = annotations.lesion_mask(polygons, slide.size, downsample)
  grown = np.pad(mask.pixels, 1)
  grown = grown[:-2] | grown[1:-1] | grown[2:]
  grown = grown[:, :-2] | grown[:, 1:-1] | grown[:, 2:]
  return grid.coverage_at(grid.Mask(grown, mask.size), x, y, side) > 0


def _inside(
  polygons: list[annotations.Polygon], x: int, y: int, size: int, scale: float
) -> Bool[np.ndarray, 'size size']:
  return annotations.rasterise(polygons, size, size, x, y, scale)


def read_tiles(
  slide: reader.Slide,
  polygons: list[annotations.Polygon],
  tiles: Tiles,
  tiling: Tiling,
  columns: dict[str, Any],
) -> Iterator[Example | Failure]:
  """Tiles as examples; one that cannot be read is a failure.

  A tile is anomalous when an annotation covers any of its pixels; its mask
  says which. `columns` holds what is true of the whole slide, and overrules.
  """
  scale = tiling.scale(slide)
  for tile in tiles.rows():
    x, y, lesion = tile['x'], tile['y'], tile['lesion']
    key = f'{columns["group"]}/{x}_{y}'
    try:
      image = _encoded(slide, x, y, scale, tiling)
    except reader.TileError as error:
      yield failure(key, error)
      continue
    mask = b''
    if lesion:
      inside = _inside(polygons, x, y, tiling.size, scale)
      mask = images.encode_mask(inside)
    yield {
      'key': key,
      'image': image,
      'mask': mask,
      'level': 0,
      'mpp': slide.mpp * scale,
      'label': int(lesion > 0),
      'kind': 'lesion' if lesion else '',
      **tile,
      **columns,
    }


def _encoded(
  slide: reader.Slide, x: int, y: int, scale: float, tiling: Tiling
) -> bytes:
  """A tile as it is stored: as the file has it, or else coded anew."""
  if tiling.passthrough and tiling.format == 'jpeg' and scale == 1:
    whole = slide.encoded_tile(x, y, tiling.size)
    if whole is not None:
      return whole
  pixels = slide.scaled(x, y, tiling.size, scale)
  if tiling.format == 'png':
    return imagecodecs.png_encode(pixels)
  return imagecodecs.jpeg8_encode(pixels, tiling.quality)


def tile_slide(
  slide: reader.Slide,
  polygons: list[annotations.Polygon],
  tiling: Tiling,
  columns: dict[str, Any],
) -> Iterator[Example | Failure]:
  """Survey and reading in one, for a slide that was made just now."""
  try:
    tiles = survey(slide, polygons, tiling)
  except reader.TileError as error:  # Without its tissue no tile is chosen.
    yield failure(columns['group'], error)
    return
  yield from read_tiles(slide, polygons, tiles, tiling, columns)


def failure(item: str, error: reader.TileError) -> Failure:
  return Failure(item, error.reason, error.level, error.x, error.y)
