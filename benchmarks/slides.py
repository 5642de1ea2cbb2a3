"""Speed of what is done with whole slides, each beside what bounds it.

  python benchmarks/slides.py [SECTION...]

Sections (all, unless some are named):
  reading      tiles of a phantom slide, beside bare decoding and OpenSlide
  annotations  a million corners filled, beside PIL's and matplotlib's polygons
  gigapixel    a slide of 100,000 x 80,000 px: tissue and grid
  scoring      slides from file to map, beside the model alone; the same slide
  froc         129 slides, beside the official script's loops
All but the first are scripts of their own beside this one.

Sides of a comparison take short turns; each side's best turn counts, and the
ratio of this process's processor time that a tile takes stands beside it, which
says more where other programs run. For guarded sides it says nothing: most of
their work is done in other processes.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent import futures

import imagecodecs
import openslide
import tifffile

from jaxmed.datasets import phantom, phantom_scanner, phantom_tissue
from jaxmed.slides import reader

SIDE = 3072  # Of the phantom slide that is read, px.
THREADS = 2
TURNS = 8


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    'sections', nargs='*', choices=[*SECTIONS, []], default=[]
  )
  for name in parser.parse_args().sections or SECTIONS:
    print(f'--- {name}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
      SECTIONS[name](pathlib.Path(folder))


def reading(folder: pathlib.Path) -> None:
  """Regions of one and of four tiles, each side with a cold cache."""
  path = folder / 'phantom.tif'
  _draw(path)
  with tifffile.TiffFile(path) as tiff:
    page = tiff.pages[0]
    content = path.read_bytes()
    encoded = [
      content[offset : offset + count]
      for offset, count in zip(
        page.dataoffsets, page.databytecounts, strict=True
      )
    ]
  decode = lambda data: imagecodecs.jpeg8_decode(
    data, colorspace='RGB', outcolorspace='RGB'
  )
  kilobytes = sum(map(len, encoded)) / len(encoded) / 1e3
  print(f'{len(encoded)} tiles of {phantom.TILE} px, {kilobytes:.1f} kB each')
  for size in phantom.TILE, 2 * phantom.TILE:
    places = [
      (x, y) for y in range(0, SIDE, size) for x in range(0, SIDE, size)
    ]

    def slide(threads: int, direct: bool = True, places=places, size=size):
      with_slide = reader.Slide(path, direct=direct)
      try:
        read = lambda place: with_slide.read(*place, size, size) is None
        return _timed(read, places, threads)
      finally:
        with_slide.close()

    def plain(threads: int, places=places, size=size):
      with openslide.OpenSlide(path) as whole:
        read = lambda place: whole.read_region(place, 0, (size, size)) is None
        return _timed(read, places, threads)

    print(f'regions of {size} px')
    _compare(
      {
        'memory': lambda: _timed(lambda d: decode(d) is None, encoded, THREADS),
        f'{THREADS} threads': lambda slide=slide: slide(THREADS),
        '1 thread': lambda slide=slide: slide(1),
        'OpenSlide': lambda plain=plain: plain(1),
        f'OpenSlide, {THREADS} threads': lambda plain=plain: plain(THREADS),
        f'guarded OpenSlide, {THREADS} threads': lambda slide=slide: slide(
          THREADS, False
        ),
      },
      len(encoded),
      [
        (f'{THREADS} threads', 'memory', '>= 0.8'),
        (f'{THREADS} threads', 'OpenSlide', '>= 5'),
        ('1 thread', 'OpenSlide', ''),
        (f'{THREADS} threads', f'OpenSlide, {THREADS} threads', ''),
        (
          f'guarded OpenSlide, {THREADS} threads',
          f'OpenSlide, {THREADS} threads',
          '',
        ),
      ],
    )


Turn = tuple[float, float]  # Seconds, processor seconds.


def _timed(work: Callable, items: Sequence, threads: int) -> Turn:
  with futures.ThreadPoolExecutor(threads) as pool:
    shares = [items[i::threads] for i in range(threads)]
    began, processor = time.perf_counter(), time.process_time()
    list(pool.map(lambda share: [work(item) for item in share], shares))
  return time.perf_counter() - began, time.process_time() - processor


def _compare(
  sides: dict[str, Callable[[], Turn]],
  count: int,
  ratios: list[tuple[str, str, str]],
) -> None:
  """Prints each side's rate, and how many times another's it is."""
  best = dict.fromkeys(sides, (float('inf'), float('inf')))
  for _ in range(TURNS):
    for name, turn in sides.items():
      best[name] = tuple(map(min, best[name], turn()))
  for name, (wall, processor) in best.items():
    print(
      f'  {name}: {count / wall:.0f} tiles/s, '
      f'{processor / count * 1e6:.0f} processor µs a tile'
    )
  for one, other, goal in ratios:
    wall, processor = (
      b / a for a, b in zip(best[one], best[other], strict=True)
    )
    goal = f' (asked: {goal})' if goal else ''
    print(
      f'  {one} / {other}: {wall:.2f} times{goal}; by processor time '
      f'{processor:.2f}',
      flush=True,
    )


def _draw(path: pathlib.Path) -> None:
  plan = phantom_tissue.Plan(
    seed=(3,),
    width=SIDE,
    height=SIDE,
    mpp=0.5,
    scanner=phantom_scanner.SCANNERS['A'],
    lesions=(300,),
  )
  phantom.write_slide(path, phantom_tissue.draw(plan).pixels, plan.mpp)


def _script(name: str) -> Callable[[pathlib.Path], None]:
  """A section in a process of its own, so that its memory is its own."""
  argv = [sys.executable, '-m', f'benchmarks.{name}']
  root = pathlib.Path(__file__).parent.parent
  return lambda folder: subprocess.run(argv, cwd=root, check=True)


SECTIONS = {
  'reading': reading,
  'annotations': _script('annotations'),
  'gigapixel': _script('gigapixel'),
  'scoring': _script('slide_scoring'),
  'froc': _script('froc'),
}


if __name__ == '__main__':
  main()
