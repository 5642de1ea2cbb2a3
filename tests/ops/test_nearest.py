import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmed.ops import nearest


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _brute_distances(a, b):
  """By differences, in float64."""
  a, b = a.astype(np.float64), b.astype(np.float64)
  return np.sqrt(np.square(a[..., None, :] - b).sum(axis=-1))


def _brute_greedy(points, valid, count, starts=None):
  """The originals' sampler, with the whole matrix."""
  away = _brute_distances(points, points)
  if starts is None:
    far = np.linalg.norm(away * valid, axis=1)
  else:
    far = away[:, starts].mean(axis=1)
  far, picked = np.where(valid, far, -np.inf), []
  for _ in range(count):
    picked.append(int(far.argmax()))
    far = np.minimum(far, away[picked[-1]])
    far[picked[-1]] = -np.inf
  return picked


@pytest.mark.parametrize('neighbours', [1, 3])
@pytest.mark.parametrize('chunk', [1, 1000, 2**24])
@pytest.mark.parametrize('root', [False, True])
def test_nearest_is_brute_force_whatever_the_chunk(neighbours, chunk, root):
  queries, bank = _normal(2, 5, 7), _normal(103, 7, seed=1)
  away, index = nearest.nearest(
    queries, bank, neighbours, root=root, chunk=chunk
  )
  true = _brute_distances(queries, bank)
  order = np.argsort(true, axis=-1)[..., :neighbours]
  np.testing.assert_array_equal(index, order)
  true = np.take_along_axis(true, order, axis=-1)
  np.testing.assert_allclose(away, true if root else true**2, rtol=1e-5)


def test_of_equal_rows_the_first_is_nearest_in_any_chunk():
  bank = np.repeat(_normal(4, 3), 5, axis=0)
  for chunk in (1, 9, 1000):
    _, index = nearest.nearest(bank[[12]] + 1e-3, bank, 2, chunk=chunk)
    assert index.tolist() == [[10, 11]]


def test_distances_keep_their_digits_far_from_the_origin():
  bank = _normal(50, 8) + np.float32(300)
  queries = bank[:10] + 1e-2 * _normal(10, 8, seed=1)
  away, _ = nearest.nearest(queries, bank, root=True)
  true = _brute_distances(queries, bank).min(axis=1, keepdims=True)
  np.testing.assert_allclose(away, true, rtol=1e-5)


@pytest.mark.parametrize('neighbours', [0, 6])
def test_it_refuses_more_neighbours_than_there_are(neighbours):
  with pytest.raises(ValueError, match='bank of 5 rows'):
    nearest.nearest(_normal(1, 2), _normal(5, 2), neighbours)


@pytest.mark.parametrize('starts', [None, [3], [0, 40, 77]])
def test_coreset_is_the_greedy_one_and_leaves_out_what_is_not_valid(starts):
  points, valid = _normal(120, 6), np.arange(120) % 5 != 2
  points[~valid] *= 100
  pick = jax.jit(nearest.coreset, static_argnums=2)
  given = None if starts is None else jnp.array(starts)
  picked = pick(points, valid, 96, given).tolist()
  assert picked == _brute_greedy(points, valid, 96, starts)
  assert set(picked) == set(np.flatnonzero(valid).tolist())


def test_without_starts_the_first_pick_has_the_largest_row_of_distances():
  points = _normal(60, 3)
  first = nearest.coreset(points, np.ones(60, bool), 1)
  norms = np.linalg.norm(_brute_distances(points, points), axis=1)
  assert first.tolist() == [norms.argmax()]


def test_no_row_is_picked_twice_though_all_are_the_same():
  points = np.ones((2, 3, 4, 5), np.float32)
  picked = nearest.coreset(points, np.ones((2, 3, 4), bool), 24)
  assert picked.tolist() == list(range(24))


def _sample(bank, full):
  key = jax.random.key(3)
  matrix = nearest.projection(key, bank.shape[-1], 8)
  points = nearest.project(bank, matrix)
  starts = nearest.draw(key, full, 10)
  index = nearest.coreset(points, full, 150, starts)
  return (
    starts,
    index,
    nearest.rows(bank, index),
    nearest.coreset(bank, full, 40),
  )


def _sharded(devices, bank, full):
  mesh = jax.make_mesh(
    (devices,), ('data',), (AxisType.Auto,), devices=jax.devices()[:devices]
  )
  sharding = NamedSharding(mesh, PartitionSpec(None, 'data'))
  args = jax.device_put((bank, full), sharding)
  compiled = jax.jit(_sample).lower(*args).compile()
  return jax.device_get(compiled(*args)), compiled.as_text()


def test_eight_devices_pick_the_rows_that_one_picks():
  bank = _normal(3, 16, 25, 17)  # Sizes at which matrix kernels have rests.
  bank[2, :, :9] = bank[0, :, :9]  # Ties, across devices too.
  full = np.ones((3, 16, 25), bool)
  full[2, 5:] = False
  one, _ = _sharded(1, bank, full)
  eight, program = _sharded(8, bank, full)
  for a, b in zip(one, eight, strict=True):
    np.testing.assert_array_equal(a, b)
  starts, index, rows, _ = eight
  assert full.reshape(-1)[index].all() and full.reshape(-1)[starts].all()
  np.testing.assert_array_equal(rows, bank.reshape(-1, 17)[index])
  # No device ever sees another's bank, nor its projection.
  gathers = [x for x in program.splitlines() if ' all-gather(' in x]
  assert all('f32[3,16,25]{' in line for line in gathers), gathers


def test_projection_has_the_bounds_of_a_torch_layer():
  matrix = nearest.projection(jax.random.key(0), 400, 50)
  assert matrix.shape == (50, 400)
  assert 0.049 < np.abs(matrix).max() <= 0.05
  points = _normal(2, 3, 400)
  np.testing.assert_allclose(
    nearest.project(points, matrix), points @ matrix.T, rtol=1e-4, atol=1e-5
  )
