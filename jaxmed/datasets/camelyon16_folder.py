"""The folder of Camelyon16: which slides it holds, and what is known of them.

The rules that the challenge's README gives are kept here: what is mislabelled,
what is there twice, and what is not exhaustively annotated.
"""

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Sequence

from jaxmed import errors
from jaxmed.datasets.surveys import Source

MISLABELLED = {'normal_086': 'tumor_111'}
DUPLICATE = 'test_049'
NOT_EXHAUSTIVE = frozenset(
  f'tumor_{number:03d}'
  for number in (
    *(10, 15, 18, 20, 25, 29, 33, 34, 44, 46),
    *(51, 54, 55, 56, 67, 79, 85, 92, 95, 110),
  )
) | {'test_114'}
OFFICIAL = re.compile(r'(normal|tumor|test)_(\d{3})')
SLIDE_FOLDERS = ('training/normal', 'training/tumor', 'testing/images')
SLIDE_FOLDERS += ('images',)
OUTLINE_FOLDERS = ('training/lesion_annotations', 'testing/lesion_annotations')
OUTLINE_FOLDERS += ('annotations',)
REFERENCES = ('testing/reference.csv', 'reference.csv')


@dataclasses.dataclass(frozen=True)
class Member:
  """A slide of the challenge.

  Attributes:
    source: its name as newer releases have it, and its files.
    split: train or test; validation is part of train here.
    tumour: whether there is a metastasis.
  """

  source: Source
  split: str
  tumour: bool

  @property
  def name(self) -> str:
    return self.source.group

  @property
  def exhaustive(self) -> bool:
    return self.name not in NOT_EXHAUSTIVE


def find(root: pathlib.Path) -> list[Member]:
  """The slides of the folder that have a part in the protocol, by name."""
  files = _named(root, SLIDE_FOLDERS, '.tif')
  outlines = _named(root, OUTLINE_FOLDERS, '.xml')
  if not files:
    raise errors.UserError(
      f'{root} holds no slides of Camelyon16. Expected training/normal/'
      'normal_001.tif, training/tumor/tumor_001.tif and testing/images/'
      'test_001.tif, or all of them in images/.'
    )
  _refuse_packed(root)
  for wrong, right in MISLABELLED.items():
    for named in (files, outlines):
      if wrong in named:
        named.setdefault(right, named.pop(wrong))
  files.pop(DUPLICATE, None)
  tumours = _tumours(root, files, outlines)
  missing = sorted(tumours - set(outlines))
  if missing:
    raise errors.UserError(
      f'{len(missing)} tumour slides of {root} have no annotation: '
      f'{", ".join(missing[:5])}{"..." if len(missing) > 5 else ""}. Expected '
      f'them in {", ".join(OUTLINE_FOLDERS)}.'
    )
  members = [
    Member(
      Source(name, str(path), str(outlines[name] if name in tumours else '')),
      'test' if name.startswith('test') else 'train',
      name in tumours,
    )
    for name, path in sorted(files.items())
  ]
  return members


def _named(
  root: pathlib.Path, folders: Sequence[str], suffix: str
) -> dict[str, pathlib.Path]:
  """Files with official names, in whichever of the folders they are."""
  found: dict[str, pathlib.Path] = {}
  for path in sorted(_inside(root, folders)):
    name = path.stem.lower()
    if path.suffix.lower() != suffix or not OFFICIAL.fullmatch(name):
      continue
    if name in found:
      raise errors.UserError(
        f'{name} is there twice: {found[name]} and {path}. Leave one.'
      )
    found[name] = path
  return found


def _inside(
  root: pathlib.Path, folders: Sequence[str]
) -> Iterator[pathlib.Path]:
  for folder in folders:
    yield from (root / folder).rglob('*')


def _refuse_packed(root: pathlib.Path) -> None:
  for folder in OUTLINE_FOLDERS:
    packed = (root / folder).with_suffix('.zip')
    if packed.is_file() and not (root / folder).is_dir():
      raise errors.UserError(f'Unpack {packed} into {root / folder}.')


def _tumours(
  root: pathlib.Path,
  files: dict[str, pathlib.Path],
  outlines: dict[str, pathlib.Path],
) -> set[str]:
  """Names of slides with a metastasis: what the reference says, if there."""
  tests = {name for name in files if name.startswith('test')}
  tumours = {name for name in files if name.startswith('tumor')}
  tables = [root / path for path in REFERENCES if (root / path).is_file()]
  if not tables:
    return tumours | (tests & set(outlines))
  known = _reference(tables[0])
  if lacking := sorted(tests - set(known)):
    raise errors.UserError(f'{tables[0]} does not list {lacking[0]}.')
  for name in sorted(tests & set(outlines)):
    if not known[name]:
      raise errors.UserError(
        f'{tables[0]} calls {name} normal, and {outlines[name]} outlines a '
        'lesion in it.'
      )
  return tumours | {name for name in tests if known[name]}


def _reference(path: pathlib.Path) -> dict[str, bool]:
  """Which test slides have a metastasis."""
  known = {}
  with path.open(newline='', encoding='utf-8-sig') as file:
    for row in csv.reader(file):
      name = row[0].strip().lower().removesuffix('.tif') if row else ''
      if not OFFICIAL.fullmatch(name):
        continue  # A header.
      word = row[1].strip().lower() if len(row) > 1 else ''
      if word not in ('tumor', 'normal'):
        raise errors.UserError(
          f'{path} says {word!r} of {name}; expected Tumor or Normal.'
        )
      known[name] = word == 'tumor'
  return known
