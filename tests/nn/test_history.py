"""The history of generated images, against the rule in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmed.nn.history import History

ROWS, SIZE = 4, 10  # Three images of each place.


def images(step):
  """Each image is one number, which no other has."""
  first = 1 + step * ROWS
  flat = jnp.arange(first, first + ROWS, dtype=jnp.float32)
  return jnp.broadcast_to(flat[:, None, None, None], (ROWS, 2, 2, 1))


@jax.jit
def keys(step):
  key = jax.random.fold_in(jax.random.key(0), step)
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(ROWS))


@jax.jit
def draws(step):
  """Of each place, whether it swaps, and which of three it would."""

  def draw(key):
    swap, slot = jax.random.split(key)
    return jax.random.bernoulli(swap), jax.random.randint(slot, (), 0, 3)

  return jax.vmap(draw)(keys(step))


def valid(step):
  """The last row is padding in every fifth step."""
  return jnp.array([True, True, True, step % 5 != 0])


def plainly(steps):
  """What is shown in every step, place by place, and what is kept."""
  kept, shown = [[] for _ in range(ROWS)], []
  for step in range(steps):
    now = []
    swaps, slots = map(np.asarray, draws(step))
    for place, made in enumerate(np.asarray(images(step))[:, 0, 0, 0]):
      swap, slot, give = swaps[place], slots[place], made
      if valid(step)[place]:
        if len(kept[place]) < 3:
          kept[place].append(made)
        elif swap:
          give, kept[place][slot] = kept[place][slot], made
      now.append(give)
    shown.append(now)
  return shown, kept


def test_history_follows_its_rule_at_every_place():
  history = History.empty(SIZE, ROWS, (2, 2, 1))
  exchange = jax.jit(History.exchange)
  expected, kept = plainly(12)
  swaps = 0
  for step, now in enumerate(expected):
    history, shown = exchange(history, keys(step), images(step), valid(step))
    np.testing.assert_array_equal(shown[:, 0, 0, 0], now)
    np.testing.assert_array_equal(shown[:, 1, 1, 0], now)
    swaps += int((shown != images(step))[:, 0, 0, 0].sum())
  np.testing.assert_array_equal(history.images[:, :, 0, 0, 0], kept)
  assert 8 < swaps < 28  # Of 34 chances, about a half.


def test_no_history_shows_what_is_made():
  history = History.empty(0, ROWS, (2, 2, 1))
  after, shown = history.exchange(keys(0), images(0), valid(1))
  np.testing.assert_array_equal(shown, images(0))
  assert after.images.size == 0
