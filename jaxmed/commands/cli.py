"""The `jaxmed` command: one part of a run at a time, on a run's folder."""

import argparse
import functools
import math
import pathlib
import sys
from collections.abc import Sequence

from jaxmed import __version__, command
from jaxmed.commands import compare_command, tile_command, weights_command
from jaxmed.errors import UserError

THUMBNAIL = 1600  # Pixels of its longer side.


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a subcommand; returns the exit code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if argv[:1] == ['launch']:  # Its flags are absl's.
    from jaxmed import launch

    return launch.main(['jaxmed launch', *argv[1:]])
  fields = [word for word in argv if word.startswith(command.PREFIX)]
  fields = fields if argv[:1] == ['sweep'] else []  # Of its launches.
  parsed = _parser().parse_args([word for word in argv if word not in fields])
  parsed.fields = fields
  return command.exit_code(functools.partial(parsed.run, parsed), parsed.debug)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='jaxmed',
    description='Unsupervised anomaly detection in medical images.',
    epilog='jaxmed COMMAND --help tells more of each.',
  )
  parser.add_argument('--version', action='version', version=__version__)
  commands = parser.add_subparsers(metavar='COMMAND', required=True)
  _add(
    commands,
    'launch',
    None,
    'prepare, train, score, evaluate and report in one go; the same as '
    'python -m jaxmed.launch',
  )
  tile_command.add_options(
    _add(
      commands,
      'tile',
      _tile,
      'cut slides into a data set of tiles',
      'Writes an ordinary TFDS data set with one shard a slide and an index of '
      'all tiles. Killed and called again, it goes on. Slides that cannot be '
      'read are listed, the others go on, and the exit code is 1.',
    )
  )
  score = _add(
    commands,
    'score',
    _score,
    'score images or slides with a trained run',
    'Writes scores.parquet into --out: the scores, how they stand among the '
    'validation normals, and whether the primary one exceeds its threshold; '
    'and an overlay of the map for each image or slide. Slides are known by '
    'their suffix, or as TIFF of several levels. With --slides, every slide '
    'of a folder is scored, the table is slides.parquet, and the same command '
    'goes on after an interruption. Each slide also gets its map as OME-TIFF, '
    "outlines as GeoJSON, and detections in Camelyon's format. Exit code 0: "
    'all is scored, perhaps less some tiles, of which a line tells; 1: a '
    'slide has no score, or an annotation is of no use, and failures.jsonl '
    'says why; 2: nothing could be done.',
  )
  _workdir(score)
  score.add_argument(
    'files',
    nargs='*',
    type=pathlib.Path,
    metavar='FILE',
    help='PNG, JPEG or TIFF images, or slides that OpenSlide reads',
  )
  score.add_argument(
    '--slides',
    type=pathlib.Path,
    metavar='FOLDER',
    help='a folder whose slides are all to be scored',
  )
  score.add_argument(
    '--annotations',
    type=pathlib.Path,
    metavar='FOLDER',
    help='of those slides, named as they are: XML, GeoJSON or mask TIFF; a '
    'slide without one is taken to be normal',
  )
  score.add_argument(
    '--out',
    type=pathlib.Path,
    metavar='FOLDER',
    help='where to write; made if need be (default: WORKDIR/scored, with '
    '--slides a folder of the same name in it)',
  )
  score.add_argument(
    '--mpp',
    type=float,
    metavar='UM',
    help='micrometres per pixel of the slides, in place of what they say',
  )
  evaluate = _add(
    commands,
    'evaluate',
    _evaluate,
    'compute the metrics of a run again',
    'Reads scores.parquet, slides.parquet, detections/ and maps/, writes '
    'results.json and prints the table. Options override the run for this '
    'once.',
  )
  _workdir(evaluate)
  evaluate.add_argument(
    '--primary', metavar='SCORE', help='the score that is named first'
  )
  evaluate.add_argument(
    '--quantile',
    type=float,
    metavar='Q',
    help='of the validation normals, where the threshold is (e.g. 0.95)',
  )
  evaluate.add_argument(
    '--resamples',
    type=int,
    metavar='N',
    help='of the bootstrap, for the intervals (e.g. 2000)',
  )
  evaluate.add_argument(
    '--slides',
    type=pathlib.Path,
    metavar='FOLDER',
    help="what jaxmed score --slides wrote, in place of the run's own slides "
    '(its --out, or WORKDIR/scored/NAME)',
  )
  evaluate.add_argument(
    '--slide-rule',
    metavar='RULE',
    help='by which a slide is scored first: max, mean, mean_above or top_k',
  )
  evaluate.add_argument(
    '--protocol',
    metavar='NAME',
    help='camelyon16: also the FROC of the lesions, from detections/ and the '
    "slides' annotations",
  )
  evaluate.add_argument(
    '--strict',
    action=argparse.BooleanOptionalAction,
    help="the FROC exactly as the challenge's script has it (default), or "
    "without its quirks and at each slide's own scale",
  )
  report = _add(
    commands,
    'report',
    _report,
    'write the report of a run again',
    'Reads the files of a run and writes report.html beside them.',
  )
  _workdir(report)
  compare_command.add_compare(
    _add(
      commands,
      'compare',
      _compare,
      'compare finished runs of one test set',
      compare_command.ABOUT_COMPARE,
    )
  )
  compare_command.add_sweep(
    _add(
      commands,
      'sweep',
      _sweep,
      'run several configs and seeds, and compare them',
      compare_command.ABOUT_SWEEP,
    )
  )
  _add_tissue(commands)
  stain = _add(
    commands,
    'stain',
    _stain,
    'normalise the stain of images or slides',
    'Writes a PNG of each file into --out, its haematoxylin and eosin as in '
    'the target; of a slide a picture of 2048 px. In training and scoring, '
    'set --config.data.stain instead. Files that cannot be read are named, and '
    'the exit code is 1.',
  )
  stain.add_argument(
    'files',
    nargs='+',
    type=pathlib.Path,
    metavar='IMAGE',
    help='PNG, JPEG or TIFF images, or slides that OpenSlide reads',
  )
  stain.add_argument(
    '--out',
    required=True,
    type=pathlib.Path,
    metavar='FOLDER',
    help='where to write; made if need be',
  )
  stain.add_argument(
    '--method',
    default='macenko',
    metavar='NAME',
    help='macenko or reinhard (default: macenko)',
  )
  stain.add_argument(
    '--target',
    default='',
    metavar='IMAGE',
    help="an image to look like (default: the method's standard)",
  )
  weights_command.add_options(
    _add(
      commands,
      'weights',
      _weights,
      'get, list, check and export trained weights',
      weights_command.ABOUT,
    )
  )
  _add(
    commands,
    'doctor',
    _doctor,
    'say what this machine has and what is missing',
    'Prints versions, devices, codecs, memory and disk.',
  )
  return parser


