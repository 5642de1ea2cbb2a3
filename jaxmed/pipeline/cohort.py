"""Records to global batches. Batch k is a function of k on any host count.

To go on after a failure is to slice the data set; the state of the pipeline is
a number. Batches are made, of row numbers, before they are dealt out and read,
so row i of batch k is the same example, cut at the same place, on any number
of hosts.
"""

import dataclasses
import functools
import time
import weakref
import zlib
from collections.abc import Iterator

import grain
import imagecodecs
import jax
import numpy as np
from jaxtyping import Int32, Int64
from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.datasets import images
from jaxmed.datasets.crew import cores
from jaxmed.datasets.records import Records
from jaxmed.method import Batch
from jaxmed.pipeline.frame import (
  CENTRE,
  Frame,
  Pixels,
  Place,
  aligned,
  decode,
  scratch,
)

AHEAD = 4  # Batches on the device or on their way; Grain's default is 500.
MOST_THREADS = 16


class Cohort(Iterator[Batch]):
  """The batches of a cohort. `waited` is how many seconds `next` has taken."""

  def __init__(self, batches: grain.DatasetIterator):
    self._open = [batches]
    self.waited = 0.0
    # Also at the interpreter's exit, while there is still a Grain to do it.
    self._finalizer = weakref.finalize(self, _close, self._open)

  def __next__(self) -> Batch:
    if not self._open:
      raise StopIteration
    began = time.perf_counter()
    try:
      return next(self._open[0])
    finally:
      self.waited += time.perf_counter() - began

  def close(self) -> None:
    """Ends the threads that read ahead."""
    self._finalizer()


def _close(batches: list[grain.DatasetIterator]) -> None:
  batches.pop().close()


def open_cohort(
  records: Records,
  rows: Int32[np.ndarray, ' n'],
  sharding: jax.sharding.Sharding,
  batch: int,
  skip: int,
  *,
  seed: int,
  endless: bool,
  data_config: ConfigDict,
  train: bool,
) -> Cohort:
  """The global batches of some rows, from batch `skip` on.

  Args:
    records: what the rows are of.
    rows: which examples; `records.select(query)`.
    sharding: of a batch's leading axis over the devices of all hosts.
    batch: examples of a global batch.
    skip: how many batches to leave out, e.g. those of the steps done.
    seed: of the order and of the places of crops. Cohorts of other rows get
      other orders from the same seed.
    endless: shuffled anew every epoch, for ever; else one pass in the rows'
      order, the last batch filled up with row -1.
    data_config: size, channels, resize and crop of the images.
    train: whether crops may be random; masks come only with `train=False`.
  """
  if not len(rows):
    raise errors.UserError(
      f'A cohort of {records.directory} is empty: no example fits its query. '
      'Look at data.cohorts, data.validation and data.test.'
    )
  _check_divisible(sharding, batch)
  block, blocks = _block(sharding, batch)
  seed = _seed(seed, rows)
  read = _Read(
    records=records,
    labels=records.index['label'].to_numpy(),
    frame=Frame.of(data_config, records.bits),
    random=_is_random(data_config) and train,
    masks=records.has_masks and not train,
    seed=seed,
  )
  order = _Order(rows, batch // blocks, batch, seed, endless)
  # A block is a process's share of a global batch.
  mine = grain.MapDataset.source(order)[skip * blocks + block :: blocks]
  threads = min(cores(), MOST_THREADS)
  # The threads that read also hand over: one thread less to wait for.
  data = mine.map(read).map(_ToDevices(sharding))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD)
  return Cohort(iter(data.to_iter_dataset(options)))


@dataclasses.dataclass(frozen=True)
class _Block:
  """Examples to read: their rows, -1 for padding, and where they stand."""

  rows: Int32[np.ndarray, ' b']
  positions: Int64[np.ndarray, ' b']  # In the order of all examples.


