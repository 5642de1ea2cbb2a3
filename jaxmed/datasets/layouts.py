"""Which images a folder holds, and what their places say about them.

Three layouts are known:
  MVTec and BMAD: train/good, valid/good, test/good, test/<kind>, with the
    images inside or in img/, and masks in ground_truth/<kind> or in label/;
  plain: normal/ and any number of other folders, each a kind of anomaly, with
    masks in masks/ or ground_truth/;
  a table: a CSV file with the columns path and label.
"""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterator

from jaxmed import errors
from jaxmed.datasets.images import SUFFIXES

NORMAL = ('normal', 'normals', 'good', 'healthy')
SPLIT_FOLDERS = {
  'train': 'train',
  'valid': 'validation',
  'val': 'validation',
  'validation': 'validation',
  'test': 'test',
}
IMAGE_FOLDERS = ('img', 'images')
MASK_FOLDERS = ('masks', 'mask', 'ground_truth', 'label', 'labels')
COLUMNS = ('path', 'label', 'group', 'split', 'kind', 'mask')


@dataclasses.dataclass(frozen=True)
class Found:
  """An image file; paths are relative to the data's folder, with slashes."""

  path: str
  label: int
  kind: str = ''
  split: str = ''  # Empty where the layout leaves it to chance.
  group: str = ''  # Empty where no table names it.
  mask: str = ''


def find(root: pathlib.Path, table: str = '') -> list[Found]:
  """All images of a folder by path, in whichever layout it has."""
  if table:
    found = list(_from_table(root, root / table))
    if len({bool(one.split) for one in found}) > 1:
      raise errors.UserError(
        f'{root / table} gives a split for some images and none for others. '
        'Fill in the column split, or leave it out.'
      )
  elif any(_lower(child) in SPLIT_FOLDERS for child in _folders(root)):
    found = list(_from_splits(root))
  else:
    found = list(_from_kinds(root))
  if not found:
    raise errors.UserError(
      f'{root} holds no images in folders. Expected normal/ and others '
      '(or train/good, test/...) with PNG, JPEG or TIFF files.'
    )
  if all(one.label != 0 for one in found):
    raise errors.UserError(
      f'{root} holds {len(found)} images and no normal ones. Methods learn '
      f'from normal images; name their folder one of {", ".join(NORMAL)}.'
    )
  return sorted(found, key=lambda one: one.path)


def _from_splits(root: pathlib.Path) -> Iterator[Found]:
  for folder in _folders(root):
    split = SPLIT_FOLDERS.get(_lower(folder))
    if split is None:
      continue
    for kind in _folders(folder):
      for found in _of_kind(root, kind):
        yield dataclasses.replace(found, split=split)


def _from_kinds(root: pathlib.Path) -> Iterator[Found]:
  for folder in _folders(root):
    if any(_lower(child) in SPLIT_FOLDERS for child in _folders(folder)):
      raise errors.UserError(
        f'{root} holds whole data sets, such as {folder.name}/ with '
        'train/ and test/ of its own. Choose one as --config.data.path.'
      )
    if _lower(folder) not in MASK_FOLDERS:
      yield from _of_kind(root, folder)


def _of_kind(root: pathlib.Path, folder: pathlib.Path) -> Iterator[Found]:
  """The images of one folder, which are all normal or of one kind."""
  normal = _lower(folder) in NORMAL
  inside = [
    child for child in _folders(folder) if _lower(child) in IMAGE_FOLDERS
  ]
  masks = _masks(root, folder)
  for start in inside or [folder]:
    for path in _images(start):
      place = path.relative_to(start).with_suffix('').as_posix()
      mask = masks.get(place, masks.get(f'{place}_mask'))
      yield Found(
        path=path.relative_to(root).as_posix(),
        label=0 if normal else 1,
        kind='' if normal else folder.name,
        mask=mask.relative_to(root).as_posix() if mask else '',
      )


