"""One shard: examples in, an array_record file and its part of the index out.

Whole or not there: both files are written under temporary names and renamed,
the index part last, so that a shard with an index part is complete. Any number
of processes may write different shards of one data set.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxmed import errors
from jaxmed.datasets import images

PARTS = 'parts'  # The folder of the index parts.
NAN = float('nan')

# Every column that a builder may set, with the value it has if it does not.
# A builder must set key, and group: the slide or patient of the example.
COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
  'key': (pa.string(), None),
  'group': (pa.string(), None),
  'x': (pa.int32(), 0),
  'y': (pa.int32(), 0),
  'level': (pa.int32(), 0),
  'mpp': (pa.float32(), NAN),
  'width': (pa.int32(), 0),  # Of the image; set by the writer.
  'height': (pa.int32(), 0),
  'label': (pa.int8(), -1),
  'tissue': (pa.float32(), 1.0),
  'lesion': (pa.float32(), NAN),
  'domain': (pa.string(), ''),
  'kind': (pa.string(), ''),
  'draw': (pa.int32(), -1),  # Place in the order of a random draw.
}


@dataclasses.dataclass(frozen=True)
class Failure:
  """What could not be read; a builder yields it in an example's place."""

  item: str
  error: str
  level: int = -1
  x: int = -1
  y: int = -1


Example = Mapping[str, Any]  # image, mask: encoded bytes; and COLUMNS.
Examples = Callable[[], Iterator[Example | Failure]]


@dataclasses.dataclass(frozen=True)
class Shard:
  """A slide, a patient or a chunk of files: what is written as one file.

  Attributes:
    name: for people, and to know the shard again.
    split: train, validation or test.
    examples: a function without arguments that can be pickled, e.g. a
      functools.partial of a module's function; yields examples.
    count: how many it will yield, failures among them, if that is known.
    bytes: about how much it will take on the disk, where that is known.
    fragile: whether reading may crash the process (see crew.py).
  """

  name: str
  split: str
  examples: Examples
  count: int | None = None
  bytes: int = 0
  fragile: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
  """A shard and its place among the shards of its split; a `crew.Task`."""

  shard: Shard
  dataset: str
  number: int
  count: int
  directory: pathlib.Path

  @property
  def records(self) -> pathlib.Path:
    name = f'{self.dataset}-{self.shard.split}.array_record'
    return self.directory / f'{name}-{self.number:05d}-of-{self.count:05d}'

  @property
  def part(self) -> pathlib.Path:
    name = f'{self.shard.split}-{self.number:05d}-of-{self.count:05d}.parquet'
    return self.directory / PARTS / name

  @property
  def done(self) -> bool:
    if not (self.part.is_file() and self.records.is_file()):
      return False
    return about(self.part)['shard'] == self.shard.name

  @property
  def name(self) -> str:
    return f'{self.shard.name} of {self.dataset}'

  @property
  def size(self) -> int | None:
    return self.shard.count

  @property
  def fragile(self) -> bool:
    return self.shard.fragile

  def run(self, report: Callable[[int], None]) -> None:
    write_shard(self, report)

  def fail(self, reason: str) -> None:
    failure = Failure(self.shard.name, reason)
    shard = dataclasses.replace(self.shard, examples=lambda: iter([failure]))
    write_shard(dataclasses.replace(self, shard=shard))


def about(part: pathlib.Path) -> dict[str, Any]:
  """What an index part says beside its rows: failures, formats, sizes."""
  return json.loads(pq.read_schema(part).metadata[b'jaxmed'])


def write_shard(
  job: Job, report: Callable[[int], None] = lambda count: None
) -> int:
  """Writes a shard, unless it is there, and returns its number of examples.

  `report` is called with 1 after each example or failure.
  """
  if job.done:
    return pq.read_metadata(job.part).num_rows
  writer = _Writer(job.records)
  try:
    for example in job.shard.examples():
      writer.add(example)
      report(1)
    table = writer.finish(job.shard)
  except RuntimeError as error:
    raise _with_number(error) from error
  finally:
    writer.abandon()
  temporary = _temporary(job.part)
  try:
    pq.write_table(table, temporary)
    _settle(temporary, job.part)
  finally:
    temporary.unlink(missing_ok=True)
  return len(table)


