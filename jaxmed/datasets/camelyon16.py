"""Camelyon16: lymph nodes of two hospitals, with and without metastases.

`data.path` is the folder as it was published, in either form:
  training/normal/normal_001.tif, training/tumor/tumor_001.tif,
  training/lesion_annotations/tumor_001.xml, testing/images/test_001.tif,
  testing/lesion_annotations/test_001.xml, testing/reference.csv;
  images/*.tif and annotations/*.xml, with the same names.
Some of the slides will do. Of 270 for training and 129 for testing:
  normal_086 is a tumour, and is tumor_111 (as newer releases have it);
  test_049 shows what another slide shows and is left out;
  test_114 and 20 tumour slides for training are not exhaustively annotated:
    their tiles without an outline are never taken for normal, and
    slides.parquet says so (`exhaustive`), so that test_114 has no part in FROC;
  `validation` of the normal slides for training, by a hash of their names,
    are for thresholds, and `validation_tumour` of the tumour slides, if it is
    not 0, to fit what a supervised method says of both;
  the domain is A where pixels have the size of Radboud's scanner (0.243 um),
    and B where they have that of Utrecht's (0.226 um).

Tiles of the side `tile` (or data.size) are drawn at random from those of all
slides together; the column `draw` is a tile's place in that order, within its
split and label, so that fewer are the first of more. `protocol` says of which:
  munit: tiles side by side, on the tissue of CODAIT's filter. For training
    80,000 healthy ones and 25,000 of cancer, both at least 0.9 tissue, the
    latter at least 0.9 lesion; for testing those of the tumour slides with
    0.8 tissue, which both published bands are a part of;
  fwrd: FW-RD's places, around pixels of a mask at level 6; for training
    5,000 healthy ones and 1,001 of cancer, at most 122 a slide, from 10 tumour
    slides (of those that are exhaustively annotated); for testing 10,000 each.
Queries on the index choose among them (QUERIES).
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.datasets import given
from jaxmed.datasets.camelyon16_folder import Member, find
from jaxmed.datasets.folder import chance
from jaxmed.datasets.shards import Shard
from jaxmed.datasets.slide_tiles import Tiles, Tiling
from jaxmed.datasets.surveys import Planned, Source, Survey, stat

NAME = 'camelyon16'
VERSION = '1.0.0'
DESCRIPTION = 'Camelyon16: whole slides of sentinel lymph nodes, in tiles.'
CITATION = """@article{bejnordi2017camelyon16,
  title={Diagnostic Assessment of Deep Learning Algorithms for Detection of
    Lymph Node Metastases in Women With Breast Cancer},
  author={Ehteshami Bejnordi, Babak and others},
  journal={JAMA},
  volume={318},
  number={22},
  pages={2199--2210},
  year={2017}
}"""
LICENCE = 'CC0-1.0'

FULL = {'train': 270, 'test': 129}  # Slides, validation counted as training.
SCANNERS = {'A': 0.243, 'B': 0.226}  # Micrometres per pixel of level 0.
SHARED = {
  'tile': 0,  # Side of the tiles, px; 0: data.size.
  'seed': 0,
  'validation': 0.1,  # The share of the normal training slides.
  'validation_tumour': 0.0,  # That of the tumour slides, for both classes.
  'validation_tiles': 5_000,  # Of each class.
  'quality': 90,
}
PROTOCOLS = {
  'munit': SHARED
  | {
    'normal': 80_000,  # Tiles that are drawn; 0: all that there are.
    'tumour': 25_000,
    'test': 25_000,  # Of each class.
    'test_slides': 'tumour',  # Whose tiles are tested: tumour, or all.
    'tissue': 0.9,  # Least share of a tile for training or validation.
    'lesion': 0.9,  # Least share of a tile of cancer for training.
    'test_tissue': 0.8,
    'method': 'codait',
    'tumour_slides': 0,  # For training, drawn; 0: all.
    'normal_per_slide': 0,  # Tiles at most; 0: any number.
    'tumour_per_slide': 0,
  },
  'fwrd': SHARED
  | {
    'normal': 5_000,
    'tumour': 1_001,
    'test': 10_000,
    'test_slides': 'all',
    'tissue': 0.0,  # The rule for places is all.
    'lesion': 0.0,
    'test_tissue': 0.0,
    'method': 'otsu',
    'tumour_slides': 10,
    'normal_per_slide': 500,
    'tumour_per_slide': 122,
  },
}
# For data.cohorts and data.test. Few-shot sets of k tiles of cancer are
# `label == 1 and draw < k`: the 5 are among the 10.
QUERIES = {
  'healthy': "split == 'train' and label == 0",
  'healthy A': "split == 'train' and label == 0 and domain == 'A'",
  'healthy B': "split == 'train' and label == 0 and domain == 'B'",
  'validation': "split == 'validation' and label == 0",
  'supervised 25k+25k': "split == 'train' and draw < 25000",
  'test 90/90': (
    "split == 'test' and tissue >= 0.9 and (label == 0 or lesion >= 0.9)"
  ),
  'test 80/10': (
    "split == 'test' and tissue >= 0.8 and (label == 0 or lesion >= 0.1)"
  ),
}


def fingerprint(data_config: ConfigDict) -> dict[str, Any]:
  """The files by name, size and time, and the options."""
  root, options = _root(data_config), _options(data_config)
  members = find(root)
  files = [one.source.path for one in members]
  files += [one.source.annotation for one in members if one.source.annotation]
  labels = {one.name: one.tumour for one in members}
  return {
    'size': _tiling(data_config).size,
    'files': stat(files, root),
    'tumours': labels,
    'options': options,
  }


def sources(data_config: ConfigDict) -> list[Source]:
  return [one.source for one in find(_root(data_config))]


def surveys(data_config: ConfigDict, directory: pathlib.Path) -> list[Survey]:
  """One a slide."""
  members, tiling = find(_root(data_config)), _tiling(data_config)
  for split, full in FULL.items():
    count = sum(one.split == split for one in members)
    if count != full:
      logging.warning('Camelyon16: %d of %d %s slides.', count, full, split)
  return [Survey(one.source, tiling, directory) for one in members]


def shards(data_config: ConfigDict, directory: pathlib.Path) -> list[Shard]:
  """One a slide, of those that give any tile."""
  tiling = _tiling(data_config)
  return [
    one.shard(tiling)
    for one in plan(data_config, directory)
    if len(one.tiles) or one.found.failures
  ]


def slides(
  data_config: ConfigDict, directory: pathlib.Path
) -> list[dict[str, Any]]:
  """Rows of slides.parquet; a launch scores those for testing."""
  return [one.row() for one in plan(data_config, directory)]


def plan(data_config: ConfigDict, directory: pathlib.Path) -> list[Planned]:
  """What becomes of each slide, once all are surveyed."""
  options, tiling = _options(data_config), _tiling(data_config)
  members = divide(find(_root(data_config)), options)
  found = [Survey(one.source, tiling, directory).load() for one in members]
  for member, one in zip(members, found, strict=True):
    if member.tumour and not (one.outlined or one.failures):
      raise errors.UserError(
        f'{member.source.annotation} outlines no lesion, and {member.name} is '
        'a tumour slide.'
      )
  candidates = [one.tiles for one in found]
  drawn = [
    pool.draw(candidates, options['seed']) for pool in pools(members, options)
  ]
  return [
    Planned(
      member.source,
      one,
      Tiles.joined([some[number] for some in drawn if number in some]),
      member.split,
      int(member.tumour),
      {'domain': domain(one.mpp)},
      member.exhaustive,
    )
    for number, (member, one) in enumerate(zip(members, found, strict=True))
  ]


def domain(mpp: float) -> str:
  """The scanner whose pixels are nearest to this in size; '' if unknown."""
  if not mpp > 0:
    return ''
  return min(SCANNERS, key=lambda name: abs(SCANNERS[name] - mpp))


@dataclasses.dataclass(frozen=True)
class Pool:
  """Tiles of one split and label, of which some are drawn.

  Attributes:
    name: for the dice.
    slides: the numbers of the slides that they come from.
    lesion: whether they show cancer.
    wanted: how many are drawn; 0: all.
    tissue: least share of a tile.
    least: share of a lesion in a tile of cancer.
    per_slide: most tiles of a slide; 0: any number.
  """

  name: str
  slides: Sequence[int]
  lesion: bool
  wanted: int
  tissue: float
  least: float = 0.0
  per_slide: int = 0

  def draw(self, candidates: Sequence[Tiles], seed: int) -> dict[int, Tiles]:
    """Some of the candidates of each slide, by its number.

    All tiles are shuffled; those that come first are taken, and no more of a
    slide than it may give.
    """
    slide, place = [], []
    for number in self.slides:
      (fit,) = np.nonzero(self._fits(candidates[number]))
      slide.append(np.full(len(fit), number))
      place.append(fit)
    slide, place = (
      np.concatenate([[], *v]).astype(int) for v in (slide, place)
    )
    dice = np.random.default_rng((seed, zlib.crc32(self.name.encode())))
    order = dice.permutation(len(slide))
    if self.per_slide:
      order = order[_turn(slide[order]) < self.per_slide]
    order = order[: self.wanted or None]
    drawn = {}
    for number in self.slides:
      (turn,) = np.nonzero(slide[order] == number)
      tiles = candidates[number][place[order[turn]]]
      drawn[number] = dataclasses.replace(tiles, draw=turn.astype(np.int32))
    return drawn

  def _fits(self, tiles: Tiles) -> np.ndarray:
    enough = tiles.tissue >= self.tissue
    if not self.lesion:
      return enough & (tiles.lesion == 0)
    return enough & (tiles.lesion > 0) & (tiles.lesion >= self.least)


def _turn(values: np.ndarray) -> np.ndarray:
  """How often each value came before: 0, 1, 2 for three that are equal."""
  order = np.argsort(values, kind='stable')
  _, first, counts = np.unique(
    values[order], return_index=True, return_counts=True
  )
  turn = np.empty(len(values), int)
  turn[order] = np.arange(len(values)) - np.repeat(first, counts)
  return turn


def pools(members: Sequence[Member], options: dict[str, Any]) -> list[Pool]:
  """What is drawn from which slides."""

  def of(split: str, which) -> list[int]:
    return [
      number
      for number, one in enumerate(members)
      if one.split == split and which(one)
    ]

  healthy = of('train', lambda one: one.exhaustive or not one.tumour)
  sick = of('train', lambda one: one.tumour)
  if limit := options['tumour_slides']:
    lots = {
      number: chance(options['seed'], 'slides', members[number].name)
      for number in sick
      if members[number].exhaustive
    }
    healthy = sick = sorted(sorted(lots, key=lots.get)[:limit])
  tested = of('test', lambda one: one.tumour or options['test_slides'] == 'all')
  known = [number for number in tested if members[number].exhaustive]
  tumours = [number for number in tested if members[number].tumour]
  tissue, test_tissue = options['tissue'], options['test_tissue']
  return [
    Pool(
      'train normal',
      healthy,
      False,
      options['normal'],
      tissue,
      per_slide=options['normal_per_slide'],
    ),
    Pool(
      'train tumour',
      sick,
      True,
      options['tumour'],
      tissue,
      options['lesion'],
      options['tumour_per_slide'],
    ),
    Pool(
      'validation normal',
      of('validation', lambda one: one.exhaustive or not one.tumour),
      False,
      options['validation_tiles'],
      tissue,
    ),
    Pool(
      'validation tumour',
      of('validation', lambda one: one.tumour),
      True,
      options['validation_tiles'],
      tissue,
      options['lesion'],
    ),
    Pool('test normal', known, False, options['test'], test_tissue),
    Pool('test tumour', tumours, True, options['test'], test_tissue),
  ]


def divide(members: Sequence[Member], options: dict[str, Any]) -> list[Member]:
  """Some of the slides for training become those for validation.

  Of the normal ones one at least, for there are no thresholds without; and
  one stays. Of tumours, their own share.
  """
  lots = {
    one.name: chance(options['seed'], 'validation', one.name)
    for one in members
    if one.split == 'train' and not one.tumour
  }
  order = sorted(lots, key=lots.get)
  count = sum(lot < options['validation'] for lot in lots.values())
  if options['validation']:
    count = min(max(count, 1), len(lots) - 1)
  chosen = set(order[: max(count, 0)])
  share = options['validation_tumour']
  chosen |= {
    one.name
    for one in members
    if one.split == 'train'
    and one.tumour
    and chance(options['seed'], 'validation', one.name) < share
  }
  return [
    dataclasses.replace(one, split='validation') if one.name in chosen else one
    for one in members
  ]


def _tiling(data_config: ConfigDict) -> Tiling:
  options = _options(data_config)
  return Tiling(
    options['tile'] or data_config.size,
    min(options['tissue'], options['test_tissue']),
    quality=options['quality'],
    method=options['method'],
    places='grid' if options['protocol'] == 'munit' else 'fwrd',
    seed=options['seed'],
  )


def _root(data_config: ConfigDict) -> pathlib.Path:
  layout = (
    'the folder with training/ and testing/, or with images/ and annotations/'
  )
  return given.root(data_config, NAME, layout)


def _options(data_config: ConfigDict) -> dict[str, Any]:
  """The protocol's options, with those that are given, checked."""
  chosen = dict(data_config.options)
  protocol = chosen.pop('protocol', 'munit')
  if protocol not in PROTOCOLS:
    raise errors.unknown('protocol of Camelyon16', protocol, PROTOCOLS)
  known = PROTOCOLS[protocol]
  given.check_options(chosen, NAME, known)
  # A config says -1 or '' where it leaves something to the protocol.
  options = known | {k: v for k, v in chosen.items() if v not in (-1, '')}
  if options['test_slides'] not in ('tumour', 'all'):
    raise errors.unknown(
      'choice of test_slides', options['test_slides'], ('tumour', 'all')
    )
  for name, value in options.items():
    share = isinstance(known[name], float)
    if isinstance(value, str):
      continue
    if value < 0 or (share and value > 1):
      raise errors.UserError(
        f'data.options.{name} is {value}; it has to be '
        f'{"0 to 1" if share else "at least 0"}.'
      )
  return options | {'protocol': protocol}
