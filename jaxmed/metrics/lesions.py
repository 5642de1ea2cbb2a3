"""Lesions of a slide and detections of them, as Camelyon16 counts both.

Tumour is grown by 37.5 micrometres, so that what lies closer than 75 becomes
one lesion, and lesions with a major axis below 275 are isolated tumour cells
(ITC): finding them is neither right nor wrong. These are the official script's
rules (Evaluation_FROC.py of the challenge, as in NCRF 111c7d1). A detection is
a row (confidence, x, y), x and y in pixels of level 0.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

GAP = 75.0  # Micrometres, about five tumour cells.
ITC_LENGTH = 275.0  # Micrometres.
CORNERS = np.ones((3, 3))  # Pixels that touch at a corner are joined.
BLOCK = 4096  # Candidates that `suppress` looks at together.
SORTED = 8  # It sorts one in so many, at least a block.

Detections = Float[np.ndarray, 'n 3']


class Regions(NamedTuple):
  """Row n - 1 of `areas`, `lengths` and `itc` is of label n.

  Attributes:
    labels: of each pixel, numbered from 1 in the order of rows; 0: no lesion.
    areas: in pixels.
    lengths: of the major axes, in pixels.
    itc: which are isolated tumour cells.
  """

  labels: Int[np.ndarray, 'h w']
  areas: Int[np.ndarray, 'regions']
  lengths: Float[np.ndarray, 'regions']
  itc: Bool[np.ndarray, 'regions']


class Hits(NamedTuple):
  """What a slide's detections hit.

  Attributes:
    false: confidences of the false positives, in the order of detection.
    best: the highest confidence on each region. Missed and ITC regions have
      -inf; as in the official script, float32 and 0 with `strict`.
    kept: which detection that was, of equals the first; -1 for none.
    lesions: how many were to be found, ITC left out.
  """

  false: Float[np.ndarray, ' false']
  best: Float[np.ndarray, 'regions']
  kept: Int[np.ndarray, 'regions']
  lesions: int


def regions(tumour: Bool[np.ndarray, 'h w'], pixel: float) -> Regions:
  """Lesions of a mask whose pixels are `pixel` micrometres wide."""
  labels = evaluation_mask(tumour, pixel)
  areas, lengths = major_axes(labels)
  return Regions(labels, areas, lengths, lengths < ITC_LENGTH / pixel)


def evaluation_mask(
  tumour: Bool[np.ndarray, 'h w'], pixel: float
) -> Int[np.ndarray, 'h w']:
  """Labels of tumour grown by half of GAP, its holes filled.

  The distance is strictly below; holes are of pixels joined at their sides,
  lesions of pixels joined at sides or corners. An empty mask has no lesion.
  (The official script finds one in its upper left corner: scipy then measures
  the distance to a point outside the image.)
  """
  radius = GAP / (pixel * 2)
  grown = np.zeros(tumour.shape, bool)
  # A piece at a time, each in its box: the rest of the slide is glass.
  for box in _boxes(tumour, math.ceil(radius)):
    grown[box] |= ndimage.distance_transform_edt(~tumour[box]) < radius
  pieces, _ = ndimage.label(grown, CORNERS)
  for label, box in enumerate(ndimage.find_objects(pieces), 1):
    grown[box] |= ndimage.binary_fill_holes(pieces[box] == label)
  ndimage.label(grown, CORNERS, output=pieces)  # What lay in holes is gone.
  return pieces


def _boxes(
  mask: Bool[np.ndarray, 'h w'], margin: int
) -> list[tuple[slice, slice]]:
  """Of each connected piece, with a margin."""
  pieces, _ = ndimage.label(mask, CORNERS)
  return [
    tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in box)
    for box in ndimage.find_objects(pieces)
  ]


def major_axes(
  labels: Int[np.ndarray, 'h w'],
) -> tuple[Int[np.ndarray, 'regions'], Float[np.ndarray, 'regions']]:
  """Area and length of the major axis of each region, in pixels.

  The length is that of the ellipse with the same second moments, which is
  scikit-image's `axis_major_length`: 4 sqrt(l), where l is the larger
  eigenvalue of the covariance of the pixels' coordinates. A single pixel has
  length 0.
  """
  places = np.nonzero(labels)
  label = labels[places] - 1
  count = int(labels.max(initial=0))
  areas = np.bincount(label, minlength=count)
  mean = lambda values: np.bincount(label, values, count) / areas
  y, x = (axis - mean(axis)[label] for axis in places)
  yy, xx, xy = mean(y * y), mean(x * x), mean(x * y)
  larger = (yy + xx) / 2 + np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
  return areas, 4 * np.sqrt(larger)


def hits(
  detections: Detections,
  found_in: Regions | None,
  downsample: float,
  strict: bool = False,
) -> Hits:
  """Sorts detections into true and false ones.

  Several on one region count once; the others are not false. On a normal
  slide, where `found_in` is None, all are false. So are those beyond the mask
  (where the official script fails). `strict` compares confidences in float32,
  and one that is not above 0 finds nothing.

  Args:
    detections: rows (confidence, x, y).
    found_in: regions of a slide with tumour.
    downsample: level-0 pixels per pixel of the regions' mask.
    strict: as the official script does it.
  """
  rows = np.asarray(detections, np.float64).reshape(-1, 3)
  confidence = rows[:, 0]
  start, kind = (0.0, np.float32) if strict else (-np.inf, np.float64)
  if found_in is None:
    return Hits(confidence, np.zeros(0, kind), np.zeros(0, np.int64), 0)
  label = _labels_at(found_in.labels, rows[:, 1:], downsample)
  # Detections of a slide are few: a loop is quicker than twenty array calls.
  offered, region = confidence.astype(kind).tolist(), label.tolist()
  itc = [True, *found_in.itc.tolist()]
  best, kept = [start] * len(itc), [-1] * len(itc)
  for number, one in enumerate(region):
    if not itc[one] and offered[number] > best[one]:
      best[one], kept[one] = offered[number], number
  return Hits(
    confidence[label == 0],
    np.array(best[1:], kind),
    np.array(kept[1:], np.int64),
    itc.count(False),
  )


def _labels_at(labels, places, downsample) -> Int[np.ndarray, ' n']:
  """Of places (x, y) in level 0; 0 beyond the mask."""
  column, row = np.floor(places.T / downsample).astype(np.int64)
  height, width = labels.shape
  # Below 0 is huge without a sign.
  inside = (row.view(np.uint64) < height) & (column.view(np.uint64) < width)
  if inside.all():
    return labels[row, column]
  found = np.zeros(len(places), labels.dtype)
  found[inside] = labels[row[inside], column[inside]]
  return found


def suppress(
  scores: Float[np.ndarray, 'rows columns'],
  radius: int,
  threshold: float,
  downsample: float,
  sigma: float = 0.0,
) -> Detections:
  """Detections of a map: maxima, each of which clears its surroundings.

  NCRF's nms.py: the highest score is taken, what lies in the square from
  `radius` before it to `radius` - 1 behind it is cleared, and so on while a
  score is strictly above the threshold. NCRF's maps have x as their first
  axis; ours are of rows and columns, so its map is our transposed one. Of
  equal maxima its first is the leftmost, of these the uppermost; so is ours.
  NCRF takes radius 12 and threshold 0.5 on probabilities at level 6, FW-RD
  radius 6 and a threshold of 2 on scores from 0 to 3.

  Args:
    scores: NaN where there is none, e.g. on glass.
    radius: in pixels of the map.
    threshold: of the scores. (NCRF clears to 0, and never ends below it.)
    downsample: level-0 pixels per pixel of the map.
    sigma: of a Gaussian over the map beforehand, NaN taken as 0; 0: none.

  Returns:
    rows (confidence, x, y) of falling confidence, at the pixels' centres,
    rounded down.
  """
  scores = np.asarray(scores)
  if sigma > 0:
    known = np.nan_to_num(scores.astype(np.float64), nan=0.0)
    smooth = ndimage.gaussian_filter(known, sigma, mode='nearest', truncate=4)
    scores = np.where(np.isnan(scores), np.nan, smooth)
  by_column = scores.T
  column, row = np.nonzero(by_column > np.float64(threshold))
  value = by_column[column, row]
  free = np.ones(scores.shape, bool)
  taken = []
  while len(value):
    # Only the highest are sorted: they clear most of the others.
    count = min(max(BLOCK, len(value) // SORTED), len(value))
    high = value >= np.partition(value, -count)[-count]
    order = np.flatnonzero(high)
    order = order[np.argsort(-value[order], kind='stable')]
    kept = _cleared(free, row[order], column[order], radius)
    at = order[kept]
    taken.append(np.stack([value[at], column[at], row[at]], axis=1))
    left = ~high & free[row, column]
    column, row, value = column[left], row[left], value[left]
  if not taken:
    return np.zeros((0, 3))
  taken = np.concatenate(taken).astype(np.float64)
  taken[:, 1:] = np.floor((taken[:, 1:] + 0.5) * downsample)
  return taken


def _cleared(
  free: Bool[np.ndarray, 'rows columns'], row, column, radius: int
) -> list[int]:
  """Those, in their order, that no earlier one has cleared; marks `free`."""
  taken = []
  for start in range(0, len(row), BLOCK):
    block = slice(start, start + BLOCK)
    for i in start + np.flatnonzero(free[row[block], column[block]]):
      y, x = int(row[i]), int(column[i])
      if free[y, x]:
        top, left = max(y - radius, 0), max(x - radius, 0)
        free[top : y + radius, left : x + radius] = False
        free[y, x] = False
        taken.append(i)
  return taken
