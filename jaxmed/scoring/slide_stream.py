"""Scores the tiles of whole slides, many slides as one stream of batches.

Slides are opened and tiles are read ahead, in threads, while others are
scored; what is left of a slide's tiles shares a batch with the next slide's
first, so one batch of a whole run is padded. A tile is known by its number
within its slide, so that a slide's scores do not depend on its neighbours.
Nothing holds a whole slide.
"""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxmed.method import Batch
from jaxmed.progress import Progress
from jaxmed.scoring.score import Part, Run
from jaxmed.scoring.slide_work import SlideFound, Work
from jaxmed.slides.guard import cores
from jaxmed.slides.reader import Slide, SlideError, TileError, open_slide

AHEAD = 3  # Batches of tiles being read.
SLIDES_AHEAD = 2  # Whose tissue is being found.


@dataclasses.dataclass(frozen=True)
class Job:
  """A slide to score.

  tiles: what progress counts for it.
  dense: where its pixel map goes, if there is to be one.
  """

  path: pathlib.Path
  mpp: float | None = None
  tiles: int = 0
  dense: pathlib.Path | None = None


def score_slide(
  run: Run, slide: Slide, progress: Progress | None = None
) -> SlideFound:
  """Scores the tiles of an open slide that hold enough tissue.

  `progress` counts all tiles of `grid_of`, the empty ones at once.
  """
  (work,) = _flow(run, [Work(run, slide)], (), progress)
  return work.found()


def score_each(
  run: Run, jobs: Sequence[Job], progress: Progress | None = None
) -> Iterator[tuple[Job, SlideFound | SlideError]]:
  """Scores slides in their order; an error in place of one not opened."""
  dense = any(job.dense for job in jobs)
  maps = (run.config.score.dense,) if dense else ()
  with contextlib.closing(_opened(run, jobs, maps)) as opened:
    works = _flow(run, opened, maps, progress)
    for job, work in zip(jobs, works, strict=True):
      yield job, work.found() if isinstance(work, Work) else work.error


@dataclasses.dataclass
class _Unopened:
  """In the place of a slide that could not be opened."""

  error: SlideError
  empty: int
  places: tuple = ()
  left: int = 0

  def close(self) -> None:
    pass


def _opened(
  run: Run, jobs: Sequence[Job], maps: tuple
) -> Iterator[Work | _Unopened]:
  """The slides in turn, a few opened ahead; each is closed once it is read."""

  def begin(job: Job) -> Work | _Unopened:
    opened = contextlib.ExitStack()
    try:
      slide = opened.enter_context(open_slide(job.path, job.mpp))
      return Work(run, slide, opened.close, job.dense)
    except SlideError as error:
      opened.close()
      return _Unopened(error, job.tiles)

  pool, waiting = ThreadPoolExecutor(SLIDES_AHEAD), collections.deque()
  left = iter(jobs)
  ahead = lambda count: waiting.extend(
    pool.submit(begin, job) for job in itertools.islice(left, count)
  )
  try:
    ahead(SLIDES_AHEAD + 1)
    run.compile(maps)  # While these are opened and their tissue is found.
    while waiting:
      yield waiting.popleft().result()
      ahead(1)
  finally:
    pool.shutdown(cancel_futures=True)
    for future in waiting:  # Of a stream that was left before its end.
      if not future.cancelled() and not future.exception():
        future.result().close()


def _flow(
  run: Run, works: Iterable, maps: tuple, progress: Progress | None
) -> Iterator[Work | _Unopened]:
  """The slides in their order, each once all its tiles are scored."""
  begun, batches = collections.deque(), collections.deque()
  count = progress.add if progress else lambda n: None

  def begin():
    for work in works:
      begun.append(work)
      count(work.empty)
      yield work

  def done():
    while begun and not begun[0].left:
      yield begun.popleft()

  with contextlib.closing(_batches(run, begin(), batches, count)) as reading:
    for part in run.parts(reading, maps):
      _share_out(batches.popleft(), part, count)
      yield from done()
    yield from done()


def _share_out(tiles: list, part: Part, count: Callable[[int], None]) -> None:
  """Gives each slide the scores of its tiles, which lie side by side."""
  start = 0
  while start < len(tiles):
    work = tiles[start][0]
    stop = start
    while stop < len(tiles) and tiles[stop][0] is work:
      stop += 1
    work.take(part, slice(start, stop))
    count(stop - start)
    start = stop


def _batches(
  run: Run, works: Iterable, batches: collections.deque, count
) -> Iterator[Batch]:
  """Full batches of readable tiles; `batches` gets whose each batch's are."""
  tiles, pixels = [], []

  def batch() -> Batch:
    rows = np.array([number for _, number in tiles])
    whole = run.place(_channels(np.stack(pixels), run), rows)
    batches.append(tiles.copy())
    tiles.clear()
    pixels.clear()
    return whole

  for work, number, result in _read_ahead(works, AHEAD * run.batch):
    if isinstance(result, Exception):
      work.fail(number, result)
      count(1)
      continue
    tiles.append((work, number))
    pixels.append(result)
    if len(tiles) == run.batch:
      yield batch()
  if tiles:
    yield batch()


def _read_ahead(works: Iterable, most: int) -> Iterator[tuple]:
  """(slide, number of the tile, its pixels or why not), in order."""

  def read(work: Work, number: int) -> np.ndarray | Exception:
    try:
      return work.read(number)
    except (TileError, SlideError, OSError) as error:
      return error

  def collect():
    work, number, future = waiting.popleft()
    result = future.result()
    if number == len(work.places) - 1:
      work.close()
    return work, number, result

  waiting = collections.deque()
  pool = ThreadPoolExecutor(cores())
  try:
    for work in works:
      if not len(work.places):
        work.close()
      for number in range(len(work.places)):
        waiting.append((work, number, pool.submit(read, work, number)))
        if len(waiting) > most:
          yield collect()
    while waiting:
      yield collect()
  finally:
    pool.shutdown(cancel_futures=True)
    for work in {id(work): work for work, _, _ in waiting}.values():
      work.close()


def _channels(images: np.ndarray, run: Run) -> np.ndarray:
  if run.info.image[2] == 3:
    return images
  weights = np.array([0.299, 0.587, 0.114], np.float32)
  return np.round(images @ weights).astype(np.uint8)[..., None]
