"""Unsupervised anomaly detection in medical images, in JAX.

run = jaxmed.train(config, 'runs/mine')  # The whole way to a report.
run = jaxmed.load('runs/mine')
run.score(['a.png', 'b.png']).anomalous
"""

import os
import typing

if typing.TYPE_CHECKING:
  from ml_collections import ConfigDict

  from jaxmed.score import Run

__version__ = '0.1.0'
__all__ = ['load', 'train']


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
  from jaxmed.score import Run

  return Run(workdir)
