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
  place, merge = _places(maps)
  exact, bins = len(merge), int(merge.max()) + 1
  whole = np.zeros(4 * exact + 2)
  grouped = np.zeros((test.counts.shape[1], 4 * bins + 2))
  for mask, scores, group in zip(masks, maps, test.groups, strict=True):
    at = place[_codes(scores)].ravel()
    weights, regions = _weights(mask)
    for totals, own in ((whole, at), (grouped[group], merge[at])):
      size = (len(totals) - 2) // 4
      for i, weight in enumerate(weights):
        totals[i * size : (i + 1) * size] += np.bincount(own, weight, size)
      totals[-2:] += regions
  values = _measures(whole)
  many = bootstrap.resampled(grouped, _measures, test.counts)
  found = {}
  for i, name in enumerate(METRICS):
    sizes = pixels
    if name.startswith('aupro'):
      sizes = len(masks), int(whole[i - len(METRICS)]), groups
    found[name] = bootstrap.interval(float(values[i]), many[:, i], *sizes)
  return found


def steps(maps: Float16[np.ndarray, '*n']) -> int:
  """How many values of float16 lie between the lowest and the highest."""
  if not maps.size:
    return 0
  low, high = _codes(np.array([maps.min(), maps.max()]))
  return int(high - low)


def _codes(maps: Float16[np.ndarray, '*d']) -> np.ndarray:
  """Whole numbers in the order of the values."""
  bits = (maps + np.float16(0)).view(np.uint16)  # -0 becomes 0.
  negative = bits >> 15 == 1
  return np.where(negative, ~bits, bits | 0x8000).astype(np.int64)


def _places(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of each code its place among the values there are; of each place its bin.

  Bins hold about equal numbers of pixels.
  """
  count = sum(np.bincount(_codes(m).ravel(), minlength=CODES) for m in maps)
  place = np.cumsum(count > 0) - 1
  return place, histogram.merged(count[count > 0], exact=histogram.BINS)


def _weights(mask) -> tuple[list[np.ndarray], np.ndarray]:
  """Of pixels: normal, marked, shares of their regions; and the regions."""
  marked = mask.ravel().astype(np.float64)
  shares, counts = zip(
    *(overlap.region_weights(mask[None], n) for n in CONNECTIVITIES),
    strict=True,
  )
  regions = np.array([count[0] for count in counts], np.float64)
  return [1 - marked, marked, *(share.ravel() for share in shares)], regions


def _measures(sums: np.ndarray) -> np.ndarray:
  """[..., 4] metrics of sums as `pixel_metrics` lays them out."""
  bins = (sums.shape[-1] - 2) // 4
  both = histogram.falling(sums[..., : 2 * bins])
  normal, _, *found = np.split(sums[..., : 4 * bins], 4, axis=-1)
  pro = [
    overlap.aupro_of_histograms(normal, weights, sums[..., 4 * bins + i])
    for i, weights in enumerate(found)
  ]
  return np.stack(
    [histogram.auroc(both), histogram.average_precision(both), *pro], axis=-1
  )
