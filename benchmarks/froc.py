"""The FROC of 129 Camelyon16-like slides against the official loops.

  python benchmarks/froc.py [--slides 129] [--detections 100]

The same detections and the same evaluation masks at level 5 go through both:
the official script's way, a loop over detections and then one over thresholds
that counts all again (written out below), and jaxmed's. The numbers must be
equal. Making the masks takes both sides the same and stands apart, as does the
bootstrap, which the script has not.
"""

import argparse
import time

import numpy as np
from scipy import ndimage

from jaxmed.metrics import froc, lesions

DOWNSAMPLE = 32
PIXEL = 0.243 * DOWNSAMPLE
TUMOUR = 49 / 129  # Share of the official test set.
SHAPES = ((2000, 3000), (3500, 2500), (6000, 3000))  # Level 5 of slides.
TURNS = 5


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--slides', type=int, default=129)
  parser.add_argument(
    '--detections', type=int, default=100, help='mean number per slide'
  )
  given = parser.parse_args()
  rng = np.random.default_rng(0)
  began = time.perf_counter()
  slides = [draw(rng, i, given) for i in range(given.slides)]
  made = time.perf_counter() - began
  detections = sum(len(rows) for _, rows in slides)
  regions = [found for found, _ in slides if found is not None]
  print(
    f'{given.slides} slides, {len(regions)} with tumour: '
    f'{sum(int((~r.itc).sum()) for r in regions)} lesions, '
    f'{sum(int(r.itc.sum()) for r in regions)} ITC, {detections} detections; '
    f'drawing them and their evaluation masks took {made:.1f} s',
    flush=True,
  )
  began = time.perf_counter()
  theirs = official(slides)
  loop = time.perf_counter() - began
  turns = []
  for _ in range(TURNS):
    began = time.perf_counter()
    hits, points, ours = vectorised(slides)
    turns.append(time.perf_counter() - began)
  for one, other in zip((*points[:2], ours), theirs, strict=True):
    np.testing.assert_array_equal(one, other)
  print(
    f'{len(points.thresholds)} points, score {ours.mean():.4f}, all equal: '
    f'loops {loop:.2f} s, jaxmed {np.median(turns) * 1e3:.1f} ms, ratio '
    f'{loop / np.median(turns):.0f}'
  )
  for strict in (True, False):
    began = time.perf_counter()
    score = froc.froc(hits if strict else lenient(slides), strict=strict)
    took = time.perf_counter() - began
    number = score['score']
    print(
      f'{"strict" if strict else "not strict"}, with curve, band and intervals '
      f'of 2,000 resamples: {took:.2f} s, score {number.value:.3f} '
      f'[{number.low:.3f}, {number.high:.3f}]'
    )


def draw(rng, number: int, given):
  """Regions, or None, and rows (confidence, x, y) of one slide."""
  height, width = SHAPES[number % len(SHAPES)]
  tumour = number < round(TUMOUR * given.slides)
  count = rng.poisson(given.detections)
  x, y = rng.uniform(0, width, count), rng.uniform(0, height, count)
  confidence = rng.beta(2, 4, count)
  found = None
  if tumour:
    mask, centres = lesion_mask(rng, height, width)
    found = lesions.regions(mask, PIXEL)
    on = rng.random(count) < 0.3  # On a lesion, and more confident.
    spot = centres[rng.integers(0, len(centres), count)]
    x, y = np.where(on, spot[:, 0], x), np.where(on, spot[:, 1], y)
    confidence = np.where(on, rng.beta(4, 2, count), confidence)
  # As nms.py prints them.
  rows = np.stack([np.round(confidence, 5), x * DOWNSAMPLE, y * DOWNSAMPLE], 1)
  return found, rows


def lesion_mask(rng, height: int, width: int):
  """Some blobs between 50 µm and some mm, and where they are."""
  mask, centres = np.zeros((height, width), bool), []
  for _ in range(rng.integers(1, 12)):
    radius = int(np.exp(rng.uniform(np.log(5), np.log(200))))
    side = 2 * radius + 1
    top = rng.integers(0, height - side)
    left = rng.integers(0, width - side)
    noise = ndimage.gaussian_filter(rng.standard_normal((side, side)), 3)
    away = np.hypot(*np.ogrid[-radius : radius + 1, -radius : radius + 1])
    blob = away / radius + noise / noise.std() * 0.2 < 0.8
    mask[top : top + side, left : left + side] |= blob
    centres.append((left + radius, top + radius))
  return mask, np.array(centres)


def vectorised(slides):
  hits = [
    lesions.hits(rows, found, DOWNSAMPLE, strict=True) for found, rows in slides
  ]
  points = froc.curve(hits, strict=True)
  return hits, points, froc.sensitivity_at(points)


def lenient(slides):
  return [lesions.hits(rows, found, DOWNSAMPLE) for found, rows in slides]


def official(slides):
  """compute_FP_TP_Probs and computeFROC of the script, line for line."""
  all_false, all_true, count = [], [], 0
  for found, rows in slides:
    false = []
    cells = [] if found is None else (np.flatnonzero(found.itc) + 1).tolist()
    labels = 0 if found is None else len(found.itc)
    true = np.zeros(labels, np.float32)
    for confidence, x, y in rows.tolist():
      label = 0
      if found is not None:
        label = found.labels[int(y / DOWNSAMPLE), int(x / DOWNSAMPLE)]
      if label == 0:
        false.append(confidence)
      elif label not in cells and confidence > true[label - 1]:
        true[label - 1] = confidence
    all_false.append(false)
    all_true.append(true)
    count += labels - len(cells)
  false = [p for one in all_false for p in one]
  true = [p for one in all_true for p in one]
  mean_false, sensitivity = [], []
  for threshold in sorted(set(false + true))[1:]:
    mean_false.append((np.asarray(false) >= threshold).sum())
    sensitivity.append((np.asarray(true) >= threshold).sum())
  mean_false = np.asarray([*mean_false, 0]) / float(len(slides))
  sensitivity = np.asarray([*sensitivity, 0]) / float(count)
  at = np.interp(froc.RATES, mean_false[::-1], sensitivity[::-1])
  return mean_false, sensitivity, at


if __name__ == '__main__':
  main()