@dataclasses.dataclass(frozen=True)
class _Order:
  """Block k of the order of all examples, as a function of k.

  A whole block at a time, with NumPy: Grain's shuffle and batch of single
  numbers took longer than to decode a small image.
  """

  rows: Int32[np.ndarray, ' n']
  size: int  # Of a block.
  batch: int  # Of all blocks that are one global batch.
  seed: int
  endless: bool

  def __len__(self) -> int:
    if self.endless:
      return 2**62
    return -(-len(self.rows) // self.batch) * (self.batch // self.size)

  def __getitem__(self, number: int) -> _Block:
    positions = number * self.size + np.arange(self.size)
    epochs, places = np.divmod(positions, len(self.rows))
    if not self.endless:
      return _Block(np.where(epochs == 0, self.rows[places], -1), positions)
    for epoch in np.unique(epochs).tolist():
      here = epochs == epoch
      shuffled = _permutation(self.seed, epoch, len(self.rows))
      places[here] = shuffled[places[here]]
    return _Block(self.rows[places], positions)


@functools.lru_cache(maxsize=8)  # A few cohorts' epochs, and the next ones.
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
  dice = np.random.Generator(np.random.Philox(key=[seed, epoch]))
  return dice.permutation(count).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _Read:
  """A block of rows to their pixels."""

  records: Records
  labels: np.ndarray
  frame: Frame
  random: bool
  masks: bool
  seed: int

  def __call__(self, block: _Block) -> Batch:
    rows, count = block.rows, int((block.rows >= 0).sum())  # Padding is last.
    image = aligned((len(rows), *self.frame.shape), self.frame.dtype)
    image[count:] = 0
    beside = scratch(self.frame.shape, self.frame.dtype)
    mask = np.zeros(image.shape[:-1], bool) if self.masks else None
    label = np.where(rows >= 0, self.labels[rows], -1).astype(np.int32)
    # What lies between two decodings is done one thread at a time: so little.
    decode_plain = imagecodecs.jpeg8_decode if self.frame.is_plain else _refuse
    for i, encoded in enumerate(self.records.read(rows[:count])):
      place = CENTRE
      try:
        image[i] = decode_plain(encoded.image, out=beside)
      except (ValueError, imagecodecs.Jpeg8Error):  # No JPEG of this shape.
        place = self._place(block.positions[i]) if self.random else CENTRE
        self._fit(image[i], encoded.image, rows[i], place)
      if self.masks and encoded.mask:
        pixels = images.decode_mask(encoded.mask)
        mask[i] = self.frame.fit_mask(pixels, place)
    return Batch(image, rows, label, mask)

  def _fit(self, out: Pixels, encoded: bytes, row: int, place: Place) -> None:
    name = _Name(self.records, row)
    try:
      pixels = decode(encoded)
    except (images.ImageError, imagecodecs.Jpeg8Error) as error:
      raise errors.UserError(
        f'The image {name} of {self.records.directory} is unreadable: '
        f'{error}. Remove this folder to prepare it again.'
      ) from error
    self.frame.fit(out, pixels, name, place)

  def _place(self, position: int) -> Place:
    """Of a crop, by the example's position in the order of all examples."""
    dice = np.random.Generator(np.random.Philox(key=[self.seed, position]))
    return tuple(dice.random(2))


def _refuse(encoded: bytes, out: Pixels) -> Pixels:
  """In place of a decoder, where no image is fit as it is."""
  raise ValueError


@dataclasses.dataclass(frozen=True)
class _Name:
  """An example's key, looked up only if something has to be said of it."""

  records: Records
  row: int

  def __str__(self) -> str:
    return self.records.index['key'][int(self.row)].as_py()


@dataclasses.dataclass(frozen=True)
class _ToDevices:
  sharding: jax.sharding.Sharding

  def __call__(self, host: Batch) -> Batch:
    if self.sharding.is_fully_addressable:
      return jax.device_put(host, self.sharding)
    make = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: make(self.sharding, x), host)


def _block(sharding, batch: int) -> tuple[int, int]:
  """Which of how many blocks of a global batch's rows this process reads."""
  first, last = {}, {}
  for device, (rows,) in sharding.devices_indices_map((batch,)).items():
    process = device.process_index
    start, stop, _ = rows.indices(batch)
    first[process] = min(first.get(process, batch), start)
    last[process] = max(last.get(process, 0), stop)
  starts = sorted(set(first.values()))
  if any(last[p] - first[p] != batch // len(starts) for p in first):
    raise ValueError('A host has rows of a batch that do not lie together.')
  return starts.index(first[jax.process_index()]), len(starts)


def _check_divisible(sharding, batch: int) -> None:
  try:
    sharding.shard_shape((batch,))
  except ValueError as error:
    devices = len(sharding.device_set)
    raise errors.UserError(
      f'A batch of {batch} cannot be divided among {devices} devices. Choose '
      f'a multiple of {devices}, e.g. {-(-batch // devices) * devices}, for '
      'train.batch and score.batch.'
    ) from error


def _is_random(data_config: ConfigDict) -> bool:
  if data_config.crop not in ('centre', 'random'):
    raise errors.unknown('crop', data_config.crop, ('centre', 'random'))
  return data_config.crop == 'random'


def _seed(seed: int, rows: np.ndarray) -> int:
  """Else two cohorts of one size would always meet in the same pairs."""
  return zlib.crc32(rows.tobytes(), seed % 2**32)
