"""How much of bare JPEG decoding's rate the whole input pipeline reaches.

  python benchmarks/input_pipeline.py [--sizes 64,256,512] [--seconds 4]

Both sides decode the same JPEGs on the same cores. Bare: imagecodecs, in as
many threads as there are cores, over bytes that lie in memory. Pipeline:
shuffled rows from array_record files through Grain to batches on the device,
as training gets them. They take short turns; each side's best turn counts, and
the ratio of the processor time that an image takes stands beside it, which
says more where other programs run.
"""

import argparse
import functools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures

import imagecodecs
import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from PIL import Image

from jaxmed.datasets import write
from jaxmed.datasets.records import Records, open_records
from jaxmed.pipeline import open_cohort
from jaxmed.slides.guard import cores

BATCH = 64
TURNS = 12
PIXELS = 2**25  # Of a data set's images together, about.


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--sizes', default='64,256,512')
  parser.add_argument('--seconds', type=float, default=4.0)
  given = parser.parse_args()
  print(f'{cores()} cores, batches of {BATCH}')
  for size in map(int, given.sizes.split(',')):
    with tempfile.TemporaryDirectory() as folder:
      compare(pathlib.Path(folder), size, given.seconds)


def compare(folder: pathlib.Path, size: int, seconds: float) -> None:
  records, data_config = _data(folder, size)
  encoded = [record.image for record in records.read(range(len(records)))]
  sides = {
    'bare': functools.partial(_bare, encoded),
    'pipeline': functools.partial(_pipeline, records, data_config),
  }
  best = dict.fromkeys(sides, 0.0)
  count, spent = dict.fromkeys(sides, 0), dict.fromkeys(sides, 0.0)
  for _ in range(TURNS):
    for name, turn in sides.items():
      images, wall, processor = turn(seconds / TURNS)
      best[name] = max(best[name], images / wall)
      count[name] += images
      spent[name] += processor
  each = {name: spent[name] / count[name] for name in sides}
  kilobytes = sum(map(len, encoded)) / len(encoded) / 1e3
  print(
    f'{size} px, {kilobytes:.1f} kB: bare {best["bare"]:.0f} images/s, '
    f'pipeline {best["pipeline"]:.0f}, ratio '
    f'{best["pipeline"] / best["bare"]:.2f}; by processor time '
    f'{each["bare"] / each["pipeline"]:.2f}',
    flush=True,
  )


Turn = tuple[int, float, float]  # Images, seconds, processor seconds.


def _bare(encoded: list[bytes], seconds: float) -> Turn:
  def decode(number: int) -> int:
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
      imagecodecs.jpeg8_decode(encoded[(number + count) % len(encoded)])
      count += 1
    return count

  with futures.ThreadPoolExecutor(cores()) as threads:
    starts = range(0, len(encoded), -(-len(encoded) // cores()))
    began, processor = time.perf_counter(), time.process_time()
    count = sum(threads.map(decode, starts))
  return (count, time.perf_counter() - began, time.process_time() - processor)


def _pipeline(records: Records, data_config, seconds: float) -> Turn:
  cohort = open_cohort(
    records,
    records.select(''),
    SingleDeviceSharding(jax.devices()[0]),
    BATCH,
    0,
    seed=0,
    endless=True,
    data_config=data_config,
    train=True,
  )
  for _ in range(8):  # What was read ahead counts for nobody.
    next(cohort).image.block_until_ready()
  began, processor = time.perf_counter(), time.process_time()
  count = 0
  while time.perf_counter() - began < seconds:
    next(cohort).image.block_until_ready()
    count += BATCH
  wall, spent = time.perf_counter() - began, time.process_time() - processor
  cohort.close()
  return count, wall, spent


def _data(folder: pathlib.Path, size: int) -> tuple[Records, ConfigDict]:
  """Textured tiles as JPEGs of quality 90, prepared as any folder is."""
  images = folder / 'images' / 'normal'
  images.mkdir(parents=True)
  for number, pixels in enumerate(_textures(size, PIXELS // size**2)):
    path = images / f'{number:05d}.jpg'
    path.write_bytes(imagecodecs.jpeg8_encode(pixels, level=90))
  data_config = ConfigDict(
    {
      'name': 'folder',
      'path': str(images.parent),
      'dir': str(folder / 'prepared'),
      'options': {'train': 1.0, 'validation': 0.0},
      'size': size,
      'channels': 3,
      'resize': 0,
      'crop': 'centre',
    }
  )
  return open_records(write.prepare(data_config)), data_config


def _textures(size: int, count: int) -> Iterator[np.ndarray]:
  """Smooth noise of a few scales in a stain's colours."""
  dice = np.random.default_rng(0)
  for _ in range(count):
    density = sum(
      np.asarray(
        Image.fromarray(dice.random((cells, cells), np.float32)).resize(
          (size, size), Image.Resampling.BICUBIC
        )
      )
      for cells in (size // 16, size // 6, size // 3)
    )[..., None]
    absorbed = density * np.array([0.3, 0.6, 0.25], np.float32)
    yield (255 * np.exp(-absorbed)).clip(0, 255).astype(np.uint8)


if __name__ == '__main__':
  main()
