"""The tables beside the records: of examples, of slides, of failures."""

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import logging

from jaxmed import errors
from jaxmed.datasets.shards import COLUMNS, Job

SLIDES = {
  'group': pa.string(),
  'path': pa.string(),  # Relative to the data set, or absolute.
  'annotation': pa.string(),
  'split': pa.string(),
  'label': pa.int8(),
  'domain': pa.string(),
  'mpp': pa.float32(),
  'width': pa.int32(),
  'height': pa.int32(),
  'exhaustive': pa.bool_(),  # Whether all lesions are annotated; so if null.
}


def join_index(jobs: Sequence[Job]) -> pa.Table:
  """Row i describes record i of the three splits' records in a row."""
  parts = []
  for job in jobs:
    part = pq.read_table(job.part).replace_schema_metadata()
    split = pa.array([job.shard.split] * len(part), pa.string())
    parts.append(part.append_column('split', split))
  empty = pa.schema(
    [*((n, kind) for n, (kind, _) in COLUMNS.items()), ('split', pa.string())]
  ).empty_table()
  index = pa.concat_tables([empty, *parts])
  rows = pa.array(range(len(index)), pa.int32())
  return index.add_column(0, 'row', rows).combine_chunks()


def check_index(name: str, index: pa.Table, failures: Sequence) -> None:
  """Nothing is empty, nothing has two places, and no group two splits."""
  if not len(index):
    reason = f', the first: {failures[0]["error"]}' if failures else ''
    raise errors.UserError(
      f'The data set {name} has no images that can be read '
      f'({len(failures)} failed{reason}).'
    )
  keys = pc.value_counts(index['key'])
  twice = [k['values'].as_py() for k in keys if k['counts'].as_py() > 1]
  if twice:
    raise errors.UserError(
      f'The data set {name} has {len(twice)} keys more than once, the '
      f'first {twice[0]!r}. Give every image a name of its own.'
    )
  check_disjoint(index)


def check_disjoint(index: pa.Table) -> None:
  """Splits are by slide or patient: a group that is in two is an error."""
  pairs = index.group_by(['group', 'split']).aggregate([])
  splits = collections.defaultdict(list)
  for group, split in zip(*pairs.to_pydict().values(), strict=True):
    splits[group].append(split)
  for group, found in sorted(splits.items()):
    if len(found) > 1:
      raise errors.UserError(
        f'Group {group!r} is in the splits {" and ".join(sorted(found))}. A '
        'slide or patient belongs to one split only; mend the splits, or the '
        'option that names the groups.'
      )


def write_slides(rows: Sequence[Mapping], directory: pathlib.Path) -> None:
  """Paths into the data set become relative: the folder will be renamed."""

  def relative(path: str) -> str:
    inside = path and pathlib.Path(path).is_relative_to(directory)
    return str(pathlib.Path(path).relative_to(directory)) if inside else path

  rows = [
    {**row, **{n: relative(str(row[n])) for n in ('path', 'annotation')}}
    for row in rows
  ]
  table = pa.Table.from_pylist(rows, schema=pa.schema(list(SLIDES.items())))
  pq.write_table(table, directory / 'slides.parquet')


def relocate_slides(sources: Iterable, directory: pathlib.Path) -> None:
  """Paths of slides and annotations as the sources have them."""
  now = {source.group: source for source in sources}
  path = directory / 'slides.parquet'
  table = pq.read_table(path)
  rows = table.to_pylist()
  found = [
    row
    | {n: str(getattr(now[row['group']], n)) for n in ('path', 'annotation')}
    for row in rows
  ]
  if found != rows:
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    pq.write_table(pa.Table.from_pylist(found, schema=table.schema), partial)
    os.replace(partial, path)


def write_failures(failures: Sequence[Mapping], directory) -> None:
  if not failures:
    return
  lines = [json.dumps({'stage': 'prepare', **failure}) for failure in failures]
  path = directory / 'failures.jsonl'
  path.write_text('\n'.join(lines) + '\n')
  logging.warning(
    '%d items could not be read and are left out, the first %s (%s). All are '
    'listed in failures.jsonl of the data set and of its runs.',
    len(failures),
    failures[0]['item'],
    failures[0]['error'],
  )
