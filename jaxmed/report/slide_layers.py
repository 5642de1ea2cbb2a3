"""A slide's picture in layers: thumbnail, heat map, outlines, detections.

Each layer can be shown and hidden. A run scored before there were layers has
one picture with everything in it, which is shown as it is.
"""

import csv
import html
import json
import math
from collections.abc import Sequence

import markupsafe

from jaxmed.report import words
from jaxmed.report.images import Pictures
from jaxmed.report.load import Run

OUTLINES = 'tissue', 'above', 'annotations'
HATCH = 45  # Stripes of failed tiles along the longer side.
DETECTIONS = 200  # Marked on a slide at most, the surest ones.
Detection = tuple[float, float, float]  # Confidence, x, y.
FILES = {  # What a slide has for other programs.
  'maps/{}.ome.tif': 'map',
  'maps/{}.geojson': 'outlines',
  'detections/{}.csv': 'detections',
  'maps/{}_overlay.png': 'picture',
}


def layers(
  run: Run,
  pictures: Pictures,
  group: str,
  detections: Sequence[Detection],
  side: int,
  unique: str,
) -> dict:
  """What the template shows of a slide; empty where there is no picture.

  side: of the pictures, in pixels. unique: no other slide has this id.
  """
  about = _about(run, group)
  kinds = ('thumbnail', 'heat') if about else ('thumbnail', 'overlay')
  paths = {kind: run.slide_file(f'maps/{group}_{kind}.png') for kind in kinds}
  found = {
    kind: pictures.embed(path, side) for kind, path in paths.items() if path
  }
  if about and found:
    found |= {
      'lines': _lines(about, detections, unique),
      'extent': _extent(about),
      'scale': _scale(about),
      'failed': bool(about.get('failed')),
    }
  return found


def files(run: Run, group: str) -> list[tuple[str, str]]:
  """(path, word) of a slide's files that are there."""
  named = ((run.slide_file(k.format(group)), v) for k, v in FILES.items())
  return [(run.link(path), word) for path, word in named if path]


def _about(run: Run, group: str) -> dict:
  path = run.slide_file(f'maps/{group}_layers.json')
  try:
    about = json.loads(path.read_text('utf-8')) if path else {}
    low, high = about['limits']
    is_whole = min(*about['size'], *about['map']) > 0 and low < high
    return about if is_whole else {}
  except (OSError, ValueError, KeyError, TypeError):
    return {}


def detections(run: Run, group: str) -> tuple[list[Detection], int]:
  """The surest first; and how many lines of the file are no detection."""
  path = run.slide_file(f'detections/{group}.csv')
  if not path:
    return [], 0
  found, strange = [], 0
  with path.open(newline='', encoding='utf-8', errors='replace') as file:
    for row in filter(None, csv.reader(file)):
      try:
        confidence, x, y = map(float, row)
      except ValueError:
        confidence = x = y = math.nan
      if all(map(math.isfinite, (confidence, x, y))):
        found.append((confidence, x, y))
      else:
        strange += 1
  return sorted(found, reverse=True), strange


def _extent(about: dict) -> str:
  """The map's share of the picture, which it may exceed by part of a square."""
  (width, height), (across, down) = about['size'], about['map']
  return f'width:{100 * across / width:.3f}%;height:{100 * down / height:.3f}%'


def _scale(about: dict) -> dict:
  """What the colours mean, and where on their bar the threshold is."""
  low, high = about['limits']
  cut = words.finite(about.get('threshold'))
  share = None if cut is None else (cut - low) / (high - low)
  return {
    'label': str(about.get('label', '')),
    'low': low,
    'high': high,
    'threshold': cut,
    'at': 100 * share if share is not None and 0 <= share <= 1 else None,
  }


def _hatched(about: dict, unique: str) -> list[str]:
  """Tiles that could not be read, as one shape with holes."""
  rings = about.get('failed') or []
  if not rings:
    return []
  side = max(about['size']) / HATCH
  shape = ''.join(f'M{html.escape(str(ring))}Z' for ring in rings)
  return [
    f'<pattern id="{unique}" width="{side:.0f}" height="{side:.0f}" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    f'<rect width="{side / 3:.0f}" height="{side:.0f}"/></pattern>'
    f'<g class="layer failed"><path d="{shape}" fill="url(#{unique})"/></g>'
  ]


def _lines(about: dict, detections, unique: str) -> markupsafe.Markup:
  """Outlines and detections as one drawing in pixels of level 0."""
  width, height = about['size']
  radius = max(width, height) / 90
  drawn = [
    f'<g class="layer {kind}">'
    + ''.join(f'<polygon points="{html.escape(str(ring))}"/>' for ring in rings)
    + '</g>'
    for kind in OUTLINES
    if (rings := about.get(kind) or [])
  ]
  drawn += _hatched(about, f'{unique}-hatch')
  marks = ''.join(
    f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{radius:.0f}">'
    f'<title>{confidence:.4g} at {x:.0f}, {y:.0f}</title></circle>'
    for confidence, x, y in detections[:DETECTIONS]
  )
  if marks:
    drawn.append(f'<g class="layer detections">{marks}</g>')
  return markupsafe.Markup(
    f'<svg class="lines" viewBox="0 0 {width:.0f} {height:.0f}" '
    f'preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'
  )
