"""Training that begins from other weights: `train.init_from`.

Either another run's folder, whose `final/` is read, or a checkpoint of the
original code, whose names the method's table knows. All parts of the method
must be there in the same shapes, and no others, unless `train.init_parts`
names those to take. Optimisers begin anew.

Weights lie in the state from its beginning, and the phase that would draw a
part anew leaves it as it is. So they are saved with every checkpoint, and a
run that goes on does not read them again.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jaxmed import errors, workdir
from jaxmed.errors import UserError, printable
from jaxmed.method import Method, PyTree, State
from jaxmed.training import loop
from jaxmed.training.sharding import Place
from jaxmed.weights import checkpoint, read, store
from jaxmed.weights.names import from_foreign, unwrapped

FIELDS = ('params', 'batch_stats')  # Of a State: what a network is made of.
Parts = dict[str, dict[str, PyTree]]  # Field -> part -> tree.


class InitError(UserError):
  """Weights that are not those of the method.

  Attributes:
    unused: parts and leaves that the method has no place for.
    missing: of the method, but not in the weights.
  """

  def __init__(self, source: str, unused=(), missing=(), hint: str = ''):
    self.unused, self.missing = tuple(unused), tuple(missing)
    super().__init__(
      f'train.init_from={source} does not fit the method. Only there: '
      f'{_listed(self.unused)}. Only in the method: {_listed(self.missing)}. '
      + hint
    )


def begin(
  method: Method,
  given: State,
  place: Place,
  train: ConfigDict,
  folder: pathlib.Path,
) -> tuple[Method, State, dict | None]:
  """The method and the state to begin with, and where it is from.

  Where the run in `folder` goes on, the state is abstract where checkpoints
  hold it, and nothing is known of its source that is not written already.
  """
  source = train.get('init_from', '')
  if not source:
    return method, given, None
  plans = loop.plan(method, place, given)
  made, named = _made(plans), tuple(train.get('init_parts', ()))
  for part in named:
    if part not in made:
      raise errors.unknown('part (train.init_parts)', part, made)
  chosen = named or tuple(made)
  target = _parts_of(plans[-1][0], chosen)
  if has_checkpoints(folder):
    found, facts = target, None
  else:
    source = pathlib.Path(source).expanduser()
    found, facts = _read(source, target, not named, method)
  phases = tuple(
    _keeping(phase, [p for p in chosen if made[p] == number])
    for number, phase in enumerate(method.phases)
  )
  method = dataclasses.replace(method, phases=phases)
  return method, given.put(**found), facts


def shapes_of(folder: pathlib.Path) -> Parts:
  """What a finished run has learned, by shape alone."""
  path = folder.absolute() / 'final'
  if not path.is_dir():
    workdir.load_config(folder)  # A folder of no run is said to be none.
    raise UserError(
      f'{folder} has no final weights: its training did not reach its end; '
      'launch it again to go on.'
    )
  return {field: _metadata(path)[field] for field in FIELDS}


def weights_of(folder: pathlib.Path, wanted: Parts) -> Parts:
  """Of a finished run: the leaves that `wanted` has, laid out as they are."""
  path = folder.absolute() / 'final'
  whole = jax.tree.map(lambda leaf: ocp.PLACEHOLDER, _metadata(path))
  for field, parts in wanted.items():
    whole[field] |= parts
  found = ocp.load(path, whole)
  return {
    field: {part: found[field][part] for part in parts}
    for field, parts in wanted.items()
  }


def _metadata(path: pathlib.Path) -> dict:
  return ocp.metadata(path).metadata


def _made(plans: Sequence[Sequence[State]]) -> dict[str, int]:
  """Parts with weights, and the phase that makes each."""
  made: dict[str, int] = {}
  for number, (_, during) in enumerate(plans[:-1]):
    for part in during.params:
      made.setdefault(part, number)
  if not made:
    raise UserError(
      'The method learns no weights, so train.init_from has nothing to give '
      'it; leave it empty.'
    )
  return made


def _parts_of(state: State, parts) -> Parts:
  return _only({field: getattr(state, field) for field in FIELDS}, parts)


def _only(fields: Mapping[str, Mapping[str, PyTree]], parts) -> Parts:
  return {
    field: {part: tree for part, tree in trees.items() if part in parts}
    for field, trees in fields.items()
  }


def _keeping(phase, parts: list[str]):
  """The phase, which leaves parts as they are that it would draw anew."""
  if not parts:
    return phase

  def init(rng, state):
    kept = _parts_of(state, parts)
    made = phase.init(rng, state).put(**kept)
    # A running average of weights begins where they do.
    return made.put(ema={p: kept['params'][p] for p in parts if p in made.ema})

  return dataclasses.replace(phase, init=init)


def _read(
  source: pathlib.Path, target: Parts, strict: bool, method: Method
) -> tuple[Parts, dict]:
  """Weights for the target's leaves, and where they are from."""
  source = checkpoint.index_of(source)
  if source.is_dir():
    found = _from_run(source, target, strict)
    config = workdir.load_config(source)
    facts = {'run': str(source.absolute()), 'method': config.method}
  elif source.is_file():
    found = _from_file(source, target, strict, method)
    facts = {'file': str(source.absolute()), 'sha256': store.sha256_of(source)}
  else:
    raise UserError(
      f'train.init_from is {source}, which is not there; give the folder of a '
      'run, or a checkpoint.'
    )
  return found, facts | {'parts': sorted(found['params'])}


