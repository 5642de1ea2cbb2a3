"""From a builder's shards to a prepared data set on disk.

A builder is a module of this package with NAME, VERSION, DESCRIPTION,
CITATION, LICENCE and the functions
  fingerprint(data_config): all that decides the content, for JSON;
  shards(data_config, directory): the list of Shards;
and, where it has something to say,
  surveys(data_config, directory): tasks to be done before `shards` is called;
  slides(data_config, directory): the rows of slides.parquet;
  sources(data_config): of these the files, as they lie now;
  failures(data_config): of what is in no shard;
  expected_bytes(data_config): how much disk it will need. Where that is not
    known beforehand, the shards say it.

Everything is written into a folder beside the final one, a shard at a time,
and renamed when it is complete. A preparation that was killed goes on with the
shards that are left, and what bears the final name is always whole.

Where that is, a config says: in data.dir (or $JAXMED_DATA or ~/.cache/jaxmed),
under a name that its content decides; or, if data.path is itself a prepared
data set, as `jaxmed tile` writes, there.
"""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import json
import os
import pathlib
import pkgutil
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
from absl import logging
from ml_collections import ConfigDict

from jaxmed import datasets, errors
from jaxmed.datasets import shards as shard_files
from jaxmed.datasets import tables
from jaxmed.datasets.crew import Task, run_all
from jaxmed.datasets.shards import Failure, Job, Shard

__all__ = ['Failure', 'Shard', 'builder', 'location', 'prepare']

LAYOUT = 3  # Of the folder; another number prepares everything anew.
SPLITS = ('train', 'validation', 'test')
# Does all tasks: their list, the work's name, and what their sizes count.
Work = Callable[[Sequence[Task], str, str], None]


def prepare(
  data_config: ConfigDict,
  progress: bool = True,
  directory: pathlib.Path | None = None,
  work: Work | None = None,
) -> pathlib.Path:
  """Makes the data set that the config names, unless it is there.

  Args:
    data_config: the group `data` of a config.
    progress: whether to show it.
    directory: where to write, in place of `location`.
    work: does the tasks; by default a crew of processes on this machine.
  """
  module = builder(data_config.name)
  if directory is None:
    directory = location(data_config)
    if _complete(directory):
      _relocate(module, data_config, directory)
      return directory
  work = work or functools.partial(run_all, show=progress)
  with _lock(directory):
    if directory.exists() and _is_it(module, data_config, directory):
      return directory  # Another process may have made it.
    _check_disk(module, data_config, directory)
    try:
      _make(module, data_config, directory, work)
    except OSError as error:
      if error.errno not in errors.NO_ROOM:
        raise
      raise errors.UserError(
        f'The disk of {directory.parent} is full. Make room, or set '
        '--config.data.dir or $JAXMED_DATA (or --out) to another disk; what '
        'is written is kept, and the next call goes on from there.'
      ) from error
  return directory


def _relocate(module, data_config, directory: pathlib.Path) -> None:
  """Slides that were moved since are the same by name, size and time."""
  given = pathlib.Path(data_config.get('path', '')).expanduser().absolute()
  if hasattr(module, 'sources') and given != directory:
    tables.relocate_slides(module.sources(data_config), directory)


def location(data_config: ConfigDict) -> pathlib.Path:
  """Where the prepared data set is, or will be."""
  module = builder(data_config.name)
  path = pathlib.Path(data_config.get('path', '')).expanduser().absolute()
  if data_config.get('path') and _complete(path):
    name = _summary(path)['name']
    if name != module.NAME:
      raise errors.UserError(
        f'{path} is a prepared data set of {name}, and --config.data.name is '
        f'{module.NAME}; set it to {name}.'
      )
    return path
  root = (
    data_config.get('dir')
    or os.environ.get('JAXMED_DATA')
    or pathlib.Path.home() / '.cache' / 'jaxmed'
  )
  digest = _digest(_content(module, data_config))
  folder = f'{module.VERSION}-{digest}'
  return pathlib.Path(root).expanduser().absolute() / module.NAME / folder


