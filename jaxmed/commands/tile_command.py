"""The options of `jaxmed tile`; what they do is in tile.py."""

import argparse
import pathlib
import shlex

from jaxmed.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
  path, add = pathlib.Path, parser.add_argument
  add(
    '--slides', required=True, type=path, metavar='DIR', help='a folder of them'
  )
  add(
    '--out',
    required=True,
    type=path,
    metavar='DIR',
    help='the data set; made if need be',
  )
  add(
    '--annotations',
    metavar='DIR',
    help='of lesions: ASAP XML or GeoJSON files with the names of their '
    'slides, or a CSV file with the columns slide and annotation',
  )
  add(
    '--labels',
    metavar='CSV',
    help='slide and label, 0 or 1; by default 1 where a lesion is outlined',
  )
  add(
    '--split',
    metavar='CSV',
    help='slide and split (train, validation, test); by default the normal '
    'patients are divided by chance, and the others are for testing',
  )
  add(
    '--group',
    metavar='PATTERN',
    help="whose first group is the patient, of slides' names: "
    "'^(TCGA-..-....)'",
  )
  add('--seed', type=int, default=0, help='of the division by chance')
  add(
    '--size',
    type=int,
    default=256,
    metavar='PX',
    help='of a tile (%(default)s)',
  )
  add(
    '--mpp',
    type=float,
    default=0.0,
    metavar='UM',
    help="micrometres per pixel of the tiles (default: each slide's own)",
  )
  add(
    '--stride',
    type=int,
    default=0,
    metavar='PX',
    help='from tile to tile (default: side by side)',
  )
  add(
    '--tissue',
    type=float,
    default=0.5,
    metavar='SHARE',
    help='least of a tile (%(default)s)',
  )
  add(
    '--tissue-method',
    default='stain',
    metavar='METHOD',
    help='stain, codait or otsu (%(default)s)',
  )
  add(
    '--slide-mpp',
    type=float,
    default=0.0,
    metavar='UM',
    help='of the slides, in place of what they say',
  )
  coding = parser.add_mutually_exclusive_group()
  coding.add_argument('--png', action='store_true', help='tiles without loss')
  coding.add_argument(
    '--quality',
    type=int,
    default=90,
    metavar='Q',
    help="of a tile's JPEG (%(default)s); one that the file has stays as it is",
  )
  add('--workers', type=int, metavar='N', help='processes (default: all cores)')
  add(
    '--dry-run',
    action='store_true',
    help='say how many tiles there are and what disk they need; write nothing',
  )
  add(
    '--beam-runner',
    '--beam_runner',  # As Beam's own programs spell it.
    metavar='RUNNER',
    help='Apache Beam does the work: DirectRunner, DataflowRunner, SparkRunner',
  )
  add(
    '--beam-flags',
    '--beam_flags',
    default='',
    metavar='FLAGS',
    help="further flags of Beam's pipeline, in one text",
  )


def run(parsed: argparse.Namespace) -> tuple[str, list[str]]:
  """Does what is asked; returns what to say, and what could not be read."""
  from jaxmed.commands import tile

  if parsed.beam_flags and not parsed.beam_runner:
    raise UserError('--beam-flags needs --beam-runner.')
  if parsed.workers is not None and parsed.workers < 1:
    raise UserError(f'--workers is {parsed.workers}; it has to be at least 1.')
  options = {
    'annotations': parsed.annotations or '',
    'labels': parsed.labels or '',
    'splits': parsed.split or '',
    'group': parsed.group or '',
    'seed': parsed.seed,
    'mpp': parsed.mpp,
    'slide_mpp': parsed.slide_mpp,
    'stride': parsed.stride,
    'tissue': parsed.tissue,
    'method': parsed.tissue_method,
    'format': 'png' if parsed.png else 'jpeg',
    'quality': parsed.quality,
  }
  config = tile.data_config(parsed.slides, parsed.size, options)
  flags = shlex.split(parsed.beam_flags)
  if parsed.beam_runner:
    flags = [f'--runner={parsed.beam_runner}', *flags]
  work = tile.workforce(parsed.workers, flags)
  if parsed.dry_run:
    return tile.dry_run(config, work)
  failures = tile.tile(config, parsed.out, work)
  return tile.summary(parsed.out, failures), failures
