"""`jaxmed tile`: a folder of slides becomes a data set of tiles."""

import collections
import functools
import json
import pathlib
import tempfile
from collections.abc import Sequence

import pyarrow.parquet as pq
from ml_collections import ConfigDict

from jaxmed.datasets import beam, crew, write
from jaxmed.datasets import slides as slide_set
from jaxmed.datasets.surveys import Planned
from jaxmed.datasets.write import Work
from jaxmed.errors import UserError

SHOWN = 10  # Failures that a summary lists.


def data_config(
  slides: pathlib.Path, size: int, options: dict | None = None
) -> ConfigDict:
  """The group `data` of a config, for a folder of slides."""
  options = dict(options or {})
  for name in slide_set.PATHS:  # Here from where the user is.
    if options.get(name):
      options[name] = str(pathlib.Path(options[name]).absolute())
  return ConfigDict(
    {
      'name': slide_set.NAME,
      'path': str(slides),
      'size': size,
      'options': options,
    }
  )


def workforce(workers: int | None = None, flags: Sequence[str] = ()) -> Work:
  """Who does the tasks: processes of this machine, or a Beam pipeline.

  Args:
    workers: at most so many processes; as many as there are cores if None.
    flags: of the pipeline, such as --runner=DirectRunner, if there is one.
  """
  if flags:
    return functools.partial(beam.run_all, flags=flags)
  return functools.partial(crew.run_all, workers=workers)


def tile(config: ConfigDict, out: pathlib.Path, work: Work) -> list[str]:
  """Writes the data set of a config into `out`, or what is left of it.

  Returns what could not be read, an item and its reason each.
  """
  try:
    write.prepare(config, directory=out.absolute(), work=work)
  except (PermissionError, NotADirectoryError, FileExistsError) as error:
    raise UserError(
      f'{out} cannot be written: {error.strerror}; give another --out.'
    ) from error
  return [f'{one["item"]}: {one["error"]}' for one in _failures(out)]


def _failures(out: pathlib.Path) -> list[dict]:
  path = out / 'failures.jsonl'
  lines = path.read_text().splitlines() if path.is_file() else []
  return [json.loads(line) for line in lines]


def summary(out: pathlib.Path, failures: Sequence[str]) -> str:
  """What is in a data set, and what is not, for people."""
  index = pq.read_table(
    out / 'index.parquet', columns=['group', 'split', 'label', 'width']
  ).to_pydict()
  splits = collections.Counter(index['split'])
  counts = ', '.join(f'{splits[s]:,} {s}' for s in write.SPLITS if splits[s])
  size = json.loads((out / 'dataset.json').read_text())['bytes']
  lines = [
    f'{len(index["split"]):,} tiles of {len(set(index["group"]))} slides in '
    f'{out}: {counts}; {index["label"].count(1):,} with a lesion; '
    f'{size / 1e6:,.1f} MB.'
  ]
  slides = pq.read_table(out / 'slides.parquet', columns=['group', 'width'])
  opened = {row['group'] for row in slides.to_pylist() if row['width']}
  unread = {one['item'].partition('/')[0] for one in _failures(out)}
  if empty := sorted(opened - set(index['group']) - unread):
    more = f' and {len(empty) - SHOWN} more' if len(empty) > SHOWN else ''
    lines.append(
      f'{len(empty)} slides are too small for a tile, or have too little '
      f'tissue: {", ".join(empty[:SHOWN])}{more}.'
    )
  lines += _told(failures, 'could not be read (failures.jsonl)')
  lines.append(
    'Use it: jaxmed launch --config=munit:slides '
    f'--config.data.path={out} --config.data.size={index["width"][0]}'
  )
  return '\n'.join(lines)


def _told(failures: Sequence[str], said: str) -> list[str]:
  if not failures:
    return []
  lines = [f'{len(failures)} {said}:']
  lines += [f'  {" ".join(one.split())}' for one in failures[:SHOWN]]
  if len(failures) > SHOWN:
    lines.append(f'  and {len(failures) - SHOWN} more.')
  if any('the option mpp=' in one for one in failures):
    lines.append('  (That option is --slide-mpp here.)')
  return lines


def dry_run(config: ConfigDict, work: Work) -> tuple[str, list[str]]:
  """What `tile` would write, from tissue and outlines alone; and failures."""
  builder = write.builder(config.name)
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder)
    surveys = builder.surveys(config, directory)
    work(surveys, f'survey {config.name}', 'slides')
    planned = builder.plan(config, directory)
    sizes = [shard.bytes for shard in builder.shards(config, directory)]
  failed = [failure for one in planned for failure in one.found.failures]
  if hasattr(builder, 'failures'):
    failed = [*builder.failures(config), *failed]
  failures = [f'{failure.item}: {failure.error}' for failure in failed]
  text = _table(planned, sizes)
  return '\n'.join([text, *_told(failures, 'cannot be read')]), failures


def _table(planned: Sequence[Planned], sizes: Sequence[int]) -> str:
  rows = [('slide', 'split', 'label', 'tiles', 'with lesion', 'MB about')]
  for one, size in zip(planned, sizes, strict=True):
    if one.found.failures:
      cells = ('-', '-', 'cannot be read')
    else:
      lesions = int((one.tiles.lesion > 0).sum())
      cells = (f'{len(one.tiles):,}', f'{lesions:,}', f'{size / 1e6:,.1f}')
    rows.append((one.source.group, one.split, str(one.label), *cells))
  tiles = sum(len(one.tiles) for one in planned)
  lesions = sum(int((one.tiles.lesion > 0).sum()) for one in planned)
  total = f'{sum(sizes) / 1e6:,.1f}'
  rows.append(('all', '', '', f'{tiles:,}', f'{lesions:,}', total))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) if i < 2 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )
