"""From a config and prepared data to a trained state on disk."""

import dataclasses
import itertools
import pathlib
import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jaxmed import methods, workdir
from jaxmed.datasets.records import Records, open_records
from jaxmed.errors import UserError
from jaxmed.method import Info, Method, Phase, State
from jaxmed.pipeline import augment, open_cohort
from jaxmed.provenance import Provenance
from jaxmed.training import distributed, loop, run, sharding
from jaxmed.weights import pretrained


def train(
  config: ConfigDict,
  folder: pathlib.Path,
  data: pathlib.Path,
  provenance: Provenance,
) -> None:
  """Trains a config's method; `final/` holds what it has learned."""
  records = open_records(data)
  cohorts = {
    name: records.select(query) for name, query in config.data.cohorts.items()
  }
  info = Info(
    image=(config.data.size, config.data.size, config.data.channels),
    batch=config.train.batch,
    examples={name: len(rows) for name, rows in cohorts.items()},
  )
  mesh = sharding.make_mesh()
  rows_sharding = sharding.batch_sharding(mesh, info.batch)
  method, given, weights = assemble(config, info, mesh)
  phases = tuple(
    augment.wrap(phase, config.train.augment) for phase in method.phases
  )
  method = dataclasses.replace(method, phases=phases)
  _refuse_empty(method, config.data.cohorts, info)
  place = sharding.place(mesh, method.sharding, config.train.fsdp)
  plans = loop.plan(method, place, given)
  counts = _counts(records)
  provenance.add(
    data={'name': config.data.name, 'dir': str(data), 'counts': counts},
    weights=weights,
  )

  def open_cohorts(phase: Phase, skip: int) -> Iterator[dict]:
    several = {
      name: _several(
        open_cohort(
          records,
          cohorts[name],
          rows_sharding,
          info.batch,
          skip * phase.batches,
          seed=_seed(config.seed, phase.name, name),
          endless=phase.steps is not None,
          data_config=config.data,
          train=phase.steps is not None,
        ),
        phase.batches,
      )
      for name in phase.cohorts
    }
    for batches in zip(*several.values(), strict=False):
      yield dict(zip(several, batches, strict=True))

  policy = run.Policy(
    config.train.save_minutes, config.train.keep, config.train.log_every
  )
  _, state, rates = run.run(
    method,
    open_cohorts,
    plans,
    config.seed,
    folder,
    given,
    info.batch,
    policy,
    dtype=jnp.dtype(config.train.precision),
  )
  provenance.add(
    train=rates
    | {
      'parameters': {k: _size(v) for k, v in state.params.items()},
      'precision': config.train.precision,
      'devices': mesh.size,
    }
  )
  if distributed.is_first():
    facts = {'image': info.image, 'batch': info.batch}
    workdir.write_json(
      folder / 'info.json', facts | {'examples': dict(info.examples)}
    )
  ocp.save_pytree(folder / 'final', state.replace(opt={}, frozen={}))


def assemble(
  config: ConfigDict, info: Info, mesh: jax.sharding.Mesh
) -> tuple[Method, State, list[dict]]:
  """A method, the state it begins with, and where pretrained parts are from."""
  method = methods.build(config, info)
  loaded = {
    part: pretrained.load(part, config.model, info) for part in method.needs
  }
  frozen = {part: tree for part, (tree, _) in loaded.items()}
  given = jax.device_put(State(frozen=frozen), sharding.replicated(mesh))
  weights = [{'part': part} | facts for part, (_, facts) in loaded.items()]
  return method, given, weights


def _several(batches: Iterator, count: int) -> Iterator:
  """Stacks every `count` batches, for phases that take several a step."""
  if count == 1:
    return batches
  stack = jax.jit(lambda *x: jax.tree.map(lambda *y: jnp.stack(y), *x))
  return (
    stack(first, *itertools.islice(batches, count - 1)) for first in batches
  )


def _refuse_empty(method: Method, queries: ConfigDict, info: Info) -> None:
  for name in {name for phase in method.phases for name in phase.cohorts}:
    if name not in info.examples:
      raise UserError(
        f'The method draws from cohort {name!r}, which config.data.cohorts '
        f'does not name; it names {", ".join(sorted(info.examples))}.'
      )
    if not info.examples[name]:
      raise UserError(
        f'Cohort {name!r} is empty: no record fits {queries[name]!r}; '
        f'change --config.data.cohorts.{name} or the data.'
      )


def _counts(records: Records) -> list[dict]:
  """How many records of each split, domain and label."""
  columns = ['split', 'domain', 'label']
  table = records.index.group_by(columns).aggregate([([], 'count_all')])
  rows = table.rename_columns([*columns, 'n']).to_pylist()
  return sorted(rows, key=lambda r: tuple(str(r[c]) for c in columns))


def _seed(seed: int, *names: str) -> int:
  """A seed of its own for each use of the data."""
  return zlib.crc32('/'.join([str(seed), *names]).encode())


def _size(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
