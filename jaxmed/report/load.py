"""What a run's folder says, read with care: most of its files may be missing.

Only config.json and results.json must be there. Every other file stands for
a stage that may not have run, was switched off, or was cut short; its value
is then empty, and the report's section says so or is left out.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxmed.errors import UserError

LABELS = {1: 'anomalous', 0: 'normal', -1: 'unknown'}


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run, as its files tell it."""

  workdir: pathlib.Path
  config: dict
  results: dict
  provenance: dict
  calibration: dict
  log: list[dict]  # train.jsonl, one dict a logged step.
  examples: list[dict]
  failures: list[dict]
  slides: list[dict]
  damaged: list[str]  # Sentences about files that could not be read whole.
  slides_folder: str = ''  # Where they lie, if they are not the run's own.

  @property
  def primary(self) -> str:
    """The score named first; see `beforehand`."""
    named = self.results.get('primary') or ''
    return named or next(iter(self.results.get('image') or {}), '')

  @property
  def beforehand(self) -> str:
    """The score named before any test: examples were chosen by it."""
    return self.results.get('beforehand') or self.primary

  @functools.cached_property
  def columns(self) -> list[str]:
    """The columns of scores.parquet; none where it is missing."""
    try:
      return list(pq.read_schema(self.workdir / 'scores.parquet').names)
    except (OSError, pa.ArrowInvalid):
      return []

  def scores(self, *names: str) -> dict[str, np.ndarray]:
    """Columns of scores.parquet; empty where the file lacks one of them."""
    if not set(names) <= set(self.columns):
      return {}
    table = pq.read_table(self.workdir / 'scores.parquet', columns=list(names))
    return {name: table[name].to_numpy(zero_copy_only=False) for name in names}

  def file(self, name: str) -> pathlib.Path | None:
    """A file of the run by its relative name; never one outside the run."""
    return _inside(self.workdir, name)

  def slide_file(self, name: str) -> pathlib.Path | None:
    """A file of a slide, named as in a run's folder: 'maps/a_heat.png'.

    Slides that were scored later have no folder maps/; never a file outside
    their folder.
    """
    if self.slides_folder:
      name = name.removeprefix('maps/')
    return _inside(self.workdir / self.slides_folder, name)

  def link(self, path: pathlib.Path) -> str:
    """From the report to a file."""
    link = os.path.relpath(path, self.workdir.resolve())
    return pathlib.PurePath(link).as_posix()


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  path = (folder / name).resolve()
  inside = path.is_relative_to(folder.resolve())
  return path if inside and path.is_file() else None


def load(workdir: pathlib.Path) -> Run:
  """Reads a run's folder; an error where it has not been evaluated."""
  damaged = []
  config = _required(workdir / 'config.json', 'start the run')
  results = _required(workdir / 'results.json', 'evaluate it')
  elsewhere = str(results.get('slides_folder') or '')
  slides = workdir / elsewhere
  failures = _lines(workdir / 'failures.jsonl', damaged)
  if elsewhere:
    failures += _lines(slides / 'failures.jsonl', damaged)
    if not (slides / 'slides.parquet').exists():
      damaged.append(
        f'The slides that were evaluated are not in {elsewhere} any more.'
      )
  return Run(
    workdir=workdir,
    config=config,
    results=results,
    provenance=_json(workdir / 'provenance.json', {}, damaged),
    calibration=_json(workdir / 'calibration.json', {}, damaged),
    log=_lines(workdir / 'train.jsonl', damaged),
    examples=_json(workdir / 'examples.json', [], damaged),
    failures=failures,
    slides=_rows(slides / 'slides.parquet', damaged),
    damaged=damaged,
    slides_folder=elsewhere,
  )


def _required(path: pathlib.Path, remedy: str) -> dict:
  try:
    value = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    raise UserError(
      f'{path.parent} has no {path.name}, which the report is made from; '
      f'{remedy} first.'
    ) from None
  except (OSError, ValueError) as error:
    raise UserError(
      f'{path} cannot be read as JSON ({error}); {remedy} again.'
    ) from None
  if not isinstance(value, dict):
    raise UserError(
      f'{path} holds a {type(value).__name__}, not an object; {remedy} again.'
    )
  return value


def _json(path: pathlib.Path, empty: Any, damaged: list[str]) -> Any:
  if not path.exists():
    return empty
  try:
    value = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError) as error:
    damaged.append(f'{path.name} could not be read ({error}).')
    return empty
  if not isinstance(value, type(empty)):
    damaged.append(f'{path.name} is not of the expected form.')
    return empty
  return value


def _lines(path: pathlib.Path, damaged: list[str]) -> list[dict]:
  """JSON lines. A kill may cut the last one short: that is no damage."""
  if not path.exists():
    return []
  lines = path.read_text('utf-8', errors='replace').splitlines()
  rows, broken = [], 0
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError:
      broken += number < len(lines)
      continue
    if isinstance(row, dict):
      rows.append(row)
    else:
      broken += 1
  if broken:
    damaged.append(f'{path.name}: {broken} lines could not be read.')
  return rows


def _rows(path: pathlib.Path, damaged: list[str]) -> list[dict]:
  if not path.exists():
    return []
  try:
    return pq.read_table(path).to_pylist()
  except (OSError, pa.ArrowInvalid) as error:
    damaged.append(f'{path.name} could not be read ({error}).')
    return []