def _from_run(source: pathlib.Path, target: Parts, strict: bool) -> Parts:
  there = shapes_of(source)
  if not strict:
    there = _only(there, target['params'])
  ours, theirs = _flat(target), _flat(there)
  fits = lambda path: path in ours and ours[path] == theirs.get(path)
  if unlike := [p for p in {**ours, **theirs} if not fits(p)]:
    only = lambda trees: [f'{p} {trees[p]}' for p in unlike if p in trees]
    raise InitError(
      str(source), only(theirs), only(ours), _hint(unlike, ours, strict)
    )
  return weights_of(source, target)


def _hint(unlike: list[str], ours: dict, strict: bool) -> str:
  """The parts that could be taken all the same."""
  part = lambda path: path.split('/')[1]
  able = {part(path) for path in ours} - {part(path) for path in unlike}
  if able and strict:
    return (
      f'To take only what agrees: --config.train.init_parts={_tuple(able)}.'
    )
  return 'Give another run, or the same sizes.'


def _tuple(parts) -> str:
  return '"(' + ''.join(f"'{part}'," for part in sorted(parts)) + ')"'


def _from_file(
  source: pathlib.Path, target: Parts, strict: bool, method: Method
) -> Parts:
  if method.table is None:
    raise UserError(
      f'train.init_from is the file {source}, and nothing says what the names '
      'in checkpoints of this method mean; give the folder of a run.'
    )
  arrays = unwrapped(read.read(source))
  if not strict:  # What belongs to other parts may be there; nothing else.
    of_part = lambda path: path.partition('/')[0] in target['params']
    paths = {name: method.table.paths(name) for name in arrays}
    arrays = {
      name: array
      for name, array in arrays.items()
      if not paths[name] or any(map(of_part, paths[name]))
    }
  found = from_foreign(method.table, arrays, target)
  return jax.tree.map(
    lambda array, leaf: jax.device_put(array, leaf.sharding), found, target
  )


def _flat(trees: Parts) -> dict[str, tuple[int, ...]]:
  """The shape of every leaf, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(trees)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return {name(path): tuple(leaf.shape) for path, leaf in leaves}


def has_checkpoints(folder: pathlib.Path) -> bool:
  path = folder / 'checkpoints'
  return path.is_dir() and any(p.name.isdecimal() for p in path.iterdir())


def _listed(names: tuple[str, ...], shown: int = 6) -> str:
  more = f' and {len(names) - shown} more' if len(names) > shown else ''
  return (', '.join(map(printable, names[:shown])) or 'nothing') + more
