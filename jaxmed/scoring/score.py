"""A trained run: what it says of images, however they come.

run = jaxmed.load('runs/munit-phantom')
found = run.score(['a.png', 'b.png'])
found.anomalous, found.calibrated
"""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
import time
import typing
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float
from orbax.checkpoint import v1 as ocp

from jaxmed import errors, learn, methods, pretrained, workdir
from jaxmed.datasets.records import Records
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.pipeline import Cohort, open_cohort, read_batch, stain
from jaxmed.training import loop, sharding
from jaxmed.training.searching import Searching

if typing.TYPE_CHECKING:  # It is built on this module.
  from jaxmed.scoring.slide_work import SlideFound

Named = dict[str, np.ndarray]
SEARCH_SECONDS = 10.0  # Between lines that say how quick a search is.


@dataclasses.dataclass(frozen=True)
class Found:
  """What a run says of some images, in their order.

  Attributes:
    scores: by name; higher is more anomalous.
    calibrated: of each score, the share of validation normals below it.
    anomalous: whether the primary score exceeds its threshold, a quantile of
      the validation normals.
    maps: the same by pixel, of the maps asked for.
    panels: pictures in [0, 1], e.g. a reconstruction, if asked for.
    images: as they were scored: resized and cut.
    flags: what one has to know of an image, e.g. whether `data.stain` could
      normalise it; if not, it was scored as it came.
  """

  scores: dict[str, Float[np.ndarray, ' n']]
  calibrated: dict[str, Float[np.ndarray, ' n']]
  anomalous: Bool[np.ndarray, ' n']
  maps: dict[str, Float[np.ndarray, 'n h w']]
  panels: dict[str, Float[np.ndarray, 'n h w c']]
  images: np.ndarray
  flags: dict[str, Bool[np.ndarray, ' n']]


@dataclasses.dataclass(frozen=True)
class Part:
  """The scores of one batch, on the host, and the batch they are of."""

  batch: Batch
  image: Named
  pixel: Named
  panels: Named
  flags: Named


