"""Records to global batches. Batch k is a function of k on any host count.

To go on after a failure is to slice the data set; the state of the pipeline is
a number. Batches are made, of row numbers, before they are dealt out and read,
so row i of batch k is the same example, cut at the same place, on any number
of hosts.
"""

import dataclasses
import time
import zlib
from collections.abc import Iterator

import grain
import jax
import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.datasets import images
from jaxmed.datasets.crew import cores
from jaxmed.datasets.records import Records
from jaxmed.method import Batch
from jaxmed.pipeline.frame import CENTRE, Frame, Place

HOST_AHEAD = 4  # Batches of pixels; Grain's default is 500.
DEVICE_AHEAD = 2  # Batches on their way to the device, or there.
MOST_THREADS = 16


class Cohort(Iterator[Batch]):
  """The batches of a cohort. `waited` is how many seconds `next` has taken."""

  def __init__(self, batches: grain.DatasetIterator):
    self._batches = batches
    self.waited = 0.0

  def __next__(self) -> Batch:
    began = time.perf_counter()
    try:
      return next(self._batches)
    finally:
      self.waited += time.perf_counter() - began

  def close(self) -> None:
    """Ends the threads that read ahead."""
    self._batches.close()


def open_cohort(
  records: Records,
  rows: Int32[np.ndarray, 'n'],
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
  numbers = grain.MapDataset.source(_Rows(rows, batch, endless))
  if endless:
    numbers = numbers.seed(_order(seed, rows)).shuffle().repeat()
  numbers = numbers.batch(batch // blocks, batch_fn=np.array)
  read = _Read(
    records=records,
    labels=records.index['label'].to_numpy(),
    frame=Frame.of(data_config, records.bits),
    random=_is_random(data_config) and train,
    masks=records.has_masks and not train,
    seed=seed,
  )
  read_blocks = numbers.map_with_index(read)[skip * blocks + block :: blocks]
  threads = min(cores(), MOST_THREADS)
  data = read_blocks.to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=HOST_AHEAD)
  ).map(_ToDevices(sharding))
  data = grain.experimental.ThreadPrefetchIterDataset(
    data, prefetch_buffer_size=DEVICE_AHEAD
  )
  return Cohort(iter(data))


@dataclasses.dataclass(frozen=True)
class _Rows:
  """Row numbers; one pass of them is filled up to whole batches with -1."""

  rows: Int32[np.ndarray, 'n']
  batch: int
  endless: bool

  def __len__(self) -> int:
    if self.endless:
      return len(self.rows)
    return -(-len(self.rows) // self.batch) * self.batch

  def __getitem__(self, i: int) -> int:
    return self.rows[i] if i < len(self.rows) else -1


@dataclasses.dataclass(frozen=True)
class _Read:
  """A block of row numbers, and the block's number, to a block of pixels."""

  records: Records
  labels: np.ndarray
  frame: Frame
  random: bool
  masks: bool
  seed: int

  def __call__(self, number: int, rows: np.ndarray) -> Batch:
    valid = rows >= 0
    count = int(valid.sum())  # The padding, if any, comes last.
    shape = (len(rows), *self.frame.shape)
    image = np.empty(shape, self.frame.dtype)
    image[count:] = 0
    mask = np.zeros(shape[:-1], bool) if self.masks else None
    encoded = self.records.read(rows[:count])
    for i, one in enumerate(encoded):
      place = self._place(number * len(rows) + i) if self.random else CENTRE
      self.frame.decode(image[i], one.image, _Name(self, rows[i]), place)
      if self.masks and one.mask:
        pixels = images.decode_mask(one.mask)
        mask[i] = self.frame.fit_mask(pixels, place)
    label = np.where(valid, self.labels[rows], -1).astype(np.int32)
    return Batch(image, rows.astype(np.int32), label, mask)

  def _place(self, position: int) -> Place:
    """Of a crop, by the example's position in the order of all examples."""
    dice = np.random.Generator(np.random.Philox(key=[self.seed, position]))
    return tuple(dice.random(2))


@dataclasses.dataclass(frozen=True)
class _Name:
  """An example's key, looked up only if something has to be said of it."""

  read: _Read
  row: int

  def __str__(self) -> str:
    return self.read.records.index['key'][int(self.row)].as_py()


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
  first = {}
  for device, (rows,) in sharding.devices_indices_map((batch,)).items():
    process = device.process_index
    first[process] = min(first.get(process, batch), rows.start or 0)
  starts = sorted(set(first.values()))
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


def _order(seed: int, rows: np.ndarray) -> int:
  """Else two cohorts of one size would always meet in the same pairs."""
  return zlib.crc32(rows.tobytes(), seed % 2**32)
