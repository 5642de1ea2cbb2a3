"""Unsupervised anomaly detection in medical images, in JAX.

run = jaxmed.train(config, 'runs/mine')  # The whole way to a report.
run = jaxmed.load('runs/mine')
run.score(['a.png', 'b.png']).anomalous
jaxmed.normalise_stain(['a.png', 'b.png'])  # For the eye.
jaxmed.lpips('a.png', 'b.png')  # How different they look.
"""

import os
import typing

if typing.TYPE_CHECKING:
  from collections.abc import Sequence

  import numpy as np
  from ml_collections import ConfigDict

  from jaxmed.scoring.score import Run

__version__ = '0.6.0'
__all__ = ['load', 'lpips', 'normalise_stain', 'train']


def train(
  config: 'ConfigDict', workdir: str | os.PathLike, fresh: bool = False
) -> 'Run':
  """Prepares data, trains, scores, evaluates and reports.

  Args:
    config: what to do; `jaxmed.configs` has one for every method, e.g.
      `from jaxmed.configs import munit; munit.get_config('folder')`.
    workdir: the run's folder. What it holds already is not done again.
    fresh: begin it anew.
  """
  from jaxmed import launch

  launch.launch(config, workdir, fresh)
  return load(workdir)


def load(workdir: str | os.PathLike) -> 'Run':
  """A trained run: `.score(images)`, `.score_slide(path)`."""
  from jaxmed.scoring.score import Run

  return Run(workdir)


def normalise_stain(
  images: 'Sequence[np.ndarray | str | os.PathLike]',
  method: str = 'macenko',
  target: str | os.PathLike = '',
) -> 'list[np.ndarray]':
  """Images as if stained alike; `method` is macenko or reinhard.

  Args:
    images: files, or arrays of uint8 or uint16, of any size.
    target: an image to look like; else the method's standard.
  """
  from jaxmed.commands import stain_files

  return stain_files.normalise(images, method, target)


def lpips(
  x: 'np.ndarray | str | os.PathLike | Sequence',
  y: 'np.ndarray | str | os.PathLike | Sequence',
  network: str = 'squeeze',
  range: tuple[float, float] | None = None,
  weights: str | os.PathLike = 'imagenet',
  spatial: bool = False,
) -> 'np.ndarray':
  """LPIPS, version 0.1: how different x and y look; one number a pair.

  Args:
    x, y: an image, as an array [h, w] or [h, w, c] or a file, or several as a
      list or an array [b, h, w, c]; gray or RGB.
    network: squeeze, alex or vgg. Numbers of different ones do not compare.
    range: lowest and highest value that a pixel may have, (-1, 1) say. None
      is (0, 1) for floats, and all of its type for unsigned integers.
    weights: imagenet, random, or a checkpoint of the network.
    spatial: a map [h, w] a pair instead.
  """
  from jaxmed import perceptual

  return perceptual.lpips(x, y, network, range, weights, spatial)
