"""Metrics of maps and masks: per-region overlap, Dice, Hausdorff distance.

AUPRO (Bergmann et al. 2020): at each threshold the share of every connected
defect region that is found, averaged over the regions of all images, against
the false positive rate over the pixels of all images that are no defect. The
curve starts at (0, 0), has a point for each distinct score, is joined by
lines and cut at a false positive rate of 0.3; its area is divided by that.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

FALSE_POSITIVE_LIMIT = 0.3

Masks = Bool[np.ndarray, 'n h w']
Maps = Float[np.ndarray, 'n h w']


class ProCurve(NamedTuple):
  """Thresholds fall."""

  false_positive_rate: np.ndarray
  overlap: np.ndarray


def region_weights(
  masks: Masks, connectivity: int
) -> tuple[Float[np.ndarray, 'n h w'], Int[np.ndarray, ' n']]:
  """1 / (area of its region) for every defect pixel, and regions per image.

  The mean overlap at a threshold is the sum of the weights found, divided by
  the number of regions: no loop over thresholds is left.
  """
  if connectivity not in (4, 8):
    raise ValueError(f'Pixels have 4 or 8 neighbours, not {connectivity}.')
  structure = ndimage.generate_binary_structure(2, 1 + (connectivity == 8))
  weights = np.zeros(masks.shape)
  counts = np.zeros(len(masks), np.int64)
  for i, mask in enumerate(masks):
    labels, counts[i] = ndimage.label(mask, structure)
    areas = np.bincount(labels.ravel(), minlength=counts[i] + 1)
    share = 1 / np.maximum(areas, 1)
    share[0] = 0
    weights[i] = share[labels]
  return weights, counts


def pro_curve(
  masks: Masks, maps: Maps, connectivity: int = 8
) -> tuple[ProCurve, int]:
  """The curve over all images, and the number of regions."""
  weights, counts = region_weights(masks, connectivity)
  values, place = np.unique(np.asarray(maps), return_inverse=True)
  place = place.ravel()
  normal = np.bincount(place, ~np.ravel(masks), len(values))
  found = np.bincount(place, weights.ravel(), len(values))
  return _curve(normal, found, counts.sum()), int(counts.sum())


def aupro(
  masks: Masks,
  maps: Maps,
  connectivity: int = 8,
  limit: float = FALSE_POSITIVE_LIMIT,
) -> float:
  """NaN where there is no region, or no pixel outside one."""
  curve, _ = pro_curve(masks, maps, connectivity)
  return float(_area(curve, limit))


def aupro_of_histograms(
  normal: Float[np.ndarray, '*r bins'],
  found: Float[np.ndarray, '*r bins'],
  regions: Float[np.ndarray, '*r'],
  limit: float = FALSE_POSITIVE_LIMIT,
) -> Float[np.ndarray, '*r']:
  """Of normal pixels and of region weights by rising score."""
  curve = _curve(normal, found, regions)
  flat = (part.reshape(-1, part.shape[-1]) for part in curve)
  areas = [_area(ProCurve(*row), limit) for row in zip(*flat, strict=True)]
  return np.array(areas).reshape(np.shape(regions))


def dice(a: Bool[np.ndarray, '*d'], b: Bool[np.ndarray, '*d']) -> float:
  """1 where both are empty."""
  total = np.count_nonzero(a) + np.count_nonzero(b)
  return 2 * np.count_nonzero(a & b) / total if total else 1.0


def hausdorff(a: Bool[np.ndarray, '*d'], b: Bool[np.ndarray, '*d']) -> float:
  """The largest distance of a surface to the other; NaN if one is empty."""
  return max(float(d.max()) if d.size else np.nan for d in _distances(a, b))


def hausdorff_95(
  a: Bool[np.ndarray, '*d'], b: Bool[np.ndarray, '*d'], pooled: bool = True
) -> float:
  """The 95th percentile of surface distances instead of the largest.

  `pooled` takes it over both directions together, as medpy does; otherwise
  it is the larger of the two directions' own. Papers mean either.
  """
  distances = _distances(a, b)
  if not distances[0].size:
    return float('nan')
  if pooled:
    return float(np.percentile(np.concatenate(distances), 95))
  return max(float(np.percentile(d, 95)) for d in distances)


def _curve(normal, found, regions) -> ProCurve:
  """Points at falling thresholds, the origin first; NaN without a region."""

  def share(counts, total):
    total = np.asarray(total, np.float64)[..., None]
    total = np.where(total > 0, total, np.nan)
    falling = np.cumsum(counts[..., ::-1], axis=-1) / total
    return np.concatenate([np.zeros_like(falling[..., :1]), falling], axis=-1)

  return ProCurve(share(normal, normal.sum(axis=-1)), share(found, regions))


def _area(curve: ProCurve, limit: float) -> float:
  rate, overlap = curve
  if np.isnan(rate[-1]) or np.isnan(overlap[-1]):
    return np.nan
  inside = np.count_nonzero(rate <= limit)
  end = np.interp(limit, rate, overlap)
  rate = np.append(rate[:inside], limit)
  overlap = np.append(overlap[:inside], end)
  return np.trapezoid(overlap, rate) / limit


def _distances(a, b) -> tuple[np.ndarray, np.ndarray]:
  """From each surface pixel to the other mask's surface, both ways."""
  if not (a.any() and b.any()):
    return np.empty(0), np.empty(0)
  a, b = _surface(a), _surface(b)
  to_a, to_b = (ndimage.distance_transform_edt(~s) for s in (a, b))
  return to_b[a], to_a[b]


def _surface(mask: np.ndarray) -> np.ndarray:
  """Less its erosion by the cross; outside the image is background."""
  return mask & ~ndimage.binary_erosion(mask)
