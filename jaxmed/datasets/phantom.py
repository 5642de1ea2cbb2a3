"""Phantom slides, stained with haematoxylin and eosin, that need no download.

Healthy slides of two scanners for training, and slides of scanner A with and
without lesions for testing, as pyramidal TIFF with annotations in ASAP's XML.
They go the way of real slides: written, opened, tissue found, tiled. Made to
try a pipeline and to compare methods; no result on them is a medical one.
"""

import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile
from jaxtyping import UInt8
from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.datasets import (
  given,
  phantom_scanner,
  phantom_tissue,
  slide_tiles,
)
from jaxmed.datasets.shards import Example, Failure, Shard
from jaxmed.slides import annotations, reader

NAME = 'phantom'
VERSION = '1.0.1'
DESCRIPTION = (
  'Drawn slides of lymphatic tissue in the manner of haematoxylin and eosin: '
  'healthy ones of two scanners, and ones with lesions for testing.'
)
CITATION = ''
LICENCE = 'Apache-2.0'

OPTIONS = {
  'seed': 0,
  'train': 3,  # Healthy slides of each scanner, A and B.
  'train_lesion': 0,  # Of scanner A, for methods that learn from a few.
  'validation': 1,  # Healthy slides of scanner A.
  'validation_lesion': 0,  # For methods that fit a probability.
  'test_normal': 3,
  'test_lesion': 4,
  'side': 2048,  # Of training slides, px.
  'test_side': 2560,
  'mpp': 0.5,
}
LEAST_TISSUE = 0.1  # Of a tile that becomes a record.
# Diameters of the lesions of a slide in micrometres, for slides in turn; an
# irregular outline adds up to half. Pathologists count a tumour of less
# than 275 as isolated cells.
LESIONS = ((170, 380), (190, 350, 160), (200, 430), (180, 340, 200))
FULL_SIDE = 1280  # A slide of that many micrometres has them as listed.
TILE = 256
QUALITY = 90
SMALLEST_LEVEL = 128


def fingerprint(data_config: ConfigDict) -> dict[str, Any]:
  """The options and the size of the tiles: nothing else decides a pixel."""
  return {'size': data_config.size, 'options': _options(data_config)}


def expected_bytes(data_config: ConfigDict) -> int:
  """About half a byte a pixel of a slide, and as much for its tiles."""
  slides = _slides(data_config)
  return sum(one.plan.width * one.plan.height for one in slides)


def shards(data_config: ConfigDict, directory: pathlib.Path) -> list[Shard]:
  """One a slide."""
  return [
    Shard(
      one.group,
      one.split,
      functools.partial(examples, one, data_config.size, directory),
    )
    for one in _slides(data_config)
  ]


def slides(
  data_config: ConfigDict, directory: pathlib.Path
) -> list[dict[str, Any]]:
  """Rows of slides.parquet."""
  return [
    {
      'group': one.group,
      'path': one.path(directory),
      'annotation': one.annotation(directory) or '',
      'split': one.split,
      'label': int(bool(one.plan.lesions)),
      'domain': one.plan.scanner.name,
      'mpp': one.plan.mpp,
      'width': one.plan.width,
      'height': one.plan.height,
    }
    for one in _slides(data_config)
  ]


@dataclasses.dataclass(frozen=True)
class PhantomSlide:
  """A slide of the data set: its name, its split and what is drawn on it."""

  group: str
  split: str
  plan: phantom_tissue.Plan

  def path(self, directory: pathlib.Path) -> pathlib.Path:
    return directory / 'slides' / f'{self.group}.tif'

  def annotation(self, directory: pathlib.Path) -> pathlib.Path | None:
    path = self.path(directory).with_suffix('.xml')
    return path if self.plan.lesions else None


def examples(
  one: PhantomSlide, size: int, directory: pathlib.Path
) -> Iterator[Example | Failure]:
  """Draws and writes a slide, unless it is there, and reads its tiles."""
  path, annotation = one.path(directory), one.annotation(directory)
  if not path.exists():  # Written last, so that its annotation is there too.
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = phantom_tissue.draw(one.plan)
    if annotation:
      annotations.write_xml(annotation, drawn.lesions)
    write_slide(path, drawn.pixels, one.plan.mpp)
  columns = {'group': one.group, 'domain': one.plan.scanner.name}
  polygons = annotations.read_xml(annotation) if annotation else []
  tiling = slide_tiles.Tiling(size, LEAST_TISSUE, passthrough=False)
  with reader.open_slide(path) as slide:
    yield from slide_tiles.tile_slide(slide, polygons, tiling, columns)


