"""The runs of a comparison: read, checked to be comparable, and grouped.

Two runs have the same test set if their test images have the same names,
groups and labels, and come from the same prepared data. Where the data was
prepared otherwise, in its part for training say, the images may still be the
same: then what the trivial baselines say of every one of them is the same too
or, where the runs have cut them otherwise, the files in the records are.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from jaxmed import workdir
from jaxmed.datasets import write
from jaxmed.datasets.records import open_records
from jaxmed.errors import UserError
from jaxmed.report import words
from jaxmed.report.load import Run, load

NEEDED = 'config.json', 'scores.parquet', 'results.json'
MOST_FIELDS = 3  # That tell methods of one name apart; else folders do.
SEEDS_OWN = 'seed', 'changed'
PLACES = 'dir', 'path'  # Of `data`: the same may lie elsewhere.
FRAME = 'size', 'channels', 'resize'  # Of `data`: how an image was cut.
CHUNK = 256  # Images that are compared at once.
Named = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
  """A finished run, and its labelled test images in the order of their keys."""

  run: Run
  test: Named
  normals: Named  # The validation normals, likewise.

  @property
  def folder(self) -> pathlib.Path:
    return self.run.workdir

  @property
  def primary(self) -> str:
    return self.run.primary

  @property
  def column(self) -> str:
    return f'score.{self.primary}'

  @property
  def seed(self) -> int:
    return self.run.config.get('seed', 0)

  @property
  def fingerprint(self) -> str:
    return (self.run.provenance.get('data') or {}).get('fingerprint', '')

  def records(self) -> pathlib.Path | None:
    """Where the run found its data, or where it would be prepared now."""
    noted = (self.run.provenance.get('data') or {}).get('dir', '')
    places = [pathlib.Path(noted)] if noted else []
    with contextlib.suppress(UserError, AttributeError, KeyError):
      places.append(write.location(ConfigDict(self.run.config['data'])))
    whole = [place for place in places if (place / 'dataset.json').is_file()]
    return next((p for p in whole if p.name == self.fingerprint), None)

  @functools.cached_property
  def settings(self) -> dict:
    """The config, without what may differ between runs of one method."""
    kept = {k: v for k, v in self.run.config.items() if k not in SEEDS_OWN}
    data = kept.get('data', {})
    return kept | {'data': {k: v for k, v in data.items() if k not in PLACES}}


@dataclasses.dataclass(frozen=True)
class Method:
  """Runs of one config, which differ by their seed."""

  name: str
  entries: tuple[Entry, ...]

  @property
  def first(self) -> Entry:
    return self.entries[0]

  @property
  def seeds(self) -> list[int]:
    return [entry.seed for entry in self.entries]


def read(folders: Sequence[pathlib.Path]) -> list[Entry]:
  """Reads finished runs; refuses any that can't stand beside the others."""
  if len(folders) < 2:
    raise UserError(
      f'There {"is one run" if folders else "is no run"} to compare; name two '
      'or more.'
    )
  seen = {}
  for folder in folders:
    place = folder.resolve()
    if place in seen:
      raise UserError(
        f'{seen[place]} and {folder} are the same run; name each once.'
      )
    seen[place] = folder
  entries = [_read(folder) for folder in folders]
  for entry in entries[1:]:
    _check_same_test(entries[0], entry)
  _refuse_copies(entries)
  return entries


def _read(folder: pathlib.Path) -> Entry:
  if not folder.is_dir():
    raise UserError(f'There is no folder {folder}, so no run to compare.')
  for name in NEEDED:
    if not (folder / name).exists():
      raise UserError(
        f'{folder} is not a finished run: it has no {name}; launch it again '
        'to go on, or leave it out.'
      )
  run = load(folder)
  try:
    table = pq.read_table(folder / 'scores.parquet')
  except (OSError, pa.ArrowInvalid) as error:
    raise UserError(
      f'{folder}/scores.parquet cannot be read ({error}); score the run again.'
    ) from error
  named = {
    name: table[name].to_numpy(zero_copy_only=False)
    for name in table.column_names
  }
  if f'score.{run.primary}' not in named:
    raise UserError(
      f'{folder} has no scores by the name {run.primary!r}, which its '
      'results.json puts first; evaluate it again.'
    )
  return Entry(
    run,
    _chosen(named, (named['split'] == 'test') & (named['label'] >= 0)),
    _chosen(named, (named['split'] == 'validation') & (named['label'] == 0)),
  )


def _chosen(table: Named, rows: np.ndarray) -> Named:
  order = np.flatnonzero(rows)
  order = order[np.argsort(table['key'][order].astype(str), kind='stable')]
  return {name: values[order] for name, values in table.items()}


def _check_same_test(one: Entry, other: Entry) -> None:
  said = _difference(one, other)
  if said:
    raise UserError(
      f'{one.folder} and {other.folder} were not tested on the same images: '
      f'{said}; compare runs of one test set.'
    )


