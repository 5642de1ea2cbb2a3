"""Foreign checkpoints <-> Flax trees, by a short table of names.

A checkpoint is a flat dict {name: array}. A `Table`, written beside each
network, says how its names become paths of a Flax tree, in the convention of
the framework it comes from:

  TABLE = Table(
    TORCH,
    rows=(
      ('enc.model.{i}.conv.{leaf}', 'encoder/conv_{i}/{leaf}'),
      ('enc.model.{i}.norm.{leaf}', 'encoder/norm_{i}/{leaf}'),
      ('fc.{leaf}', 'head/{leaf}'),
    ),
    ignore=('.*[.]dummy',),
    layouts=(('head/kernel', nchw_rows(512)),),
  )

  TABLE = Table(
    TF,
    rows=(
      ('G/G.{m}/G.{m}.Filters', 'generator/{m}/kernel'),
      ('G/G.{m}/G.{m}.Biases', 'generator/{m}/bias'),
      ('G/{norm:G.*BN.}/{leaf}', 'generator/{norm}/{leaf}'),
    ),
  )

and two functions go either way:

  variables = from_foreign(TABLE, checkpoint, {'params': ..., 'batch_stats':
    ...})
  checkpoint = to_foreign(TABLE, variables)

Rows are read from the top; the first that fits a whole name is taken. A
field `{i}` stands for one step of a name (between two dots in torch's, two
slashes in TensorFlow's), `{i:expression}` for what the expression fits, which
may be several steps; a field used twice must be the same twice, and what it
fits need be said once. The field
`{leaf}` is translated: torch's `weight` is Flax's `kernel` or `scale`,
`running_mean` is `mean`, TensorFlow's `beta` is `bias`, and so on. Rows hold
in both directions, so nothing more is needed to export.

Targets are collections of trees, {'params': tree, 'batch_stats': tree}, real
or abstract; a path names a leaf without its collection. An array's axes are
moved by what it is, never by trying which order happens to fit: a `kernel` of
torch is (out, in, ...) and becomes (..., in, out). A transposed convolution,
torch's (in, out, ...) or TensorFlow's (..., out, in), becomes (..., out, in),
which is Flax's `ConvTranspose(transpose_kernel=True)`. What else must happen
to an array, such as dense layers after a flattening of channels first, is a
layout of the table. Every name and every leaf is used exactly once, or the
import fails and lists both.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jaxmed.errors import UserError, printable
from jaxmed.method import PyTree

Foreign = Mapping[str, np.ndarray]
Collections = Mapping[str, PyTree]
WRAPPERS = ('state_dict.', 'model_state_dict.')
PARALLEL = 'module.'  # Before every name, where PyTorch trained on many GPUs.
SHOWN = 8  # Names of each list that an error prints; it carries all.


@dataclasses.dataclass(frozen=True)
class Convention:
  """How a framework names and lays out what a layer holds.

  Attributes:
    separator: between the steps of a name.
    leaves: (its name, ours) of the arrays of layers with a kernel.
    norm_leaves: the same, of layers without.
    kernel_axes: of a kernel of some rank: the order that makes it Flax's.
    ignore: names that never hold anything a network needs.
  """

  separator: str
  leaves: tuple[tuple[str, str], ...]
  norm_leaves: tuple[tuple[str, str], ...]
  kernel_axes: Callable[[int], tuple[int, ...]]
  ignore: tuple[str, ...] = ()


TORCH = Convention(
  separator='.',
  leaves=(('weight', 'kernel'), ('bias', 'bias')),
  norm_leaves=(
    ('weight', 'scale'),
    ('bias', 'bias'),
    ('running_mean', 'mean'),
    ('running_var', 'var'),
    ('weight', 'embedding'),
  ),
  kernel_axes=lambda rank: (*range(2, rank), 1, 0),
  ignore=(r'(.*\.)?num_batches_tracked',),
)
TF = Convention(
  separator='/',
  leaves=(('kernel', 'kernel'), ('bias', 'bias')),
  norm_leaves=(
    ('gamma', 'scale'),
    ('beta', 'bias'),
    ('moving_mean', 'mean'),
    ('moving_variance', 'var'),
  ),
  kernel_axes=lambda rank: tuple(range(rank)),
)


@dataclasses.dataclass(frozen=True)
class Layout:
  """What happens to an array beside its axes' usual order, and back."""

  forward: Callable[[np.ndarray], np.ndarray]
  back: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Table:
  """How the names of one network's checkpoints become paths.

  Attributes:
    convention: TORCH or TF.
    rows: (template of a name, template of a path).
    ignore: expressions for whole names that may be there and are not wanted.
    layouts: (expression found in a path, what to do with that leaf beside
      the convention's order of axes).
  """

  convention: Convention
  rows: tuple[tuple[str, str], ...]
  ignore: tuple[str, ...] = ()
  layouts: tuple[tuple[str, Layout], ...] = ()

  def paths(self, name: str) -> list[str]:
    """The paths a name may stand for; several where only the tree knows."""
    here = self.convention
    for theirs, ours in self.rows:
      fields = _fields(_expression(theirs, here.separator), name)
      leaves = _leaves(fields, (*here.leaves, *here.norm_leaves))
      if leaves:
        steps = {k: v.replace(here.separator, '/') for k, v in fields.items()}
        return [_fill(ours, steps | {'leaf': leaf}) for leaf in leaves]
    return []

  def name(self, path: str, has_kernel: bool) -> str | None:
    """The name of a path, in a layer that has a kernel or does not."""
    here = self.convention
    known = here.leaves if has_kernel else here.norm_leaves
    for theirs, ours in self.rows:
      fields = _fields(_expression(ours, '/', theirs), path)
      leaves = _leaves(fields, [(to, leaf) for leaf, to in known])
      if leaves:
        steps = {k: v.replace('/', here.separator) for k, v in fields.items()}
        return _fill(theirs, steps | {'leaf': leaves[0]})
    return None

  def ignores(self, name: str) -> bool:
    patterns = (*self.convention.ignore, *self.ignore)
    return any(re.fullmatch(pattern, name) for pattern in patterns)

  def to_flax(self, path: str, array: np.ndarray) -> np.ndarray:
    """An array of the checkpoint, as the leaf at `path` wants it."""
    if _is_kernel(path):
      array = array.transpose(self.convention.kernel_axes(array.ndim))
    for layout in self._layouts(path):
      array = layout.forward(array)
    return np.asarray(array, order='C')

  def to_theirs(self, path: str, leaf: np.ndarray) -> np.ndarray:
    """The way back of `to_flax`."""
    for layout in reversed(list(self._layouts(path))):
      leaf = layout.back(leaf)
    if _is_kernel(path):
      leaf = leaf.transpose(np.argsort(self.convention.kernel_axes(leaf.ndim)))
    return np.asarray(leaf, order='C')

  def _layouts(self, path: str) -> Iterator[Layout]:
    return (way for pattern, way in self.layouts if re.search(pattern, path))


