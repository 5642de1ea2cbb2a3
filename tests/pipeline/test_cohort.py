import dataclasses

import imagecodecs
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxmed import pipeline
from jaxmed.datasets import records, write
from jaxmed.datasets.images import decode_mask
from jaxmed.errors import UserError
from jaxmed.pipeline import cohort
from jaxmed.training import sharding
from tests.datasets.pictures import mask, picture

NORMAL = 21


@pytest.fixture(scope='module')
def opened(tmp_path_factory) -> records.Records:
  root = tmp_path_factory.mktemp('pipeline')
  for i in range(NORMAL + 5):
    kind = 'normal' if i < NORMAL else 'tumor'
    folder = root / 'data' / kind
    folder.mkdir(parents=True, exist_ok=True)
    encoded = imagecodecs.png_encode(picture(i, size=24))
    (folder / f'{i:02d}.png').write_bytes(encoded)
  masks = root / 'data/masks/tumor'
  masks.mkdir(parents=True)
  for i in range(NORMAL, NORMAL + 4):
    (masks / f'{i}.png').write_bytes(mask(i, size=24))
  config = _data(
    name='folder',
    path=str(root / 'data'),
    dir=str(root / 'prepared'),
    options={'train': 1.0, 'validation': 0.0},
  )
  return records.open_records(write.prepare(config))


def _data(**more) -> ConfigDict:
  config = {'size': 16, 'channels': 3, 'resize': 0, 'crop': 'random'}
  return ConfigDict(config | more)


def _sharding(devices: int = 1) -> NamedSharding:
  mesh = jax.make_mesh(
    (devices, 1),
    ('data', 'model'),
    (AxisType.Auto,) * 2,
    devices=jax.devices()[:devices],
  )
  return NamedSharding(mesh, PartitionSpec('data'))


def _take(
  opened,
  count,
  *,
  skip=0,
  devices=1,
  batch=8,
  query='label == 0',
  train=True,
  endless=True,
  seed=3,
  **data,
):
  batches = pipeline.open_cohort(
    opened,
    opened.select(query),
    _sharding(devices),
    batch,
    skip,
    seed=seed,
    endless=endless,
    data_config=_data(**data),
    train=train,
  )
  taken = [one for _, one in zip(range(count), batches, strict=False)]
  batches.close()
  return taken


def _same(first, second):
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_to_go_on_is_to_skip(opened):
  whole = _take(opened, 7)
  for skip in (1, 4, 6):
    _same(_take(opened, 7 - skip, skip=skip), whole[skip:])


def test_eight_devices_get_what_one_gets(opened):
  one, eight = _take(opened, 3), _take(opened, 3, devices=8)
  _same(one, eight)
  assert len(eight[0].image.sharding.device_set) == 8


def test_two_hosts_read_what_one_reads(opened, monkeypatch):
  whole = _take(opened, 4)
  halves = []
  for block in range(2):
    monkeypatch.setattr(cohort, '_block', lambda s, b, block=block: (block, 2))
    halves.append(_take(opened, 4))
  for one, first, second in zip(whole, *halves, strict=True):
    assert len(first.row) == 4
    _same(one, jax.tree.map(lambda *x: np.concatenate(x), first, second))


@dataclasses.dataclass(frozen=True)
class _Device:
  number: int
  process_index: int


def test_which_block_is_whose_is_read_from_the_sharding():
  class Permuted:  # As on a TPU pod: this process's devices come last.
    def devices_indices_map(self, shape):
      owners = [1, 1, 0, 0]
      return {
        _Device(i, owner): (slice(4 * i, 4 * i + 4),)
        for i, owner in enumerate(owners)
      }

  assert cohort._block(Permuted(), 16) == (1, 2)


def test_rows_of_a_host_that_lie_apart_are_refused():
  class Mixed:
    def devices_indices_map(self, shape):
      return {_Device(i, i % 2): (slice(4 * i, 4 * i + 4),) for i in range(4)}

  with pytest.raises(ValueError, match='do not lie together'):
    cohort._block(Mixed(), 16)


def test_a_mesh_has_the_devices_of_a_host_side_by_side(monkeypatch):
  class Device:
    def __init__(self, number, process):
      self.id, self.process_index = number, process

  # As a TPU's links have them; the mesh itself takes anything.
  given = [Device(i, p) for i, p in enumerate([0, 0, 1, 1, 1, 1, 0, 0])]
  monkeypatch.setattr(sharding, 'Mesh', lambda devices, *_, **__: devices)
  found = [(d.process_index, d.id) for d in sharding.make_mesh(given).ravel()]
  assert found == sorted(found) and len(found) == 8


