"""Your own slides: a folder of them, with outlines of lesions or without.

A slide whose annotation outlines a lesion has the label 1, one without the
label 0, unless a table of labels says otherwise; a slide that is labelled 1
and has no outlines gives tiles of unknown label. Slides are divided by a hash
of their patient, as the images of a folder are (see folder.py), unless a
table of splits does it: sick patients are for testing, but for the shares
`train_sick` and `validation_sick` of them.

`jaxmed tile --slides DIR --out R` prepares such a data set in R. A launch
uses R with --config=munit:slides --config.data.path=R; with the folder of
slides as data.path it prepares them itself, in data.dir.
"""

import collections
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.datasets import folder, given, layouts, slide_tiles
from jaxmed.datasets.shards import Failure, Shard
from jaxmed.datasets.slide_tiles import Tiling
from jaxmed.datasets.surveys import Found, Planned, Source, Survey, stat
from jaxmed.slides import tissue
from jaxmed.slides.annotation_files import (
  ENDINGS,
  by_slide,
  find_annotation,
  without_slide,
)
from jaxmed.slides.annotations import AnnotationError
from jaxmed.slides.listing import SUFFIXES, find_slides, same_name

NAME = 'slides'
VERSION = '1.0.0'
DESCRIPTION = 'Tiles of whole slides, normal and with lesions.'
CITATION = ''
LICENCE = 'That of the slides.'

OPTIONS = {
  # A folder of annotations, each with its slide's name, or a CSV file with
  # the columns slide and annotation. This path and those below: relative to
  # the folder of slides.
  'annotations': '',
  'labels': '',  # A CSV file with the columns slide and label.
  'splits': '',  # A CSV file with the columns slide and split.
  'group': '',  # A pattern whose first group is the patient, of slides' names.
  'seed': 0,
  'train': 0.6,  # The share of the normal patients that is for training.
  'validation': 0.1,  # And for thresholds; the rest is for testing.
  'train_sick': 0.0,  # Of the patients with a lesion, the same.
  'validation_sick': 0.0,
  'stride': 0,  # From tile to tile in their pixels; 0: side by side.
  'mpp': 0.0,  # Micrometres per pixel of the tiles; 0: of each slide's own.
  'slide_mpp': 0.0,  # Of the slides, in place of what they say.
  'tissue': 0.5,  # Least share of a tile.
  'method': 'stain',  # Of finding tissue; see slides/tissue.py.
  'format': 'jpeg',  # Or png.
  'quality': 90,  # Of a JPEG; a slide's own tiles stay as they are.
}

PATHS = ('annotations', 'labels', 'splits')


def fingerprint(data_config: ConfigDict) -> dict[str, Any]:
  """The files by name, size and time, what the tables say, and the options."""
  root, options = _root(data_config), _options(data_config)
  sources = find(root, options)
  files = [source.path for source in sources]
  files += [source.annotation for source in sources if source.annotation]
  tables = [_table(root, options, name) for name in ('labels', 'splits')]
  text = json.dumps(tables, sort_keys=True)
  troubles = [source.trouble for source in sources if source.trouble]
  troubles += [failure.error for failure in failures(data_config)]
  return {
    'size': data_config.size,
    'files': stat(files, root),
    'troubles': troubles,
    'tables': hashlib.sha256(text.encode()).hexdigest(),
    'options': {k: v for k, v in options.items() if k not in PATHS},
  }


def sources(data_config: ConfigDict) -> list[Source]:
  return find(_root(data_config), _options(data_config))


def surveys(data_config: ConfigDict, directory: pathlib.Path) -> list[Survey]:
  """One a slide."""
  root, options = _root(data_config), _options(data_config)
  tiling = _tiling(data_config)
  return [Survey(source, tiling, directory) for source in find(root, options)]


def shards(data_config: ConfigDict, directory: pathlib.Path) -> list[Shard]:
  """One a slide."""
  tiling = _tiling(data_config)
  return [one.shard(tiling) for one in plan(data_config, directory)]


def slides(
  data_config: ConfigDict, directory: pathlib.Path
) -> list[dict[str, Any]]:
  """Rows of slides.parquet."""
  return [one.row() for one in plan(data_config, directory)]


def plan(data_config: ConfigDict, directory: pathlib.Path) -> list[Planned]:
  """What becomes of each slide, once all are surveyed."""
  root, options = _root(data_config), _options(data_config)
  surveyed = [
    (survey.source, survey.load()) for survey in surveys(data_config, directory)
  ]
  labels = _labels(_table(root, options, 'labels'), surveyed)
  empty = {source.group for source, found in surveyed if not len(found.tiles)}
  places = _divide(_table(root, options, 'splits'), labels, empty, options)
  halves = _halves(places.values(), options['seed'])
  return [
    Planned(
      source,
      found,
      found.tiles,
      places[source.group].split,
      labels[source.group],
      _columns(labels[source.group], found)
      | {'domain': halves[places[source.group].group]},
    )
    for source, found in surveyed
  ]


