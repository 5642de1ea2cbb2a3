"""Nearest neighbours, and a core of points that has one near every other.

A memory bank of a method is an array of features with any leading axes; an
index counts its rows in that order. The leading axes may be sharded over
devices: nothing here gathers a bank in one place, and the rows picked are the
same on any number of devices.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# Distances are differences of large numbers: no TF32, no bfloat16 passes.
_EXACT = jax.lax.Precision.HIGHEST
TOGETHER = 32  # Points whose distances to all others are computed at once.


def squared_distances(
  a: Float[Array, '*a c'], b: Float[Array, 'n c']
) -> Float[Array, '*a n']:
  """|a|^2 + |b|^2 - 2 ab, at least 0: one matrix product."""
  return jnp.maximum(_squares(a)[..., None] + _beyond(a, b, _squares(b)), 0)


def nearest(
  queries: Float[Array, '*q c'],
  bank: Float[Array, 'n c'],
  neighbours: int = 1,
  *,
  root: bool = False,
  chunk: int = 2**24,
) -> tuple[Float[Array, '*q k'], Int[Array, '*q k']]:
  """The distances to the nearest rows of the bank, and which rows they are.

  Args:
    queries: sharded along any of their leading axes, or not.
    bank: the same on every device.
    neighbours: how many, nearest first; among equals the first row wins.
    root: gives |a - b|; otherwise |a - b|^2.
    chunk: the most distances held in memory at once.
  """
  rows = len(bank)
  if not 1 <= neighbours <= rows:
    raise ValueError(f'{neighbours} neighbours in a bank of {rows} rows')
  lead = queries.shape[:-1]
  block = min(max(chunk // math.prod(lead), neighbours), rows)
  squares = _squares(bank)

  def visit(number, best):
    start = jnp.minimum(number * block, rows - block)
    some = jax.lax.dynamic_slice_in_dim(bank, start, block)
    square = jax.lax.dynamic_slice_in_dim(squares, start, block)
    away = _beyond(queries, some, square)
    index = start + jnp.arange(block)
    seen = jnp.broadcast_to(index < number * block, away.shape)
    near, place = jax.lax.top_k(jnp.where(seen, -jnp.inf, -away), neighbours)
    return _best(best, (near, start + place), neighbours)

  best = (
    jnp.full((*lead, neighbours), -jnp.inf, queries.dtype),
    jnp.zeros((*lead, neighbours), jnp.int32),
  )
  _, index = jax.lax.fori_loop(0, -(-rows // block), visit, best)
  return _exactly(queries, bank, index, root)


def _beyond(a, b, squares):
  """|a - b|^2 - |a|^2: all that ranks the rows b of one a."""
  product = jnp.einsum('...c,nc->...n', a, b, precision=_EXACT)
  return jnp.expand_dims(squares, range(a.ndim - 1)) - 2 * product


def _best(one, other, count):
  """The best of two lists of (value, index); the first goes before equals."""
  value, index = (
    jnp.concatenate(pair, axis=-1) for pair in zip(one, other, strict=True)
  )
  value, place = jax.lax.top_k(value, count)
  return value, jnp.take_along_axis(index, place, axis=-1)


def _exactly(queries, bank, index, root):
  """Distances by differences, which lose nothing, now that they are few."""
  away = _squares(queries[..., None, :] - bank[index])
  order = jnp.argsort(away, axis=-1, stable=True)
  away, index = (jnp.take_along_axis(x, order, axis=-1) for x in (away, index))
  return (jnp.sqrt(away) if root else away), index


def projection(
  key: Key[Array, ''], channels: int, width: int
) -> Float[Array, 'w c']:
  """A random map to fewer channels, PyTorch's default for a linear layer."""
  bound = 1 / math.sqrt(channels)
  return jax.random.uniform(key, (width, channels), minval=-bound, maxval=bound)


def project(
  points: Float[Array, '*n c'], matrix: Float[Array, 'w c']
) -> Float[Array, '*n w']:
  return jnp.einsum('...c,wc->...w', points, matrix, precision=_EXACT)