def test_every_epoch_has_every_example_once_in_another_order(opened):
  batches = _take(opened, 6, batch=7)
  rows = np.concatenate([batch.row for batch in batches])
  first, second = rows[:NORMAL], rows[NORMAL:]
  expected = opened.select('label == 0')
  np.testing.assert_array_equal(np.sort(first), expected)
  np.testing.assert_array_equal(np.sort(second), expected)
  assert (first != second).any() and (first != expected).any()
  other = np.concatenate([b.row for b in _take(opened, 3, batch=7, seed=4)])
  assert (other != first).any()


def test_two_cohorts_of_one_size_do_not_meet_in_the_same_pairs(opened):
  half = [f'row < {NORMAL - 1} and row >= 10', 'row < 10']
  a, b = (
    np.concatenate([x.row for x in _take(opened, 40, batch=10, query=query)])
    for query in half
  )
  partners = {}
  for x, y in zip(a.tolist(), b.tolist(), strict=True):
    partners.setdefault(x, set()).add(y)
  assert all(len(found) > 5 for found in partners.values())


def test_one_pass_is_in_order_and_filled_up(opened):
  batches = _take(opened, 99, endless=False, train=False, batch=8, query='')
  rows = np.concatenate([batch.row for batch in batches])
  count = NORMAL + 5
  np.testing.assert_array_equal(rows[:count], np.arange(count))
  assert rows[count:].tolist() == [-1] * 6 and len(batches) == 4
  last = batches[-1]
  assert not np.asarray(last.image)[2:].any()
  assert last.label.tolist()[2:] == [-1] * 6
  assert last.valid.tolist() == [True] * 2 + [False] * 6
  skipped = _take(
    opened, 99, endless=False, train=False, batch=8, query='', skip=3
  )
  _same(skipped, batches[3:])


def test_pixels_labels_and_masks_are_the_records(opened):
  size = {'size': 24, 'crop': 'centre'}
  batches = _take(
    opened, 99, endless=False, train=False, query='', batch=2, **size
  )
  for batch in batches:
    for i, row in enumerate(batch.row.tolist()):
      example = opened[row]
      number = int(example['key'].rpartition('/')[2][:2])
      np.testing.assert_array_equal(batch.image[i], picture(number, size=24))
      assert batch.label[i] == example['label'] == int(number >= NORMAL)
      wanted = np.zeros((24, 24), bool)
      if example['mask']:
        wanted = decode_mask(example['mask'])
      np.testing.assert_array_equal(batch.mask[i], wanted)
  assert sum(bool(np.asarray(b.mask).any()) for b in batches) >= 2
  assert _take(opened, 1, query='', **size)[0].mask is None


def test_random_crops_are_of_the_example_and_move(opened):
  places = set()
  for batch in _take(opened, 12):
    for row, image in zip(
      batch.row.tolist(), np.asarray(batch.image), strict=True
    ):
      number = int(opened.index['key'][row].as_py().rpartition('/')[2][:2])
      whole = picture(number, size=24)
      views = np.lib.stride_tricks.sliding_window_view(whole, (16, 16, 3))
      found = np.argwhere((views[:, :, 0] == image).all((-1, -2, -3)))
      assert len(found) == 1
      places.add(tuple(found[0].tolist()))
  assert len(places) > 40
  assert {p[0] for p in places} == {p[1] for p in places} == set(range(9))


def test_waiting_is_measured_and_close_ends_it(opened):
  batches = pipeline.open_cohort(
    opened,
    opened.select(''),
    _sharding(),
    4,
    0,
    seed=0,
    endless=True,
    data_config=_data(),
    train=True,
  )
  next(batches)
  assert 0 < batches.waited < 60
  batches.close()
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)


@pytest.mark.parametrize(
  ('change', 'complaint'),
  [
    ({'batch': 6, 'devices': 4}, 'cannot be divided among 4 devices.*8'),
    ({'query': 'label == 5'}, 'is empty'),
    ({'size': 32}, 'normal/.*png has 24 x 24 px.*data.resize'),
    ({'size': 32, 'resize': 30}, 'cannot be cut larger'),
    ({'channels': 2}, '1 for gray or 3'),
    ({'crop': 'center'}, "Did you mean 'centre'"),
  ],
)
def test_what_a_user_can_mend_is_said(opened, change, complaint):
  with pytest.raises(UserError, match=complaint):
    _take(opened, 1, **change)