def _columns(label: int, found: Found) -> dict[str, Any]:
  """Tiles of a sick slide without outlines may be sick or not."""
  if label and not found.outlined:
    return {'label': -1, 'lesion': float('nan')}
  return {}


def _halves(places: Iterable[layouts.Found], seed: int) -> dict[str, str]:
  """The domain of each patient: of those of a split, every other is b."""
  splits = collections.defaultdict(set)
  for place in places:
    splits[place.split].add(place.group)
  lot = functools.partial(folder.chance, seed, 'domain')
  return {
    group: 'ab'[turn % 2]
    for groups in splits.values()
    for turn, group in enumerate(sorted(groups, key=lot))
  }


def _labels(
  table: dict[str, str] | None, surveyed: Sequence[tuple[Source, Found]]
) -> dict[str, int]:
  """Of slides by name."""
  labels = {}
  for source, found in surveyed:
    outlined = found.outlined or bool(source.annotation and found.failures)
    if source.annotation and not outlined:
      logging.warning(
        '%s outlines no lesion: its slide counts as normal.', source.annotation
      )
    label = -1 if source.trouble else int(outlined)
    if table is not None:
      label = int(table[source.group])
      if found.outlined and not label:
        raise errors.UserError(
          f'The slide {source.group} has the label 0, and {source.annotation} '
          'outlines a lesion in it; mend either.'
        )
    labels[source.group] = label
  return labels


def _divide(
  table: dict[str, str] | None,
  labels: dict[str, int],
  empty: set[str],
  options: dict[str, Any],
) -> dict[str, layouts.Found]:
  """The patient and the split of each slide, by its name.

  However few normal patients there are, one is for training; a slide that
  gives no tile takes nobody's place, and goes where others of its patient go.
  """
  found = [
    layouts.Found(
      group,
      label,
      split='' if table is None else layouts.SPLIT_FOLDERS[table[group]],
    )
    for group, label in labels.items()
  ]
  given = lambda one: table is not None or one.path not in empty
  divided = folder.divide([one for one in found if given(one)], options)
  others = [one for one in found if not given(one)]
  others = [dataclasses.replace(one, split='test') for one in others]
  if table is None and all(one.split != 'train' for one in divided):
    sick = {one.group for one in divided if one.label}
    left = {one.group for one in divided if one.split == 'test'} - sick
    lot = functools.partial(folder.chance, options['seed'], 'split')
    first = min(left, key=lot, default=None)
    divided = [
      dataclasses.replace(one, split='train') if one.group == first else one
      for one in divided
    ]
  splits = {one.group: one.split for one in divided}
  divided += [
    dataclasses.replace(one, split=splits.get(one.group, one.split))
    for one in folder.divide(others, options)
  ]
  return {one.path: one for one in divided}


def find(root: pathlib.Path, options: dict[str, Any]) -> list[Source]:
  """All slides of a folder by name, with their annotations."""
  named, given = _named(root, options), options['annotations']
  outlines = _annotations(root / given, named) if given else {}
  sources = []
  for name, paths in named.items():
    outline, trouble = outlines.get(name, ''), same_name(paths)
    if isinstance(outline, AnnotationError):
      outline, trouble = '', trouble or str(outline)
    where = str(paths[0]), str(outline)
    sources.append(Source(name, *where, options['slide_mpp'], trouble))
  return sources


def failures(data_config: ConfigDict) -> list[Failure]:
  """Annotations in the folder of them that belong to no slide."""
  root, options = _root(data_config), _options(data_config)
  given = root / options['annotations']
  if not options['annotations'] or not given.is_dir():
    return []
  slides = itertools.chain(*_named(root, options).values())
  strange = without_slide(by_slide(given), slides)
  return [Failure('annotation', str(error)) for error in strange]


def _named(
  root: pathlib.Path, options: dict[str, Any]
) -> dict[str, list[pathlib.Path]]:
  given = options['annotations']
  return find_slides(root, root / given if given else None)


def _annotations(
  given: pathlib.Path, named: Mapping[str, list[pathlib.Path]]
) -> dict[str, pathlib.Path | AnnotationError]:
  """The annotation of each slide that has one, or what is wrong with it."""
  if given.is_file():
    return _listed(given, named)
  lying, found = by_slide(given), {}
  for name, paths in named.items():
    try:
      found[name] = find_annotation(lying, paths[0])
    except AnnotationError as error:
      found[name] = error
  found = {name: path for name, path in found.items() if path}
  if not found:
    slides = itertools.chain(*named.values())
    strange = [f' ({error})' for error in without_slide(lying, slides)]
    raise errors.UserError(
      f'{given} holds no annotations of these slides{"".join(strange[:1])}. '
      f'Expected, for a slide a.svs, one of a{", a".join(ENDINGS)}.'
    )
  return found


