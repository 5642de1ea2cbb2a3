"""Looks at training every so many steps, and keeps the best state if asked to.

A generator's images, drawn from the same noise each time, are laid out in
`samples/`, and their Frechet distance to images of the training cohort goes
into the log as `fid`. `train.select` may name it, or the mean score of the
validation normals, as what the state of each phase is chosen by: see
jaxmed.watching.choice. Nothing here changes what is learned, nor sees any test.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict
from PIL import Image

from jaxmed import errors, pretrained
from jaxmed.datasets.records import Records, Rows
from jaxmed.errors import UserError
from jaxmed.method import Images, Method, Phase, Score, State
from jaxmed.pipeline import Cohort, open_cohort, stain
from jaxmed.provenance import Provenance
from jaxmed.training import distributed, sharding
from jaxmed.training.loop import At
from jaxmed.training.searching import Searching
from jaxmed.training.unwatched import Unwatched
from jaxmed.watching.choice import LAST, Choice, Look
from jaxmed.watching.collapse import Collapse
from jaxmed.watching.fid import Fid

FOLDER = 'samples'
SHEET, COLUMNS = 1024, 8  # Of a sheet of samples: pixels, images across.


class Samples:
  """A generator's images, from the same noise each time."""

  def __init__(
    self, method: Method, mesh: Mesh, batch: int, bits: int, seed: int
  ):
    """`bits`: as deep as real images are, so are these."""
    levels = 2**bits - 1

    def draw(state, number):
      key = jax.random.fold_in(jax.random.key(seed), number)
      images = jnp.clip(method.sample(state, key, batch), 0, 1)
      return jnp.round(images * levels) / levels

    self.draw = draw
    rows = sharding.batch_sharding(mesh, batch)
    self._draw = jax.jit(draw, out_shardings=rows)
    self._gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))

  def __call__(self, state: State) -> Iterator[Images]:
    """Chunk after chunk, without an end."""
    return (self._draw(state, number) for number in itertools.count())

  def on_host(self, images: Images) -> Float[np.ndarray, 'b h w c']:
    return np.asarray(self._gather(images))


class Normals:
  """The mean primary score of the validation normals."""

  def __init__(
    self,
    method: Method,
    primary: str,
    mesh: Mesh,
    seed: int,
    open_normals: Callable[[], Cohort],
  ):
    def score(state, batch, key, *found):
      values = method.score(state, batch, key, *found).image[primary]
      return values, batch.row

    everywhere = sharding.replicated(mesh)
    self._score = jax.jit(score, out_shardings=everywhere)
    self._key, self._open = jax.random.key(seed), open_normals
    self._searching = method.search and Searching(method.search)

  def __call__(self, state: State) -> float:
    found = []
    with contextlib.closing(self._open()) as cohort:
      for batch in cohort:
        args = state, batch, self._key
        if self._searching:
          args = *args, self._searching(self._key, state, batch)
        values, rows = map(np.asarray, self._score(*args))
        found.append(values[rows >= 0])
    return float(np.concatenate(found).mean(dtype=np.float64))


