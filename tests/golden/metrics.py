"""Similarities and metrics against scikit-image, torchmetrics and sklearn."""

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from jaxmed.metrics import frechet, overlap, roc
from jaxmed.ops import ssim
from tests.golden import filling


def compute(manifest, directory):
  del directory
  constants = manifest['hyperparameters']
  given = filling.inputs(manifest)
  return {
    **_ssim(given, constants),
    **_ms_ssim(given, constants),
    **_frechet(given, constants),
    **_classified(given, constants),
    **_segmented(given, constants),
  }


def tolerance(name, manifest):
  """What should be zero has no size to compare with: `_frechet` bounds it."""
  del manifest
  return np.inf if name == 'frechet_same' else None


def _settings(constants) -> dict:
  return {
    'sigma': constants['ssim']['sigma'],
    'data_range': constants['ssim']['data_range'],
    'constants': (constants['ssim']['K1'], constants['ssim']['K2']),
  }


def _nhwc(x):
  return jnp.moveaxis(jnp.asarray(x, jnp.float32), 1, -1)


def _enlarged(x, like):
  """Every pixel repeated until the image is as large as the other."""
  down, across = (
    n // m for n, m in zip(like.shape[2:], x.shape[2:], strict=True)
  )
  return x.repeat(down, axis=2).repeat(across, axis=3)


def _ssim(given, constants) -> dict:
  settings = _settings(constants)
  noise = given['ssim_x']
  blocks = _enlarged(given['ssim_b'], given['ssim_bn'])
  pairs = {
    'noise': (noise, 0.8 * noise + 0.2 * given['ssim_n']),
    'block': (blocks, 0.9 * blocks + 0.1 * given['ssim_bn']),
  }
  found = {}
  for name, pair in pairs.items():
    x, y = map(_nhwc, pair)
    gray = x[..., :1], y[..., :1]
    sampled = ssim.ssim(x, y, sample_covariance=True, **settings)
    theirs = ssim.ssim_map(x, y, border='reflect', **settings)
    mirrored = ssim.ssim_map(x, y, border='symmetric', **settings)
    found |= {
      f'skimage_{name}_rgb_mean': ssim.ssim(x, y, **settings)[0],
      f'skimage_{name}_rgb_map': jnp.moveaxis(mirrored[0], -1, 0),
      f'skimage_{name}_grey_mean': ssim.ssim(*gray, **settings)[0],
      f'skimage_{name}_samplecov_mean': sampled[0],
      f'torchmetrics_{name}_rgb_mean': theirs[0].mean(),
      f'torchmetrics_{name}_rgb_map': jnp.moveaxis(theirs[0], -1, 0),
    }
  x, y = (_nhwc(image)[..., :1] for image in pairs['noise'])
  wrong = settings | {'data_range': 1.0}
  return found | {'ssim_range_differs': ssim.ssim(x, y, **wrong)[0]}


def _ms_ssim(given, constants) -> dict:
  settings = _settings(constants)
  betas = constants['ms_ssim_betas']
  x = _enlarged(given['ms_x'], given['ms_n'])
  x, y = _nhwc(x), _nhwc(0.8 * x + 0.2 * given['ms_n'])

  def similarity(y, normalize):
    return ssim.ms_ssim(x, y, betas=betas, normalize=normalize, **settings)

  relu = similarity(y, 'relu')
  whole = ssim.ssim_map(x, y, border='reflect', **settings)
  error = np.square(np.asarray(x, np.float64) - y).mean(axis=(1, 2, 3))
  return {
    'torchmetrics_msssim_relu': relu,
    'torchmetrics_msssim_none': similarity(y, None),
    'torchmetrics_msssim_simple': similarity(y, 'simple'),
    'torchmetrics_msssim_negative': similarity(-y, 'relu'),
    'torchmetrics_msssim_class': relu.mean(),
    'torchmetrics_ssim_batch': whole.mean(),
    'psnr': 10 * np.log10(constants['ssim']['data_range'] ** 2 / error),
  }