def _listed(
  table: pathlib.Path, named: Mapping[str, list[pathlib.Path]]
) -> dict[str, pathlib.Path]:
  """The annotations that a table names."""
  rows = _read_table(table, 'annotation')
  found = {name: table.parent / path for name, path in rows.items() if path}
  if strange := [name for name in found if name not in named]:
    raise errors.UserError(
      f'{table} names {len(strange)} slides that are missing, the first '
      f'{strange[0]}.'
    )
  missing = [path for path in found.values() if not path.is_file()]
  if missing:
    raise errors.UserError(
      f'{table} names {len(missing)} annotations that are missing, the first '
      f'{missing[0]}.'
    )
  return found


def _table(
  root: pathlib.Path, options: dict[str, Any], name: str
) -> dict[str, str] | None:
  """What a table says of every slide by name; None: there is no table."""
  if not options[name]:
    return None
  path, column = root / options[name], name.removesuffix('s')
  table = _read_table(path, column)
  allowed = {'label': ('0', '1'), 'split': layouts.SPLIT_FOLDERS}[column]
  for slide, value in table.items():
    if value not in allowed:
      raise errors.unknown(f'{column} ({path}, slide {slide}):', value, allowed)
  slides = {source.group for source in find(root, options)}
  for some, others, said in (
    (slides, table, 'does not list all slides; it lacks'),
    (table, slides, 'lists slides that are not there:'),
  ):
    if lacking := sorted(set(some) - set(others)):
      more = f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''
      raise errors.UserError(f'{path} {said} {", ".join(lacking[:5])}{more}.')
  return table


def _read_table(path: pathlib.Path, column: str) -> dict[str, str]:
  """The column of a CSV file by its column `slide`."""
  if not path.is_file():
    raise errors.UserError(f'There is no table {path}.')
  with path.open(newline='', encoding='utf-8-sig') as file:
    rows = csv.DictReader(file)
    names = rows.fieldnames or []
    if not {'slide', column} <= set(names):
      raise errors.UserError(
        f'{path} has the columns {", ".join(names) or "none"}; slide and '
        f'{column} are needed.'
      )
    table = {}
    for row in rows:
      name = (row['slide'] or '').strip()
      if name.lower().endswith(SUFFIXES):  # With its suffix or without.
        name = pathlib.Path(name).stem
      if name in table:
        raise errors.UserError(f'{path} lists the slide {name} twice.')
      table[name] = (row[column] or '').strip()
  return table


def _tiling(data_config: ConfigDict) -> Tiling:
  options = _options(data_config)
  return Tiling(
    data_config.size,
    options['tissue'],
    stride=options['stride'],
    mpp=options['mpp'],
    format=options['format'],
    quality=options['quality'],
    method=options['method'],
  )


def _root(data_config: ConfigDict) -> pathlib.Path:
  path = pathlib.Path(data_config.path).expanduser().absolute()
  if path.with_name(f'{path.name}.unfinished').is_dir() and not path.is_dir():
    raise errors.UserError(
      f'{path} is unfinished; call `jaxmed tile` again to go on with it.'
    )
  what = 'a folder of slides or what `jaxmed tile` has written'
  return given.root(data_config, NAME, what)


def _options(data_config: ConfigDict) -> dict[str, Any]:
  """The options, with defaults for those that are not given, checked."""
  given.check_options(data_config.options, NAME, OPTIONS)
  options = OPTIONS | dict(data_config.options)
  if options['format'] not in slide_tiles.FORMATS:
    raise errors.unknown(
      'format of tiles', options['format'], slide_tiles.FORMATS
    )
  if options['method'] not in tissue.METHODS:
    raise errors.unknown('tissue method', options['method'], tissue.METHODS)
  if data_config.get('size', 2) < 2:
    raise errors.UserError(
      f'A tile has at least 2 px, and data.size (--size) is {data_config.size}.'
    )
  folder.check_sick(options)
  shares = options['train'] + options['validation']
  for name, allowed in (
    ('tissue', 0 <= options['tissue'] <= 1),
    ('quality', 1 <= options['quality'] <= 100),
    ('stride', options['stride'] >= 0),
    ('mpp', options['mpp'] >= 0),
    ('slide_mpp', options['slide_mpp'] >= 0),
    ('train', options['train'] >= 0 and shares <= 1),
    ('validation', options['validation'] >= 0 and shares <= 1),
  ):
    if not allowed:
      raise errors.UserError(
        f'The option {name} of the data set slides is {options[name]}, which '
        'is out of bounds.'
      )
  return options
