"""A slide of 100,000 x 80,000 px: made, and its tissue and tiles found.

The slide is a pyramid of JPEG tiles with sparse tissue. A few regions are
drawn; they, turned and mirrored, and empty glass are the blocks that it is laid
out of. A tile is encoded once and written wherever its blocks are the same, so
that 8 gigapixels take seconds. Prints the time of each part, and the largest
memory this process has had by then.

  python benchmarks/gigapixel.py [--width 100000] [--height 80000] [--keep FILE]
"""

import argparse
import dataclasses
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator

import imagecodecs
import numpy as np
import tifffile
from jaxtyping import UInt8
from scipy import ndimage

from jaxmed.datasets import phantom_scanner, phantom_tissue
from jaxmed.slides import grid, reader, sampling, tissue

TILE = 256
BLOCK = 2048
FACTOR = 4  # From level to level.
SMALLEST_LEVEL = 512
QUALITY = 85
GLASS = 0


@dataclasses.dataclass(frozen=True)
class Layout:
  """What lies where.

  kinds: of each block, GLASS or a number of a region.
  block: its side in pixels of level 0.
  """

  kinds: UInt8[np.ndarray, 'rows columns']
  block: int


def write_gigapixel(
  path: str | os.PathLike,
  width: int = 100_000,
  height: int = 80_000,
  *,
  mpp: float = 0.25,
  share: float = 0.2,
  block: int = BLOCK,
  regions: int = 2,
  seed: int = 0,
) -> Layout:
  """Writes the slide; the same arguments give the same pixels.

  share: of the blocks that hold tissue, in a few clumps.
  regions: that are drawn; each is laid in eight ways.
  """
  if block % TILE or block & (block - 1):
    raise ValueError(f'block is {block}, expected a power of two >= {TILE}')
  rng = np.random.default_rng(seed)
  rows, columns = -(-height // block), -(-width // block)
  kinds = _clumps(rng, rows, columns, share)
  number = rng.integers(1, 8 * regions + 1, kinds.shape)
  layout = Layout(np.where(kinds, number, GLASS).astype(np.uint8), block)
  blocks = _draw_blocks(block, mpp, regions, seed)
  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
      _write_levels(tiff, layout, blocks, width, height, mpp)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
  return layout


def _clumps(rng, rows: int, columns: int, share: float) -> np.ndarray:
  """The given share of the blocks, near each other as tissue is."""
  field = rng.standard_normal((rows, columns))
  field = ndimage.gaussian_filter(field, min(rows, columns) / 8)
  count = round(share * field.size)
  order = np.argsort(field, axis=None)[::-1]
  chosen = np.zeros(field.size, bool)
  chosen[order[:count]] = True
  return chosen.reshape(rows, columns)


def _draw_blocks(block: int, mpp: float, regions: int, seed: int) -> np.ndarray:
  """Blocks by kind: glass, and regions turned and mirrored."""
  drawn = [
    phantom_tissue.draw(
      phantom_tissue.Plan(
        seed=(seed, number),
        width=block,
        height=block,
        mpp=mpp,
        scanner=phantom_scanner.SCANNERS['A'],
      )
    ).pixels
    for number in range(regions)
  ]
  corner = block // 8  # There is never tissue.
  glass = np.tile(drawn[0][:corner, :corner], (8, 8, 1))
  turned = [
    np.rot90(side, turns)
    for region in drawn
    for side in (region, region[:, ::-1])
    for turns in range(4)
  ]
  return np.stack([glass, *turned])


def _write_levels(tiff, layout, blocks, width, height, mpp) -> None:
  scale = 1
  while True:
    per_centimetre = 1e4 / (mpp * scale)
    tiff.write(
      _tiles(layout.kinds, blocks, width // scale, height // scale),
      shape=(height // scale, width // scale, 3),
      dtype=np.uint8,
      tile=(TILE, TILE),
      photometric='ycbcr',
      subsampling=(2, 2),
      compression='jpeg',
      subfiletype=int(scale > 1),
      resolution=(per_centimetre, per_centimetre),
      resolutionunit='CENTIMETER',
      software='jaxmed',
      metadata=None,
    )
    side = blocks.shape[1]
    if max(width, height) // scale <= SMALLEST_LEVEL or side < FACTOR:
      return
    # Blocks begin at whole pixels of every level, so that reducing them is
    # reducing the slide.
    parts = side // FACTOR
    cut = blocks.reshape(-1, parts, FACTOR, parts, FACTOR, 3)
    blocks = np.rint(cut.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    scale *= FACTOR


def _tiles(kinds, blocks, width: int, height: int) -> Iterator[bytes]:
  """The JPEG of every tile of a level, row by row."""
  side = blocks.shape[1]
  span = max(1, TILE // side)  # Blocks that a tile holds each way,
  parts = max(1, side // TILE)  # or tiles that a block does.
  encoded = {}
  for row in range(-(-height // TILE)):
    for column in range(-(-width // TILE)):
      top, left = row // parts * span, column // parts * span
      held = kinds[top : top + span, left : left + span]
      part = row % parts, column % parts
      key = held.tobytes(), held.shape, part
      if key not in encoded:
        encoded[key] = _encode(held, blocks, part, span)
      yield encoded[key]


def _encode(held, blocks, part: tuple[int, int], span: int) -> bytes:
  """One tile: a part of a block, or several blocks; glass beyond the slide."""
  rows, columns = held.shape
  held = np.pad(held, ((0, span - rows), (0, span - columns)))
  side = min(TILE, blocks.shape[1])
  top, left = part[0] * TILE, part[1] * TILE
  cut = blocks[held, top : top + side, left : left + side]
  pixels = cut.swapaxes(1, 2).reshape(TILE, TILE, 3)
  return imagecodecs.jpeg8_encode(pixels, QUALITY, subsampling='420')


class Stopwatch:
  """Prints what each part took: seconds, and the process's largest memory."""

  def __init__(self):
    self.start()

  def start(self) -> None:
    self._began = time.perf_counter(), time.process_time()

  def lap(self, name: str, note: str = '') -> float:
    """Ends a part, which began where the last one ended; its seconds."""
    wall = time.perf_counter() - self._began[0]
    processor = time.process_time() - self._began[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
      f'{name:22} {wall:6.2f} s  processor {processor:6.2f} s  '
      f'{peak:5.2f} GB  {note}',
      flush=True,
    )
    self.start()
    return wall


def measure(path: pathlib.Path) -> None:
  """Tissue by each method, the grid and its coverage, tiles at random."""
  watch = Stopwatch()
  seconds = {}
  with reader.open_slide(path) as slide:
    watch.lap('open')
    masks = {}
    for method in reversed(tissue.METHODS):
      mask = tissue.tissue_mask(slide, method)
      height, width = mask.pixels.shape
      note = f'{width} x {height} px, {mask.pixels.mean():.1%} tissue'
      seconds[method] = watch.lap(f'tissue, {method}', note)
      masks[method] = mask
  mask = masks['stain']
  for side, stride in ((256, 256), (512, 128)):
    tiles = grid.tile_grid(slide.size, side, stride)
    covered = grid.coverage(mask, tiles)
    note = f'{covered.size} tiles, {(covered >= 0.5).sum()} kept'
    seconds[side] = watch.lap(f'grid {side} px by {stride}', note)
  wanted = [sampling.Wanted(mask, least=0.5)]
  for apart in (1, 128):
    found = sampling.sample(
      slide.size, 256, 10_000, wanted, seed=0, apart=apart
    )
    watch.lap(f'sample, {apart} px apart', f'{len(found)} tiles')
  whole = seconds['stain'] + seconds[256]
  print(f'tissue and grid: {whole:.1f} s; they should take no more than 10')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--width', type=int, default=100_000)
  parser.add_argument('--height', type=int, default=80_000)
  parser.add_argument('--mpp', type=float, default=0.25)
  parser.add_argument('--share', type=float, default=0.2)
  parser.add_argument('--keep', type=pathlib.Path, help='where to leave it')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    path = options.keep or pathlib.Path(folder) / 'gigapixel.tif'
    if not path.exists():
      watch = Stopwatch()
      write_gigapixel(
        path,
        options.width,
        options.height,
        mpp=options.mpp,
        share=options.share,
      )
      watch.lap('write', f'{path.stat().st_size / 1e6:.0f} MB')
    measure(path)


if __name__ == '__main__':
  main()
