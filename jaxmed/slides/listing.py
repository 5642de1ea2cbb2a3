"""Finds slides in a folder and below it, by their suffixes."""

import os
import pathlib

from jaxmed import errors

SUFFIXES = (
  '.svs',
  '.tif',
  '.tiff',
  '.ndpi',
  '.mrxs',
  '.scn',
  '.vms',
  '.vmu',
  '.bif',
  '.svslide',
)


def find_slides(
  root: pathlib.Path, beside: pathlib.Path | None = None
) -> dict[str, list[pathlib.Path]]:
  """What may be slides, by name; more than one if they share it.

  No hidden files, none in the folder `beside`, and no masks, which are
  annotations. Whether a file can be read is seen later: a link to nothing is
  found, too.
  """
  found: dict[str, list[pathlib.Path]] = {}
  for path in sorted(_files(root, beside)):
    is_mask = path.stem.lower().endswith('_mask')
    if path.suffix.lower() in SUFFIXES and path.name[0] != '.' and not is_mask:
      found.setdefault(path.stem, []).append(path)
  if not found:
    raise errors.UserError(
      f'{root} holds no slides. Expected files that end in one of '
      f'{", ".join(SUFFIXES)}.'
    )
  return found


def _files(root: pathlib.Path, beside: pathlib.Path | None):
  def refuse(error: OSError):
    raise errors.UserError(
      f"The folder {error.filename} can't be read: {error.strerror}."
    ) from error

  for folder, folders, names in os.walk(root, onerror=refuse):
    here = pathlib.Path(folder)
    folders[:] = [
      name for name in folders if name[0] != '.' and here / name != beside
    ]
    yield from (here / name for name in names)


def same_name(paths: list[pathlib.Path]) -> str:
  """Why slides of one name are not used, or '' if there is but one."""
  if len(paths) < 2:
    return ''
  first, second, *_ = paths
  return (
    f'{first} and {second} are two slides of one name; rename or move one, for '
    'annotations and results are known by name.'
  )
