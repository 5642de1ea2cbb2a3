"""Several configs and seeds, one run after another, and how they compare.

Every run is a launch in a process of its own, so that one that fails, or that
runs out of memory, stops no other, and each has the devices to itself. The
folder of a sweep holds the runs' folders, each with the log of its launches.
The same sweep goes on where it was stopped: finished runs are left alone.
"""

import dataclasses
import itertools
import pathlib
import re
import runpy
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jaxmed import beforehand, command, workdir
from jaxmed.comparing import comparison
from jaxmed.errors import UserError
from jaxmed.scoring import score_slides

LOG = 'launch.log'
LONGEST = 100  # Characters of a folder's name.
STRANGE = re.compile(r'[^\w.=+,-]+')  # What such a name does without.
Given = tuple[str, dict[str, Any]]  # 'padim:phantom', {'train.batch': 8}


@dataclasses.dataclass(frozen=True)
class Planned:
  """A run that is to be: its folder's name, its launch, its whole config."""

  name: str
  argv: tuple[str, ...]
  config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a run; `reason` says why, where it is not finished."""

  name: str
  folder: pathlib.Path
  reason: str = ''


def sweep(
  given: Sequence[Given],
  folder: pathlib.Path | str,
  fields: Sequence[str] = (),
  against: str = 'first',
) -> tuple[str, int]:
  """Makes all runs that are not finished yet, and compares them.

  Args:
    given: configs as a launch names them, and what each changes.
    folder: of the sweep, made if it is not there.
    fields: '--config.FIELD=VALUE', of all runs.
    against: what the methods are compared with; see `comparison.compare`.

  Returns what is to be told, and the exit code: 1 if a run has failed or has
  slides without a score, or if the runs do not compare.
  """
  folder = pathlib.Path(folder).absolute()
  planned = plan(given, fields)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'The folder {folder} cannot be used: {error.strerror}; give another '
      '--workdir.'
    ) from error
  outcomes = [
    _make(run, folder / run.name, f'{number} of {len(planned)}')
    for number, run in enumerate(planned, 1)
  ]
  finished = [one.folder for one in outcomes if not one.reason]
  failed = [one for one in outcomes if one.reason]
  for one in failed:
    logging.error('%s failed: %s', one.name, one.reason)
  lines, compared = _compare(finished, folder, against)
  lines.append(f'{len(finished)} of {len(planned)} runs are finished.')
  lines += [f'Failed: {one.name}: {one.reason}' for one in failed]
  unscored = sum(score_slides.unscored(one) for one in finished)
  if unscored:
    lines.append(f'{unscored} slides have no score; the reports say why.')
  whole = compared and not failed and not unscored
  return '\n'.join(lines), 0 if whole else 1


def _compare(
  finished: Sequence[pathlib.Path], folder: pathlib.Path, against: str
) -> tuple[list[str], bool]:
  """The table, or why there is none, and whether that is as it should be."""
  if len(finished) < 2:
    return ['No comparison: it needs two finished runs.'], bool(finished)
  try:
    table = comparison.compare(finished, folder, against)
  except UserError as error:
    return [f'No comparison: {error}'], False
  return [table, f'Comparison: {folder / "comparison.html"}'], True


def plan(given: Sequence[Given], fields: Sequence[str] = ()) -> list[Planned]:
  """The runs, every config read and checked before the first one begins."""
  if not given:
    raise UserError('The sweep has no run; name a config at least.')
  everyones = {field.partition('=')[0] for field in fields}
  found: dict[str, Planned] = {}
  for spec, overrides in given:
    name = _name(spec, overrides)
    if name in found:
      raise UserError(f'The sweep has the run {name} twice; name it once.')
    own = [_flag(field, value) for field, value in overrides.items()]
    for flag in own:
      if (field := flag.partition('=')[0]) in everyones:
        raise UserError(
          f'{field} is given for all runs, and {name} sets it too; leave out '
          'one.'
        )
    argv = f'--config={spec}', *fields, *own
    try:
      config = command.parse_launch(('launch', *argv), '').config
      beforehand.check_config(config)
    except UserError as error:
      raise UserError(f'The run {name} of the sweep: {error}') from error
    found[name] = Planned(name, argv, config)
  return list(found.values())


def read_file(path: pathlib.Path) -> list[Given]:
  """What `get_sweep()` of a Python file gives.

  It gives a list of configs, alone or each with a dict of what it changes; or
  a dict of lists, `config` among them, for all that can be made of them.
  """
  if not path.is_file():
    raise UserError(f'There is no file {path} of a sweep.')
  try:
    get_sweep = runpy.run_path(str(path)).get('get_sweep')
    found = get_sweep() if get_sweep else None
  except UserError:
    raise
  except Exception as error:  # The file is anybody's code.
    raise UserError(
      f'The sweep file {path} fails: {type(error).__name__}: {error}; mend it.'
    ) from error
  if get_sweep is None:
    raise UserError(f'The sweep file {path} defines no get_sweep().')
  if isinstance(found, Mapping | ConfigDict):
    return _grid(dict(found), path)
  if isinstance(found, list | tuple):
    return [_given(one, path) for one in found]
  raise UserError(
    f'get_sweep of {path} gives a {type(found).__name__}; it has to be a list '
    'of configs, or a dict of lists.'
  )


def with_seeds(given: Sequence[Given], seeds: Sequence[int]) -> list[Given]:
  """Every run once with each seed; all seeds of a config side by side."""
  for spec, overrides in given:
    if seeds and 'seed' in overrides:
      raise UserError(
        f'--seeds is given, and {spec} of the sweep has a seed of its own; '
        'leave out one.'
      )
  return [
    (spec, overrides | ({} if seed is None else {'seed': seed}))
    for spec, overrides in given
    for seed in (seeds or [None])
  ]


def _grid(lists: dict[str, Any], path: pathlib.Path) -> list[Given]:
  for name, values in lists.items():
    if isinstance(values, str) or not isinstance(values, Sequence):
      raise UserError(
        f'get_sweep of {path} gives {name} = {values!r}; in a grid it has to '
        'be a list of what it takes in turn.'
      )
  if 'config' not in lists:
    raise UserError(
      f'The grid of {path} has no config, such as ["padim:phantom"].'
    )
  specs = lists.pop('config')
  return [
    _given((spec, dict(zip(lists, values, strict=True))), path)
    for spec in specs
    for values in itertools.product(*lists.values())
  ]


def _given(one: Any, path: pathlib.Path) -> Given:
  if isinstance(one, str):
    return one, {}
  fits = isinstance(one, list | tuple) and len(one) == 2
  if fits and isinstance(one[0], str) and isinstance(one[1], Mapping):
    return one[0], dict(one[1])
  raise UserError(
    f'get_sweep of {path} gives {one!r}; a run is a config, or a config and a '
    'dict of fields, such as ("padim:phantom", {"seed": 1}).'
  )


def _flag(field: str, value: Any) -> str:
  """As the command line takes it."""
  if isinstance(value, str):
    text = value
  elif isinstance(value, list | tuple):
    text = repr(tuple(value))
  else:
    text = repr(value)
  return f'{command.PREFIX}{field}={text}'


def _name(spec: str, overrides: dict[str, Any]) -> str:
  """padim-phantom-train.batch=8-seed1: the same whatever else is swept."""
  path, _, preset = spec.partition(':')
  parts = [pathlib.PurePath(path).name.removesuffix('.py')]
  parts += [preset] if preset else []
  for field, value in overrides.items():
    text = value if isinstance(value, str) else repr(value)
    parts.append(f'seed{text}' if field == 'seed' else f'{field}={text}')
  whole = '-'.join(parts)
  plain = STRANGE.sub('_', whole)
  if plain == whole and len(whole) <= LONGEST:
    return whole
  digest = f'{zlib.crc32(whole.encode()):08x}'
  return f'{plain[: LONGEST - 9]}-{digest}'


def _make(run: Planned, folder: pathlib.Path, number: str) -> Outcome:
  """Launches a run, unless it is finished."""
  if _is_finished(run, folder):
    logging.info('Run %s, %s, is finished already.', number, run.name)
    return Outcome(run.name, folder)
  log = folder / LOG
  logging.info('Run %s: %s. It says how it goes in %s.', number, run.name, log)
  began = time.monotonic()
  folder.mkdir(exist_ok=True)
  code = _launch(run.argv, folder, log)
  if code not in (0, 1) or not _is_finished(run, folder):
    said = f'exit code {code}, {_last_line(log)}'
    logging.warning('%s failed: %s', run.name, said)
    return Outcome(run.name, folder, said)
  results = workdir.read_json(folder / 'results.json')
  auroc = results['image'][results['primary']]['auroc']['value']
  logging.info(
    '%s: AUROC %s, in %.0f s.',
    run.name,
    'none' if auroc is None else f'{auroc:.3f}',
    time.monotonic() - began,
  )
  return Outcome(run.name, folder)


def _is_finished(run: Planned, folder: pathlib.Path) -> bool:
  """Whether all is there, and of this config."""
  if not all((folder / n).exists() for n in ('config.json', 'report.html')):
    return False
  try:
    before = workdir.read_json(folder / 'config.json')
  except UserError:  # The launch will say it.
    return False
  before.pop('changed', None)
  return not workdir.differences(before, workdir.plain_config(run.config))


def _launch(
  argv: Sequence[str], folder: pathlib.Path, log: pathlib.Path
) -> int:
  """The exit code of a launch; asked to stop, it is let save first.

  It is not of this process's group: Ctrl-C would reach it twice.
  """
  words = sys.executable, '-m', 'jaxmed.launch', *argv, f'--workdir={folder}'
  with log.open('a') as file:
    process = subprocess.Popen(
      words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
      return process.wait()
    except KeyboardInterrupt:
      process.terminate()
      process.wait()
      raise
    finally:
      if process.poll() is None:  # Interrupted a second time.
        process.kill()


def _last_line(log: pathlib.Path) -> str:
  lines = log.read_text('utf-8', errors='replace').split('\n')
  said = [line.strip() for line in lines if line.strip()]
  return f'{said[-1].removeprefix("jaxmed: ")} ({log})' if said else str(log)
