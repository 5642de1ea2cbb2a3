"""The whole way in one command: prepare, train, score, evaluate, report.

  python -m jaxmed.launch --config=configs/munit.py
  python -m jaxmed.launch --config=patchcore:folder --config.data.path=images

Whatever a run's folder already holds is not done again, so the same command
goes on where an earlier one stopped. The exit code is 1 if all was done but
a slide has no score; slides.parquet and the report say why.
"""

import contextlib
import functools
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jaxmed import beforehand, command, evaluate, examples, learn, workdir
from jaxmed.datasets import write
from jaxmed.datasets.records import open_records
from jaxmed.errors import UserError
from jaxmed.provenance import Provenance
from jaxmed.report import write_report
from jaxmed.scoring import score_records, score_slides
from jaxmed.scoring.score import Run
from jaxmed.training import distributed


def launch(
  config: ConfigDict, folder: pathlib.Path | str = '', fresh: bool = False
) -> pathlib.Path:
  """Goes the whole way, or what is left of it; returns the run's folder.

  Args:
    config: of `configs/`, e.g. `munit.get_config('phantom')`.
    folder: of the run, made if it is not there; else runs/METHOD-PRESET.
    fresh: begin anew, whatever the folder holds.
  """
  beforehand.check_config(config)
  folder = pathlib.Path(folder or f'runs/{config.method}-{config.preset}')
  folder = folder.absolute()  # Orbax asks for it.
  if config.data.path and folder == pathlib.Path(config.data.path).absolute():
    raise UserError(
      f'The workdir {folder} is the folder of the data; give another --workdir.'
    )
  with contextlib.ExitStack() as held:
    first = distributed.only_first

    def settle():
      held.enter_context(workdir.claim(folder))
      workdir.settle(folder, config, fresh)

    first(settle, 'settle')
    provenance = Provenance(folder)
    stages = (
      ('train', 'final', lambda: _train(config, folder, provenance)),
      ('score', 'examples.json', lambda: _score(config, folder, provenance)),
      (
        'evaluate',
        'results.json',
        lambda: first(lambda: evaluate.evaluate(folder, config), 'evaluated'),
      ),
      (
        'report',
        'report.html',
        lambda: first(lambda: write_report(folder), 'reported'),
      ),
    )
    # As the first host sees it: it may have written more since.
    is_left = [not (folder / stage[1]).exists() for stage in stages]
    is_left = distributed.of_first(np.array(is_left))
    left = list(itertools.compress(stages, is_left))
    if not left:
      _done(config, folder, provenance)
    for name, _, make in left:
      _timed(name, make, provenance)
  return folder


def _train(
  config: ConfigDict, folder: pathlib.Path, provenance: Provenance
) -> None:
  data = None

  def prepare():
    nonlocal data
    data = write.prepare(config.data)

  _timed('prepare', prepare, provenance)
  beforehand.check_data(config, open_records(data))
  learn.train(config, folder, data, provenance)


def _score(
  config: ConfigDict, folder: pathlib.Path, provenance: Provenance
) -> None:
  run = Run(folder)
  data = write.prepare(config.data)
  learn.check_same_data(provenance, data)
  records = open_records(data)
  scored = np.array((folder / 'scores.parquet').exists())
  if not distributed.of_first(scored):
    provenance.add(score=score_records.score_records(run, records))
  if config.score.slides:
    score_slides.score_slides(run, records)
  distributed.only_first(lambda: examples.show(run, records), 'examples')


def _done(
  config: ConfigDict, folder: pathlib.Path, provenance: Provenance
) -> None:
  """Says so; and if it was done with images that are others now."""
  logging.info('Everything in %s is done already.', folder)
  try:
    learn.check_same_data(provenance, write.location(config.data))
  except UserError as error:
    logging.warning('%s', error)


def _timed(name: str, make: Callable[[], None], provenance: Provenance) -> None:
  began = time.monotonic()
  make()
  provenance.stage(name, time.monotonic() - began)


def main(argv: Sequence[str] | None = None) -> int:
  """Launches what the command line says; returns the exit code."""
  argv = list(sys.argv if argv is None else argv)
  main = functools.partial(_main, argv)
  return distributed.exit_code(
    lambda: command.exit_code(main, '--debug' in argv)
  )


def _main(argv: list[str]) -> int:
  flags = command.parse_launch(argv, __doc__)
  command.set_up()
  distributed.initialize(
    flags.distributed, flags.coordinator, flags.processes, flags.process
  )
  folder = launch(flags.config, flags.workdir, flags.fresh)
  if distributed.is_first():
    print(evaluate.table(workdir.read_json(folder / 'results.json')))
    print(f'Report: {folder / "report.html"}')
  return 1 if score_slides.unscored(folder) else 0


if __name__ == '__main__':
  sys.exit(main())
