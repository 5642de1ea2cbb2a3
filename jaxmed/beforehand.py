"""Mistakes that would show after hours of training, found before it.

A run's config is settled once it has learned something, so a test that is
empty or a batch that no device count divides must be known by then.
"""

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmed import errors, evaluate_lesions, methods
from jaxmed.datasets import phantom
from jaxmed.datasets.records import Records
from jaxmed.errors import UserError
from jaxmed.nn.precision import PRECISIONS
from jaxmed.pipeline import stain
from jaxmed.pipeline.frame import Frame
from jaxmed.scoring import score_records, slide_files, slide_work
from jaxmed.slides import tissue
from jaxmed.training import sharding
from jaxmed.watching import choice

GROUPS = ('data', 'model', 'train', 'score', 'eval', 'report')
CHOICES = (
  ('train.precision', PRECISIONS),
  ('train.select', choice.RULES),
  ('score.scheme', slide_work.SCHEMES),
  ('score.tissue_method', ('', *tissue.METHODS)),
  ('eval.slide_rule', slide_files.RULES),
)
# (field, least, most); None: no bound.
BOUNDS = (
  ('data.size', 2, None),
  ('train.batch', 1, None),
  ('train.steps', 1, None),
  ('train.save_minutes', 0, None),
  ('train.keep', 1, None),
  ('train.log_every', 1, None),
  ('train.watch.every', 0, None),
  ('train.watch.images', 2, None),
  ('train.watch.real', 0, None),
  ('train.watch.collapse', 0, None),
  ('score.batch', 1, None),
  ('score.stride', 0, None),
  ('score.tissue', 0, 1),
  ('score.max_failed', 0, 1),
  ('score.map_mpp', 0.01, None),
  ('score.top_k', 1, None),
  ('score.nms_radius', 0, None),
  ('eval.quantile', 0, 1),
  ('eval.specificity', 0, 1),
  ('eval.resamples', 1, None),
  ('report.examples', 0, None),
)


def check_config(config: ConfigDict) -> None:
  """What can be known of a config alone."""
  for name in ('method', 'preset', 'seed', *GROUPS):
    if name not in config:
      raise UserError(
        f'The config has no {name!r}; begin it from jaxmed.configs.defaults, '
        'which has all that a launch reads.'
      )
  if config.method not in methods.names():
    raise errors.unknown('method', config.method, methods.names())
  if config.data.name == phantom.NAME and config.data.path:
    raise UserError(
      f'data.path is {config.data.path}, and the preset {config.preset!r} '
      f'makes phantom slides instead; give --config={config.method}:folder, or '
      'another preset that reads files.'
    )
  check_choices(config)
  evaluate_lesions.check_protocol(config)
  if config.eval.protocol and not config.score.slides:
    raise UserError(
      f'The protocol {config.eval.protocol} is of whole slides, and '
      'config.score.slides is False; set it to True, or --config.eval.protocol='
      ' to nothing.'
    )
  stain.target_of(config.data)
  check_numbers(config)


def _field(config: ConfigDict, name: str) -> Any:
  return functools.reduce(
    lambda group, field: group[field], name.split('.'), config
  )


def check_choices(config: ConfigDict) -> None:
  for name, known in CHOICES:
    value = _field(config, name)
    field = name.rpartition('.')[2]
    if value not in known:
      raise errors.unknown(f'{field} (config.{name})', value, known)


def check_numbers(config: ConfigDict) -> None:
  for name, least, most in BOUNDS:
    value = _field(config, name)
    if value < least or (most is not None and value > most):
      bounds = f'at least {least}' if most is None else f'{least} to {most}'
      raise UserError(f'config.{name} is {value}; it has to be {bounds}.')


def check_data(config: ConfigDict, records: Records) -> None:
  """What scoring will ask of the data and the devices."""
  sharding.batch_sharding(
    sharding.make_mesh(jax.local_devices()), config.score.batch
  )
  Frame.of(config.data, records.bits)
  drawn = [records.select(query) for query in config.data.cohorts.values()]
  rows = np.concatenate([score_records.chosen(config, records), *drawn])
  if not config.data.resize:
    _refuse_small(records, np.unique(rows), config.data.size)


def _refuse_small(records: Records, rows: np.ndarray, size: int) -> None:
  index = records.index.select(('key', 'width', 'height')).take(rows)
  sides = [index[name].to_numpy() for name in ('width', 'height')]
  small = np.flatnonzero(np.minimum(*sides) < size)
  if len(small):
    width, height = (side[small[0]] for side in sides)
    raise UserError(
      f'{len(small)} of {len(rows)} images are smaller than data.size = '
      f'{size}, the first {index["key"][small[0].item()]} of {width} x '
      f'{height} px; choose a smaller --config.data.size, or set '
      f'--config.data.resize to at least {size} to enlarge.'
    )
