"""Filling large annotations at level 5 of a 100,000 x 200,000 slide.

Ours against two plain ways in the same process: PIL's ImageDraw, one polygon
after the other (it rounds corners to whole pixels and knows no exclusions),
and matplotlib's point-in-polygon for every pixel, which would take hours: it
is timed on some rows that are spread over the slide. What differs from
matplotlib on these rows is printed, too.

  python benchmarks/annotations.py
"""

import os
import pathlib
import resource
import tempfile
import time

import numpy as np
from matplotlib.path import Path
from PIL import Image, ImageDraw

from jaxmed.slides import annotations, geojson
from jaxmed.slides.annotations import Polygon

SIZE, DOWNSAMPLE = (100_000, 200_000), 32
ROWS = 3  # Of 6,250, for matplotlib.


def coast(points: int, centre=(50_000, 100_000), radius=40_000.0) -> np.ndarray:
  """A ring with bays, and steps of some pixels, as a hand draws."""
  rng = np.random.default_rng(points)
  angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
  bays = sum(np.sin(k * angle + k) / k for k in (3, 7, 31))
  length = radius * (0.8 + 0.15 * bays) + rng.uniform(-2, 2, points)
  ring = np.stack([np.cos(angle), 2 * np.sin(angle)], 1) * length[:, None]
  return ring + centre


def cells(count: int, points: int) -> list[Polygon]:
  rng = np.random.default_rng(0)
  shape = coast(points, (0, 0), 60.0)
  places = rng.uniform(1000, 99_000, (count, 2)) * (1, 2)
  return [Polygon(shape + place) for place in places]


def cases() -> dict[str, list[Polygon]]:
  hole = coast(2000, radius=20_000.0)
  excluded = Polygon(coast(1000, (80_000, 60_000), 9000.0), 'Exclusion')
  return {
    '20,000 corners, a hole, an exclusion': [
      Polygon(coast(17_000), holes=(hole,)),
      excluded,
    ],
    '1,000,000 corners in one ring': [Polygon(coast(10**6))],
    '1,000,000 corners in 50,000 rings': cells(50_000, 20),
  }


def with_pil(polygons: list[Polygon], width: int, height: int) -> np.ndarray:
  image = Image.new('1', (width, height))
  draw = ImageDraw.Draw(image)
  for polygon in sorted(polygons, key=lambda polygon: polygon.hole):
    for i, ring in enumerate(polygon.rings):
      corners = (ring / DOWNSAMPLE).ravel().tolist()
      draw.polygon(corners, fill=int(not i and not polygon.hole))
  return np.asarray(image)


def with_matplotlib(
  polygons: list[Polygon], width: int, rows: np.ndarray
) -> np.ndarray:
  x, y = np.meshgrid(np.arange(width) + 0.5, rows + 0.5)
  pixels = np.stack([x.ravel(), y.ravel()], 1) * DOWNSAMPLE
  inside = np.zeros(len(pixels), bool)
  for polygon in sorted(polygons, key=lambda polygon: polygon.hole):
    outer, *holes = (
      Path(ring).contains_points(pixels) for ring in polygon.rings
    )
    for hole in holes:
      outer &= ~hole
    inside = inside & ~outer if polygon.hole else inside | outer
  return inside.reshape(len(rows), width)


def timed(work):
  began = time.perf_counter()
  return work(), time.perf_counter() - began


def peak() -> float:
  """The most memory that this process has had so far, in MB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
  print(f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}')
  width, height = (side // DOWNSAMPLE for side in SIZE)
  found = {}
  for name, polygons in cases().items():
    before = peak()
    mask, seconds = timed(
      lambda polygons=polygons: annotations.lesion_mask(
        polygons, SIZE, DOWNSAMPLE
      )
    )
    found[name] = polygons, mask.pixels, seconds
    print(
      f'{name}: {seconds:.2f} s; the process had {before:.0f} MB at most '
      f'before and {peak():.0f} MB after'
    )
  with tempfile.TemporaryDirectory() as folder:
    for name, write, read in (
      ('XML', annotations.write_xml, annotations.read_xml),
      ('GeoJSON', geojson.write_geojson, geojson.read_geojson),
    ):
      path = pathlib.Path(folder) / name
      polygons = found['1,000,000 corners in one ring'][0]
      write(path, polygons)
      processor = time.process_time()
      _, seconds = timed(lambda path=path, read=read: read(path))
      print(
        f'read 1,000,000 corners of {name}: {seconds:.1f} s, of the processor '
        f'{time.process_time() - processor:.1f} s'
      )
  rows = np.linspace(0, height - 1, ROWS + 2).astype(int)[1:-1]
  for name, (polygons, ours, seconds) in found.items():
    theirs, pil = timed(lambda p=polygons: with_pil(p, width, height))
    print(
      f'{name}: PIL {pil:.2f} s, {pil / seconds:.2f} times ours, other pixels '
      f'{np.mean(theirs != ours):.1e}'
    )
    if len(polygons) > 100:
      continue  # Each of so many polygons would go through all pixels.
    part, taken = timed(lambda p=polygons: with_matplotlib(p, width, rows))
    whole = taken * height / len(rows)
    print(
      f'{name}: matplotlib {taken:.1f} s for {len(rows)} rows, so '
      f'{whole / 60:.0f} minutes for all, {whole / seconds:.0f} times ours; '
      f'other pixels {(part != ours[rows]).sum()} of {part.size}'
    )


if __name__ == '__main__':
  main()
