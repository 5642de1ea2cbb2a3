"""Maps of scores as OME-TIFF: float32, with their scale, as a pyramid.

QuPath, Fiji, napari and tifffile open it; a channel is a score. NaN is where
nothing was scored. Only a band of a plane is in memory at a time.
"""

import itertools
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import numpy as np
import tifffile
from jaxtyping import Float, Float32

TILE = 256
SMALLEST = 256  # No level is made of one that is as small as this.
IN_MEMORY = 2**24  # Values of a coarser level; more go to the disk.


def write_ome(
  path: str | os.PathLike,
  maps: Mapping[str, Float[np.ndarray, 'height width']],
  mpp: tuple[float, float],
) -> None:
  """Writes maps of one size; the file appears whole or not at all.

  `mpp` is micrometres per pixel of the maps, in x and in y. The maps may be
  larger than memory, as `np.memmap`.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.partial')
  folder = path.with_name(f'.{path.name}.levels')
  metadata = {
    'axes': 'CYX',
    'Channel': {'Name': list(maps)},
    'PhysicalSizeX': mpp[0],
    'PhysicalSizeXUnit': 'µm',
    'PhysicalSizeY': mpp[1],
    'PhysicalSizeYUnit': 'µm',
  }
  folder.mkdir(exist_ok=True)  # One that was killed has left it.
  try:
    with tifffile.TiffWriter(partial, bigtiff=True, ome=True) as file:
      levels = _levels(list(maps.values()), folder)
      for i, planes in enumerate(levels):
        per_centimetre = tuple(1e4 / (step * 2**i) for step in mpp)
        file.write(
          _tiles(planes),
          shape=(len(planes), *planes[0].shape),
          dtype=np.float32,
          tile=(TILE, TILE),
          photometric='minisblack',
          compression='zlib',
          compressionargs={'level': 1},  # Noise: higher ones gain nothing.
          resolution=per_centimetre,
          resolutionunit='CENTIMETER',
          software='jaxmed',
          subifds=len(levels) - 1 if i == 0 else None,
          subfiletype=int(i > 0),
          metadata=metadata if i == 0 else None,
        )
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def read_ome(
  path: str | os.PathLike, most: int | None = None
) -> tuple[dict[str, Float32[np.ndarray, 'height width']], int]:
  """The maps by name, and how many times they were halved.

  Of the levels, the finest of at most `most` pixels a map; the coarsest, if
  all have more.
  """
  with tifffile.TiffFile(path) as file:
    about = tifffile.xml2dict(file.ome_metadata)['OME']['Image']['Pixels']
    channels = about['Channel']
    channels = channels if isinstance(channels, list) else [channels]
    levels = file.series[0].levels
    fits = (
      i
      for i, level in enumerate(levels)
      if most is None or math.prod(level.shape[-2:]) <= most
    )
    halved = next(fits, len(levels) - 1)
    values = levels[halved].asarray()
  values = values.reshape(len(channels), *values.shape[-2:])
  names = [channel['Name'] for channel in channels]
  return dict(zip(map(str, names), values, strict=True)), halved


def halve(
  plane: Float[np.ndarray, 'height width'],
  out: Float32[np.ndarray, 'rows columns'],
) -> None:
  """Means of 2 x 2 values into `out`; those that are NaN do not count."""
  rows = max(1, IN_MEMORY // plane.shape[1])
  for top in range(0, len(out), rows):
    band = plane[2 * top : 2 * (top + rows)]
    height, width = (side + side % 2 for side in band.shape)
    even = np.full((height, width), np.nan, np.float32)
    even[: band.shape[0], : band.shape[1]] = band
    total, known = (np.zeros((height // 2, width // 2)) for _ in range(2))
    for corner in (even[i::2, j::2] for i in (0, 1) for j in (0, 1)):
      finite = np.isfinite(corner)
      np.add(total, corner, out=total, where=finite)
      known += finite
    with np.errstate(invalid='ignore'):  # 0 / 0: none is known, so NaN.
      out[top : top + rows] = total / known


def _levels(planes: list, folder: pathlib.Path) -> list[list[np.ndarray]]:
  """The planes, and each level below, until it is small."""
  levels = [planes]
  for number in itertools.count():
    height, width = levels[-1][0].shape
    if max(height, width) <= SMALLEST:
      return levels
    shape = (height + 1) // 2, (width + 1) // 2
    coarser = []
    for i, plane in enumerate(levels[-1]):
      coarser.append(_empty(shape, folder / f'{number}-{i}'))
      halve(plane, coarser[-1])
    levels.append(coarser)


def _empty(shape: tuple[int, int], path: pathlib.Path) -> np.ndarray:
  if math.prod(shape) <= IN_MEMORY:
    return np.empty(shape, np.float32)
  return np.memmap(path, np.float32, 'w+', shape=shape)


def _tiles(planes: list) -> Iterator[Float32[np.ndarray, 'tile tile']]:
  """All tiles in the order of the file, those at the border filled up."""
  for plane in planes:
    height, width = plane.shape
    for y in range(0, height, TILE):
      for x in range(0, width, TILE):
        part = plane[y : y + TILE, x : x + TILE]
        tile = np.full((TILE, TILE), np.nan, np.float32)
        tile[: part.shape[0], : part.shape[1]] = part
        yield tile
