"""Finds a slide's annotation among files, and reads it whatever its format."""

import math
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Bool

from jaxmed.slides import geojson, listing, masks
from jaxmed.slides.annotations import (
  AnnotationError,
  Polygon,
  rasterise,
  read_xml,
)

OUTLINES = {
  '.xml': read_xml,
  '.geojson': geojson.read_geojson,
  '.json': geojson.read_geojson,
}
MASKS = ('.tif', '.tiff')
ENDINGS = (*OUTLINES, *listing.MASKS)
NEUTRAL = ('region*',)  # QuPath's class for an area that is looked at.
TRACED = 1 << 24  # Pixels of a mask that becomes polygons, at most.


def by_slide(folder: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
  """What may be annotations, by the name of their slide; nothing hidden.

  Of a.svs these are a.xml, a.geojson, a.json and a_mask.tif (.tiff), the ending
  in small letters or in large ones, in this order.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise AnnotationError(f'There is no folder of annotations at {folder}.')
  found = {}
  for name in sorted(os.listdir(folder)):
    if name[0] != '.' and name.lower().endswith(ENDINGS):
      found.setdefault(_stem(folder / name), []).append(folder / name)
  for stem, paths in found.items():
    paths.sort(key=lambda path: ENDINGS.index(path.name[len(stem) :].lower()))
  return found


def find_annotation(
  named: Mapping[str, Sequence[pathlib.Path]], slide: str | os.PathLike
) -> pathlib.Path | None:
  """The one file that belongs to a slide, if there is any, of `by_slide`."""
  paths = named.get(pathlib.Path(slide).stem, ())
  found = [path for path in paths if not path.is_dir()]
  if len(found) > 1:
    raise AnnotationError(
      f'{slide} has two annotations, {found[0]} and {found[1]}; keep one of '
      'them.'
    )
  return found[0] if found else None


def without_slide(
  named: Mapping[str, Sequence[pathlib.Path]],
  slides: Iterable[str | os.PathLike],
) -> list[AnnotationError]:
  """An error for each annotation, of `by_slide`, that belongs to no slide."""
  stems = {pathlib.Path(slide).stem for slide in slides}
  strange = [
    (path, stem) for stem in named.keys() - stems for path in named[stem]
  ]
  return [
    AnnotationError(
      f'{path} belongs to no slide: there is none that is named {stem}.'
    )
    for path, stem in sorted(strange)
  ]


def _stem(path: pathlib.Path) -> str:
  """The name of the slide that an annotation's name says it belongs to."""
  is_mask = path.suffix.lower() in MASKS
  return path.stem[: -len('_mask')] if is_mask else path.stem


def read_annotation(
  path: str | os.PathLike,
  size: tuple[int, int] | None = None,
  groups: Collection[str] | None = None,
) -> list[Polygon]:
  """The polygons of ASAP's XML, of GeoJSON or of a mask, by the suffix.

  size: (width, height) of the slide. With it polygons that lie beside the
    slide are an error; a mask can't be read without it.
  groups: which are lesions; all, unless given, but QuPath's Region*. Those
    that take away are always read.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix in OUTLINES:
    polygons = OUTLINES[suffix](path)
  elif suffix in MASKS:
    polygons = _traced(path, size)
  else:
    raise AnnotationError(
      f'{path} is no annotation: expected one of {", ".join(OUTLINES)}, or a '
      'mask in .tif.'
    )
  if size:
    _check_inside(path, polygons, size)
  polygons = [p for p in polygons if p.hole or _is_lesion(p, groups)]
  if all(polygon.hole for polygon in polygons):
    logging.warning('%s marks no lesion.', path)
  return polygons


def lesion_pixels(
  path: str | os.PathLike, size: tuple[int, int], downsample: int
) -> Bool[np.ndarray, 'height width']:
  """Lesions of a slide of this (width, height), whatever the file's format.

  A pixel is exactly `downsample` of level 0, so that the last ones may lie
  partly outside the slide. A mask is sampled as it is, not outlined.
  """
  if pathlib.Path(path).suffix.lower() in MASKS:
    return masks.read_mask(path, size, downsample, exact=True).pixels
  width, height = (-(-side // downsample) for side in size)
  polygons = read_annotation(path, size)
  return rasterise(polygons, width, height, downsample=downsample)


def _is_lesion(polygon: Polygon, groups: Collection[str] | None) -> bool:
  group = polygon.group.lower()
  if groups is None:
    return group not in NEUTRAL
  return group in {wanted.lower() for wanted in groups}


def _traced(path: pathlib.Path, size: tuple[int, int] | None) -> list[Polygon]:
  """A mask's polygons, as fine as memory allows."""
  if size is None:
    raise AnnotationError(
      f"{path} is a mask: it can't be read without the size of its slide."
    )
  reduction = math.log2(max(1.0, math.prod(size) / TRACED)) / 2
  return masks.trace(masks.read_mask(path, size, 2 ** math.ceil(reduction)))


def _check_inside(
  path: pathlib.Path, polygons: list[Polygon], size: tuple[int, int]
) -> None:
  width, height = size
  for polygon in polygons:
    left, top, right, bottom = polygon.bounds
    if left >= width or top >= height or right <= 0 or bottom <= 0:
      raise AnnotationError(
        f'{path}: annotation {polygon.name!r} lies outside the slide, at x '
        f'{left:.0f} to {right:.0f} and y {top:.0f} to {bottom:.0f} of '
        f'{width} x {height}; is it of another slide, or of another level?'
      )
