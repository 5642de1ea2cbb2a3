"""The pretrained parts that a method needs, before it is trained.

A part is the name under which `State.frozen` holds it, and of the field of
`config.model` that names its network: `trunk`, say. `config.model.weights`, or
a field of the part's own such as `lpips_weights`, says which weights it gets.
Random ones must be asked for by name, so that nobody takes an untrained network
for a trained one.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmed.errors import UserError
from jaxmed.method import Info, PyTree
from jaxmed.nn import lpips
from jaxmed.nn.trunk import trunk


def load(
  part: str, model: ConfigDict, info: Info
) -> tuple[PyTree, dict[str, object]]:
  """The variables of a part, and where they are from.

  Random weights depend on `model.weights_seed` alone.
  """
  field = f'{part}_weights' if f'{part}_weights' in model else 'weights'
  name, weights = model[part], model[field]
  if part == 'lpips':  # Named by its kind; its heads are with us.
    name = lpips.find(name)[0]
  network = trunk(name)
  if weights != 'random':
    raise UserError(
      f'There are no weights {weights!r} for the {part} {name!r}: trained ones'
      f' are not in this version; --config.model.{field}=random asks for'
      ' random ones, and the report will say so.'
    )
  key, image = jax.random.key(model.weights_seed), jnp.zeros((1, *info.image))
  variables = jax.jit(network.init)(key, image)
  if part == 'lpips':
    variables = lpips.variables(model.lpips, variables)
  facts = {'network': name, 'weights': weights, 'seed': model.weights_seed}
  return variables, facts
