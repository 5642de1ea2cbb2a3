"""What scoring whole slides costs beside the model: reading, maps, files.

  python -m benchmarks.slide_scoring [--rounds 3] [--slide FILE]

First MUNIT of the phantom preset, untrained, on phantom slides: all the way
from closed files to written maps, against the model alone on the same number
of batches that lie on the device; the two take turns, and the best turn of
each counts. Then, on a large slide (benchmarks/gigapixel.py writes one unless
--slide names it), a model that costs nothing: the time of each part, a score
a tile and a pixel map, and the largest memory this process has had by then.
"""

import argparse
import functools
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gigapixel import Stopwatch, write_gigapixel
from jaxmed import launch, workdir
from jaxmed.configs import defaults, munit
from jaxmed.datasets import write
from jaxmed.datasets.records import open_records
from jaxmed.method import Info, Method, Score, State
from jaxmed.scoring import score_slides, slide_files, slide_stream, slide_work
from jaxmed.scoring.score import Run
from jaxmed.slides.reader import open_slide
from jaxmed.training import sharding


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--side', type=int, default=2560, help='of phantoms, px')
  parser.add_argument('--slide', type=pathlib.Path, help='a large one')
  parser.add_argument('--width', type=int, default=100_000)
  parser.add_argument('--height', type=int, default=80_000)
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    against_the_model(place, given.side, given.rounds)
    path = given.slide or place / 'gigapixel.tif'
    if not path.exists():
      write_gigapixel(path, given.width, given.height)
    overhead(path, place / 'large')


def against_the_model(place: pathlib.Path, side: int, rounds: int) -> None:
  """Prints the ratio of slides to the model alone."""
  config = munit.get_config('phantom')
  config.train.steps = 1
  config.data.dir = str(place / 'data')
  config.data.options.update(
    {'train': 1, 'test_normal': 2, 'test_lesion': 2}
    | {'side': 512, 'test_side': side}
  )
  config.score.slides = False
  run = Run(launch.launch(config, place / 'run'))
  records = open_records(write.prepare(config.data))
  slides = score_slides.test_slides(records)

  def whole(number: int) -> tuple[float, int]:
    out = place / f'out-{number}'
    began = time.perf_counter()
    score_slides.scan(run, out, out, slides)
    seconds = time.perf_counter() - began
    done = [slide_files.done(out, slide['group']) for slide in slides]
    return seconds, sum(facts['tiles'] for facts in done)

  def alone(batches: list) -> float:
    began = time.perf_counter()
    for _ in run.parts(batches):
      pass
    return time.perf_counter() - began

  _, tiles = whole(0)  # Compiles.
  pixels = np.random.default_rng(0).integers(
    0, 256, (run.batch, *run.info.image), np.uint8
  )
  batch = run.place(pixels, np.arange(run.batch))
  batches = [batch] * -(-tiles // run.batch)
  alone(batches)
  turns = [(whole(i + 1)[0], alone(batches)) for i in range(rounds)]
  slide, model = (min(times) for times in zip(*turns, strict=True))
  print(
    f'MUNIT, {config.data.size} px: {len(slides)} slides of {side} px, '
    f'{tiles} tiles: {slide:.2f} s, the model alone {model:.2f} s, '
    f'ratio {slide / model:.2f}, {tiles / slide:.0f} tiles/s'
  )
  Stopwatch().lap('memory so far')


def overhead(path: pathlib.Path, out: pathlib.Path, tile: int = 256) -> None:
  """Prints what each part of scoring a slide takes with a trivial model."""
  out.mkdir(parents=True)
  run = _trivial(out, tile)
  watch = Stopwatch()
  with open_slide(path) as slide:
    width, height = slide.size
    work = slide_work.Work(run, slide)  # Finds the tissue and lays the grid.
  prepared = watch.lap('tissue and grid', f'{width} x {height} px')
  jobs = [slide_stream.Job(path)]
  ((_, found),) = slide_stream.score_each(run, jobs)
  total = watch.lap('tissue, grid, tiles', f'{found.tiles} tiles')
  facts = {'group': 'plain', 'path': str(path), 'annotation': '', 'label': -1}
  slide_files.save(run, out, out, facts, found)
  saved = watch.lap('maps, outlines, detections')
  kept = slide_files.done(out, 'plain')
  slide_files.draw(run, out, kept, 1.0)
  drawn = watch.lap('overlay')
  print(
    f'all: {total + saved + drawn:.1f} s; tissue, grid and maps: '
    f'{prepared + saved + drawn:.1f} s of it'
  )
  assert len(work.places) == found.tiles
  run.config.score.dense = 'dark'
  jobs = [slide_stream.Job(path, dense=out / '.map')]
  watch.began = time.perf_counter()
  ((_, found),) = slide_stream.score_each(run, jobs)
  rows, columns = found.dense.shape
  watch.lap('with a pixel map', f'{columns} x {rows} px')
  slide_files.save(run, out, out, facts | {'group': 'dense'}, found)
  watch.lap('its maps, outlines, ...')


def _trivial(folder: pathlib.Path, tile: int) -> Run:
  """A run that was never trained: its score is how dark a tile is."""

  def score(state, batch, key) -> Score:
    dark = 1 - batch.unit.mean(axis=-1)
    return Score({'dark': dark.mean(axis=(1, 2))}, {'dark': dark})

  quantiles = jnp.linspace(0, 1, 101).tolist()
  known = {'quantile': quantiles, 'value': quantiles, 'threshold': 0.4}
  workdir.write_json(
    folder / 'calibration.json', {'dark': known, 'map.dark': known}
  )
  run = Run.__new__(Run)
  run.folder, run.config, run.mpp = folder, defaults.defaults('none', ''), None
  run.config.data.size = tile
  run.info = Info((tile, tile, 3), 1, {})
  run.method, run.state = Method((), score), State()
  run.batch = run.config.score.batch
  mesh = sharding.make_mesh(jax.local_devices())
  run.rows_sharding = sharding.batch_sharding(mesh, run.batch)
  run._key, run._compiled = jax.random.key(0), functools.cache(run._compile)
  return run


if __name__ == '__main__':
  main()