def _difference(one: Entry, other: Entry) -> str:
  """How the test sets of two runs differ; '' if they do not."""
  keys = [entry.test['key'].astype(str) for entry in (one, other)]
  known = one.fingerprint and one.fingerprint == other.fingerprint
  if not known and not _alike(one, other):
    return (
      f'the data of the one is {_data(one)}, that of the other {_data(other)}'
      f' ({len(keys[0])} and {len(keys[1])} test images)'
    )
  if missing := sorted(set(keys[0]) ^ set(keys[1])):
    here = len(set(keys[0]) - set(keys[1]))
    first = one if missing[0] in set(keys[0]) else other
    return (
      f'they have {len(keys[0])} and {len(keys[1])}, of which {here} and '
      f'{len(missing) - here} are in that run alone, {missing[0]} in '
      f'{first.folder} say'
    )
  if len(keys[0]) != len(keys[1]) or len(set(keys[0])) < len(keys[0]):
    return (
      f'they have {len(keys[0])} and {len(keys[1])} rows of '
      f'{len(set(keys[0]))} images, so some images come twice'
    )
  for column in ('label', 'group'):
    differ = np.flatnonzero(one.test[column] != other.test[column])
    if len(differ):
      key, a, b = (
        t[differ[0]] for t in (keys[0], *_columns(column, one, other))
      )
      return (
        f'{len(differ)} have another {column}, {key} say, {a} in the one and '
        f'{b} in the other'
      )
  return ''


def _columns(name: str, *entries: Entry) -> list[np.ndarray]:
  return [entry.test[name] for entry in entries]


def _data(entry: Entry) -> str:
  name = entry.run.config.get('data', {}).get('name', 'data')
  return f'{name} {entry.fingerprint or "of unknown fingerprint"}'


def _alike(one: Entry, other: Entry) -> bool:
  """Whether data of other or unknown fingerprints has the same test images."""
  frames = [
    [entry.run.config.get('data', {}).get(name) for name in FRAME]
    for entry in (one, other)
  ]
  names = [name for name in one.test if name.startswith('trivial.')]
  if not all(
    np.array_equal(*_columns(name, one, other)) for name in ('key', 'label')
  ):
    return False
  if frames[0] != frames[1]:
    return _same_files(one, other)
  return (
    bool(names)
    and all(name in other.test for name in names)
    and all(
      np.allclose(*_columns(name, one, other), rtol=1e-6, equal_nan=True)
      for name in names
    )
  )


def _same_files(one: Entry, other: Entry) -> bool:
  """Whether the test images are stored with the same bytes, in this order."""
  directories = [entry.records() for entry in (one, other)]
  if None in directories:
    return False
  rows = _columns('row', one, other)
  pairs = [(open_records(d), r) for d, r in zip(directories, rows, strict=True)]
  for start in range(0, len(rows[0]), CHUNK):
    first, second = (
      [found.image for found in records.read(row[start : start + CHUNK])]
      for records, row in pairs
    )
    if first != second:
      return False
  return True


def _refuse_copies(entries: Sequence[Entry]) -> None:
  """A copy would count as another seed that agrees perfectly."""
  for i, one in enumerate(entries):
    for other in entries[:i]:
      if one.seed != other.seed or one.settings != other.settings:
        continue
      names = [name for name in one.test if name.startswith('score.')]
      if all(
        np.array_equal(*_columns(name, one, other), equal_nan=True)
        for name in names
      ):
        raise UserError(
          f'{other.folder} and {one.folder} are the same run: one config, one '
          'seed, and equal scores; name one of them.'
        )


def grouped(entries: Sequence[Entry]) -> list[Method]:
  """Runs of one config with several seeds together, in the order given.

  A seed that comes again, after a change of the code say, begins a method of
  its own.
  """
  groups: list[list[Entry]] = []
  for entry in entries:
    for group in groups:
      fits = group[0].settings == entry.settings
      fits = fits and group[0].primary == entry.primary
      if fits and entry.seed not in [other.seed for other in group]:
        group.append(entry)
        break
    else:
      groups.append([entry])
  for group in groups:
    group.sort(key=lambda entry: entry.seed)
  names = _names([group[0] for group in groups])
  return [
    Method(name, tuple(group))
    for name, group in zip(names, groups, strict=True)
  ]


def _names(firsts: Sequence[Entry]) -> list[str]:
  """Each a method's name and, where that is not enough, how it differs."""
  names = [words.method(e.run.config.get('method', 'run')) for e in firsts]
  found = list(names)
  for name in set(names):
    same = [i for i, other in enumerate(names) if other == name]
    if len(same) > 1:
      for i, detail in zip(
        same, _details([firsts[i] for i in same]), strict=True
      ):
        found[i] = f'{name}, {detail}'
  return found


def _details(entries: Sequence[Entry]) -> list[str]:
  presets = [entry.run.config.get('preset', '') for entry in entries]
  if len(set(presets)) == len(presets):
    return presets
  fields = _differing(entries)
  listed = [
    ', '.join(f'{f.rpartition(".")[2]} {words.text(v)}' for f, v in row.items())
    for row in fields
  ]
  few = all(0 < len(row) <= MOST_FIELDS for row in fields)
  if few and len(set(listed)) == len(listed):
    return listed
  folders = [entry.folder.resolve() for entry in entries]
  short = [folder.name for folder in folders]
  return short if len(set(short)) == len(short) else list(map(str, folders))


def _differing(entries: Sequence[Entry]) -> list[dict]:
  """Of each config the fields in which they are not all alike, and scores."""
  plain = [e.settings | {'primary': e.primary} for e in entries]
  fields = sorted(
    {f for one in plain[1:] for f in workdir.differences(plain[0], one)}
  )
  return [{f: _field(one, f) for f in fields} for one in plain]


def _field(tree: dict, name: str):
  for part in name.split('.'):
    tree = tree.get(part) if isinstance(tree, dict) else None
  return tree