def _masks(root: pathlib.Path, folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Masks by their places without suffix, the most special folder's first."""
  starts = [
    child for child in _folders(folder) if _lower(child) in MASK_FOLDERS
  ]
  for shared in _folders(root):
    if _lower(shared) in MASK_FOLDERS:
      starts += [shared / folder.name, shared]
  masks: dict[str, pathlib.Path] = {}
  for start in starts:
    for path in _images(start, also_masks=True):
      place = path.relative_to(start).with_suffix('').as_posix()
      masks.setdefault(place, path)
  return masks


def _from_table(root: pathlib.Path, path: pathlib.Path) -> Iterator[Found]:
  if not path.is_file():
    raise errors.UserError(
      f'The table {path} of data.options.labels does not exist.'
    )
  with path.open(newline='', encoding='utf-8-sig') as file:
    rows = csv.DictReader(file)
    names = rows.fieldnames or []
    for name in names:
      if name not in COLUMNS:
        raise errors.unknown(f'column for {path}:', name, COLUMNS)
    if not {'path', 'label'} <= set(names):
      raise errors.UserError(
        f'{path} has the columns {", ".join(names)}; path and label are needed.'
      )
    for number, row in enumerate(rows, start=2):
      yield _from_row(root, row, f'{path}, line {number}')


def _from_row(root: pathlib.Path, row: dict[str, str], where: str) -> Found:
  row = {name: (row.get(name) or '').strip() for name in COLUMNS}
  label, kind = row['label'], row['kind']
  if label not in ('0', '1', '-1'):
    if not label or label.lstrip('-').replace('.', '').isdigit():
      raise errors.UserError(
        f'{where}: the label is {label!r}; expected 0 for normal, 1 for '
        'anomalous, -1 for unknown, or a name such as normal or tumour.'
      )
    normal = label.lower() in NORMAL
    kind, label = kind or ('' if normal else label), 0 if normal else 1
  if row['split'] and row['split'] not in SPLIT_FOLDERS:
    raise errors.unknown(f'split ({where}):', row['split'], SPLIT_FOLDERS)
  for name in ('path', 'mask'):
    if row[name] and not (root / row[name]).is_file():
      raise errors.UserError(f'{where}: there is no file {root / row[name]}.')
  return Found(
    path=row['path'],
    label=int(label),
    kind=kind,
    split=SPLIT_FOLDERS.get(row['split'], ''),
    group=row['group'],
    mask=row['mask'],
  )


def _images(
  start: pathlib.Path, also_masks: bool = False
) -> Iterator[pathlib.Path]:
  """Image files below a folder, but no hidden ones and no masks.

  Links are followed, but none to where they have come from.
  """

  def unreadable(error: OSError):
    if isinstance(error, FileNotFoundError):  # Masks need not be there.
      return
    raise errors.UserError(
      f'The folder {error.filename} cannot be read ({error.strerror}).'
    ) from error

  def wanted(folder: str, child: str) -> bool:
    path = pathlib.Path(folder, child)
    return (
      child[0] != '.'
      and (also_masks or child.lower() not in MASK_FOLDERS)
      and not _is_run(path)
      and not (path.is_symlink() and path.resolve() in seen)
    )

  seen = set()
  for folder, children, files in os.walk(
    start, onerror=unreadable, followlinks=True
  ):
    seen.add(pathlib.Path(folder).resolve())
    children[:] = sorted(child for child in children if wanted(folder, child))
    for name in sorted(files):
      if name[0] != '.' and name.lower().endswith(SUFFIXES):
        yield pathlib.Path(folder, name)


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(
    child
    for child in path.iterdir()
    if child.is_dir() and child.name[0] != '.' and not _is_run(child)
  )


def status(path: str | pathlib.Path) -> os.stat_result:
  """Of a file, or of a link to nothing, which reading will tell of."""
  try:
    return os.stat(path)
  except OSError:
    return os.lstat(path)


def _is_run(folder: pathlib.Path) -> bool:
  """A run's pictures are no data, wherever it was launched."""
  return all(
    (folder / name).is_file() for name in ('config.json', 'provenance.json')
  )


def _lower(path: pathlib.Path) -> str:
  return path.name.lower()
