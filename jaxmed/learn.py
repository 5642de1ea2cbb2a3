"""From a config and prepared data to a trained state on disk."""

import contextlib
import dataclasses
import itertools
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from jaxmed import errors, init_from, methods, pretrained, workdir
from jaxmed.datasets.records import Records, open_records
from jaxmed.errors import UserError
from jaxmed.method import (
  Batch,
  Batches,
  Info,
  Method,
  Phase,
  Score,
  State,
)
from jaxmed.pipeline import augment, open_cohort, stain
from jaxmed.provenance import Provenance
from jaxmed.training import distributed, loop, run, sharding
from jaxmed.watching import watch


def train(
  config: ConfigDict,
  folder: pathlib.Path,
  data: pathlib.Path,
  provenance: Provenance,
  devices: Sequence[jax.Device] | None = None,
  stop: Callable[[loop.At], bool] = lambda at: False,
) -> None:
  """Trains a config's method; `final/` holds what it has learned.

  Args:
    config: of the run.
    folder: of the run.
    data: the prepared data set.
    provenance: is told of the data, the weights and the speed.
    devices: to train on; else all there are.
    stop: asked at every event; see `run.run`.
  """
  records = open_records(data)
  cohorts = {
    name: _cohort(records, name, config) for name in config.data.cohorts
  }
  label = records.index['label'].to_numpy()
  info = Info(
    image=(config.data.size, config.data.size, config.data.channels),
    batch=config.train.batch,
    examples={name: len(rows) for name, rows in cohorts.items()},
    labels={
      name: tuple(int((label[rows] == kind).sum()) for kind in (0, 1))
      for name, rows in cohorts.items()
    },
  )
  mesh = sharding.make_mesh(devices)
  rows = sharding.batch_sharding(mesh, info.batch)
  method = methods.build(config, info)
  given, weights = load_parts(method.needs, config, info, mesh)
  pretrained.check_same(provenance.get('weights', []), weights)
  if init_from.has_checkpoints(folder):
    check_same_data(provenance, data)
  phases = (augment.wrap(p, config.train.augment) for p in method.phases)
  target = stain.target_of(config.data)
  method = stain.wrap(dataclasses.replace(method, phases=tuple(phases)), target)
  _refuse_empty(method, config.data.cohorts, info)
  place = sharding.place(mesh, method.sharding, config.train.fsdp)
  method, given, origin = init_from.begin(
    method, given, place, config.train, folder
  )
  plans = loop.plan(method, place, given)
  scores = lambda state: shapes(method, state, info, config.score.batch)
  _check_names(config, scores(plans[-1][0]))
  provenance.add(
    data={
      'name': config.data.name,
      'dir': str(data),
      'fingerprint': data.name,
      'counts': _counts(records),
    },
    weights=weights,
  )
  if origin:
    provenance.add(init_from=origin)
  if distributed.is_first():
    workdir.carry_failures(folder, data)
  totals = {
    phase.name: min(map(info.batches, phase.cohorts)) for phase in method.phases
  }
  lengths = [phase.steps or totals[phase.name] for phase in method.phases]
  watching = watch.begin(
    watch.Scene(config, method, plans, lengths, scores, records, cohorts, mesh),
    folder,
    provenance,
  )
  _, state, rates = run.run(
    method,
    _opener(records, cohorts, rows, config),
    plans,
    config.seed,
    folder,
    given,
    info.batch,
    run.Policy(
      config.train.save_minutes, config.train.keep, config.train.log_every
    ),
    stop,
    dtype=jnp.dtype(config.train.precision),
    totals=totals,
    watch=watching,
  )
  if not rates['images_per_s']:  # Nothing was left to do.
    rates = provenance.get('train', rates)
  sizes = {
    kind: {part: _size(tree) for part, tree in parts.items()}
    for kind, parts in (
      ('parameters', state.params),
      ('pretrained', given.frozen),
      ('bank', state.memory),
    )
  }
  provenance.add(
    select=watching.chosen(method.phases),
    train=rates
    | sizes
    | {
      'precision': config.train.precision,
      'devices': mesh.size,
    },
  )
  if distributed.is_first():
    seen = _mpp(records, cohorts, method, config.data.resize)
    facts = {'mpp': seen, 'stain': target}
    workdir.write_json(folder / 'info.json', dataclasses.asdict(info) | facts)
  ocp.save(folder / 'final', state.replace(opt={}, frozen={}))


