"""What `jaxmed weights` does: list, fetch, import, verify, export.

Everything that enters the store goes through one door, whether it was
downloaded or brought: it is read by the safe readers, and every name and
shape is compared with the network's.
"""

import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from jaxmed import errors, init_from, methods, pretrained, workdir
from jaxmed.errors import UserError
from jaxmed.method import Info, Method
from jaxmed.nn.trunk import NETWORKS
from jaxmed.weights import fetch, npz, read, registry, safetensors, store
from jaxmed.weights.names import to_foreign
from jaxmed.weights.store import Facts

WRITERS = {'safetensors': safetensors.write, 'npz': npz.write}
Arrays = dict[str, np.ndarray]


def table() -> str:
  """All public and all stored weights, for the terminal."""
  rows = [('name', 'network', 'MiB', 'licence', 'here', 'verified by')]
  stored = store.names()
  for name in [*registry.REGISTRY, *sorted({*stored} - {*registry.REGISTRY})]:
    rows.append(_row(name, name in stored))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]
  return '\n'.join([*lines, '', f'Stored in {store.folder()}'])


def _row(name: str, here: bool) -> tuple[str, ...]:
  entry = registry.REGISTRY.get(name)
  size = entry.size if entry else 0
  network, licence, verified = '', '', entry.check if entry else ''
  if entry:
    network, licence = entry.network, entry.licence
  if here:
    size = size or store.path_of(name).stat().st_size
    try:
      facts = store.facts_of(name)
    except UserError:
      return name, network, '', licence, 'damaged', ''
    network = facts.network or network
    licence = facts.licence or 'not known'
    verified = facts.verified or 'nothing'
  elif not verified:
    verified = 'not to be fetched'
  mib = f'{size / 2**20:.1f}' if size else ''
  return name, network or '-', mib, licence, 'yes' if here else 'no', verified


def fetch_all(names: Sequence[str]) -> list[str]:
  """Downloads public weights; what to say of each."""
  entries = [registry.find(name) for name in names]
  said = []
  for entry in entries:
    if _is_here(entry):
      said.append(f'{entry.name}: here already')
      continue
    facts = fetch.fetch(entry, _check(entry.network, entry.url))
    said.append(_welcome(facts))
  return said


def _is_here(entry: registry.Entry) -> bool:
  """Whether the published file has been stored, and is still good."""
  try:
    _, facts = store.load(entry.name)
  except UserError:
    return False
  return entry.fits(facts.sha256)


def take(
  path: pathlib.Path,
  name: str,
  network: str = '',
  source: str = '',
  licence: str = '',
) -> str:
  """Imports a file; says what it is now."""
  store.path_of(name)
  network = network or _network_of(path, name)
  check = _check(network, str(path))
  return _welcome(fetch.keep(path, name, network, check, source, licence))


def _network_of(path: pathlib.Path, name: str) -> str:
  """The network that a name stands for, or that a file fits."""
  if name in registry.REGISTRY:
    return registry.REGISTRY[name].network
  if name in NETWORKS:
    return name
  found = pretrained.fitting(read.read(path))
  if len(found) == 1:
    return found[0]
  kind = f'fits {" and ".join(found)}' if found else 'fits no network here'
  raise UserError(
    f'{path} {kind}; name its network by --network, of: '
    f'{", ".join(sorted(NETWORKS))}.'
  )


def _check(network: str, source: str) -> fetch.Fit | None:
  """Refuses arrays that are not the network's, if it is one of ours."""
  if network not in NETWORKS:
    if network in {entry.network for entry in registry.ENTRIES}:
      return None
    raise errors.unknown('network', network, NETWORKS)

  def fit(arrays) -> Arrays:
    try:
      return pretrained.fit(network, arrays, source)
    except pretrained.FitError as error:
      others = pretrained.fitting(arrays)
      hint = f' It fits {" and ".join(others)}.' if others else ''
      raise UserError(f'{error}{hint}') from error

  return fit


def _welcome(facts: Facts) -> str:
  checked = facts.verified or 'nothing'
  return (
    f'{facts.name}: stored in {store.path_of(facts.name)}, verified by '
    f'{checked}; licence {facts.licence or "not known"}'
  )


def verify(names: Sequence[str]) -> tuple[list[str], bool]:
  """What is said of stored weights, and whether all are good."""
  said, good = [], True
  for name in names or store.names():
    try:
      _, facts = store.load(name)
    except UserError as error:
      said.append(str(error))
      good = False
      continue
    said.append(f'{name}: good; {_known(facts)}')
  return said or [f'Nothing is stored in {store.folder()}.'], good


def _known(facts: Facts) -> str:
  """Whether the original was the published file."""
  entry = registry.REGISTRY.get(facts.name)
  if entry and entry.fits(facts.sha256):
    return f'from the published file, by its {entry.check}'
  return f'from {facts.source}, SHA-256 {facts.sha256[:16]} ...'


def export(what: str, kind: str, out: pathlib.Path, part: str = '') -> str:
  """Writes weights in the names that their original code gives them.

  Args:
    what: a run's folder, or a name in the store.
    kind: safetensors or npz.
    out: the file to write.
    part: of a run; '' for all.
  """
  folder = pathlib.Path(what).expanduser()
  if os.path.isfile(folder / 'config.json'):
    arrays = _of_run(folder, part)
  elif part:
    raise UserError(f'--part is of a run, and {what} is the folder of none.')
  elif store.has(what):
    arrays, _ = store.load(what)
  else:
    stored = ', '.join(store.names()) or 'none'
    raise UserError(
      f'{what} is neither the folder of a run nor stored weights (there are: '
      f'{stored}).'
    )
  if not out.parent.is_dir():
    raise UserError(f'There is no folder {out.parent}; make it first.')
  WRITERS[kind](out, arrays)
  count = sum(array.size for array in arrays.values())
  return f'{out}: {len(arrays)} arrays, {count} numbers'


def _of_run(folder: pathlib.Path, part: str) -> Arrays:
  """What a run has learned, and its pretrained parts, by the original names."""
  config = workdir.load_config(folder)
  facts = workdir.read_json(folder / 'info.json')
  info = Info(tuple(facts['image']), facts['batch'], facts['examples'])
  method = methods.build(config, info)
  learned = init_from.shapes_of(folder)
  known = [*learned['params'], *method.needs]
  if part and part not in known:
    raise errors.unknown('part', part, known)
  arrays: Arrays = {}
  if wanted := [p for p in learned['params'] if part in ('', p)]:
    arrays |= _learned(folder, method, learned, wanted)
  for name in method.needs:
    if part == name or not (part or learned['params']):
      arrays |= pretrained.foreign(name, config.model, info)
  return arrays


def _learned(
  folder: pathlib.Path, method: Method, learned, parts: list[str]
) -> Arrays:
  if method.table is None:
    raise UserError(
      f'Nothing says what the original of this method calls {parts[0]!r}, so '
      f'it cannot be exported; the run in {folder} itself can be loaded by '
      'jaxmed.load.'
    )
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    field: {
      name: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree
      )
      for name, tree in trees.items()
      if name in parts
    }
    for field, trees in learned.items()
  }
  return to_foreign(method.table, init_from.weights_of(folder, wanted))
