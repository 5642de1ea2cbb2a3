"""Surveys of many slides: what each could give, before any tile is read.

A survey is a task of a crew and a file beside the unfinished data set. With
those of all slides at hand, tiles can be drawn from all of them together,
their number and the disk that they need are known, and a preparation that was
killed does not look for tissue again.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxmed.datasets import layouts, shards, slide_tiles
from jaxmed.datasets.shards import Example, Failure, Shard
from jaxmed.datasets.slide_tiles import Tiles, Tiling
from jaxmed.slides import annotations, reader

FOLDER = 'surveys'  # Among the index parts, which vanish at the end.


@dataclasses.dataclass(frozen=True)
class Source:
  """A slide of a data set, as its folder shows it.

  Attributes:
    group: its name.
    path: of its file.
    annotation: of its outlines, or ''.
    mpp: micrometres per pixel, in place of what the file says; 0: as it says.
    trouble: why it can't be used, though it has not been opened.
  """

  group: str
  path: str
  annotation: str = ''
  mpp: float = 0.0
  trouble: str = ''

  def open(self) -> reader.Slide:
    if self.trouble:
      raise reader.SlideError(self.trouble)
    return reader.open_slide(self.path, self.mpp or None)

  def outlines(self, size: tuple[int, int]) -> list[annotations.Polygon]:
    """Of lesions, in a slide of this (width, height)."""
    return slide_tiles.read_outlines(self.annotation, size)


@dataclasses.dataclass(frozen=True)
class Found:
  """What a survey says of a slide.

  Attributes:
    tiles: that show enough tissue.
    size: (width, height) of level 0; 0 where the slide cannot be opened.
    mpp: micrometres per pixel of level 0.
    outlined: whether its annotation outlines any lesion.
    failures: why it gives nothing, if so.
  """

  tiles: Tiles
  size: tuple[int, int] = (0, 0)
  mpp: float = float('nan')
  outlined: bool = False
  failures: tuple[Failure, ...] = ()


@dataclasses.dataclass(frozen=True)
class Survey:
  """The task to survey a slide; see `crew.Task`."""

  source: Source
  tiling: Tiling
  directory: pathlib.Path  # Of the unfinished data set.

  size, fragile = 1, True

  @property
  def name(self) -> str:
    return self.source.group

  @property
  def path(self) -> pathlib.Path:
    return self.directory / shards.PARTS / FOLDER / f'{self.name}.npz'

  @property
  def done(self) -> bool:
    return self.path.is_file()

  def run(self, report: Callable[[int], None]) -> None:
    self._save(self._look())
    report(1)

  def fail(self, reason: str) -> None:
    self._save(_lost(self.name, reason))

  def _look(self) -> Found:
    try:
      with self.source.open() as slide:
        polygons = self.source.outlines(slide.size)
        return Found(
          slide_tiles.survey(slide, polygons, self.tiling),
          slide.size,
          slide.mpp,
          outlined=any(not polygon.hole for polygon in polygons),
        )
    except reader.TileError as error:
      return Found(
        Tiles.none(), failures=(slide_tiles.failure(self.name, error),)
      )
    except (reader.SlideError, annotations.AnnotationError) as error:
      return _lost(self.name, str(error))

  def _save(self, found: Found) -> None:
    about = {
      'size': found.size,
      'mpp': found.mpp,
      'outlined': found.outlined,
      'failures': [dataclasses.asdict(one) for one in found.failures],
    }
    self.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = self.path.with_name(f'{self.path.name}.{os.getpid()}.tmp')
    with temporary.open('wb') as file:
      np.savez(file, about=json.dumps(about), **vars(found.tiles))
    os.replace(temporary, self.path)

  def load(self) -> Found:
    with np.load(self.path) as saved:
      about = json.loads(str(saved['about']))
      names = [field.name for field in dataclasses.fields(Tiles)]
      tiles = Tiles(*(saved[name] for name in names))
    return Found(
      tiles,
      tuple(about['size']),
      about['mpp'],
      about['outlined'],
      tuple(Failure(**one) for one in about['failures']),
    )


def _lost(group: str, reason: str) -> Found:
  return Found(Tiles.none(), failures=(Failure(group, reason),))


@dataclasses.dataclass(frozen=True)
class Planned:
  """A surveyed slide and what becomes of it.

  Attributes:
    source, found: the slide and its survey.
    tiles: that are wanted of it.
    split: train, validation or test.
    label: of the slide; -1: not known.
    columns: of the index, true of all its tiles; they overrule.
    exhaustive: whether its annotation outlines every lesion.
  """

  source: Source
  found: Found
  tiles: Tiles
  split: str
  label: int
  columns: dict[str, Any]
  exhaustive: bool = True

  def shard(self, tiling: Tiling) -> Shard:
    """The tiles, or the failures in their place."""
    count, examples = len(self.tiles), functools.partial(_read, self, tiling)
    if self.found.failures:
      count = len(self.found.failures)
      examples = functools.partial(iter, self.found.failures)
    return Shard(
      self.source.group,
      self.split,
      examples,
      count=count,
      bytes=len(self.tiles) * tiling.bytes(),
      fragile=True,
    )

  def row(self) -> dict[str, Any]:
    """Of slides.parquet."""
    width, height = self.found.size
    return {
      'group': self.source.group,
      'path': self.source.path,
      'annotation': self.source.annotation,
      'split': self.split,
      'label': self.label,
      'domain': self.columns.get('domain', ''),
      'mpp': self.found.mpp,
      'width': width,
      'height': height,
      'exhaustive': self.exhaustive,
    }


def _read(planned: Planned, tiling: Tiling) -> Iterator[Example | Failure]:
  source = planned.source
  columns = {'group': source.group} | planned.columns
  try:
    with source.open() as slide:
      polygons = source.outlines(slide.size)
      yield from slide_tiles.read_tiles(
        slide, polygons, planned.tiles, tiling, columns
      )
  except (reader.SlideError, annotations.AnnotationError) as error:
    yield Failure(source.group, str(error))


def stat(
  paths: Iterable[str | pathlib.Path], root: pathlib.Path
) -> dict[str, list[int]]:
  """Sizes and times of files by path: what a fingerprint says of them."""
  known = {os.path.relpath(path, root): layouts.status(path) for path in paths}
  return {n: [one.st_size, one.st_mtime_ns] for n, one in known.items()}
