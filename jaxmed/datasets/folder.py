"""Your own images: a folder of normal and anomalous ones, as a data set.

The folder's layout says which is which (see layouts.py). Files are stored as
they are; one that cannot be read is listed in failures.jsonl with its reason.
Where the layout has no splits, normal images are divided by a hash of their
patient, so that a new file moves no other; patients with an anomaly are for
testing, but for the shares `train_sick` and `validation_sick` of them.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.datasets import given, images, layouts
from jaxmed.datasets.layouts import Found
from jaxmed.datasets.shards import Example, Failure, Shard

NAME = 'folder'
VERSION = '1.0.0'
DESCRIPTION = 'Images of a folder, normal and anomalous.'
CITATION = ''
LICENCE = 'That of the images.'

OPTIONS = {
  'seed': 0,
  'train': 0.6,  # The share of the normal groups that is for training.
  'validation': 0.1,  # And for thresholds; the rest is for testing.
  # The shares of the groups with an anomaly for each; the rest is for testing.
  'train_sick': 0.0,
  'validation_sick': 0.0,
  'group': '',  # A pattern whose first group is the patient, of file names.
  'labels': '',  # A CSV file, relative to the folder.
}
CHUNK = 256  # Files of a shard.


def fingerprint(data_config: ConfigDict) -> dict[str, Any]:
  """The files by name, size and time, and the options."""
  root, options = _root(data_config), _options(data_config)
  digest = hashlib.sha256()
  for found in layouts.find(root, options['labels']):
    for path in filter(None, (found.path, found.mask)):
      status = layouts.status(root / path)
      line = f'{path}\0{status.st_size}\0{status.st_mtime_ns}\n'
      try:
        digest.update(line.encode())
      except UnicodeEncodeError:
        raise errors.UserError(
          f'The name {path!r} in {root} is not in UTF-8; rename the file.'
        ) from None
    digest.update(repr(found).encode())
  return {'files': digest.hexdigest(), 'options': options}


def expected_bytes(data_config: ConfigDict) -> int:
  root, options = _root(data_config), _options(data_config)
  found = layouts.find(root, options['labels'])
  paths = [path for one in found for path in (one.path, one.mask) if path]
  return sum(layouts.status(root / path).st_size + 2**10 for path in paths)


def shards(data_config: ConfigDict, directory: pathlib.Path) -> list[Shard]:
  """Chunks of files of one split."""
  del directory
  root, options = _root(data_config), _options(data_config)
  members = collections.defaultdict(list)
  for found in divide(layouts.find(root, options['labels']), options):
    members[found.split].append(found)
  if not any(found.label == 0 for found in members['train']):
    raise errors.UserError(
      f'No normal image of {root} is left for training: '
      f'data.options.train is {options["train"]}, and a patient with an '
      'anomaly is wholly for testing. Give more images or another share.'
    )
  return [
    Shard(
      name=f'{split}/{start}',
      split=split,
      examples=functools.partial(
        read, root, tuple(found[start : start + CHUNK]), options['seed']
      ),
    )
    for split, found in members.items()
    for start in range(0, len(found), CHUNK)
  ]


def divide(found: Sequence[Found], options: dict[str, Any]) -> list[Found]:
  """Every image with its group and split.

  Splits that the layout gives stay. If it gives no validation images, some of
  its training ones become them, for there are no thresholds without.
  """
  found = [
    dataclasses.replace(one, group=one.group or _group(one.path, options))
    for one in found
  ]
  sick = {one.group for one in found if one.label != 0}
  given = {one.split for one in found} - {''}
  train = 0.0 if 'train' in given else options['train']
  edge = train + options['validation']
  # Groups that chance may send to validation, by their lot.
  drawn = {
    one.group: chance(options['seed'], 'split', one.group)
    for one in found
    if one.split == ('train' if 'train' in given else '')
    and one.group not in sick
    and 'validation' not in given
  }
  chosen = {group for group, lot in drawn.items() if train <= lot < edge}
  if len(drawn) > 1 and not chosen and options['validation']:  # At least one.
    training = [group for group, lot in drawn.items() if lot < train]
    able = [group for group in drawn if training != [group]]  # One is left.
    chosen = {min(able, key=lambda group: abs(drawn[group] - edge))}

  def split(one: Found) -> str:
    if one.group in chosen:
      return 'validation'
    if one.split:
      return one.split
    lot = chance(options['seed'], 'split', one.group)
    if one.group not in sick:
      return 'train' if lot < train else 'test'
    if lot < options['train_sick']:
      return 'train'
    edge = options['train_sick'] + options['validation_sick']
    return 'validation' if lot < edge else 'test'

  return [dataclasses.replace(one, split=split(one)) for one in found]


def read(
  root: pathlib.Path, found: Sequence[Found], seed: int
) -> Iterator[Example | Failure]:
  """The examples of some files, each decoded once to be sure of it."""
  for one in found:
    try:
      yield _example(root, one, seed)
    except (images.ImageError, OSError) as error:
      yield Failure(one.path, str(error))


def _example(root: pathlib.Path, found: Found, seed: int) -> Example:
  image = (root / found.path).read_bytes()
  header = images.check(image)
  mask, lesion = b'', 0.0 if found.label == 0 else float('nan')
  if found.mask:
    mask, lesion = _mask(root / found.mask, header)
  half = chance(seed, 'domain', found.group) < 0.5
  return {
    'image': image,
    'mask': mask,
    'key': found.path,
    'group': found.group,
    'label': found.label,
    'kind': found.kind,
    'lesion': lesion,
    'domain': 'a' if half else 'b',
  }


def _mask(path: pathlib.Path, image: images.Header) -> tuple[bytes, float]:
  try:
    encoded = path.read_bytes()
    pixels = images.decode_mask(encoded)
  except images.ImageError as error:
    raise images.ImageError(f'its mask {path.name}: {error}') from error
  if pixels.shape != (image.height, image.width):
    raise images.ImageError(
      f'its mask {path.name} is {pixels.shape[1]} x {pixels.shape[0]} px, the '
      f'image {image.width} x {image.height}'
    )
  if images.probe(encoded).format != 'png':
    encoded = images.encode_mask(pixels)
  return encoded, float(pixels.mean())


def _group(path: str, options: dict[str, Any]) -> str:
  """The patient, from the file's name, or its path if the pattern has a /."""
  pattern = options['group']
  if not pattern:
    return path
  text = path if '/' in pattern else path.rpartition('/')[2]
  try:
    match = re.search(pattern, text)
    group = match and match[1]
  except (re.error, IndexError) as error:
    raise errors.UserError(
      f'data.options.group is {pattern!r}: {error}. Expected a regular '
      r"expression with a group in it, such as '^(patient\d+)_'."
    ) from error
  if not group:
    raise errors.UserError(
      f'data.options.group {pattern!r} finds no patient in {text!r}. Every '
      'image needs one; mend the pattern or the name.'
    )
  return group


def chance(seed: int, purpose: str, group: str) -> float:
  """A number in [0, 1) that only these three decide."""
  digest = hashlib.sha256(f'{seed}/{purpose}/{group}'.encode()).digest()
  return int.from_bytes(digest[:7]) / 2**56


def _root(data_config: ConfigDict) -> pathlib.Path:
  return given.root(data_config, NAME, 'the folder of images')


def check_sick(options: dict[str, Any]) -> None:
  """The shares of patients with an anomaly that are not for testing."""
  train, validation = options['train_sick'], options['validation_sick']
  if train < 0 or validation < 0 or train + validation > 1:
    raise errors.UserError(
      f'data.options.train_sick is {train} and validation_sick {validation}; '
      'they are shares of the patients with an anomaly, and 1 at most together.'
    )


def _options(data_config: ConfigDict) -> dict[str, Any]:
  given.check_options(data_config.options, NAME, OPTIONS)
  options = OPTIONS | dict(data_config.options)
  train, validation = options['train'], options['validation']
  check_sick(options)
  if not (train > 0 and validation >= 0 and train + validation <= 1):
    raise errors.UserError(
      f'data.options.train is {train} and validation {validation}; they are '
      'shares of the normal images, of which together at most 1.'
    )
  return options
