"""FW-RD: what reverse distillation has, its loss, and its way with slides."""

import jax.numpy as jnp
import numpy as np

from jaxmed.methods import fwrd
from jaxmed.metrics import lesions, roc
from jaxmed.slides import grid, otsu, sampling
from tests.golden import distillation, filling

LEVEL = 6
PROTOCOL = {'radius': 6, 'threshold': 2.0, 'above': 2.01}
NCRF_THRESHOLD = 0.5  # nms.py's own.
CERTAIN = -2.2  # Of the rule's values; those above are in the mask.


def compute(manifest, directory):
  del directory
  sizes = manifest['hyperparameters']
  normal = np.array(sizes['labels']) == 1
  loss = lambda teacher, student: _loss(teacher, student, normal, sizes)
  found, pairs = distillation.outputs(manifest, 3, loss)
  given = filling.inputs(manifest)
  return {
    **found,
    **_losses(pairs, normal, sizes),
    **_slide(given['probs_map']),
    **_decision(given),
    **_places(given),
  }


def _loss(teacher, student, normal, sizes):
  return sum(
    fwrd.focal(s, normal, sizes['alpha'], sizes['gamma']).mean()
    for s in fwrd.similarities(teacher, student)
  )


def _losses(pairs, normal, sizes) -> dict:
  """`count` adds what a nominal batch lacks in normal images."""
  found = {'count': np.int64(sizes['batch_size_argument'] - normal.sum())}
  for mode, pair in pairs.items():
    similarity = np.array(fwrd.similarities(*pair), np.float64)
    found[f'ploss_nloss_{mode}'] = [
      similarity[:, kind].sum() / len(similarity) for kind in (normal, ~normal)
    ]
    for name, labels in (('all1', normal | True), ('all0', normal & False)):
      found[f'loss_{mode}_{name}'] = _loss(*pair, jnp.array(labels), sizes)
  return found


def _slide(probabilities) -> dict:
  """The map is of (x, y), ours of rows and columns."""
  scores = np.minimum(np.abs(probabilities), 3)
  above = scores[scores >= PROTOCOL['above']].astype(np.float64)

  def suppressed(threshold):
    rows = lesions.suppress(scores.T, PROTOCOL['radius'], threshold, 2**LEVEL)
    return np.column_stack([np.round(rows[:, 0], 5), rows[:, 1:]])

  return {
    'nms': suppressed(PROTOCOL['threshold']),
    'nms_default': suppressed(NCRF_THRESHOLD),
    'slide_score': above.mean() if len(above) else 0.0,
  }


def _decision(given) -> dict:
  labels = given['gt'] > 0
  scores = given['scores'].astype(np.float64) + 0.7 * labels
  best = roc.best_f1(labels, scores)
  cut = roc.confusion(labels, scores, best.threshold)
  return {'f1_threshold': best.threshold, 'f1_accuracy': cut.accuracy}


def _places(given) -> dict:
  picture = 160 + 90 * given['thumb'][0].astype(np.float64)
  pixels = np.clip(np.round(picture), 0, 255).astype(np.uint8)
  mask = (given['sample_mask'] > CERTAIN).T
  height, width = mask.shape
  size = width * 2**LEVEL, height * 2**LEVEL
  candidates = sampling.surrounded(mask, wrap=True).T
  places = sampling.training_places(
    grid.Mask(mask, size), mask.size, 0, strict=True
  )
  half = places.tile // 2
  return {
    'tissue_mask': otsu.otsu_mask(pixels.transpose(1, 2, 0)).T,
    'sample_candidates': np.argwhere(candidates),
    'sample_centres': np.stack([places.x, places.y], axis=1) + half,
  }
