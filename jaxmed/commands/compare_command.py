"""The options of `jaxmed compare` and `jaxmed sweep`."""

import argparse
import pathlib

from jaxmed.errors import UserError

ABOUT_COMPARE = (
  'Writes comparison.html and comparison.csv into --out and prints a table: '
  'every run evaluated anew on the same resamples of slides or patients, '
  'paired bootstrap p-values corrected by Holm, speed, memory and size, and '
  'the same ten examples under every method. Runs of one config with several '
  'seeds are one method, with mean and spread. Runs of different test sets '
  'are refused.'
)
ABOUT_SWEEP = (
  'Launches each config with each seed in turn, every run in a process and a '
  'folder of its own, and ends in the comparison of those that finished, '
  'comparison.html in --workdir. Called again, it goes on: what is finished '
  'is skipped. --config.FIELD=VALUE is of all runs. SWEEP is a Python file '
  'whose get_sweep() gives a list of configs, alone or each with a dict of '
  'fields, ("padim:phantom", {"train.batch": 8}), or a grid, '
  '{"config": ["padim:phantom"], "seed": [0, 1]}. Exit code 1: a run has '
  'failed, the others went on.'
)


def add_compare(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'runs',
    nargs='+',
    type=pathlib.Path,
    metavar='RUN',
    help="runs' folders, two or more, of one test set",
  )
  parser.add_argument(
    '--out',
    type=pathlib.Path,
    default=pathlib.Path('.'),
    metavar='DIR',
    help='where to write; made if need be (default: here)',
  )
  parser.add_argument(
    '--resamples',
    type=int,
    default=0,
    metavar='N',
    help="of the bootstrap (default: as the first run's config has it)",
  )
  _add_against(parser)


def add_sweep(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    'sweep',
    nargs='?',
    type=pathlib.Path,
    metavar='SWEEP',
    help='a Python file with get_sweep()',
  )
  parser.add_argument(
    '--config',
    action='append',
    default=[],
    metavar='NAME:PRESET',
    help='as a launch takes it; may be given several times',
  )
  parser.add_argument(
    '--seeds',
    type=_seeds,
    default=(),
    metavar='N,N,...',
    help='of every config, e.g. 0,1,2',
  )
  parser.add_argument(
    '--workdir',
    required=True,
    type=pathlib.Path,
    metavar='DIR',
    help='of the sweep: a folder a run, and the comparison',
  )
  _add_against(parser)


def _add_against(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--against',
    default='first',
    choices=('first', 'best'),
    help='what every method is held against: the first named (default), or '
    'the best by its AUROC',
  )


def _seeds(text: str) -> tuple[int, ...]:
  try:
    seeds = tuple(int(word) for word in text.split(','))
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'{text!r} is not a list of whole numbers such as 0,1,2'
    ) from None
  if len(set(seeds)) < len(seeds):
    raise argparse.ArgumentTypeError(f'{text!r} names a seed twice')
  return seeds


def run_compare(parsed: argparse.Namespace) -> str:
  from jaxmed.comparing import comparison

  told = comparison.compare(
    parsed.runs, parsed.out, parsed.against, parsed.resamples
  )
  return f'{told}\nComparison: {parsed.out / "comparison.html"}'


def run_sweep(parsed: argparse.Namespace) -> tuple[str, int]:
  import jax

  from jaxmed.comparing import sweep

  # The devices are for the runs: this process must not hold any.
  jax.config.update('jax_platforms', 'cpu')
  if bool(parsed.sweep) == bool(parsed.config):
    raise UserError(
      'Name either the file of a sweep or configs by --config, e.g. '
      '--config=padim:phantom --config=patchcore:phantom.'
    )
  for field in parsed.fields:
    if '=' not in field:
      raise UserError(f'{field} has no value; write {field}=VALUE.')
  given = [(spec, {}) for spec in parsed.config]
  if parsed.sweep:
    given = sweep.read_file(parsed.sweep)
  given = sweep.with_seeds(given, parsed.seeds)
  return sweep.sweep(given, parsed.workdir, parsed.fields, parsed.against)