def _add(commands, name, run, summary, description=''):
  parser = commands.add_parser(
    name,
    help=summary,
    description=description or f'{summary[0].upper()}{summary[1:]}.',
  )
  parser.add_argument(
    '--debug', action='store_true', help='show the traceback of every error'
  )
  parser.set_defaults(run=run)
  return parser


def _add_tissue(commands):
  parser = _add(
    commands,
    'tissue',
    _tissue,
    'find the tissue of a slide and show it',
    'Draws an outline around the tissue on a thumbnail of the slide, fades '
    'all else, and prints what share of the slide is tissue.',
  )
  parser.add_argument(
    'slide', type=pathlib.Path, metavar='SLIDE', help='that OpenSlide reads'
  )
  parser.add_argument(
    '--out', required=True, type=_png, metavar='PNG', help='where to draw it'
  )
  parser.add_argument(
    '--mask', type=_png, metavar='PNG', help='where to write the bare mask'
  )
  parser.add_argument(
    '--method',
    default='stain',
    metavar='NAME',
    help='stain (the default), codait or otsu',
  )
  parser.add_argument(
    '--mask-mpp',
    type=float,
    metavar='UM',
    help='micrometres per pixel of the mask, in place of what the method was '
    'made for',
  )
  parser.add_argument(
    '--mpp',
    type=float,
    metavar='UM',
    help='micrometres per pixel of the slide, in place of what it says',
  )


