"""Scores what a user names: images, whole slides, or a folder of slides."""

import collections
import contextlib
import itertools
import math
import os
import pathlib
import zlib
from collections.abc import Sequence

import matplotlib
import numpy as np
import pyarrow as pa
import tifffile
from absl import logging
from PIL import Image

from jaxmed import workdir
from jaxmed.errors import UserError
from jaxmed.pipeline.frame import read_batch
from jaxmed.progress import progress
from jaxmed.scoring import score_slides, slide_files
from jaxmed.scoring.score import Run
from jaxmed.scoring.slide_work import scale_of
from jaxmed.slides import listing
from jaxmed.slides.annotation_files import (
  by_slide,
  find_annotation,
  read_annotation,
  without_slide,
)
from jaxmed.slides.annotations import AnnotationError
from jaxmed.slides.reader import SlideError, open_slide

SETTLED = 'scored.json'  # How the slides of a folder were scored.
PYRAMIDS = ('.tif', '.tiff')  # Either: a slide if it has more than one level.
# A slide in DICOM is many files, of which any is its name: none is looked for.
SLIDES = ('.dcm', *(s for s in listing.SUFFIXES if s not in PYRAMIDS))


def score_files(
  folder: pathlib.Path,
  files: Sequence[pathlib.Path],
  out: pathlib.Path | None,
  mpp: float | None,
) -> tuple[pathlib.Path, int]:
  """Writes a table of scores, and what is kept of every file.

  Returns the table, and how many files have no score.
  """
  for file in files:
    if file.is_dir():
      raise UserError(
        f'{file} is a folder; name its images, as {file}/*.png, or give a '
        'folder of slides by --slides.'
      )
    if not os.path.isfile(file):
      raise UserError(f'There is no file {file}.')
  run = Run(folder)
  out = out or run.folder / 'scored'
  with workdir.claim(out, '--out'):
    return _score_files(run, files, out, mpp)