def _frechet(given, constants) -> dict:
  a, b, mix = (
    given[f'fid_{name}'].astype(np.float64) for name in ('a', 'b', 'mix')
  )
  few = constants['frechet_few_rows']
  b = 1.25 * b + 0.5
  mixed = frechet.frechet(a @ (mix / 4), b)
  same = frechet.frechet(a, a)
  assert abs(same) < 1e-9 * a.shape[1], same
  return {
    'frechet': frechet.frechet(a, b),
    'frechet_mixed': mixed,
    'frechet_mixed_eig': mixed,
    'frechet_same': same,
    'frechet_few': frechet.frechet(a[:few], b[:few]),
  }


def _classified(given, constants) -> dict:
  labels = given['cls_label'].astype(np.float64) > constants['label_cut']
  step = constants['score_step']
  raw = given['cls_score'].astype(np.float64)
  scores = np.round((raw + constants['label_shift'] * labels) * step) / step
  curve = roc.roc_curve(labels, scores)
  precision = roc.pr_curve(labels, scores)
  best = roc.youden(labels, scores)
  cut = roc.confusion(labels, scores, best.threshold)
  tied = np.zeros_like(scores)
  return {
    'cls_label': labels.astype(np.int64),
    'cls_score': scores,
    'roc_auc': roc.auroc(labels, scores),
    'average_precision': roc.average_precision(labels, scores),
    'roc_fpr': curve.false_positive_rate,
    'roc_tpr': curve.true_positive_rate,
    'roc_thresholds': curve.thresholds,
    'youden': np.array(best),
    'pr_precision': precision.precision,
    'pr_recall': precision.recall,
    'pr_thresholds': precision.thresholds,
    'best_f1': np.array(roc.best_f1(labels, scores)),
    'confusion_at_youden': np.array(cut).reshape(2, 2),
    'mcc_at_youden': cut.matthews,
    'balanced_accuracy_at_youden': cut.balanced_accuracy,
    'all_tied': [
      roc.auroc(labels, tied),
      roc.average_precision(labels, tied),
    ],
  }


def _segmented(given, constants) -> dict:
  cells = given['pro_mask'][:, 0] > constants['pro_mask_cut']
  cells[0] = False
  masks = cells
  for axis in (1, 2):
    masks = masks.repeat(constants['pro_cell'], axis=axis)
  step = np.float32(constants['pro_score_step'])
  shift = np.float32(constants['pro_shift']) * masks.astype(np.float32)
  maps = np.round((given['pro_score'] + shift) * step) / step
  found = {
    'pro_mask': np.packbits(masks.ravel()),
    'pixel_auc': roc.auroc(masks.ravel(), maps.ravel()),
    'pixel_ap': roc.average_precision(masks.ravel(), maps.ravel()),
  }
  for n in (4, 8):
    curve, regions = overlap.pro_curve(masks, maps, n)
    limit = constants['pro_fpr_limit']
    found |= {
      f'aupro_{n}': overlap.aupro(masks, maps, n, limit),
      f'pro_regions_{n}': regions,
      f'pro_curve_{n}': np.array(curve),
      f'aupro_{n}_full': overlap.aupro(masks, maps, n, 1.0),
    }
  square = np.ones((2, 2), bool)
  called = np.stack([ndimage.binary_opening(m >= 1, square) for m in maps])
  return found | {
    'seg_pred': np.packbits(called.ravel()),
    'seg_scores': [
      _agreement(a, b) for a, b in zip(masks, called, strict=True)
    ],
  }


def _agreement(a, b) -> list[float]:
  return [
    overlap.dice(a, b),
    overlap.hausdorff(a, b),
    overlap.hausdorff_95(a, b),
    overlap.hausdorff_95(a, b, pooled=False),
  ]
