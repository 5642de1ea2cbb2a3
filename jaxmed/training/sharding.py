"""The mesh, and where each leaf of a state and each batch lies on it."""

import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmed.errors import UserError
from jaxmed.method import State

Rules = Sequence[tuple[str, PartitionSpec]]
Place = Callable[[State], State]  # An abstract state gets its shardings.
FSDP_LEAST = 2**16  # Elements; a smaller leaf is not worth splitting.


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """All devices along `data`; `model` is there for methods that name it.

  Those of a host lie side by side, so that its rows of a batch do, too;
  jax.make_mesh has them in the order of a TPU's links.
  """
  devices = jax.devices() if devices is None else devices
  in_order = sorted(devices, key=lambda d: (d.process_index, d.id))
  return Mesh(
    np.array(in_order).reshape(-1, 1),
    ('data', 'model'),
    axis_types=(AxisType.Auto,) * 2,
  )


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
  """Rows of a batch over the data axis."""
  ways = mesh.shape['data']
  if batch % ways:
    near = max(batch - batch % ways, ways)
    raise UserError(
      f'A batch of {batch} does not divide among {ways} devices; '
      f'use --config.train.batch={near} (and --config.score.batch) or '
      f'another multiple of {ways}.'
    )
  return NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def place(mesh: Mesh, rules: Rules = (), fsdp: bool = False) -> Place:
  """Shards a leaf by the first rule whose pattern its path contains.

  A leaf that no rule names is replicated or, with `fsdp`, split along its
  largest axis that the data axis divides.
  """

  def spec(name, leaf):
    for pattern, given in rules:
      if re.search(pattern, name):
        return given
    if fsdp and leaf.size >= FSDP_LEAST:
      ways = mesh.shape['data']
      able = [i for i, n in enumerate(leaf.shape) if n % ways == 0]
      if able:
        split = max(able, key=lambda i: leaf.shape[i])
        return PartitionSpec(*(None,) * split, 'data')
    return PartitionSpec()

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    sharding = NamedSharding(mesh, spec(name, leaf))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return lambda abstract: jax.tree_util.tree_map_with_path(one, abstract)
