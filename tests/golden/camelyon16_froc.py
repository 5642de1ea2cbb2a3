"""Lesions, detections and FROC against the official Camelyon16 script."""

import numpy as np
from scipy import ndimage

from jaxmed.metrics import froc, lesions

# The same numbers; printing them and sums in another order leave a little.
EXACT = 1e-15
NEARLY = 1e-8


def compute(manifest, directory):
  constants = manifest['hyperparameters']
  with np.load(directory / 'outputs.npz') as outputs:
    given = {k: outputs[k] for k in outputs if _is_input(manifest, k)}
  pixel = constants['resolution_um'] * 2 ** constants['level']
  tumour = constants['tumour_slides']
  shape = tumour, *constants['mask_shape']
  masks = np.unpackbits(given['lesion_mask'], count=np.prod(shape))
  regions = [
    lesions.regions(mask, pixel) for mask in masks.reshape(shape).astype(bool)
  ]
  found = given | _regions(regions, pixel, shape[1:])
  every = range(tumour + constants['normal_slides'])
  for name, source, slides in (
    ('exact', 'exact', every),
    ('decimal', 'decimal', every),
    ('clean', 'exact', constants['clean_slides']),
  ):
    rows = given[f'{source}_detections']
    by_slide = {i: rows[rows[:, 0] == i, 1:] for i in slides}
    some = _froc(by_slide, regions, constants)
    found |= {f'{name}_{what}': value for what, value in some.items()}
  return found | {
    f'nms_{i}': _suppressed(given['probs_map'], settings)
    for i, settings in enumerate(constants['nms'])
  }


def tolerance(name, manifest):
  del manifest
  if name.startswith(('exact_', 'decimal_', 'clean_')):
    return EXACT
  return NEARLY


def _is_input(manifest, name: str) -> bool:
  return manifest['outputs'].get(name, '').startswith('INPUT')


def _regions(regions, pixel, shape) -> dict:
  """Of an empty mask the original finds a lesion, as scipy measures it."""
  nothing = np.zeros(shape, bool)
  assert not lesions.evaluation_mask(nothing, pixel).any()
  threshold = lesions.GAP / (2 * pixel)
  rows = [
    (i, label, area, length)
    for i, found in enumerate(regions)
    for label, (area, length) in enumerate(
      zip(found.areas, found.lengths, strict=True), 1
    )
  ]
  cells = [
    (i, label)
    for i, found in enumerate(regions)
    for label in np.flatnonzero(found.itc) + 1
  ]
  distance = ndimage.distance_transform_edt(~nothing)
  return {
    'evaluation_mask': np.stack([found.labels for found in regions]),
    'itc': np.array(cells, np.int64).reshape(-1, 2),
    'regions': np.array(rows, np.float64).reshape(-1, 4),
    'thresholds': [threshold, lesions.ITC_LENGTH / pixel],
    'empty_mask_pixels': np.count_nonzero(distance < threshold),
  }


def _froc(by_slide: dict, regions, constants) -> dict:
  downsample = 2 ** constants['level']
  of = lambda i: regions[i] if i < len(regions) else None
  slides = {
    i: lesions.hits(rows, of(i), downsample, strict=True)
    for i, rows in by_slide.items()
  }
  points = froc.curve(list(slides.values()), strict=True)
  at = froc.sensitivity_at(points, constants['false_positive_rates'])
  summary = [
    (i, label + 1, *(by_slide[i][kept] if kept >= 0 else [-1] * 3))
    for i, hits in slides.items()
    for label, kept in enumerate(hits.kept)
    if not of(i).itc[label]
  ]
  return {
    'total_fps': points.false_positives,
    'total_sensitivity': points.sensitivity,
    'sensitivity_at': at,
    'score': at.mean(),
    'num_tumors': np.array([hits.lesions for hits in slides.values()]),
    'tp_probs': np.concatenate([hits.best for hits in slides.values()]),
    'fp_probs': np.concatenate([hits.false for hits in slides.values()]),
    'summary': np.array(summary, np.float64).reshape(-1, 5),
  }


def _suppressed(given: np.ndarray, settings: dict) -> np.ndarray:
  """As nms.py prints it; its map has x as the first axis."""
  found = lesions.suppress(
    given.T,
    settings['radius'],
    settings['prob_thred'],
    2 ** settings['level'],
    settings['sigma'],
  )
  printed = [float(f'{confidence:0.5f}') for confidence in found[:, 0]]
  return np.column_stack([printed, found[:, 1:]])
