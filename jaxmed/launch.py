"""The whole way in one command: prepare, train, score, evaluate, report.

  python -m jaxmed.launch --config=configs/munit.py
  python -m jaxmed.launch --config=patchcore:folder --config.data.path=images/

Whatever a run's folder already holds is not done again.
"""

import importlib.util
import pathlib
import sys
import time
from collections.abc import Callable

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from jaxmed import command, evaluate, training, workdir
from jaxmed import score as scoring
from jaxmed.datasets import write
from jaxmed.errors import UserError
from jaxmed.provenance import Provenance
from jaxmed.report import write_report
from jaxmed.training import distributed


def train(
  config: ConfigDict, folder: pathlib.Path | str, fresh: bool = False
) -> scoring.Run:
  """Goes the whole way, or the rest of it, and gives the trained run."""
  folder = pathlib.Path(folder)
  with distributed.claimed(folder):
    if jax.process_index() == 0:
      workdir.settle(folder, config, fresh)
    distributed.barrier('settled')
    provenance = Provenance(folder)

    def stage(name: str, made: str, make: Callable[[], object]) -> bool:
      if (folder / made).exists():
        return False
      began = time.monotonic()
      make()
      provenance.stage(name, time.monotonic() - began)
      distributed.barrier(name)
      return True

    def learn():
      began = time.monotonic()
      data = write.prepare(config.data)
      provenance.stage('prepare', time.monotonic() - began)
      training.train(config, folder, data, provenance)

    first = distributed.on_first
    done = [
      stage('train', 'final', learn),
      stage('score', 'examples.json', lambda: scoring.score(folder)),
      stage(
        'evaluate', 'results.json', first(evaluate.evaluate, folder, config)
      ),
      stage('report', 'report.html', first(write_report, folder)),
    ]
    if not any(done):
      logging.info('Everything in %s was done already.', folder)
  return scoring.Run(folder)