class Watch(Unwatched):
  """When there is a look at training, what is seen, and what comes of it.

  `samples`, `fid` and `normals` are None where nobody asks for them; in
  `drawn` and `scored` are the numbers of the phases during which they can be
  had.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    every: int,
    count: int,
    lengths: Sequence[int],
    choice: Choice,
    collapse: Collapse,
    drawn: frozenset[int] = frozenset(),
    scored: frozenset[int] = frozenset(),
    samples: Samples | None = None,
    fid: Fid | None = None,
    normals: Normals | None = None,
  ):
    self._folder, self._every, self._count = folder, every, count
    self._lengths, self._choice, self._collapse = lengths, choice, collapse
    self._drawn, self._scored = drawn, scored
    self._samples, self._fid, self._normals = samples, fid, normals

  def due(self, at: At) -> bool:
    """Every so many steps, and at a phase's last."""
    if at.phase not in self._drawn | self._scored:
      return False
    return at.step % self._every == 0 or at.step == self._lengths[at.phase]

  def look(self, at: At, state: State) -> dict[str, float]:
    if known := self._choice.at(at):
      return known.values
    values, print_ = {}, ''
    if at.phase in self._drawn:
      values, print_ = self._look_at_samples(at, state)
    if at.phase in self._scored:
      values['validation_loss'] = self._normals(state)
    numbers = distributed.of_first(np.array(list(values.values()), np.float64))
    values = dict(zip(values, numbers.tolist(), strict=True))
    if np.isfinite(numbers).all():  # Else training is about to stop.
      self._choice.add(Look(at.event, at.phase, at.step, values, print_), state)
    return values

  def settle(self, phase: int, during: State, state: State) -> State:
    return self._choice.settle(phase, during, state)

  def logged(self, phase: str, at: At, scalars: Mapping[str, float]) -> None:
    self._collapse.logged(phase, at, scalars)

  def chosen(self, phases: Sequence[Phase]) -> dict[str, Any]:
    """Which state each phase has ended with, and why; for provenance."""
    return self._choice.facts(phases, self._lengths)

  def _look_at_samples(self, at: At, state: State):
    """FID and the print of images, whose sheet is written.

    What a phase leaves as it was is not measured again.
    """
    chunks = self._samples(state)
    first = next(chunks)
    shown = self._samples.on_host(first)
    if not np.isfinite(shown).all():
      return {'fid': np.nan}, ''
    print_ = hashlib.sha256(shown.tobytes()).hexdigest()[:16]
    if self._choice.is_known(print_, at):
      return {}, print_
    if distributed.is_first():
      path = self._folder / FOLDER / f'step-{at.event:08d}.png'
      write_sheet(path, shown)
    chunks = itertools.chain([first], chunks)
    total = -(-self._count // len(first))
    fid = self._fid(itertools.islice(chunks, total), self._count)
    logging.info('After step %d, FID is %.4g.', at.step, fid)
    return {'fid': fid}, print_


@dataclasses.dataclass(frozen=True)
class Scene:
  """What there is to look at.

  Attributes:
    config: of the run.
    method: as it is trained.
    plans: of `loop.plan`.
    lengths: how many steps each phase has.
    scores: what the method says of a batch, by a state's shapes.
    records: of the data.
    cohorts: rows by name.
    mesh: to compute on.
  """

  config: ConfigDict
  method: Method
  plans: Sequence[Sequence[State]]
  lengths: Sequence[int]
  scores: Callable[[State], Score]
  records: Records
  cohorts: Mapping[str, Rows]
  mesh: Mesh

  @property
  def batch(self) -> int:
    """As many as are scored at once, and a multiple of the devices."""
    ways = self.mesh.shape['data']
    watch = self.config.train.watch
    least = min(self.config.score.batch, max(watch.images, watch.real or 1))
    return -(-least // ways) * ways

  def some(self, rows: Rows) -> Rows:
    """At most `watch.real` of them, drawn."""
    dice = np.random.default_rng(self.config.seed)
    return np.sort(
      dice.permutation(rows)[: self.config.train.watch.real or None]
    )

  def open(self, rows: Rows) -> Cohort:
    return open_cohort(
      self.records,
      rows,
      sharding.batch_sharding(self.mesh, self.batch),
      self.batch,
      0,
      seed=self.config.seed,
      endless=False,
      data_config=self.config.data,
      train=False,
    )

  def able(self, function: Callable[[State], Any]) -> frozenset[int]:
    """The phases during which a state has all that a function asks of it."""
    found = set()
    for number, (_, during) in enumerate(self.plans[:-1]):
      with contextlib.suppress(KeyError):  # A part that comes later.
        jax.eval_shape(function, during)
        found.add(number)
    return frozenset(found)


def begin(scene: Scene, folder: pathlib.Path, provenance: Provenance) -> Watch:
  """The watch that a config asks for; refuses what could not be done."""
  train = scene.config.train
  _refuse(train, scene.method)
  parts = {}
  if train.watch.every and scene.method.sample is not None:
    parts |= _generated(scene, provenance)
  if train.select == 'validation_loss':
    parts |= _validated(scene)
  among = {'fid': 'drawn', 'validation_loss': 'scored'}.get(train.select)
  if among and not parts[among]:
    raise UserError(
      f'train.select={train.select} has nothing to choose from: the method can '
      'do nothing before its last phase has ended; choose last.'
    )
  return Watch(
    folder,
    train.watch.every,
    train.watch.images,
    scene.lengths,
    Choice(folder, train.select),
    Collapse(scene.method, train.watch.collapse, folder, provenance),
    **parts,
  )


def _generated(scene: Scene, provenance: Provenance) -> dict[str, Any]:
  """What looking at generated images takes."""
  config, watch = scene.config, scene.config.train.watch
  if watch.cohort not in scene.cohorts:
    raise errors.unknown(
      'cohort (config.train.watch.cohort)', watch.cohort, scene.cohorts
    )
  rows = scene.some(scene.cohorts[watch.cohort])
  if min(len(rows), watch.images) < 2:
    raise UserError(
      f'FID takes two images at least of either kind; there are {len(rows)} of '
      f'cohort {watch.cohort!r}, and train.watch.images is {watch.images}.'
    )
  normalise = stain.normaliser(stain.target_of(config.data))
  fid = Fid(
    watch.trunk,
    lambda: scene.open(rows),
    lambda images: normalise(images)[0] if normalise else images,
    scene.mesh,
    (config.data.size, config.data.size, config.data.channels),
  )
  if before := provenance.get('watch'):
    pretrained.check_same([before], [fid.facts])
  counts = {'images': watch.images, 'real': len(rows), 'cohort': watch.cohort}
  provenance.add(watch=fid.facts | counts)
  samples = Samples(
    scene.method, scene.mesh, scene.batch, scene.records.bits, config.seed
  )
  drawn = scene.able(lambda state: samples.draw(state, 0))
  return {'fid': fid, 'samples': samples, 'drawn': drawn}


def _validated(scene: Scene) -> dict[str, Any]:
  """What scoring the validation normals takes."""
  config = scene.config
  rows = scene.some(scene.records.normals(config.data.validation))
  if not len(rows):
    raise UserError(
      'train.select=validation_loss needs validation normals, and no normal '
      f'record fits {config.data.validation!r}; change '
      '--config.data.validation.'
    )
  names = scene.scores(scene.plans[-1][0]).image
  primary = config.eval.primary or next(iter(names))
  normals = Normals(
    scene.method, primary, scene.mesh, config.seed, lambda: scene.open(rows)
  )
  return {'normals': normals, 'scored': scene.able(scene.scores)}


def _refuse(train: ConfigDict, method: Method) -> None:
  """A rule that has nothing to go by."""
  if train.select != LAST and not train.watch.every:
    raise UserError(
      f'train.select={train.select} chooses among the states that are looked '
      'at, and train.watch.every is 0; set --config.train.watch.every to the '
      'steps between looks.'
    )
  if train.select == 'fid' and method.sample is None:
    raise UserError(
      'train.select=fid is for generators, and this method draws no images; '
      'choose validation_loss or last.'
    )


def write_sheet(
  path: pathlib.Path, images: Float[np.ndarray, 'b h w c']
) -> None:
  """Images in [0, 1] in rows and columns, the whole file or nothing."""
  count, height, width, channels = images.shape
  across = max(1, min(COLUMNS, SHEET // width, math.isqrt(count)))
  down = min(across, count // across)
  shown = images[: across * down].reshape(down, across, *images.shape[1:])
  sheet = shown.transpose(0, 2, 1, 3, 4).reshape(
    down * height, across * width, channels
  )
  pixels = np.round(np.clip(sheet, 0, 1) * 255).astype(np.uint8)
  path.parent.mkdir(exist_ok=True)
  partial = path.with_name(f'.{path.name}.partial')
  Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(
    partial, format='PNG'
  )
  os.replace(partial, path)
