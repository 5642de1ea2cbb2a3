"""Normalises the stain of images and slides that a user names, for the eye.

An image keeps its size, of a slide a reduced picture is made. The stain of a
file is found once, from all of it or, if it is large, from bands of it.
"""

import os
import pathlib
from collections.abc import Callable, Sequence

import imagecodecs
import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8, UInt16

from jaxmed import workdir
from jaxmed.errors import UserError
from jaxmed.pipeline import stain
from jaxmed.pipeline.frame import read_image
from jaxmed.progress import progress
from jaxmed.scoring.score_files import is_slide, output_paths
from jaxmed.slides.reader import TileError, open_slide

Image = UInt8[np.ndarray, 'h w 3'] | UInt16[np.ndarray, 'h w 3']
SIDE = 2048  # Pixels of the longer side of a slide's picture.
MOST_PIXELS = 2**22  # On the device at once.
BAND = 64  # Rows.


def normalise(
  images: Sequence[np.ndarray | str | os.PathLike],
  kind: str = 'macenko',
  target: str | os.PathLike = '',
) -> list[Image]:
  """Images, as arrays or files of any size, with their stains made alike.

  One without a stain of H&E comes back as it was, and a warning says so.

  Args:
    images: in colour, uint8 or uint16, and so are the results.
    kind: macenko or reinhard.
    target: an image to look like; else the kind's standard.
  """
  change = _changer(kind, target)
  found = []
  for number, image in enumerate(images):
    is_path = isinstance(image, str | os.PathLike)
    name = os.fspath(image) if is_path else f'image number {number}'
    pixels = read_image(image) if is_path else np.asarray(image)
    made, ok = change(pixels, name)
    if not ok:
      logging.warning('There is no stain of H&E to normalise in %s.', name)
    found.append(made)
  return found


def normalise_files(
  files: Sequence[pathlib.Path],
  out: pathlib.Path,
  kind: str = 'macenko',
  target: str | os.PathLike = '',
) -> tuple[dict[pathlib.Path, bool], list[str]]:
  """Writes a PNG of each file; gives their paths, and which have changed.

  Of files that cannot be read it gives the reasons; where none can, the first
  is an error.
  """
  for file in files:
    if not file.is_file():
      raise UserError(f'There is no file {file}.')
  change = _changer(kind, target)
  workdir.make_folder(out, '--out')
  paths = output_paths(files, out, '.png')
  originals = {file.resolve() for file in files}
  written, reasons = {}, []
  for file in progress(files, len(files), 'stain', 'images'):
    path = paths[file]
    if path.resolve() in originals:
      raise UserError(
        f'{path} would be written over an image that is given; choose another '
        '--out.'
      )
    try:
      made, written[path] = change(_read(file), os.fspath(file))
    except (UserError, TileError) as error:
      reasons.append(str(error))
      continue
    path.write_bytes(imagecodecs.png_encode(made))
  if not written:
    raise UserError(reasons[0])
  return written, reasons


def _read(file: pathlib.Path) -> Image:
  if not is_slide(file):
    return read_image(file)
  with open_slide(file, mpp=1.0) as slide:  # No length is asked for.
    return slide.thumbnail(SIDE)


def _changer(
  name: str, path: str | os.PathLike
) -> Callable[[np.ndarray, str], tuple[Image, bool]]:
  target = stain.find_target(name, path)
  if target is None:
    raise UserError(f'No stain normalisation is named; known: {_known()}.')
  kind, fitted = stain.KINDS[name], stain.fitted_of(target)
  normalise = jax.jit(kind.normalise)

  def change(pixels: np.ndarray, name: str) -> tuple[Image, bool]:
    _check(pixels, name)
    source = kind.fit(_bands(pixels))
    if not source.ok:
      return pixels, False
    made = np.empty_like(pixels)
    rows = max(1, MOST_PIXELS // pixels.shape[1])
    most = np.iinfo(pixels.dtype).max
    for top in range(0, len(pixels), rows):
      strip = pixels[top : top + rows]
      found, _ = normalise(strip, fitted, source)
      made[top : top + rows] = np.round(np.asarray(found) * most)
    return made, True

  return change


def _known() -> str:
  return ', '.join(stain.KINDS)


def _check(pixels: np.ndarray, name: str) -> None:
  fits = pixels.ndim == 3 and pixels.shape[-1] == 3 and pixels.size
  if not fits or pixels.dtype not in (np.uint8, np.uint16):
    raise UserError(
      f'{name} has shape {pixels.shape} and type {pixels.dtype}; a stain is '
      'normalised of [height, width, 3] in uint8 or uint16.'
    )


def _bands(pixels: np.ndarray) -> np.ndarray:
  """All of an image, or evenly spaced bands that fit onto the device."""
  height, width = pixels.shape[:2]
  if height * width <= MOST_PIXELS:
    return pixels
  bands = pixels[: height // BAND * BAND].reshape(-1, BAND, width, 3)
  count = max(1, MOST_PIXELS // (BAND * width))
  chosen = np.linspace(0, len(bands) - 1, count).round().astype(int)
  return bands[np.unique(chosen)]