class NamesError(UserError):
  """A checkpoint that is not one of this network.

  Attributes:
    unused: names that have no place in the network.
    missing: leaves of the network that no name fills.
    mismatched: of those that have one: what differs, in words.
  """

  def __init__(self, unused=(), missing=(), mismatched=()):
    self.unused, self.missing = tuple(unused), tuple(missing)
    self.mismatched = tuple(mismatched)
    found = [
      text.format(len(names), _listed(names))
      for text, names in (
        ('{} of its names have no place in the network: {}', self.unused),
        ('{} arrays of the network are not in it: {}', self.missing),
        ('{} arrays do not fit: {}', self.mismatched),
      )
      if names
    ]
    super().__init__(
      'The checkpoint is of another network or another size ('
      + '; '.join(found)
      + '); give the configuration it was trained with, or another file.'
    )


def unwrapped(foreign: Foreign) -> Foreign:
  """The names of a network itself, in what a training has stored.

  Where there is a dict of weights, what lies beside it is an optimiser's.
  """
  for wrapper in WRAPPERS:
    if inside := _inside(foreign, wrapper):
      if beside := len(foreign) - len(inside):
        logging.info('%s is taken, %d arrays beside it not.', wrapper, beside)
      foreign = inside
  inside = _inside(foreign, PARALLEL)
  return inside if len(inside) == len(foreign) else foreign


def _inside(foreign: Foreign, prefix: str) -> Foreign:
  return {
    name.removeprefix(prefix): array
    for name, array in foreign.items()
    if name.startswith(prefix)
  }


def from_foreign(
  table: Table, foreign: Foreign, target: Collections
) -> dict[str, PyTree]:
  """The target's trees, filled with the arrays of a foreign checkpoint.

  Arrays take the target's types. Raises NamesError unless every name is used
  once or ignored, every leaf is filled once, and all shapes agree.
  """
  leaves, filled, unused, mismatched = _flatten(target), {}, [], []
  for name, array in foreign.items():
    if table.ignores(name):
      continue
    known = [path for path in table.paths(name) if path in leaves]
    if len(known) != 1:
      unused.append(name)
      continue
    path, array = known[0], np.asarray(array)
    if path in filled:
      mismatched.append(f'{name}: another name has given {path} already')
      continue
    filled[path], problem = _moved(table, path, array, leaves[path])
    if problem:
      mismatched.append(f'{name}: {problem}')
  missing = [path for path in leaves if path not in filled]
  if unused or missing or mismatched:
    raise NamesError(unused, missing, mismatched)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: filled[_path(path)], dict(target)
  )


