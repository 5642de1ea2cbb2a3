"""The pretrained parts that a method needs, before it is trained.

A part is the name under which `State.frozen` holds it, and of the field of
`config.model` that names its network: `trunk`, say. `config.model.weights`
says which weights it gets, or `trunk_weights` for that part alone:

  imagenet  the public ones of the network, once they are fetched or imported
  random    untrained ones, by `model.weights_seed`
  NAME      what `jaxmed weights import` stored by that name
  FILE      any .pth, .pt, .safetensors or .npz file

Random ones must be asked for by name, so that nobody takes an untrained
network for a trained one. Where `config.model.layers` lists the stages that a
method looks at, a network is built down to the deepest of them.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmed.errors import UserError, printable
from jaxmed.method import Info, PyTree
from jaxmed.nn import lpips
from jaxmed.nn.trunk import NETWORKS, Trunk, deepest, trunk
from jaxmed.weights import checkpoint, read, registry, store
from jaxmed.weights.names import (
  NamesError,
  Table,
  from_foreign,
  to_foreign,
  unwrapped,
)

Arrays = Mapping[str, np.ndarray]
SHOWN = 4  # Of each list that an error prints.
SIDE = 224  # Of an image that every network takes.


class FitError(UserError):
  """A checkpoint that is of another network."""


def load(
  part: str, model: ConfigDict, info: Info, flag: str = ''
) -> tuple[PyTree, dict[str, object]]:
  """The variables of a part, and where they are from.

  Random weights depend on `model.weights_seed` alone. `flag` is what a user
  changes the weights by, if not --config.model's.
  """
  variables, facts = _load_network(part, model, info, flag)
  return _complete(part, model, variables), facts


def shapes(part: str, model: ConfigDict, info: Info) -> PyTree:
  """The abstract variables of a part; nothing is computed or read."""
  network = _abstract(_network(part, model), info.image)
  return jax.eval_shape(lambda x: _complete(part, model, x), network)


def foreign(part: str, model: ConfigDict, info: Info) -> Arrays:
  """The arrays of a part's network, as its original names them."""
  variables, _ = _load_network(part, model, info)
  return to_foreign(_network(part, model).table(), variables)


def check_same(before: Sequence[Mapping], now: Sequence[Mapping]) -> None:
  """A run goes on, and scores, with the weights that it has begun with."""
  then = {facts['part']: facts for facts in before}
  for facts in now:
    one, other = (
      f.get('sha256', '') for f in (then.get(facts['part'], facts), facts)
    )
    if one != other:
      raise UserError(
        f'The {facts["part"]} of this run had other weights when it was '
        f'trained: SHA-256 {one[:16]} ... then, {other[:16]} ... now '
        f'({facts.get("source")}); bring back the file of then, or give '
        '--fresh to begin the run anew.'
      )


def fit(network: str, arrays: Arrays, source: str) -> dict[str, np.ndarray]:
  """A checkpoint's arrays, once every name and shape is the network's.

  Its classifier may be there or not, and of any number of classes.
  """
  arrays = unwrapped(arrays)
  bare, whole = trunk(network), _classifier(network, 1)
  head = [
    name
    for name, array in arrays.items()
    if array.ndim == 1
    and bare.table().ignores(name)
    and not whole.table().ignores(name)
  ]
  if head:  # The last one has an element a class.
    whole = _classifier(network, len(arrays[max(head)]))
  chosen = whole if head else bare
  target = _abstract(chosen, (SIDE, SIDE, 3))
  _fill(chosen.table(), arrays, target, source, network)
  return arrays


def fitting(arrays: Arrays) -> list[str]:
  """The networks that a checkpoint is of."""
  found = []
  for network in NETWORKS:
    names = _classifier(network, 1).table()
    if all(names.ignores(n) or names.paths(n) for n in unwrapped(arrays)):
      with contextlib.suppress(FitError):
        fit(network, arrays, '')
        found.append(network)
  return found


def _classifier(network: str, classes: int) -> Trunk:
  """The network with a classifier, if it has one."""
  try:
    return trunk(network, classes=classes)
  except UserError:
    return trunk(network)


