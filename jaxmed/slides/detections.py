"""Detections of a slide, as Camelyon's evaluation takes them.

A file a slide, named as the slide, without a header: confidence, x, y, in
pixels of level 0. A slide without any detection has an empty file; it counts.
"""

import os
import pathlib

import numpy as np
from jaxtyping import Float, Float64

from jaxmed import errors


class DetectionsError(errors.UserError):
  """A file that is no list of detections."""


def write_detections(
  path: str | os.PathLike, detections: Float[np.ndarray, 'n 3']
) -> None:
  """Writes (confidence, x, y) rows; appears whole or not at all."""
  lines = [f'{c:.9g},{x:.0f},{y:.0f}\n' for c, x, y in detections.tolist()]
  temporary = pathlib.Path(f'{path}.tmp')
  temporary.write_text(''.join(lines))
  os.replace(temporary, path)


def read_detections(path: str | os.PathLike) -> Float64[np.ndarray, 'n 3']:
  """Rows of (confidence, x, y)."""
  path = pathlib.Path(path)
  try:
    lines = path.read_text().splitlines()
  except FileNotFoundError as error:
    raise DetectionsError(
      f'There are no detections at {path}; a slide without any needs an '
      'empty file.'
    ) from error
  except (OSError, UnicodeDecodeError) as error:
    raise DetectionsError(f"{path} can't be read ({error}).") from error
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      confidence, x, y = (float(word) for word in line.split(','))
    except ValueError as error:
      raise DetectionsError(
        f'{path}, line {number}, is {line[:40]!r}; expected confidence,x,y.'
      ) from error
    rows.append((confidence, x, y))
  found = np.array(rows, np.float64).reshape(-1, 3)
  if not np.isfinite(found).all():
    raise DetectionsError(f'{path} has a number that is not finite.')
  return found
