"""Normalising the stain of 16 images of 256 px: ours and a loop of NumPy.

Both sides do the same arithmetic on the same bytes, Macenko's with stains from
cells of 4 px, Reinhard's in l alpha beta; the loop in float32, one image after
the other, as one would write it. They are called in turn and compared by the
medians of their times. The ratio of processor times stands beside: it says
more where other programs run.

  python benchmarks/stain.py [FOLDER of PNG images of 256 px]
"""

import os
import pathlib
import sys
import time

import jax
import numpy as np
from PIL import Image

from jaxmed.ops import colour

ROUNDS = 9
COUNT, SIDE = 16, 256
CELL = colour.CELL


def images(folder: str | None) -> np.ndarray:
  """Those of a folder, or noise in two stains."""
  if folder:
    paths = sorted(pathlib.Path(folder).rglob('*.png'))[:COUNT]
    return np.stack([np.asarray(Image.open(p).convert('RGB')) for p in paths])
  rng = np.random.default_rng(0)
  amounts = rng.gamma(2.0, 0.4, (COUNT, SIDE // 8, SIDE // 8, 2))
  amounts = amounts.repeat(8, 1).repeat(8, 2)
  amounts += 0.02 * rng.standard_normal(amounts.shape)
  light = colour.LIGHT * np.exp(-amounts @ colour.MACENKO.matrix.T)
  return np.clip(np.round(light - 1), 0, 255).astype(np.uint8)


def macenko(pixels: np.ndarray) -> np.ndarray:
  density = -np.log((pixels.astype(np.float32) + 1) / np.float32(colour.LIGHT))
  height, width = pixels.shape[:2]
  cells = density.reshape(height // CELL, CELL, width // CELL, CELL, 3)
  cells = cells.mean(axis=(1, 3)).reshape(-1, 3)
  tissue = cells[(cells >= colour.BETA).all(axis=1)]
  _, vectors = np.linalg.eigh(np.cov(tissue.T))
  plane = vectors[:, 1:] * np.sign((tissue @ vectors[:, 1:]).mean(axis=0))
  x, y = (tissue @ plane).T
  angles = np.percentile(np.arctan2(x, y), [1, 99])
  sides = [plane @ [np.sin(angle), np.cos(angle)] for angle in angles]
  sides.sort(key=lambda side: -side[0])
  matrix = np.stack(sides, axis=1)
  density = density.reshape(-1, 3)
  amounts = density @ np.linalg.pinv(matrix).T.astype(np.float32)
  stained = (density >= colour.BETA).any(axis=1)
  maxima = np.percentile(amounts[stained], 99, axis=0)
  scaled = amounts * (colour.MACENKO.maxima / maxima).astype(np.float32)
  light = colour.LIGHT * np.exp(-scaled @ colour.MACENKO.matrix.T)
  return np.clip((light - 1) / 255, 0, 1).reshape(pixels.shape)


def reinhard(pixels: np.ndarray) -> np.ndarray:
  plain = pixels.reshape(-1, 3).astype(np.float32)
  forward = colour.LMS.astype(np.float32), colour.RUDERMAN.astype(np.float32)
  lab = np.log(np.maximum(plain, 1) @ forward[0].T) @ forward[1].T
  density = -np.log((plain.min(axis=1) + 1) / np.float32(colour.LIGHT))
  tissue = lab[density >= colour.BETA]
  lab = (lab - tissue.mean(axis=0)) / tissue.std(axis=0)
  lab = lab * colour.REINHARD.deviation + colour.REINHARD.mean
  back = [np.linalg.inv(m).astype(np.float32) for m in forward]
  made = np.exp(lab @ back[1].T) @ back[0].T
  share = np.clip(density / np.float32(colour.BETA), 0, 1)[:, None]
  made = (share * made + (1 - share) * plain) / 255
  return np.clip(made, 0, 1).reshape(pixels.shape)


def main(folder: str | None = None):
  pixels = images(folder)
  ours = jax.device_put(pixels)  # As images lie once they are a batch.
  print(f'{pixels.shape}, {os.cpu_count()} cores, {jax.devices()[0]}')
  for plain, function in (
    (macenko, colour.normalise_macenko),
    (reinhard, colour.normalise_reinhard),
  ):
    jitted = jax.jit(function)
    sides = {
      'NumPy': lambda plain=plain: np.stack([plain(one) for one in pixels]),
      'jaxmed': lambda jitted=jitted: jax.block_until_ready(jitted(ours)[0]),
    }
    found = {name: np.asarray(side()) for name, side in sides.items()}
    error = np.abs(found['NumPy'] - found['jaxmed']).max()
    seconds = {name: [] for name in sides}
    for _ in range(ROUNDS):
      for name, side in sides.items():
        began = time.perf_counter(), time.process_time()
        side()
        ended = time.perf_counter(), time.process_time()
        seconds[name].append(np.subtract(ended, began))
    medians = {k: np.median(taken, axis=0) for k, taken in seconds.items()}
    print(
      f'{plain.__name__}, load {os.getloadavg()[0]:.1f}, largest difference '
      f'{error:.1e}'
    )
    for name, taken in medians.items():
      ratios = medians['NumPy'] / taken
      print(
        f'  {name:7} {len(pixels) / taken[0]:7.1f} images/s, {ratios[0]:4.1f} '
        f'times NumPy; by processor time {ratios[1]:4.1f} times'
      )


if __name__ == '__main__':
  main(*sys.argv[1:2])
