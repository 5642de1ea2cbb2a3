"""The one gradient step. Every method's every update goes through it."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from jaxmed.method import PyTree, Scalars, State

# loss(params of the part) -> (value to minimise, anything else of interest)
Loss = Callable[[PyTree], tuple[Float[Array, ''], Any]]


def fit(
  state: State, part: str, optimiser: optax.GradientTransformation, loss: Loss
) -> tuple[State, Any, Scalars]:
  """One step on `state.params[part]`.

  Returns the new state, what `loss` gave beside its value, and the scalars
  every part logs: its loss, its gradient's norm and its parameters' norm.
  """
  params = state.params[part]
  (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  updates, opt = optimiser.update(gradient, state.opt[part], params)
  params = optax.apply_updates(params, updates)
  scalars = {
    f'{part}/loss': value,
    f'{part}/gradient_norm': optax.tree.norm(gradient),
    f'{part}/parameter_norm': optax.tree.norm(params),
  }
  return state.put(params={part: params}, opt={part: opt}), aux, scalars


def start(
  state: State, part: str, optimiser: optax.GradientTransformation, params
) -> State:
  """Adds a part and its optimiser's fresh slots to the state."""
  return state.put(params={part: params}, opt={part: optimiser.init(params)})
