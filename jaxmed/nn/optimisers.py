"""Optimisers as the originals have them: TensorFlow 1's, and a lazy one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxmed.method import PyTree


class Moments(NamedTuple):
  count: Int[Array, '']
  mean: PyTree
  square: PyTree


def adam(
  rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
  """Adam with epsilon outside the correction of bias.

  step = rate sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)

  Elsewhere epsilon is added to the corrected root, where it is smaller by
  sqrt(1 - beta2^t); that matters to small gradients in the first steps.
  """

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return Moments(jnp.zeros((), jnp.int32), zeros(), zeros())

  def update(gradient, state, params=None):
    del params
    count = state.count + 1
    running = lambda beta: lambda old, new: beta * old + (1 - beta) * new
    mean = jax.tree.map(running(beta1), state.mean, gradient)
    square = jax.tree.map(
      running(beta2), state.square, jax.tree.map(jnp.square, gradient)
    )
    size = rate * jnp.sqrt(1 - beta2**count) / (1 - beta1**count)
    step = lambda m, v: -size * m / (jnp.sqrt(v) + epsilon)
    return jax.tree.map(step, mean, square), Moments(count, mean, square)

  return optax.GradientTransformation(init, update)


def rmsprop(
  rate: float, decay: float = 0.9, epsilon: float = 1e-10
) -> optax.GradientTransformation:
  """RMSProp whose mean square starts at one, with epsilon in the root."""
  return optax.rmsprop(
    rate, decay=decay, eps=epsilon, initial_scale=1.0, eps_in_sqrt=True
  )


def lazy_adam(
  rate: float, beta1: float, beta2: float, every: int
) -> optax.GradientTransformation:
  """Adam for a loss of which a term is added every so many steps, or never (0).

  That makes every + 1 updates where there were `every`; so the rate is scaled
  by c = every / (every + 1), and the betas are raised to it (StyleGAN2).
  """
  share = every / (every + 1) if every else 1.0
  return optax.adam(rate * share, b1=beta1**share, b2=beta2**share, eps=1e-8)
