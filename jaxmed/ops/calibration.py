"""From a classifier's log-odds to a probability that means what it says.

  p = sigmoid(slope * log-odds + offset)

with both fitted to images that the classifier was not trained on (Platt,
1999), or the slope alone: the inverse of a temperature (Guo et al., ICML
2017). The order of images stays: the slope is positive.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ROUNDS = 50  # Newton's; a dozen are enough.
HALVINGS = 16  # Of a step that goes too far.
LEAST = 1e-3  # Slope, of the log-odds' own size.


def fit(
  log_odds: Float[Array, ' n'],
  label: Int[Array, ' n'],
  valid: Bool[Array, ' n'],
  offset: bool = True,
  balanced: bool = False,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Slope and offset of least cross entropy over the valid images.

  Targets are Platt's, (n + 1) / (n + 2) and 1 / (n + 2) with n the images of
  a class, so that classes which are wholly apart have finite slopes. Where
  `balanced`, both classes weigh alike, however many images they have.
  """
  sick = valid & (label == 1)
  well = valid & (label != 1)
  many, few = (x.sum(dtype=jnp.float32) for x in (sick, well))
  target = jnp.where(sick, (many + 1) / (many + 2), 1 / (few + 2))
  each = (1 / many, 1 / few) if balanced else (1.0, 1.0)
  weight = jnp.where(sick, each[0], jnp.where(well, each[1], 0.0))
  weight = weight / weight.sum()
  x = jnp.where(valid, log_odds, 0.0)
  size = jnp.sqrt((weight * jnp.square(x)).sum())
  size = jnp.where(size > 0, size, 1.0)  # All zero: any slope will do.
  columns = jnp.stack([x / size, jnp.ones_like(x)], axis=1)

  def loss(theta):
    z = columns @ theta
    return (weight * (jax.nn.softplus(z) - target * z)).sum()

  def newton(theta, free):
    """A step of those that are free, no longer than what makes it better."""
    p = jax.nn.sigmoid(columns @ theta)
    some = columns * free[None]
    gradient = some.T @ (weight * (p - target))
    curvature = (some * (weight * p * (1 - p))[:, None]).T @ some
    step = jnp.linalg.solve(
      curvature + jnp.diag(1 - free) + 1e-7 * jnp.eye(2), gradient
    )
    lengths = jnp.append(0.5 ** jnp.arange(HALVINGS), 0.0)
    tried = theta[None] - lengths[:, None] * step[None]
    tried = tried.at[:, 0].max(LEAST)
    return tried[jnp.argmin(jax.vmap(loss)(tried))]

  def descend(theta, free):
    return jax.lax.fori_loop(0, ROUNDS, lambda _, t: newton(t, free), theta)

  both = descend(jnp.array([1.0, 0.0]), jnp.array([1.0, float(offset)]))
  # Where the slope is held, the offset may stand where both would have gone.
  held = descend(jnp.array([LEAST, 0.0]), jnp.array([0.0, float(offset)]))
  slope, shift = jnp.where(both[0] > LEAST, both, held)
  return slope / size, shift