def _png(path: str) -> pathlib.Path:
  if not path.lower().endswith('.png'):
    raise argparse.ArgumentTypeError(f'{path} does not end in .png')
  return pathlib.Path(path)


def _workdir(parser):
  parser.add_argument(
    '--workdir',
    required=True,
    type=pathlib.Path,
    help="a run's folder, as a launch made it",
  )


def _tile(parsed) -> int:
  command.set_up()
  text, failures = tile_command.run(parsed)
  print(text)
  return 1 if failures else 0


def _score(parsed) -> int:
  if bool(parsed.files) == bool(parsed.slides):
    raise UserError('Name either files to score or a folder with --slides.')
  if parsed.annotations and not parsed.slides:
    raise UserError('--annotations goes with --slides.')
  command.set_up()
  from jaxmed.scoring import score_files

  where = parsed.out, parsed.mpp
  if parsed.slides:
    path, unscored = score_files.score_folder(
      parsed.workdir, parsed.slides, parsed.annotations, *where
    )
  else:
    path, unscored = score_files.score_files(
      parsed.workdir, parsed.files, *where
    )
  print(f'Scores: {path}')
  return 1 if unscored else 0


def _evaluate(parsed) -> None:
  command.set_up()
  from jaxmed import beforehand, evaluate, workdir

  config = workdir.load_config(parsed.workdir)
  names = 'primary', 'quantile', 'resamples', 'protocol', 'strict', 'slide_rule'
  for name in names:
    if (value := getattr(parsed, name)) is not None:
      config.eval[name] = value
  beforehand.check_choices(config)
  beforehand.check_numbers(config)
  results = evaluate.evaluate(parsed.workdir, config, parsed.slides)
  print(evaluate.table(results))
  if (parsed.workdir / 'report.html').exists():
    print(
      'The report is as it was; it is written anew by: jaxmed report --workdir '
      f'{parsed.workdir}'
    )


def _report(parsed) -> None:
  command.set_up()
  from jaxmed.report import write_report

  print(f'Report: {write_report(parsed.workdir)}')


def _compare(parsed) -> None:
  command.set_up()
  print(compare_command.run_compare(parsed))


def _sweep(parsed) -> int:
  command.set_up()
  text, code = compare_command.run_sweep(parsed)
  print(text)
  return code


def _tissue(parsed) -> None:
  from PIL import Image

  from jaxmed.errors import UserError
  from jaxmed.slides import heatmap, reader, tissue

  try:
    with reader.open_slide(parsed.slide, parsed.mpp) as slide:
      mask = tissue.tissue_mask(slide, parsed.method, parsed.mask_mpp)
      picture = tissue.outlined(slide.thumbnail(THUMBNAIL), mask)
      area = math.prod((*slide.size, *slide.mpp_xy)) / 1e6
  except reader.TileError as error:
    raise UserError(f'{error}.') from error
  try:
    heatmap.save_overlay(parsed.out, Image.fromarray(picture))
    if parsed.mask:
      heatmap.save_overlay(parsed.mask, Image.fromarray(mask.pixels))
  except OSError as error:
    raise UserError(
      f"{error.filename} can't be written: {error.strerror}."
    ) from error
  share = float(mask.pixels.mean())
  print(
    f'Tissue: {share:.1%} of the slide, {share * area:.4g} of {area:.4g} mm2'
  )
  print(f'Outline: {parsed.out}')


def _stain(parsed) -> int:
  command.set_up()
  from jaxmed.commands import stain_files

  written, reasons = stain_files.normalise_files(
    parsed.files, parsed.out, parsed.method, parsed.target
  )
  for path, changed in written.items():
    print(f'{path}{"" if changed else ": no stain of H&E, left as it was"}')
  for reason in reasons:
    print(f'left out: {reason}', file=sys.stderr)
  return 1 if reasons else 0


def _weights(parsed) -> int:
  command.set_up()
  text, code = weights_command.run(parsed)
  print(text)
  return code


def _doctor(parsed) -> int:
  del parsed
  from jaxmed.commands import doctor

  lines, missing = doctor.examine()
  print('\n'.join(lines))
  return 1 if missing else 0


if __name__ == '__main__':
  sys.exit(main())