def _with_number(error: RuntimeError) -> Exception:
  """ArrayRecord's errors of the disk as Python's, which say which they are."""
  for number in errors.NO_ROOM:
    if os.strerror(number) in str(error):
      return OSError(number, str(error))
  return error


class _Writer:
  """Writes examples as records of TFDS's layout, and gathers their rows."""

  def __init__(self, path: pathlib.Path):
    from array_record.python import array_record_module

    self._path, self._temporary = path, _temporary(path)
    # Images are compressed already; group_size 1 is for random access.
    self._writer = array_record_module.ArrayRecordWriter(
      os.fspath(self._temporary), 'group_size:1,uncompressed'
    )
    self._rows, self._failures, self._headers = [], [], set()
    self._bytes = self._masks = 0

  def add(self, example: Example | Failure) -> None:
    if isinstance(example, Failure):
      self._failures.append(dataclasses.asdict(example))
      return
    header = images.probe(example['image'])
    size = {'width': header.width, 'height': header.height}
    row, mask = _row(example) | size, example.get('mask', b'')
    serialized = _serialize(row | {'image': example['image'], 'mask': mask})
    self._writer.write(serialized)
    self._bytes += len(serialized)
    self._rows.append(row)
    self._masks += bool(mask)
    self._headers.add((header.format, header.channels, header.bits))

  def finish(self, shard: Shard) -> pa.Table:
    from array_record.python import array_record_module

    self._writer.close()
    reader = array_record_module.ArrayRecordReader(os.fspath(self._temporary))
    written, expected = reader.num_records(), len(self._rows)
    reader.close()
    if written != expected:
      raise OSError(f'{written} of {expected} records of {shard.name} written')
    _settle(self._temporary, self._path)
    about = {
      'shard': shard.name,
      'bytes': self._bytes,
      'masks': self._masks,
      'headers': sorted(self._headers),
      'failures': self._failures,
    }
    schema = pa.schema(
      [(name, kind) for name, (kind, _) in COLUMNS.items()],
      metadata={'jaxmed': json.dumps(about)},
    )
    return pa.Table.from_pylist(self._rows, schema=schema)

  def abandon(self) -> None:
    """Leaves nothing behind; after `finish` there is nothing to leave."""
    if self._writer.is_open():
      self._writer.close()
    self._temporary.unlink(missing_ok=True)


def features(channels: int | None, bits: int):
  """The TFDS features of a record: the two images and the index columns."""
  import tensorflow_datasets as tfds

  kinds = {
    pa.string(): tfds.features.Text(),
    pa.int32(): tfds.features.Scalar(np.int32),
    pa.int8(): tfds.features.Scalar(np.int8),
    pa.float32(): tfds.features.Scalar(np.float32),
  }
  dtype = np.uint16 if bits == 16 else np.uint8
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(None, None, channels), dtype=dtype),
      # A PNG, or empty where there is none, which an Image could not be.
      'mask': tfds.features.Tensor(shape=(), dtype=np.object_),
      **{name: kinds[kind] for name, (kind, _) in COLUMNS.items()},
    }
  )


def _serialize(record: Mapping[str, Any]) -> bytes:
  """As the features would, but always to the same bytes, and 8 times faster.

  TFDS writes the fields in an order that differs from process to process.
  """
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example()
  for name, value in record.items():
    feature = example.features.feature[name]
    if isinstance(value, bytes):
      feature.bytes_list.value.append(value)
    elif isinstance(value, str):
      feature.bytes_list.value.append(value.encode())
    elif pa.types.is_floating(COLUMNS[name][0]):
      feature.float_list.value.append(value)
    else:
      feature.int64_list.value.append(value)
  return example.SerializeToString(deterministic=True)


def _row(example: Example) -> dict[str, Any]:
  unknown = set(example) - set(COLUMNS) - {'image', 'mask'}
  if unknown:
    raise ValueError(f'an example has {unknown}, which no index column holds')
  row = {name: default for name, (_, default) in COLUMNS.items()}
  row |= {name: example[name] for name in COLUMNS if name in example}
  if row['key'] is None or row['group'] is None:
    raise ValueError('an example needs a key and a group')
  return row


def _temporary(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'{path.name}.{os.getpid()}.tmp')


def _settle(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Onto the disk, then to its name: never an empty file under that name."""
  with temporary.open('rb') as file:
    os.fsync(file.fileno())
  temporary.rename(path)
