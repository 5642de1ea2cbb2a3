"""Detections of a slide, as Camelyon's evaluation takes them.

A file a slide, named as the slide, without a header: confidence, x, y, in
pixels of level 0. A slide without any detection has an empty file; it counts.
"""

import os
import pathlib

import numpy as np
from jaxtyping import Float


def write_detections(
  path: str | os.PathLike, detections: Float[np.ndarray, 'n 3']
) -> None:
  """Writes (confidence, x, y) rows; appears whole or not at all."""
  lines = [f'{c:.9g},{x:.0f},{y:.0f}\n' for c, x, y in detections.tolist()]
  temporary = pathlib.Path(f'{path}.tmp')
  temporary.write_text(''.join(lines))
  os.replace(temporary, path)