class Run:
  """A trained run, loaded from its folder."""

  def __init__(
    self,
    folder: pathlib.Path | str,
    devices: Sequence[jax.Device] | None = None,
  ):
    self.folder = pathlib.Path(folder).absolute()
    self.config = workdir.load_config(self.folder)
    if not (self.folder / 'final').is_dir():
      raise UserError(
        f'{self.folder} has no trained model yet: the launch that made it '
        'did not reach the end of training; launch it again to go on.'
      )
    facts = workdir.read_json(self.folder / 'info.json')
    self.info = Info(
      tuple(facts['image']),
      facts['batch'],
      facts['examples'],
      facts.get('labels', {}),
    )
    self.mpp = facts['mpp']  # Seen in training; None if the data doesn't say.
    mesh = sharding.make_mesh(devices or jax.local_devices())
    method = methods.build(self.config, self.info)
    self.method = stain.wrap(method, facts.get('stain'))
    place = sharding.place(mesh, self.method.sharding)
    shapes = {
      part: pretrained.shapes(part, self.config.model, self.info)
      for part in method.needs
    }
    end = loop.plan(self.method, place, State(frozen=shapes))[-1][0]
    given, self.weights = learn.load_parts(
      end.frozen, self.config, self.info, mesh
    )
    pretrained.check_same(_weights_of(self.folder), self.weights)
    state = ocp.load(self.folder / 'final', end.replace(opt={}, frozen={}))
    self.state = state.replace(frozen=given.frozen)
    self.batch = self.config.score.batch
    self.rows_sharding = sharding.batch_sharding(mesh, self.batch)
    self._key = jax.random.key(self.config.seed)
    self._compiled = functools.cache(self._compile)

  @functools.cached_property
  def names(self) -> tuple[str, ...]:
    """Of the scores."""
    return tuple(self._shapes.image)

  @functools.cached_property
  def map_names(self) -> tuple[str, ...]:
    return tuple(self._shapes.pixel)

  @property
  def primary(self) -> str:
    """The score that was named first before anything was tested."""
    return learn.primary_score(self.config, self._shapes)

  @functools.cached_property
  def calibration(self) -> dict:
    path = self.folder / 'calibration.json'
    if not path.exists():
      raise UserError(
        f'{self.folder} has no calibration.json: its validation normals were '
        'not scored; launch it again to go on.'
      )
    return workdir.read_json(path)

  def score(
    self,
    images: str
    | os.PathLike
    | np.ndarray
    | Iterable[np.ndarray | str | os.PathLike],
    maps: Iterable[str] | None = None,
    panels: bool = False,
  ) -> Found:
    """Scores images, given as arrays (uint8, uint16) or as files.

    Args:
      images: an image, as a file or an array [h, w] or [h, w, c], or several,
        as an array [n, h, w, c] or one after another; each is resized and cut
        as the run's config says of its data.
      maps: names of the pixel maps wanted; None gives them all.
      panels: whether to make the pictures that a report shows, too.
    """
    if _is_one(images):
      images = [images]
    maps = self.map_names if maps is None else tuple(maps)
    parts = list(self.parts(self._batches(images), maps, panels))
    if not parts:
      raise UserError('There is no image to score.')

    def whole(kind: str) -> Named:
      named = [getattr(part, kind) for part in parts]
      return {k: np.concatenate([n[k] for n in named]) for k in named[0]}

    scores = whole('image')
    calibrated = {k: self.calibrate(k, v) for k, v in scores.items()}
    threshold = self.calibration[self.primary]['threshold']
    return Found(
      scores,
      calibrated,
      scores[self.primary] > threshold,
      whole('pixel'),
      whole('panels'),
      _together([part.batch.image for part in parts]),
      whole('flags'),
    )

  def score_slide(
    self, path: str | os.PathLike, mpp: float | None = None
  ) -> 'SlideFound':
    """Scores every tile of a slide; `mpp` is used in place of the file's.

    One score a tile; a blended pixel map is made where files are written.
    """
    from jaxmed.scoring import slide_stream  # It, too.
    from jaxmed.slides.reader import open_slide

    with open_slide(path, mpp) as slide:
      return slide_stream.score_slide(self, slide)

  def calibrate(self, name: str, values: np.ndarray) -> np.ndarray:
    """The share of validation normals below each value.

    Where many are equal, np.interp has that of the last; read backwards, that
    of the first.
    """
    known = self.calibration[name]
    value, share = (-np.array(known[k][::-1]) for k in ('value', 'quantile'))
    return -np.interp(-np.asarray(values), value, share)

  def parts(
    self,
    batches: Iterable[Batch],
    maps: tuple[str, ...] = (),
    panels: bool = False,
  ) -> Iterator[Part]:
    """Scores batches, a few under way at once; padding is left out."""
    for name in maps:
      if name not in self.map_names:
        raise errors.unknown('map', name, self.map_names)
    under_way = collections.deque()
    for batch in batches:
      under_way.append((batch, self._score(batch, maps, panels)))
      if len(under_way) > 2:
        yield _on_host(*under_way.popleft())
    while under_way:
      yield _on_host(*under_way.popleft())

  def compile(self, maps: tuple[str, ...] = ()) -> None:
    """Compiles the scoring of 8-bit batches, unless some were scored before.

    A search is compiled when it is first made: it would be made here.
    """
    if (maps, False) not in self._scored and self.method.search is None:
      shape = self.batch, *self.info.image
      rows = np.full(self.batch, -1)
      self._score(self.place(np.zeros(shape, np.uint8), rows), maps, False)

  def place(self, images: np.ndarray, rows: np.ndarray) -> Batch:
    """Images as one batch on the devices, filled up with row -1."""
    short = self.batch - len(images)
    widths = [(0, short)] + [(0, 0)] * (images.ndim - 1)
    batch = Batch(
      np.pad(images, widths),
      np.pad(rows.astype(np.int32), (0, short), constant_values=-1),
      np.full(self.batch, -1, np.int32),
    )
    return jax.device_put(batch, self.rows_sharding)

  def open(self, records: Records, rows: np.ndarray) -> Cohort:
    """One pass over some records, in batches to score, with their masks."""
    return open_cohort(
      records,
      rows,
      self.rows_sharding,
      self.batch,
      0,
      seed=self.config.seed,
      endless=False,
      data_config=self.config.data,
      train=False,
    )

  def _batches(self, images) -> Iterator[Batch]:
    images, first = iter(images), 0
    while some := list(itertools.islice(images, self.batch)):
      stack = read_batch(some, self.config.data, first)
      yield self.place(stack, np.arange(first, first + len(stack)))
      first += len(stack)

  def _score(self, batch: Batch, maps: tuple[str, ...], panels: bool):
    self._scored.add((maps, panels))
    found = ()
    if self.method.search is not None:
      found = self._search(batch)
    return self._compiled(maps, panels)(self.state, batch, self._key, found)

  def _search(self, batch: Batch):
    """What is found, and now and then a line on how quickly."""
    steps, began = self.method.search.steps, time.monotonic()
    found = self._searching(self._key, self.state, batch)
    jax.block_until_ready(found)
    seconds = time.monotonic() - began
    images = int((np.asarray(batch.row) >= 0).sum())
    logging.log_every_n_seconds(
      logging.INFO,
      'Search: %d images, %d steps in %.1f s; %.1f images a minute.',
      SEARCH_SECONDS,
      images,
      steps,
      seconds,
      60 * images / seconds,
    )
    return (found,)

  @functools.cached_property
  def _scored(self) -> set[tuple[tuple[str, ...], bool]]:
    """With which maps, and with or without panels."""
    return set()

  @functools.cached_property
  def _searching(self) -> Searching:
    return Searching(self.method.search)

  def _compile(self, maps: tuple[str, ...], panels: bool):
    """Only what is wanted is computed."""

    def wanted(state, batch, key, found):
      score = self.method.score(state, batch, key, *found)
      pixel = {name: score.pixel[name] for name in maps}
      return score.image, pixel, score.panels if panels else {}, score.flags

    return jax.jit(wanted)

  @functools.cached_property
  def _shapes(self):
    return learn.shapes(self.method, self.state, self.info, self.batch)


def _is_one(images) -> bool:
  """Whether a single image is given; the rows of an array are none."""
  if isinstance(images, str | os.PathLike):
    return True
  shape = images.shape if isinstance(images, np.ndarray | jax.Array) else ()
  return len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3, 4))


def _together(images: Sequence[np.ndarray]) -> np.ndarray:
  """Batches as one; those of 8 bits as deep as those of 16, if any are."""
  if len({one.dtype for one in images}) == 1:
    return np.concatenate(images)
  return np.concatenate(
    [one * np.uint16(257 if one.dtype == np.uint8 else 1) for one in images]
  )


def _on_host(batch: Batch, scores) -> Part:
  rows = np.asarray(batch.row)
  valid = rows >= 0

  def host(named, dtype=np.float32):
    return {
      k: np.asarray(v, dtype)[valid] for k, v in jax.device_get(named).items()
    }

  image, pixel, panels, flags = scores
  batch = jax.tree.map(lambda x: np.asarray(x)[valid], batch)
  return Part(batch, host(image), host(pixel), host(panels), host(flags, bool))


def _weights_of(folder: pathlib.Path) -> list[dict]:
  """The pretrained parts that a run was trained with."""
  path = folder / 'provenance.json'
  return workdir.read_json(path).get('weights', []) if path.exists() else []