def builder(name: str) -> types.ModuleType:
  """The builder module of a data set, by name."""
  names = [module.name for module in pkgutil.iter_modules(datasets.__path__)]
  if name in names:
    module = importlib.import_module(f'jaxmed.datasets.{name}')
    if hasattr(module, 'shards') and hasattr(module, 'fingerprint'):
      return module
  raise errors.unknown('data set', name, _builders(names))


def _builders(names: Sequence[str]) -> list[str]:
  """The builders among this package's modules; the rest is machinery."""
  modules = {n: importlib.import_module(f'jaxmed.datasets.{n}') for n in names}
  return [n for n, module in modules.items() if hasattr(module, 'fingerprint')]


def _content(module, data_config) -> dict[str, Any]:
  return {
    'name': module.NAME,
    'version': module.VERSION,
    'layout': LAYOUT,
    'builder': module.fingerprint(data_config),
  }


def _digest(content: Mapping[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _complete(directory: pathlib.Path) -> bool:
  return (directory / 'dataset.json').is_file()


def _summary(directory: pathlib.Path) -> dict[str, Any]:
  return json.loads((directory / 'dataset.json').read_text())


def _is_it(module, data_config, directory: pathlib.Path) -> bool:
  """Whether what is there is what is asked for; an empty folder is not."""
  if _complete(directory):
    made = _summary(directory)['content']
    _refuse_other(directory, made, _content(module, data_config))
    return True
  if not directory.is_dir() or any(directory.iterdir()):
    raise errors.UserError(
      f'{directory} is there already and is no data set; choose another place.'
    )
  return False


def _refuse_other(directory: pathlib.Path, before: dict, now: dict) -> None:
  """A folder that was named by hand may have been made from other things."""
  before, now = _leaves(before), _leaves(json.loads(json.dumps(now)))
  changed = [
    f'{name} (then {before.get(name)!r}, now {now.get(name)!r})'
    for name in sorted({*before, *now})
    if before.get(name) != now.get(name)
  ]
  if changed:
    more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
    raise errors.UserError(
      f'{directory} was begun with other slides or options: '
      f'{", ".join(changed[:3])}{more}. Remove it, or choose another place.'
    )


def _leaves(tree: Mapping[str, Any], at: str = '') -> dict[str, Any]:
  leaves = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      leaves |= _leaves(value, f'{at}{name}.')
    else:
      leaves[at + name] = value
  return leaves


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
  """One process prepares a data set; others wait. Ends with its holder."""
  directory.parent.mkdir(parents=True, exist_ok=True)
  with directory.with_name(f'{directory.name}.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('Another process prepares %s; waiting for it.', directory)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _check_disk(module, data_config, directory: pathlib.Path) -> None:
  if not hasattr(module, 'expected_bytes'):
    return
  _check_room(module, module.expected_bytes(data_config), directory)


def _check_room(module, needed: int, directory: pathlib.Path) -> None:
  free = shutil.disk_usage(directory.parent).free
  if needed > free:
    raise errors.UserError(
      f'The records of {module.NAME} need about {_size(needed)}, and '
      f'{directory.parent} has {_size(free)} free. Make room, or set '
      '--config.data.dir or $JAXMED_DATA (or --out) to another disk.'
    )


def _size(count: int) -> str:
  return f'{count / 1e9:.2f} GB' if count >= 1e8 else f'{count / 1e6:.1f} MB'


def _make(module, data_config, directory: pathlib.Path, work: Work) -> None:
  unfinished = _begin(module, data_config, directory)
  if hasattr(module, 'surveys'):
    surveys = module.surveys(data_config, unfinished)
    work(surveys, f'survey {module.NAME}', 'slides')
  jobs = _jobs(module.NAME, module.shards(data_config, unfinished), unfinished)
  left = sum(job.shard.bytes for job in jobs if not job.done)
  _check_room(module, left, directory)
  work(jobs, f'prepare {module.NAME}', 'tiles')
  index = tables.join_index(jobs)
  about = [shard_files.about(job.part) for job in jobs]
  failures = _failures(module, data_config)
  failures += [failure for part in about for failure in part['failures']]
  tables.check_index(module.NAME, index, failures)
  pq.write_table(index, unfinished / 'index.parquet')
  if hasattr(module, 'slides'):
    rows = module.slides(data_config, unfinished)
    tables.write_slides(rows, unfinished)
  tables.write_failures(failures, unfinished)
  _write_tfds(module, jobs, about, unfinished)
  counted = len(failures)
  _write_summary(module, data_config, jobs, index, about, counted, unfinished)
  shutil.rmtree(unfinished / shard_files.PARTS)
  _sweep(unfinished)
  unfinished.rename(directory)


def _failures(module, data_config) -> list[dict[str, Any]]:
  if not hasattr(module, 'failures'):
    return []
  return [dataclasses.asdict(one) for one in module.failures(data_config)]


def _begin(module, data_config, directory: pathlib.Path) -> pathlib.Path:
  """The folder to write into, new or as it was left."""
  unfinished = directory.with_name(f'{directory.name}.unfinished')
  begun = unfinished / shard_files.PARTS / 'content.json'
  begun.parent.mkdir(parents=True, exist_ok=True)
  _sweep(unfinished)
  content = _content(module, data_config)
  if begun.is_file():
    _refuse_other(unfinished, json.loads(begun.read_text()), content)
  temporary = begun.with_name('content.json.tmp')
  temporary.write_text(json.dumps(content))
  temporary.rename(begun)
  return unfinished


def _sweep(directory: pathlib.Path) -> None:
  """Removes what processes that were killed have left."""
  for left_behind in directory.rglob('*.tmp'):
    left_behind.unlink()


def _jobs(name: str, shards: Sequence[Shard], directory) -> list[Job]:
  """The shards in the order of their rows: by split, then as listed."""
  strange = {shard.split for shard in shards} - set(SPLITS)
  if strange:
    raise ValueError(f'shards of splits {strange}; splits are {SPLITS}')
  jobs = []
  for split in SPLITS:
    members = [shard for shard in shards if shard.split == split]
    jobs += [
      Job(shard, name, number, len(members), directory)
      for number, shard in enumerate(members)
    ]
  return jobs


def _write_tfds(module, jobs, about, directory: pathlib.Path) -> None:
  """The metadata that makes the folder an ordinary TFDS data set."""
  import tensorflow_datasets as tfds

  sizes = collections.Counter()
  for job, part in zip(jobs, about, strict=True):
    sizes[job.shard.split] += part['bytes']
  splits = [
    tfds.core.SplitInfo(name, shard_lengths=counts, num_bytes=sizes[name])
    for name, counts in _lengths(jobs).items()
  ]
  kind = _kind(about)
  tfds.folder_dataset.write_metadata(
    data_dir=os.fspath(directory),
    features=shard_files.features(kind['channels'], kind['bits']),
    split_infos=splits,
    version=module.VERSION,
    check_data=False,
    description=module.DESCRIPTION,
    citation=module.CITATION,
    license=module.LICENCE,
  )


def _lengths(jobs: Sequence[Job]) -> dict[str, list[int]]:
  """How many examples each shard of each split holds."""
  lengths = collections.defaultdict(list)
  for job in jobs:
    lengths[job.shard.split].append(pq.read_metadata(job.part).num_rows)
  return dict(lengths)


def _kind(about: Sequence[Mapping]) -> dict[str, Any]:
  """What all images have in common; channels is None if they differ."""
  headers = {tuple(header) for part in about for header in part['headers']}
  formats, channels, bits = (
    set(column) for column in zip(*headers, strict=True)
  )
  return {
    'formats': sorted(formats),
    'channels': channels.pop() if len(channels) == 1 else None,
    'bits': max(bits),
  }


def _write_summary(
  module, data_config, jobs, index, about, failures, directory
) -> None:
  """dataset.json: the last file; what a reader knows before any record."""
  content = _content(module, data_config)
  counts = index.group_by(['split', 'label']).aggregate([('row', 'count')])
  summary = {
    'name': module.NAME,
    'version': module.VERSION,
    'fingerprint': _digest(content),
    'content': content,
    'licence': module.LICENCE,
    'shards': _lengths(jobs),
    'counts': counts.rename_columns(['split', 'label', 'n']).to_pylist(),
    'bytes': sum(part['bytes'] for part in about),
    'masks': any(part['masks'] for part in about),
    'failures': failures,
    **_kind(about),
  }
  text = json.dumps(summary, indent=2)
  (directory / 'dataset.json').write_text(text + '\n')
