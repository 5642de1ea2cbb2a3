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

from jaxmed.errors import UserError

# In the order in which a run makes them; `--fresh` removes them all.
FILES = (
  'config.json',
  'info.json',
  'provenance.json',
  'train.jsonl',
  'checkpoints',
  'final',
  'calibration.json',
  'scores.parquet',
  'slides.parquet',
  'maps',
  'examples',
  'examples.json',
  'failures.jsonl',
  'results.json',
  'report.html',
)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes the whole file or nothing."""
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(json.dumps(value, indent=2, allow_nan=False) + '\n')
  os.replace(partial, path)


def read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_text())


@contextlib.contextmanager
def claim(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a run's folder for this process; a second launch is refused."""
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / '.lock').open('a+') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      lock.seek(0)
      raise UserError(
        f'{workdir} is in use by process {lock.read().strip() or "?"}; wait '
        'for it, or give another --workdir.'
      ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    yield


def settle(workdir: pathlib.Path, config: ConfigDict, fresh: bool) -> None:
  """Writes the config, or refuses a folder made with another one."""
  if fresh:
    clear(workdir)
  path = workdir / 'config.json'
  plain = plain_config(config)
  if not path.exists():
    write_json(path, plain | {'changed': changed(config)})
    return
  before = read_json(path)
  before.pop('changed', None)
  differ = differences(before, plain)
  if differ:
    listed = ', '.join(
      f'{name} ({old!r} there, {new!r} now)'
      for name, (old, new) in sorted(differ.items())
    )
    raise UserError(
      f'{workdir} was made with another config: {listed}; give another '
      '--workdir, or --fresh to begin this one anew.'
    )


def clear(workdir: pathlib.Path) -> None:
  """Removes what a run has left; other files are not ours to touch."""
  for name in FILES:
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