def draw(
  key: Key[Array, ''], valid: Bool[Array, '*n'], count: int
) -> Int[Array, ' k']:
  """Indices of `count` different valid rows, drawn at random."""
  chance = jnp.where(valid, jax.random.uniform(key, valid.shape), -1.0)
  return jax.lax.top_k(chance.reshape(-1), count)[1]


def rows(
  bank: Float[Array, '*n c'], index: Int[Array, ' k']
) -> Float[Array, 'k c']:
  """The bank's rows with these indices, wherever they are."""
  return bank[jnp.unravel_index(index, bank.shape[:-1])]


def coreset(
  points: Float[Array, '*n c'],
  valid: Bool[Array, '*n'],
  count: int,
  starts: Int[Array, ' s'] | None = None,
) -> Int[Array, ' k']:
  """Greedy k-centre: each pick is the point furthest from those before it.

  Without `starts` the first pick is the row of largest norm in the matrix of
  all distances. That norm is sum_j |a_i - a_j|^2, which needs no matrix: it
  is n |a_i - mean|^2 and a constant.

  With `starts` (the original's approximate sampler) every point begins with
  its MEAN distance to those points, which are not picked by this, and the
  mean stays in the running minimum.

  No point is picked twice, and none that is not valid; among equals the first
  is picked. The caller sees to it that `count` valid points exist.

  Reading all points is what a pick takes, so their distances to the furthest
  points are computed together, and used as long as the next pick is one of
  these. It mostly is: a pick brings little nearer but what lies around it.
  """
  points, valid = jnp.asarray(points), jnp.asarray(valid)
  squares = _squares(points)
  if starts is None:
    far = _sum_to_all(points, squares, valid)
  else:
    away = squared_distances(points, rows(points, starts))
    far = jnp.square(jnp.sqrt(away).mean(axis=-1))
  together = min(TOGETHER, valid.size)
  index = jnp.arange(valid.size, dtype=jnp.int32).reshape(valid.shape)

  def look(carry):
    far, picked, number = carry
    _, which = jax.lax.top_k(far.reshape(-1), together)
    some = rows(points, which)
    # Zeros to a whole number of four columns: a product of matrices gives a
    # row the same bits however many rows a device holds; some others do not.
    product = project(points, jnp.pad(some, ((0, -together % 4), (0, 0))))
    away = _beside(squares, _squares(some), product[..., :together])

    def is_near(state):
      far, _, number, best = state
      return (number < count) & (which == best).any()

    def pick(state):
      far, picked, number, best = state
      place = (which == best).argmax()
      new = jax.lax.dynamic_index_in_dim(away, place, 0, keepdims=False)
      far = jnp.where(index == best, -jnp.inf, jnp.minimum(far, new))
      return far, picked.at[number].set(best), number + 1, furthest(far)

    # The first of them is the furthest, so there is always a pick.
    state = pick((far, picked, number, which[0]))
    return jax.lax.while_loop(is_near, pick, state)[:3]

  def furthest(far):
    return jnp.where(far == far.max(), index, valid.size - 1).min()

  far = jnp.where(valid, far, -jnp.inf)
  start = far, jnp.zeros(count, jnp.int32), jnp.int32(0)
  return jax.lax.while_loop(lambda carry: carry[2] < count, look, start)[1]


def _beside(squares, others, product):
  """|a - b|^2, the rows b before the points a: one b is read as a whole."""
  others = jnp.expand_dims(others, range(squares.ndim))
  away = squares[..., None] + others - 2 * product
  return jnp.moveaxis(away, -1, 0)


def _squares(x):
  return jnp.square(x).sum(axis=-1)


def _sum_to_all(points, squares, valid):
  """sum_j |a_i - a_j|^2 over the valid j, for every i."""
  weight = valid.astype(points.dtype)
  lead = tuple(range(valid.ndim))
  total = (points * weight[..., None]).sum(axis=lead)
  mean = total / weight.sum()
  from_mean = _squares(points - jnp.expand_dims(mean, lead))
  return weight.sum() * from_mean + (from_mean * weight).sum()
