"""Every metric of anomaly maps against masks, from histograms of images.

Maps are kept in float16, which has 65,536 values at most: counting them gives
the exact pixel AUROC and AUPRO without sorting. The resamples use 1,024 bins.
"""

import numpy as np
from jaxtyping import Bool, Float16

from jaxmed.metrics import bootstrap, histogram, overlap
from jaxmed.metrics.bootstrap import Number
from jaxmed.metrics.images import Sample

CODES = 2**16
CONNECTIVITIES = (4, 8)
METRICS = ('auroc', 'ap', 'aupro_4', 'aupro_8')


def pixel_metrics(
  test: Sample,
  masks: Bool[np.ndarray, 'n h w'],
  maps: Float16[np.ndarray, 'n h w'],
) -> dict[str, Number]:
  """Pixel AUROC and AP over all pixels, and AUPRO over all regions.

  The counts of the first two are of pixels and marked pixels, those of AUPRO
  of images and regions. Labels of the test are not used: the masks are.
  """
  defects, groups = int(masks.sum()), test.sizes[2]
  pixels = masks.size, defects, groups
  if not 0 < defects < masks.size:
    reason = 'every pixel is marked' if defects else 'no pixel is marked'
    return {name: bootstrap.missing(reason, *pixels) for name in METRICS}
  merge, bins = _bins(maps)
  whole = np.zeros(4 * CODES + 2)
  grouped = np.zeros((test.counts.shape[1], 4 * bins + 2))
  for mask, scores, group in zip(masks, maps, test.groups, strict=True):
    parts, regions = _image(mask, scores)
    whole += np.concatenate([parts.ravel(), regions])
    binned = [np.bincount(merge, part, bins) for part in parts]
    grouped[group] += np.concatenate([*binned, regions])
  exact = _measures(whole)
  many = bootstrap.resampled(grouped, _measures, test.counts)
  found = {}
  for i, name in enumerate(METRICS):
    sizes = pixels
    if name.startswith('aupro'):
      sizes = len(masks), int(whole[i - len(METRICS)]), groups
    found[name] = bootstrap.interval(float(exact[i]), many[:, i], *sizes)
  return found


def _codes(maps: Float16[np.ndarray, '*d']) -> np.ndarray:
  """Whole numbers in the order of the values."""
  bits = (maps + np.float16(0)).view(np.uint16)  # -0 becomes 0.
  negative = bits >> 15 == 1
  return np.where(negative, ~bits, bits | 0x8000).astype(np.int64)


def _bins(maps: np.ndarray) -> tuple[np.ndarray, int]:
  """The bin of every code, of about equal numbers of pixels each."""
  count = sum(np.bincount(_codes(m).ravel(), minlength=CODES) for m in maps)
  used = np.flatnonzero(count)
  merged = histogram.merged(count[used], exact=histogram.BINS)
  merge = np.zeros(CODES, np.int64)  # Codes that do not occur add nothing.
  merge[used] = merged
  return merge, int(merged.max()) + 1


def _image(mask, scores) -> tuple[np.ndarray, np.ndarray]:
  """By code: normal and marked pixels, weights of regions; and how many."""
  codes = _codes(scores).ravel()
  parts = [
    np.bincount(codes[~mask.ravel()], minlength=CODES),
    np.bincount(codes[mask.ravel()], minlength=CODES),
  ]
  regions = []
  for connectivity in CONNECTIVITIES:
    weights, count = overlap.region_weights(mask[None], connectivity)
    parts.append(np.bincount(codes, weights.ravel(), CODES))
    regions.append(count[0])
  return np.array(parts, np.float64), np.array(regions, np.float64)


def _measures(sums: np.ndarray) -> np.ndarray:
  """[..., 4] metrics of sums as `pixel_metrics` lays them out."""
  bins = (sums.shape[-1] - 2) // 4
  both = sums[..., : 2 * bins]
  normal, _, *found = np.split(sums[..., : 4 * bins], 4, axis=-1)
  pro = [
    overlap.aupro_of_histograms(normal, weights, sums[..., 4 * bins + i])
    for i, weights in enumerate(found)
  ]
  return np.stack(
    [histogram.auroc(both), histogram.average_precision(both), *pro], axis=-1
  )