def to_foreign(table: Table, trees: Collections) -> dict[str, np.ndarray]:
  """The checkpoint the original code would have written of these trees.

  Gradients and moments have the same paths and go the same way. Names that
  the table ignores are not written.
  """
  leaves, found = _flatten(trees), {}
  for path, leaf in leaves.items():
    layer = path.rpartition('/')[0]
    name = table.name(path, has_kernel=f'{layer}/kernel' in leaves)
    if name is None:
      raise ValueError(f'No row of the table gives a name to {path!r}.')
    if name in found:
      raise ValueError(f'Two leaves are called {name!r}; one is {path!r}.')
    found[name] = table.to_theirs(path, np.asarray(leaf))
  return found


def nchw_rows(channels: int) -> Layout:
  """A dense kernel after a flattening of (channels, height, width)."""
  return _reorder(0, channels)


def nchw_columns(channels: int) -> Layout:
  """A dense kernel, or its bias, before a folding into those axes."""
  return _reorder(-1, channels)


def reshaped(foreign: tuple[int, ...], ours: tuple[int, ...]) -> Layout:
  """An array that only differs in axes of one, or is flat in one of both."""
  return Layout(lambda x: x.reshape(ours), lambda x: x.reshape(foreign))


# A transposed convolution for Flax's default transpose_kernel=False: turned
# by half a circle in the plane, and in before out.
UNTRANSPOSED = Layout(
  *(
    lambda x: np.flip(x, tuple(range(x.ndim - 2))).swapaxes(-1, -2)
    for _ in range(2)
  )
)


def _reorder(axis: int, channels: int) -> Layout:
  """Between channels first and channels last, inside one flat axis."""

  def move(array, first, second):
    front = np.moveaxis(array, axis, 0)
    split = front.reshape(first, second, *front.shape[1:])
    return np.moveaxis(split.swapaxes(0, 1).reshape(front.shape), 0, axis)

  return Layout(
    lambda x: move(x, channels, -1), lambda x: move(x, -1, channels)
  )


FIELD = r'\{(\w+)(?::((?:[^{}]|\{[^{}]*\})+))?\}'


@functools.cache
def _expression(template: str, separator: str, other: str = '') -> re.Pattern:
  """The regular expression of a template.

  What a field fits may be said in the row's other template instead.
  """
  said = {field: fits for field, fits in re.findall(FIELD, other) if fits}
  seen, parts = set(), []
  for text, field, fits in re.findall(r'([^{]+)|' + FIELD, template):
    if text:
      parts.append(re.escape(text))
    elif field in seen:
      parts.append(f'(?P={field})')
    else:
      seen.add(field)
      fits = fits or said.get(field) or f'[^{re.escape(separator)}]+'
      parts.append(f'(?P<{field}>{fits})')
  return re.compile(''.join(parts))


def _fields(expression: re.Pattern, text: str) -> dict[str, str] | None:
  found = expression.fullmatch(text)
  return found and found.groupdict()


def _leaves(fields: Mapping[str, str] | None, known) -> list[str]:
  """What the field `leaf` is called on the other side; '' where none is."""
  if fields is None:
    return []
  if 'leaf' not in fields:
    return ['']
  leaves = [other for one, other in known if one == fields['leaf']]
  return list(dict.fromkeys(leaves))


def _fill(template: str, fields: Mapping[str, str]) -> str:
  return re.sub(FIELD, lambda match: fields[match[1]], template)


def _path(keys) -> str:
  """The path of a leaf, without the name of its collection."""
  name = jax.tree_util.keystr(keys, simple=True, separator='/')
  return name.partition('/')[2]


def _flatten(trees: Collections) -> dict[str, Any]:
  """The leaf of each path, of all collections."""
  leaves = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(dict(trees)):
    if _path(keys) in leaves:
      raise ValueError(f'{_path(keys)!r} is in more than one collection.')
    leaves[_path(keys)] = leaf
  return leaves


def _moved(
  table: Table, path: str, array: np.ndarray, leaf
) -> tuple[np.ndarray | None, str | None]:
  """An array as a leaf wants it; or None, and why it does not fit."""
  wanted = f'the network wants {tuple(leaf.shape)} at {path}'
  try:
    moved = table.to_flax(path, array)
  except ValueError:
    return None, f'{array.shape} cannot be laid out so; {wanted}'
  if moved.shape != tuple(leaf.shape):
    return None, f'{array.shape} becomes {moved.shape}; {wanted}'
  if not jnp.issubdtype(array.dtype, jnp.number):
    return None, f'it holds {array.dtype}, no numbers; {wanted}'
  if array.dtype.kind == 'c' and not jnp.iscomplexobj(leaf):
    return None, f'it holds complex numbers; {wanted}'
  with np.errstate(over='ignore'):
    cast = moved.astype(leaf.dtype, copy=False)
  if array.dtype.kind == 'f' and (np.isinf(cast) & np.isfinite(moved)).any():
    return None, f'it holds numbers beyond {leaf.dtype}; {wanted}'
  return cast, None


def _is_kernel(path: str) -> bool:
  return path.rpartition('/')[2] == 'kernel'


def _listed(names: tuple[str, ...]) -> str:
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  return ', '.join(map(printable, names[:SHOWN])) + more