def _score_files(
  run: Run, files: Sequence[pathlib.Path], out: pathlib.Path, mpp: float | None
) -> tuple[pathlib.Path, int]:
  if (out / SETTLED).exists():
    raise UserError(
      f'{out} is of a folder of slides, which --slides goes on with; give '
      'another --out.'
    )
  slides = [file for file in files if is_slide(file)]
  images = [file for file in files if file not in slides]
  stems = _stems(files)
  facts, rows = [], []
  for file in slides:
    try:
      facts.append(_facts(run, file, stems[file], mpp))
    except UserError as error:
      rows.append(_without_score(run, file, str(error)))
  for start in progress(
    range(0, len(images), run.batch),
    -(-len(images) // run.batch),
    'score images',
    'batches',
  ):
    rows += _images(run, images[start : start + run.batch], out, stems)
  if rows and not facts and all(row['tiles_failed'] for row in rows):
    raise UserError(rows[0]['reason'])  # There is no file that can be read.
  for one in facts:  # Named files are always scored anew.
    (out / f'{one["group"]}.json').unlink(missing_ok=True)
  score_slides.scan(run, out, out, facts)
  found = score_slides.finish(run, out, facts, out) if facts else []
  rows += [_slide(run, one) for one in found]
  rows = _as_named(rows, files)
  columns = {k: [row[k] for row in rows] for k in rows[0]}
  columns['anomalous'] = pa.array(columns['anomalous'], pa.bool_())
  path = out / 'scores.parquet'
  workdir.write_table(path, pa.table(columns))
  return path, sum(bool(row['reason']) for row in rows)


def _as_named(rows: list[dict], files: Sequence[pathlib.Path]) -> list[dict]:
  """In the order of the files, each called as the user has."""
  found = collections.defaultdict(collections.deque)
  for row in rows:
    found[os.path.abspath(row['file'])].append(row)
  return [
    found[os.path.abspath(file)].popleft() | {'file': os.fspath(file)}
    for file in files
  ]


def score_folder(
  folder: pathlib.Path,
  slides: pathlib.Path,
  annotations: pathlib.Path | None,
  out: pathlib.Path | None,
  mpp: float | None,
) -> tuple[pathlib.Path, int]:
  """Scores every slide of a folder; goes on where it was interrupted.

  A slide is anomalous if it has an annotation of its name, normal if others
  have, and of unknown label if no annotations are given.

  Returns slides.parquet, and how many slides have no score, or annotations no
  use.
  """
  named = listing.find_slides(slides, annotations)
  if same := named.get(pathlib.Path(SETTLED).stem):
    raise UserError(
      f'What is kept of {same[0]} would be written over {SETTLED}; rename it.'
    )
  outlines, lost = None, []
  if annotations:
    outlines = by_slide(annotations)
    strange = without_slide(outlines, itertools.chain(*named.values()))
    lost += [score_slides.lost_annotation(error) for error in strange]
    if not outlines.keys() & named.keys():
      logging.warning(
        'No slide has an annotation in %s; all are taken for normal.',
        annotations,
      )
  run = Run(folder)
  out = out or run.folder / 'scored' / slides.resolve().name
  with workdir.claim(out, '--out'):
    unscored = _score_folder(run, named, outlines, out, mpp, lost)
  return out / 'slides.parquet', unscored + len(lost)


def _score_folder(
  run: Run,
  named: dict[str, list[pathlib.Path]],
  outlines: dict[str, list[pathlib.Path]] | None,
  out: pathlib.Path,
  mpp: float | None,
  lost: list[dict],
) -> int:
  """How many slides have no score; annotations of no use go to `lost`."""
  facts, broken = [], []
  _settle(run, out, mpp)
  for name, files in progress(
    named.items(), len(named), 'look at slides', 'slides'
  ):
    one = _unknown(files[0], name, mpp)
    if trouble := listing.same_name(files):
      slide_files.save_unopened(out, one, SlideError(trouble))
      broken.append(one)
      continue
    with contextlib.suppress(SlideError):  # Scoring will say the same.
      one = _facts(run, files[0], name, mpp)
    if outlines is not None:
      one |= _label(outlines, one, lost)
    facts.append(one)
  score_slides.scan(run, out, out, facts)
  facts = sorted(facts + broken, key=lambda one: one['group'])
  score_slides.finish(run, out, facts, out, lost)
  return score_slides.unscored(out)


def _settle(run: Run, out: pathlib.Path, mpp: float | None) -> None:
  """What was scored otherwise must not be mixed with what is scored now."""
  state = (run.folder / 'calibration.json').read_bytes()
  now = {
    'run': str(run.folder),
    'calibration': zlib.crc32(state),
    'score': workdir.plain_config(run.config)['score'],
    'mpp': mpp,
  }
  path = out / SETTLED
  before = workdir.read_json(path) if path.exists() else now
  before |= {'run': now['run']}  # It may have moved.
  if differ := workdir.differences(before, now):
    name = min(differ)
    there, here = differ[name]
    raise UserError(
      f'{out} holds slides that were scored otherwise: {name} was {there}, '
      f'now it is {here}; give another --out, or remove that folder.'
    )
  workdir.write_json(path, now)


def _unknown(file: pathlib.Path, group: str, mpp: float | None) -> dict:
  """What is known of a slide before it is opened."""
  return {
    'group': group,
    'path': os.path.abspath(file),
    'annotation': '',
    'label': -1,
    'width': None,
    'height': None,
    'mpp': mpp,
    'own_mpp': None,
    'exhaustive': None,
  }


def _facts(run: Run, file: pathlib.Path, group: str, mpp: float | None) -> dict:
  with open_slide(file, mpp) as slide:
    scale_of(run, slide.mpp, file)
    about = {'width': slide.size[0], 'height': slide.size[1]}
    about['own_mpp'] = slide.mpp
  return _unknown(file, group, mpp) | about


def _label(
  outlines: dict[str, list[pathlib.Path]], facts: dict, lost: list[dict]
) -> dict:
  """Anomalous if anything but holes is drawn; unknown if that is unreadable."""
  size = facts['width'] and (facts['width'], facts['height'])
  try:
    path = find_annotation(outlines, facts['path'])
    if path is None:
      return {'label': 0}
    polygons = read_annotation(path, size)
  except AnnotationError as error:
    lost.append(score_slides.lost_annotation(error))
    return {}
  drawn = any(not polygon.hole for polygon in polygons)
  return {'label': int(drawn), 'annotation': os.path.abspath(path)}


def is_slide(file: pathlib.Path) -> bool:
  """By its suffix, or as a TIFF of several levels."""
  suffix = file.suffix.lower()
  if suffix in PYRAMIDS:
    try:
      with tifffile.TiffFile(file) as image:
        return len(image.pages) > 1
    except Exception:  # Of many kinds; reading it as an image will tell.
      return False
  return suffix in SLIDES


def _images(run: Run, files: Sequence[pathlib.Path], out, stems) -> list[dict]:
  names = run.map_names[:1]
  try:
    found, unread = run.score(files, maps=names), {}
  except UserError:
    unread = _unread(run, files)
    if not unread:
      raise
    files = [file for file in files if file not in unread]
    found = run.score(files, maps=names) if files else None
  rows = [_without_score(run, *item) for item in unread.items()]
  for i, file in enumerate(files):
    scores = {k: float(v[i]) for k, v in found.scores.items()}
    row = _row(run, file, scores)
    if 'normalised' in found.flags:
      row['tiles_unnormalised'] = int(not found.flags['normalised'][i])
    rows.append(row)
    for name in names:
      path = out / f'{stems[file]}_overlay.png'
      _overlay(path, found.images[i], found.maps[name][i])
  return rows


def _unread(run: Run, files: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
  """Files that are no image to score, and why."""
  unread = {}
  for file in files:
    try:
      read_batch([file], run.config.data)
    except UserError as error:
      unread[file] = str(error)
  return unread


def _without_score(run: Run, file: pathlib.Path, reason: str) -> dict:
  logging.warning('%s It has no score.', reason)
  nothing = dict.fromkeys(run.names, math.nan)
  return _row(run, file, nothing) | {'tiles_failed': 1, 'reason': reason}


def _slide(run: Run, facts: dict) -> dict:
  found = facts['rules'].get('max', {})
  nan = float('nan')
  scores = {k: nan if found.get(k) is None else found[k] for k in run.names}
  return _row(run, facts['path'], scores) | {
    'tiles': facts['tiles'],
    'tiles_failed': slide_files.tiles_failed(facts),
    'tiles_unnormalised': facts['tiles_unnormalised'],
    'reason': facts['reason'],
  }


def _row(run: Run, file, scores: dict[str, float]) -> dict:
  threshold = run.calibration[run.primary]['threshold']
  finite = math.isfinite(scores[run.primary])
  row = {'file': os.fspath(file)}
  row |= {'anomalous': scores[run.primary] > threshold if finite else None}
  row |= {f'score.{k}': v for k, v in scores.items()}
  row |= {
    f'calibrated.{k}': float(run.calibrate(k, np.array([v]))[0])
    for k, v in scores.items()
  }
  counts = {'tiles': 1, 'tiles_failed': 0, 'tiles_unnormalised': 0}
  reason = '' if finite else f'its {run.primary} is not finite'
  return row | counts | {'reason': reason}


def _stems(files: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
  """Files of one name in several folders get names of their own."""
  stems, used = {}, set()
  for file in dict.fromkeys(files):
    numbered = (f'{file.stem}_{i}' for i in itertools.count(2))
    stem = next(
      s for s in itertools.chain([file.stem], numbered) if s not in used
    )
    used.add(stem)
    stems[file] = stem
  return stems


def output_paths(
  files: Sequence[pathlib.Path], out: pathlib.Path, ending: str
) -> dict[pathlib.Path, pathlib.Path]:
  """Where something of each file is written, under names of their own."""
  return {file: out / f'{s}{ending}' for file, s in _stems(files).items()}


def _overlay(path: pathlib.Path, pixels: np.ndarray, found: np.ndarray):
  """The map over the image, brightest where the map is largest."""
  gray = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
  share = (found - found.min()) / max(float(np.ptp(found)), 1e-12)
  colour = matplotlib.colormaps['inferno'](share)[..., :3]
  mixed = gray + (colour - gray) * (0.6 * share[..., None])
  Image.fromarray(np.round(mixed * 255).astype(np.uint8)).save(path)