def check_same_data(provenance: Provenance, data: pathlib.Path) -> None:
  """A run goes on, and is tested, with the data that it has begun with."""
  then = provenance.get('data', {}).get('fingerprint', data.name)
  if then != data.name:
    raise UserError(
      f'The data of this run was {then} when it began, and is {data.name} '
      'now: images or data.options have changed since. Bring back what was '
      'there, or give --fresh to begin the run anew.'
    )


def _cohort(
  records: Records, name: str, config: ConfigDict
) -> Int32[np.ndarray, ' n']:
  """The rows of a cohort; of `data.shots` so many, drawn with the seed.

  Fewer are the first of more.
  """
  rows = records.select(config.data.cohorts[name])
  count = config.data.get('shots', {}).get(name, 0)
  if count > len(rows) or count < 0:
    raise UserError(
      f'{count} examples of cohort {name!r} are asked for, and {len(rows)} fit'
      f' {config.data.cohorts[name]!r}; set --config.data.shots.{name} to'
      f' {len(rows)} or less, 0 for all, or change the query.'
    )
  if not count:
    return rows
  dice = np.random.default_rng(_seed(config.seed, 'shots', name))
  return np.sort(dice.permutation(rows)[:count])


def _opener(
  records: Records, cohorts: dict, rows: jax.sharding.Sharding, config
) -> loop.OpenCohorts:
  """Opens what a phase draws from, every cohort in an order of its own."""

  def open_one(phase: Phase, name: str, skip: int):
    return open_cohort(
      records,
      cohorts[name],
      rows,
      config.train.batch,
      skip * phase.batches,
      seed=_seed(config.seed, phase.name, name),
      endless=phase.steps is not None,
      data_config=config.data,
      train=phase.steps is not None,
    )

  def open_cohorts(phase: Phase, skip: int) -> Iterator[Batches]:
    with contextlib.ExitStack() as opened:
      several = []
      for name in phase.cohorts:
        cohort = open_one(phase, name, skip)
        opened.callback(cohort.close)
        several.append(_several(cohort, phase.batches))
      for batches in zip(*several, strict=False):
        yield dict(zip(phase.cohorts, batches, strict=True))

  return open_cohorts


def load_parts(
  parts: Iterable[str], config: ConfigDict, info: Info, mesh: jax.sharding.Mesh
) -> tuple[State, list[dict]]:
  """The state with these pretrained parts, and where they are from."""
  loaded = {part: pretrained.load(part, config.model, info) for part in parts}
  frozen = {part: tree for part, (tree, _) in loaded.items()}
  given = jax.device_put(State(frozen=frozen), sharding.replicated(mesh))
  return given, [{'part': part} | facts for part, (_, facts) in loaded.items()]


def shapes(method: Method, state: State, info: Info, batch: int) -> Score:
  """What the method says of a batch, by shape alone."""
  one = jax.ShapeDtypeStruct((batch,), jnp.int32)
  image = jax.ShapeDtypeStruct((batch, *info.image), jnp.uint8)
  args = state, Batch(image, one, one), jax.random.key(0)
  if method.search is not None:
    found = jax.eval_shape(method.search.init, args[2], *args[:2])
    args = *args, found
  return jax.eval_shape(method.score, *args)


def _check_names(config: ConfigDict, score: Score) -> None:
  """A misspelt name would show only after training."""
  primary_score(config, score)
  dense = config.score.dense
  if dense and dense not in score.pixel:
    raise errors.unknown('map (config.score.dense)', dense, score.pixel)


def primary_score(config: ConfigDict, score: Score) -> str:
  """The name of the score that is named first, before anything is tested."""
  name = config.eval.primary or next(iter(score.image))
  if name not in score.image:
    raise errors.unknown('score (config.eval.primary)', name, score.image)
  return name


def _mpp(
  records: Records, cohorts: dict, method: Method, resize: int
) -> float | None:
  """Micrometres per pixel that the method has seen, if the data says."""
  names = {name for phase in method.phases for name in phase.cohorts}
  rows = np.concatenate([cohorts[name] for name in sorted(names)])
  stored = records.index.select(('mpp', 'width', 'height')).take(rows)
  mpp, *sides = (stored[name].to_numpy() for name in stored.column_names)
  if resize:
    mpp = mpp * (np.minimum(*sides) / resize)
  mpp = float(np.median(mpp))
  return mpp if np.isfinite(mpp) and mpp > 0 else None


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
