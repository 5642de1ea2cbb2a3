"""A prepared data set: its index, its slides, and its records by row."""

import functools
import json
import os
import pathlib
import resource
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64

from jaxmed import errors
from jaxmed.datasets import query as queries

KEPT_BYTES = 2**28
SPARE_FILES = 512  # That a process has open besides shards.
Rows = Int32[np.ndarray, 'n']


class Encoded(NamedTuple):
  """A record's two images as they are stored; mask is empty if it has none."""

  image: bytes
  mask: bytes


def open_records(directory: str | os.PathLike) -> 'Records':
  """Opens what `prepare` has made."""
  directory = pathlib.Path(directory)
  if not (directory / 'dataset.json').is_file():
    raise errors.UserError(
      f'{directory} is not a prepared data set: it has no dataset.json. '
      'Prepare it, or correct the path.'
    )
  return Records(directory)


class Records:
  """Row i of the index describes record i. Any number of threads may read."""

  def __init__(self, directory: pathlib.Path):
    self.directory = directory
    self.about = json.loads((directory / 'dataset.json').read_text())
    self.index = pq.read_table(directory / 'index.parquet')
    self._files, self._starts = _files(directory, self.about)
    self._readers = [None] * len(self._files)
    _allow_files(len(self._files))
    self._lock = threading.Lock()
    self._keeps = self.about['bytes'] <= KEPT_BYTES
    self._kept: dict[int, Encoded] = {}
    # Now, and not in the threads that read: two of them that import TFDS at
    # once can wait for each other for ever, as its lazy modules have locks.
    self._example, self._array_record = _formats()

  @functools.cached_property
  def slides(self) -> pa.Table | None:
    """The table of the slides that the examples come from, if any do."""
    path = self.directory / 'slides.parquet'
    return pq.read_table(path) if path.is_file() else None

  @property
  def bits(self) -> int:
    """8, or 16 if any of the images has that many."""
    return self.about['bits']

  @property
  def has_masks(self) -> bool:
    return self.about['masks']

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, row: int) -> dict[str, Any]:
    """The index columns of one example, and its encoded image and mask."""
    if not 0 <= row < len(self):
      raise IndexError(f'row {row} of {len(self)}')
    columns = self.index.slice(row, 1).to_pylist()[0]
    return columns | self.read([row])[0]._asdict()

  def select(self, query: str) -> Rows:
    """The rows that a query picks, e.g. `label == 0 and tissue >= 0.9`."""
    return np.flatnonzero(queries.select(query, self.index)).astype(np.int32)

  def normals(self, query: str) -> Rows:
    """Those of them that are labelled normal."""
    rows = self.select(query)
    return rows[self.index['label'].to_numpy()[rows] == 0]

  def read(self, rows: Sequence[int] | Rows) -> list[Encoded]:
    """The encoded images of some rows.

    Those of a small data set are kept in memory once they have been read.
    """
    if not self._keeps:
      return self._read(np.asarray(rows, np.int64))
    rows = np.asarray(rows).tolist()
    if missing := [row for row in rows if row not in self._kept]:
      found = self._read(np.array(missing, np.int64))
      self._kept.update(zip(missing, found, strict=True))
    return [self._kept[row] for row in rows]

  def _read(self, rows: Int64[np.ndarray, ' n']) -> list[Encoded]:
    """From the disk, each shard's with one call."""
    shards = np.searchsorted(self._starts, rows, side='right') - 1
    found: list[Encoded | None] = [None] * len(rows)
    for shard in np.unique(shards).tolist():
      (places,) = np.nonzero(shards == shard)
      positions = (rows[places] - self._starts[shard]).tolist()
      records = self._reader(shard).read(positions)
      for place, record in zip(places.tolist(), records, strict=True):
        found[place] = _parse(self._example.FromString(record))
    return found

  def _reader(self, shard: int):
    if self._readers[shard] is None:
      with self._lock:
        if self._readers[shard] is None:
          self._readers[shard] = self._array_record.ArrayRecordReader(
            os.fspath(self._files[shard]),
            options='readahead_buffer_size:0',  # Rows come in any order.
            file_reader_buffer_size=2**15,
          )
    return self._readers[shard]

  def __getstate__(self) -> pathlib.Path:
    return self.directory

  def __setstate__(self, directory: pathlib.Path) -> None:
    self.__init__(directory)


def _files(directory: pathlib.Path, about) -> tuple[list[pathlib.Path], Any]:
  """The shards that hold anything, in the order of rows, and first rows."""
  files, starts, total = [], [], 0
  for split, lengths in about['shards'].items():
    for number, length in enumerate(lengths):
      if length:
        name = f'{about["name"]}-{split}.array_record'
        place = f'{number:05d}-of-{len(lengths):05d}'
        files.append(directory / f'{name}-{place}')
        starts.append(total)
        total += length
  return files, np.array(starts, np.int64)


def _allow_files(count: int) -> None:
  """Each shard stays open once it is read; some systems allow 1,024."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = count + SPARE_FILES
  if resource.RLIM_INFINITY not in (soft, hard):
    wanted = min(wanted, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _formats() -> tuple[Any, Any]:
  """The class of a record's message, and the module that reads its file."""
  from array_record.python import array_record_module
  from tensorflow_datasets.proto import tf_example_pb2

  return tf_example_pb2.Example, array_record_module


def _parse(example) -> Encoded:
  features = example.features.feature
  image, mask = features['image'], features['mask']
  return Encoded(image.bytes_list.value[0], mask.bytes_list.value[0])
