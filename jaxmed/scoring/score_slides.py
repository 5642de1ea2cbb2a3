"""Scores a set of slides into a folder: those of a run's test, or a user's.

A slide is done once GROUP.json is there and says so of the same file, so a set
that was interrupted goes on with the slides that are left.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import pyarrow.parquet as pq
from absl import logging

from jaxmed import workdir
from jaxmed.datasets.records import Records
from jaxmed.errors import NO_ROOM, UserError
from jaxmed.progress import Progress, progress
from jaxmed.scoring import slide_files
from jaxmed.scoring.score import Run
from jaxmed.scoring.slide_stream import Job, score_each
from jaxmed.scoring.slide_work import grid_of, scale_of
from jaxmed.slides.annotation_files import read_annotation
from jaxmed.slides.annotations import AnnotationError, Polygon
from jaxmed.slides.reader import SlideError
from jaxmed.training import distributed

STAGE = 'score slides'
# Of a slide that was scored before, what is known better now.
NOW = ('path', 'annotation', 'label', 'exhaustive')


def score_slides(run: Run, records: Records) -> None:
  """Scores the test slides of a data set that has any, into maps/."""
  slides = test_slides(records)
  folder = run.folder / 'maps'
  mine = slides[jax.process_index() :: jax.process_count()]
  scan(run, folder, run.folder, mine)
  if slides:
    merge = lambda: finish(run, folder, slides, run.folder)
    distributed.only_first(merge, 'scored slides')


def test_slides(records: Records) -> list[dict]:
  if records.slides is None:
    return []
  inside = lambda name: str(records.directory / name) if name else ''
  known = lambda mpp: mpp if mpp > 0 else None  # It could not be opened.
  return [
    {
      'group': s['group'],
      'path': inside(s['path']),
      'annotation': inside(s['annotation']),
      'label': s['label'],
      'width': s['width'],
      'height': s['height'],
      'mpp': known(s['mpp']),
      'own_mpp': known(s['mpp']),
      'exhaustive': s.get('exhaustive'),
    }
    for s in records.slides.to_pylist()
    if s['split'] == 'test'
  ]


def scan(
  run: Run, folder: pathlib.Path, out: pathlib.Path, slides: Sequence[dict]
) -> None:
  """Scores the slides that are not done, and saves each once it is scored.

  Of a slide: group, path, annotation, label; and width, height, mpp (in place
  of what its file says), own_mpp and exhaustive, None where they are not known.
  """
  folder.mkdir(parents=True, exist_ok=True)
  left = [s for s in slides if not slide_files.done(folder, s)]
  jobs = [_job(run, folder, facts) for facts in left]
  bar = Progress(sum(job.tiles for job in jobs), STAGE, 'tiles')
  try:
    with _room(folder), ThreadPoolExecutor(1) as writer:  # While others go on.
      saving = None
      for facts, (job, found) in zip(
        left, score_each(run, jobs, bar), strict=True
      ):
        if saving:
          saving.result()
        saving = writer.submit(_save, run, folder, out, facts, job, found)
      if saving:
        saving.result()
  finally:
    bar.close()
    for job in jobs:
      if job.dense:
        job.dense.unlink(missing_ok=True)


@contextlib.contextmanager
def _room(folder: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    if error.errno not in NO_ROOM:
      raise
    raise UserError(
      f'The disk of {folder} is full; make room, and the same command goes on.'
    ) from error


def _job(run: Run, folder: pathlib.Path, facts: dict) -> Job:
  tiles = 0
  if facts['width']:
    with contextlib.suppress(SlideError):  # Opening it will say the same.
      scale = scale_of(run, facts['own_mpp'])
      grid = grid_of(run, (facts['width'], facts['height']), scale)
      tiles = grid.rows * grid.columns
  dense = folder / f'.{facts["group"]}.map' if run.config.score.dense else None
  return Job(pathlib.Path(facts['path']), facts['mpp'], tiles, dense)


def _save(
  run: Run, folder: pathlib.Path, out: pathlib.Path, facts, job, found
) -> None:
  if isinstance(found, UserError):
    slide_files.save_unopened(folder, facts, found)
  else:
    slide_files.save(run, folder, out, facts, found)
  if job.dense:
    job.dense.unlink(missing_ok=True)


def finish(
  run: Run,
  folder: pathlib.Path,
  slides: Sequence[dict],
  out: pathlib.Path,
  lost: Sequence[dict] = (),
) -> list[dict]:
  """Overlays in the same colours, failures.jsonl and, last, slides.parquet.

  `lost` are failures besides those of the slides. Returns what is known of
  each slide.
  """
  with _room(folder):
    return _finish(run, folder, slides, out, list(lost))


def _finish(run: Run, folder, slides, out, lost: list[dict]) -> list[dict]:
  found = [
    workdir.read_json(folder / f'{slide["group"]}.json')
    | {name: slide[name] for name in NOW}
    for slide in slides
  ]
  opened = [facts for facts in found if facts['opened']]
  highest = slide_files.highest_drawn(run, folder, opened)
  for facts in progress(opened, len(opened), 'draw slides', 'slides'):
    polygons = _polygons(facts, lost)
    slide_files.draw(run, folder, facts, highest, polygons)
  failed = slide_files.failures(found, STAGE)
  workdir.note_failures(out, STAGE, [*lost, *failed])
  slide_files.warn(found)
  workdir.write_table(out / 'slides.parquet', slide_files.table(run, found))
  return found


def _polygons(facts: dict, lost: list[dict]) -> list[Polygon]:
  """Of the annotation; none, and a line of what failed, if it is broken."""
  try:
    if path := facts['annotation']:
      return read_annotation(path, (facts['width'], facts['height']))
  except AnnotationError as error:
    lost.append(lost_annotation(error))
  return []


def lost_annotation(error: AnnotationError) -> dict:
  """A line of failures.jsonl."""
  logging.warning('%s', error)
  return {'stage': STAGE, 'item': 'annotation', 'error': str(error)}


def unscored(out: pathlib.Path) -> int:
  """How many slides of a finished table have no score."""
  path = out / 'slides.parquet'
  if not path.exists():
    return 0
  return sum(map(bool, pq.read_table(path)['reason'].to_pylist()))
