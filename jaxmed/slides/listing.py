"""Finds slides in a folder and below it, by their suffixes."""

import os
import pathlib

import tifffile

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
  '.czi',
)
MASKS = ('_mask.tif', '_mask.tiff')


def find_slides(
  root: pathlib.Path, beside: pathlib.Path | None = None
) -> dict[str, list[pathlib.Path]]:
  """What may be slides, by name; more than one if they share it.

  No hidden files, none in the folder `beside`, no masks, which are
  annotations, and no maps of scores. Whether a file can be read is seen later:
  a link to nothing is found, too.
  """
  found: dict[str, list[pathlib.Path]] = {}
  for path in sorted(_files(root, beside)):
    if _may_be_slide(path):
      if not errors.is_text(path):
        raise errors.UserError(
          f'The name of the slide {os.fsencode(path)} is not in UTF-8; rename '
          'it.'
        )
      found.setdefault(path.stem, []).append(path)
  if not found:
    raise errors.UserError(
      f'{root} holds no slides. Expected files that end in one of '
      f'{", ".join(SUFFIXES)}.'
    )
  return found


def _may_be_slide(path: pathlib.Path) -> bool:
  name = path.name.lower()
  return (
    name.endswith(SUFFIXES)
    and name[0] != '.'
    and not name.endswith(MASKS)
    and not (name.endswith('.ome.tif') and _is_map(path))
  )


def _is_map(path: pathlib.Path) -> bool:
  """Whether scoring wrote it, wherever its folder is."""
  try:
    with tifffile.TiffFile(path, _multifile=False) as file:
      return file.pages.first.software == 'jaxmed'
  except Exception:  # Of many kinds; reading it as a slide will tell.
    return False


def _files(root: pathlib.Path, beside: pathlib.Path | None):
  """All files, each once, also where folders are linked to."""

  def refuse(error: OSError):
    raise errors.UserError(
      f"The folder {error.filename} can't be read: {error.strerror}."
    ) from error

  def wanted(path: pathlib.Path) -> bool:
    real = path.resolve()
    if (
      path.name[0] == '.'
      or real in seen
      or (path.is_symlink() and real.is_relative_to(top))
    ):
      return False
    seen.add(real)
    return True

  top = root.resolve()
  seen = {top, (beside or root).resolve()}
  for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
    here = pathlib.Path(folder)
    folders[:] = [name for name in sorted(folders) if wanted(here / name)]
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