def _load_network(part: str, model: ConfigDict, info: Info, flag: str = ''):
  """The variables of the network alone, and where they are from."""
  field = f'{part}_weights' if model.get(f'{part}_weights') else 'weights'
  name, weights = _name(part, model), str(model[field])
  network, facts = _network(part, model), {'network': name, 'weights': weights}
  if weights == 'random':
    key, image = jax.random.key(model.weights_seed), jnp.zeros((1, *info.image))
    variables = jax.jit(network.init)(key, image)
    return variables, facts | {'seed': model.weights_seed}
  arrays, known = _find(name, weights, flag or f'--config.model.{field}')
  target = _abstract(network, info.image)
  filled = _fill(network.table(), arrays, target, known['source'], name)
  return filled, facts | known


def _name(part: str, model: ConfigDict) -> str:
  """Of the network; LPIPS has its own names of kinds."""
  return lpips.find(model[part])[0] if part == 'lpips' else model[part]


def _complete(part: str, model: ConfigDict, variables: PyTree) -> PyTree:
  """A network's variables with what else the part has: heads of LPIPS."""
  if part == 'lpips':
    return lpips.variables(model.lpips, variables)
  return variables


def _abstract(network: Trunk, image: tuple[int, ...]) -> PyTree:
  return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image)))


def _network(part: str, model: ConfigDict) -> Trunk:
  """The part's network, as deep as it is looked at."""
  name, layers = _name(part, model), model.get('layers')
  if part == 'lpips' or not isinstance(layers, list | tuple):
    return trunk(name)  # All of it; `layers` are of something else.
  return trunk(name, last=deepest(name, layers))


def _find(
  network: str, weights: str, flag: str
) -> tuple[Arrays, dict[str, str]]:
  """Arrays of trained weights, and what is known of them."""
  name = network if weights == 'imagenet' else weights
  if store.has(name):
    arrays, facts = store.load(name)
    if facts.network and facts.network != network:
      raise UserError(
        f'The stored weights {name!r} are of {facts.network}, and the network '
        f'is {network}; choose other ones, or the network.'
      )
    known = 'source', 'sha256', 'licence', 'verified'
    return arrays, {key: getattr(facts, key) for key in known}
  if weights == 'imagenet':
    raise _missing(network, flag)
  path = checkpoint.index_of(pathlib.Path(weights).expanduser())
  if not os.path.isfile(path):  # Whatever the name, it raises nothing.
    stored = ', '.join(store.names()) or 'none'
    raise UserError(
      f'There is no file {path.absolute()}, and {store.folder()} has no '
      f'weights of the name {weights!r} (it has: {stored}); give a file, a '
      'stored name, imagenet or random.'
    )
  return read.read(path), {
    'source': str(path.resolve()),
    'sha256': store.sha256_of(path),
    'licence': '',
    'verified': '',
  }


def _missing(network: str, flag: str) -> UserError:
  """What to do where public weights are not here."""
  untrained = (
    f'{flag}=random asks for untrained ones, and the report will say so'
  )
  entry = registry.REGISTRY.get(network)
  if entry is None:
    return UserError(
      f'There are no public weights of {network}; give a file of them by '
      f'{flag}=FILE; {untrained}.'
    )
  fetch = f'fetch them by: jaxmed weights fetch {network} ; or ' * bool(
    entry.url
  )
  return UserError(
    f'The weights of {network} are not in {store.folder()}; {fetch}import a '
    f'file of them by: jaxmed weights import {entry.file or "FILE"} --name '
    f'{network} ; {untrained}.'
  )


def _fill(
  names: Table, arrays: Arrays, target: PyTree, source: str, network: str
) -> PyTree:
  arrays = unwrapped(arrays)
  try:
    return from_foreign(names, arrays, target)
  except NamesError as error:
    raise FitError(
      f'{source} does not fit {network}: {_differences(error, arrays, target)}.'
    ) from error


def _differences(error: NamesError, arrays: Arrays, target: PyTree) -> str:
  """What is too much, missing and unlike, the first with their shapes."""
  leaves = {
    jax.tree_util.keystr(path[1:], simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(target)
  }
  unused = [f'{name} {np.shape(arrays[name])}' for name in error.unused]
  missing = [f'{path} {leaves[path]}' for path in error.missing]
  return '; '.join(
    f'{len(names)} {kind}: {", ".join(map(printable, names[:SHOWN]))}'
    + (', ...' if len(names) > SHOWN else '')
    for kind, names in (
      ('of its arrays have no place', unused),
      ('arrays of the network are not in it', missing),
      ('have other shapes', error.mismatched),
    )
    if names
  )
