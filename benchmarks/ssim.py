"""SSIM of 16 RGB images of 512 px: ours against scikit-image, on this CPU.

Both sides get the same float32 images in [0, 1], each in its own kind of array,
and the same settings. They are called in turn and compared by the medians of
their times. The ratio of processor times stands beside: it says more where
other programs run.

  python benchmarks/ssim.py
"""

import os
import time

import jax
import numpy as np
from scipy import ndimage
from skimage.metrics import structural_similarity

from jaxmed.ops import ssim

ROUNDS = 7
SHAPE = (16, 512, 512, 3)


def images():
  """Smooth structure with noise, and a blurred copy."""
  rng = np.random.default_rng(0)
  x = ndimage.gaussian_filter(rng.standard_normal(SHAPE), (0, 3, 3, 0))
  x = np.clip(0.5 + 4 * x + 0.05 * rng.standard_normal(SHAPE), 0, 1)
  y = ndimage.gaussian_filter(x, (0, 1.3, 1.3, 0))
  return x.astype(np.float32), y.astype(np.float32)


def skimage_mean(x, y):
  return [
    structural_similarity(
      a,
      b,
      channel_axis=-1,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
      data_range=1.0,
    )
    for a, b in zip(x, y, strict=True)
  ]


def main():
  x, y = images()
  ours = jax.device_put((x, y))  # As images lie once they are a batch.
  mean = jax.jit(ssim.ssim)
  whole = jax.jit(ssim.ssim_map)
  sides = {
    'scikit-image': lambda: skimage_mean(x, y),
    'ssim': lambda: mean(*ours).block_until_ready(),
    'ssim_map': lambda: whole(*ours).block_until_ready(),
  }
  found = {name: np.asarray(side()) for name, side in sides.items()}
  seconds = {name: [] for name in sides}
  for _ in range(ROUNDS):
    for name, side in sides.items():
      began = time.perf_counter(), time.process_time()
      side()
      ended = time.perf_counter(), time.process_time()
      seconds[name].append(np.subtract(ended, began))
  medians = {name: np.median(taken, axis=0) for name, taken in seconds.items()}
  error = np.abs(found['ssim'] - found['scikit-image']).max()
  print(f'{SHAPE}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}')
  print(f'largest difference of a mean: {error:.1e}')
  for name, (wall, processor) in medians.items():
    ratios = medians['scikit-image'] / (wall, processor)
    print(
      f'{name:13} {wall:6.3f} s, {ratios[0]:5.1f} times scikit-image; '
      f'processor {processor:6.3f} s, {ratios[1]:5.1f} times'
    )


if __name__ == '__main__':
  main()