def write_slide(
  path: pathlib.Path, pixels: UInt8[np.ndarray, 'height width 3'], mpp: float
) -> None:
  """A pyramid of tiled JPEG, each level a quarter of the one before.

  The file appears whole or not at all.
  """
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  per_centimetre = 1e4 / mpp
  level = pixels
  try:
    with tifffile.TiffWriter(temporary) as tiff:
      while True:
        tiff.write(
          level,
          tile=(TILE, TILE),
          photometric='rgb',
          compression='jpeg',
          compressionargs={'level': QUALITY},
          maxworkers=1,
          subfiletype=int(level is not pixels),
          resolution=(per_centimetre, per_centimetre),
          resolutionunit='CENTIMETER',
          software='jaxmed',
          metadata=None,
        )
        if max(level.shape[:2]) < 4 * SMALLEST_LEVEL:
          break
        per_centimetre /= 4
        level = _quarter(level)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _quarter(
  pixels: UInt8[np.ndarray, 'height width 3'],
) -> UInt8[np.ndarray, 'rows columns 3']:
  """Means of 4 x 4 pixels; what is over at the border is left out."""
  rows, columns = (side // 4 for side in pixels.shape[:2])
  blocks = pixels[: rows * 4, : columns * 4].reshape(rows, 4, columns, 4, 3)
  sums = blocks.sum(axis=1, dtype=np.uint16).sum(axis=2, dtype=np.uint16)
  return ((sums + 8) // 16).astype(np.uint8)


def _slides(data_config: ConfigDict) -> list[PhantomSlide]:
  options = _options(data_config)
  plan = functools.partial(_slide, options)
  train = [
    plan('train', number, domain)
    for domain in 'AB'
    for number in range(options['train'])
  ]
  train += [
    plan('train', options['train'] + number, 'A', lesions=number)
    for number in range(options['train_lesion'])
  ]
  validation = [
    plan('validation', number, 'A') for number in range(options['validation'])
  ]
  validation += [
    plan('validation', options['validation'] + number, 'A', lesions=number)
    for number in range(options['validation_lesion'])
  ]
  normal, lesion = options['test_normal'], options['test_lesion']
  test = [plan('test', number, 'A') for number in range(normal)]
  test += [
    plan('test', normal + number, 'A', lesions=number)
    for number in range(lesion)
  ]
  return train + validation + test


def _slide(
  options: dict[str, Any],
  split: str,
  number: int,
  domain: str,
  lesions: int | None = None,
) -> PhantomSlide:
  """A pen mark on one slide of three and a fold on another, sick or not."""
  group = f'{split}_{number:03d}_{domain}'
  side = options['test_side' if split == 'test' else 'side']
  mpp = options['mpp']
  diameters = ()
  if lesions is not None:
    # A smaller slide has smaller lesions, but not in the same proportion:
    # they must still hold some tiles.
    scale = min(1.0, 0.12 + 0.88 * side * mpp / FULL_SIDE)
    diameters = LESIONS[lesions % len(LESIONS)]
    if scale < 0.5:
      diameters = diameters[1:2]
    diameters = tuple(scale * diameter for diameter in diameters)
  plan = phantom_tissue.Plan(
    # Not hash(), which differs from process to process.
    seed=(options['seed'], zlib.crc32(group.encode())),
    width=side,
    height=side,
    mpp=mpp,
    scanner=phantom_scanner.SCANNERS[domain],
    lesions=diameters,
    pen=number % 3 == 1,
    fold=number % 3 == 2,
  )
  return PhantomSlide(group, split, plan)


def _options(data_config: ConfigDict) -> dict[str, Any]:
  """The options, with defaults for those that are not given, checked."""
  given.check_options(data_config.options, NAME, OPTIONS)
  options = OPTIONS | dict(data_config.options)
  for name in ('side', 'test_side'):
    least = max(data_config.size, TILE)
    if options[name] < least:
      raise errors.UserError(
        f'data.options.{name} is {options[name]}, expected at least {least} '
        'pixels: a slide must hold a tile and some tissue.'
      )
  if not 0.1 <= options['mpp'] <= 2:
    raise errors.UserError(
      f'data.options.mpp is {options["mpp"]}, expected 0.1 to 2 micrometres '
      'per pixel: cells are drawn one by one.'
    )
  return options
