"""Scores files that a user names: images and whole slides."""

import itertools
import os
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
import pyarrow as pa
import tifffile
from PIL import Image

from jaxmed import workdir
from jaxmed.errors import UserError
from jaxmed.progress import Progress, progress
from jaxmed.score import Run
from jaxmed.score_slides import THUMBNAIL, grid_of, overlay, score_slide
from jaxmed.slides import heatmap
from jaxmed.slides.reader import open_slide

SLIDES = ('.svs', '.ndpi', '.mrxs', '.scn', '.vms', '.bif', '.svslide', '.dcm')
PYRAMIDS = ('.tif', '.tiff')  # Either: a slide if it has more than one level.


def score_files(
  folder: pathlib.Path,
  files: Sequence[pathlib.Path],
  out: pathlib.Path | None,
  mpp: float | None,
) -> pathlib.Path:
  """Writes a table of scores and an overlay of every file; gives the table."""
  for file in files:
    if not file.is_file():
      raise UserError(f'There is no file {file}.')
  run = Run(folder)
  out = out or run.folder / 'scored'
  make_folder(out)
  slides = [file for file in files if is_slide(file)]
  images = [file for file in files if file not in slides]
  paths = output_paths(files, out, '_overlay.png')
  rows = []
  for start in progress(
    range(0, len(images), run.batch),
    -(-len(images) // run.batch),
    'score images',
    'batches',
  ):
    rows += _images(run, images[start : start + run.batch], paths)
  rows += [_slide(run, file, mpp, paths[file]) for file in slides]
  columns = {k: [row[k] for row in rows] for k in rows[0]}
  path = out / 'scores.parquet'
  workdir.write_table(path, pa.table(columns))
  return path


def make_folder(out: pathlib.Path) -> None:
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'The folder {out} cannot be used: {error.strerror}; give another --out.'
    ) from error


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


def _images(run: Run, files: Sequence[pathlib.Path], paths) -> list[dict]:
  names = run.map_names[:1]
  found = run.score(files, maps=names)
  rows = []
  for i, file in enumerate(files):
    scores = {k: float(v[i]) for k, v in found.scores.items()}
    calibrated = {k: float(v[i]) for k, v in found.calibrated.items()}
    row = _row(file, scores, calibrated, bool(found.anomalous[i]))
    if 'normalised' in found.flags:
      row['tiles_unnormalised'] = int(not found.flags['normalised'][i])
    rows.append(row)
    for name in names:
      _overlay(paths[file], found.images[i], found.maps[name][i])
  return rows


def _slide(run: Run, file: pathlib.Path, mpp: float | None, path) -> dict:
  with open_slide(file, mpp) as slide:
    grid = grid_of(run, slide.size)
    bar = Progress(grid.rows * grid.columns, file.name, 'tiles')
    found = score_slide(run, slide, bar)
    bar.close()
    picture = slide.thumbnail(THUMBNAIL)
  values = {k: np.array([v]) for k, v in found.scores.items()}
  calibrated = {k: float(run.calibrate(k, v)[0]) for k, v in values.items()}
  if not found.reason:
    heatmap.save_overlay(path, overlay(run, found, picture))
  threshold = run.calibration[run.primary]['threshold']
  above = found.scores[run.primary] > threshold
  row = _row(file, found.scores, calibrated, bool(above))
  return row | {
    'tiles': found.tiles,
    'tiles_failed': len(found.failures),
    'tiles_unnormalised': found.tiles_unnormalised,
    'reason': found.reason,
  }


def _row(file, scores: dict, calibrated: dict, anomalous: bool) -> dict:
  row = {'file': os.fspath(file), 'anomalous': anomalous}
  row |= {f'score.{k}': v for k, v in scores.items()}
  row |= {f'calibrated.{k}': v for k, v in calibrated.items()}
  counts = {'tiles': 1, 'tiles_failed': 0, 'tiles_unnormalised': 0}
  return row | counts | {'reason': ''}


def output_paths(
  files: Sequence[pathlib.Path], out: pathlib.Path, ending: str
) -> dict[pathlib.Path, pathlib.Path]:
  """Files of one name in several folders get names of their own."""
  paths, used = {}, set()
  for file in files:
    numbered = (f'{file.stem}_{i}' for i in itertools.count(2))
    stem = next(
      s for s in itertools.chain([file.stem], numbered) if s not in used
    )
    used.add(stem)
    paths[file] = out / f'{stem}{ending}'
  return paths


def _overlay(path: pathlib.Path, pixels: np.ndarray, found: np.ndarray):
  """The map over the image, brightest where the map is largest."""
  gray = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
  share = (found - found.min()) / max(float(np.ptp(found)), 1e-12)
  colour = matplotlib.colormaps['inferno'](share)[..., :3]
  mixed = gray + (colour - gray) * (0.6 * share[..., None])
  Image.fromarray(np.round(mixed * 255).astype(np.uint8)).save(path)
