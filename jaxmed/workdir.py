"""A run's folder: one launch at a time, one config, nothing half-written."""

import contextlib
import fcntl
import importlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.errors import UserError

# In the order in which a run makes them; `--fresh` removes them all.
FILES = (
  'config.json',
  'info.json',
  'provenance.json',
  'train.jsonl',
  'watch.json',
  'samples',
  'chosen',
  'checkpoints',
  'final',
  'scores',
  'calibration.json',
  'scores.parquet',
  'slides.parquet',
  'maps',
  'detections',
  'examples',
  'examples.json',
  'failures.jsonl',
  'results.json',
  'report.html',
)

MOST_SHOWN = 6  # Values of fields that differ.


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes the whole file or nothing."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes the whole file or nothing."""
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(text, 'utf-8')
  os.replace(partial, path)


def read_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise UserError(
      f'{path} is not the JSON that a run has written ({error}); launch with '
      '--fresh to begin the run anew.'
    ) from error


def make_folder(folder: pathlib.Path, option: str) -> None:
  """Unless it is there; `option` is what names another one."""
  with _usable(folder, option):
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _usable(folder: pathlib.Path, option: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f'The folder {folder} cannot be used: {error.strerror}; give another '
      f'{option}.'
    ) from error


@contextlib.contextmanager
def claim(workdir: pathlib.Path, option: str = '--workdir') -> Iterator[None]:
  """Holds a folder for this process; a second one is refused.

  `option` is what names another one.
  """
  if not errors.is_text(workdir):
    raise UserError(
      f'The folder {os.fsencode(workdir)} has a name that is not in UTF-8; '
      f'give another {option}.'
    )
  make_folder(workdir, option)
  with _usable(workdir, option):
    lock = (workdir / '.lock').open('a+')
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      lock.seek(0)
      raise UserError(
        f'{workdir} is in use by process {lock.read().strip() or "?"}; wait '
        f'for it, or give another {option}.'
      ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    yield


def settle(workdir: pathlib.Path, config: ConfigDict, fresh: bool) -> None:
  """Writes the config, or refuses a folder made with another one.

  A folder that holds nothing learned, because the launch was mistaken or
  stopped before, takes any config.
  """
  path = workdir / 'config.json'
  plain = plain_config(config)
  if not path.exists():
    if strange := [name for name in FILES if (workdir / name).exists()]:
      raise UserError(
        f'{workdir} has {strange[0]} but no config.json, so it is not the '
        'folder of a run, and nothing in it is touched; give another --workdir.'
      )
  elif not fresh:
    before = read_json(path)
    before.pop('changed', None)
    differ = differences(before, plain)
    if not differ:
      return
    if _has_learned(workdir):
      raise UserError(
        f'{workdir} was made with another config: {_listed(differ)}; give '
        'another --workdir, or --fresh to begin this one anew.'
      )
  clear(workdir)
  write_json(path, plain | {'changed': changed(config)})


def _has_learned(workdir: pathlib.Path) -> bool:
  checkpoints = workdir / 'checkpoints'
  saved = checkpoints.is_dir() and any(checkpoints.iterdir())
  return saved or (workdir / 'final').exists()


def _listed(differ: dict[str, tuple]) -> str:
  """All names, and the values of the first few."""
  names = sorted(differ, key=lambda n: (n not in ('method', 'preset'), n))
  some = [
    f'{name} ({_short(differ[name][0])} there, {_short(differ[name][1])} now)'
    for name in names[:MOST_SHOWN]
  ]
  return ', '.join(some + names[MOST_SHOWN:])


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:56]} ...'


def clear(workdir: pathlib.Path) -> None:
  """Removes what a run has left; other files are not ours to touch.

  The config goes last: without it, what is left would be nobody's.
  """
  for name in reversed(FILES):
    path = workdir / name
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)


def plain_config(config: ConfigDict) -> dict:
  """As JSON would give it back: tuples are lists."""
  return json.loads(config.to_json_best_effort())


def load_config(workdir: pathlib.Path) -> ConfigDict:
  path = workdir / 'config.json'
  if not path.exists():
    raise UserError(
      f'{workdir} is not the folder of a run: it has no config.json.'
    )
  plain = read_json(path)
  plain.pop('changed', None)
  return ConfigDict(plain)


def changed(config: ConfigDict) -> dict[str, list]:
  """What differs from the preset: {field: [the preset's value, ours]}."""
  try:
    module = importlib.import_module(f'jaxmed.configs.{config.method}')
    preset = plain_config(module.get_config(config.preset))
  except (ImportError, UserError):  # A config file of the user's own.
    return {}
  return {
    k: list(v) for k, v in differences(preset, plain_config(config)).items()
  }


def differences(one: dict, other: dict, at: str = '') -> dict[str, tuple]:
  """{dotted field: (value in one, value in the other)} where they differ."""
  found = {}
  for name in one.keys() | other.keys():
    a, b, path = one.get(name), other.get(name), f'{at}{name}'
    if isinstance(a, dict) and isinstance(b, dict):
      found |= differences(a, b, f'{path}.')
    elif a != b:
      found[path] = (a, b)
  return found


def write_table(path: pathlib.Path, table: pa.Table) -> None:
  """Writes the whole file or nothing."""
  partial = path.with_name(f'.{path.name}.partial')
  pq.write_table(table, partial)
  os.replace(partial, path)


def note_failures(folder: pathlib.Path, stage: str, lost: list[dict]) -> None:
  """Adds a stage's failures, in place of what it said before."""
  path = folder / 'failures.jsonl'
  others = [x for x in _lines(path) if x['stage'] != stage]
  lines = [json.dumps(x) + '\n' for x in [*others, *lost]]
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(''.join(lines))
  os.replace(partial, path)


def carry_failures(folder: pathlib.Path, data: pathlib.Path) -> None:
  """Takes over what could not be read when the data was prepared."""
  if lost := _lines(data / 'failures.jsonl'):
    note_failures(folder, 'prepare', lost)


def _lines(path: pathlib.Path) -> list[dict]:
  text = path.read_text() if path.exists() else ''
  return [json.loads(line) for line in text.splitlines()]
