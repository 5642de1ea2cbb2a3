"""What is kept of each scored slide, and the table of all of them.

Of a slide GROUP: GROUP.ome.tif, the scores of its tiles; GROUP_NAME.ome.tif,
its pixel map NAME, if one is wanted; GROUP.geojson, outlines of what is above
the threshold, for QuPath; GROUP_thumbnail.png and GROUP_overlay.png; and
GROUP.json, which is written last and says that the slide is done. Beside the
table lies detections/GROUP.csv.
"""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging
from jaxtyping import Float
from PIL import Image

from jaxmed import workdir
from jaxmed.errors import UserError
from jaxmed.metrics.lesions import suppress
from jaxmed.scoring.score import Run
from jaxmed.scoring.slide_work import SlideFound
from jaxmed.slides import heatmap, layers
from jaxmed.slides.annotations import Polygon
from jaxmed.slides.detections import write_detections
from jaxmed.slides.geojson import write_geojson
from jaxmed.slides.grid import Grid
from jaxmed.slides.map_files import read_ome, write_ome
from jaxmed.slides.regions import find_regions

RULES = ('max', 'mean', 'mean_above', 'top_k')
PREFIXES = {'max': 'score.', 'mean': 'mean.'}  # Of columns; or slide.RULE. .
SEARCHED = 2**25  # Pixels in which outlines and detections are searched for.
DRAWN = 2**20  # Pixels of a map that is drawn.
SAMPLED = 2**14  # Of these, of each slide, what says where colours end.
REGION = (255, 140, 0)  # Orange: the colour of outlines.
Shown = tuple[Float[np.ndarray, 'rows columns'], float]  # Map, its downsample.


def rule_scores(
  run: Run, name: str, values: Float[np.ndarray, 'rows columns']
) -> dict[str, float]:
  """A slide's score by each rule, of one value a tile (NaN: none).

  max: the highest. mean: of all. mean_above: the mean of those that are at
  least the threshold, else 0, as FW-RD has it, or a negative threshold itself,
  so that no slide has less. top_k: the mean of the k highest, or of all if
  there are fewer.
  """
  finite = np.sort(values[np.isfinite(values)].astype(np.float64))
  if not len(finite):
    return dict.fromkeys(RULES, float('nan'))
  cut = threshold(run, name)
  above = finite[finite >= cut]
  return {
    'max': float(finite[-1]),
    'mean': float(finite.mean()),
    'mean_above': float(above.mean()) if len(above) else min(0.0, cut),
    'top_k': float(finite[-run.config.score.top_k :].mean()),
  }


def threshold(run: Run, name: str) -> float:
  """Of a score or a map: that of the validation normals, or the config's."""
  if name == run.primary and run.config.score.above:
    return run.config.score.above
  return run.calibration[name]['threshold']


def column(rule: str, name: str) -> str:
  """The column of slides.parquet for a score by a rule."""
  return PREFIXES.get(rule, f'slide.{rule}.') + name


def done(folder: pathlib.Path, facts: dict[str, Any]) -> dict | None:
  """What is known of a slide that needs no more work.

  Another file of its name is another slide. One that is gone stays scored.
  """
  path = folder / f'{facts["group"]}.json'
  known = workdir.read_json(path) if path.exists() else {}
  # Not what is drawn of a slide a, where this one's name is a_layers.
  if known.get('group') != facts['group'] or not known['opened']:
    return None
  file = _status(facts)
  same = not file or known.get('file', file) == file
  return known if same else None


def _status(facts: dict[str, Any]) -> list[int] | None:
  """Size and time of a slide's file, if it is there."""
  try:
    found = os.stat(facts['path'])
  except OSError:
    return None
  return [found.st_size, found.st_mtime_ns]


def save_unopened(
  folder: pathlib.Path, facts: dict[str, Any], error: UserError
) -> None:
  """A slide that could not be opened has nothing but a reason."""
  nothing = {
    'opened': False,
    'tiles': 0,
    'tiles_unnormalised': 0,
    'failures': [{'error': str(error)}],
    'reason': str(error),
    'rules': {},
  }
  workdir.write_json(folder / f'{facts["group"]}.json', facts | nothing)


def save(
  run: Run,
  folder: pathlib.Path,
  out: pathlib.Path,
  facts: dict[str, Any],
  found: SlideFound,
) -> None:
  """All files of a slide but the overlay, and last GROUP.json.

  They go to `folder`; detections to that of the table, `out`.
  """
  group, mpp = facts['group'], found.mpp_xy
  stride = found.grid.stride
  write_ome(
    _ome(folder, group),
    {name: found.over(name).squares() for name in found.maps},
    (stride * mpp[0], stride * mpp[1]),
  )
  downsample = stride
  if found.dense is not None:
    downsample, name = found.downsample, run.config.score.dense
    scale = downsample * mpp[0], downsample * mpp[1]
    write_ome(_ome(folder, group, name), {name: found.dense}, scale)
  facts = facts | {
    'opened': True,
    'file': _status(facts),
    'width': found.size[0],
    'height': found.size[1],
    'mpp': found.mpp,
    'downsample': downsample,
    'tiles': found.tiles,
    'tiles_unnormalised': found.tiles_unnormalised,
    'failures': found.failures,
    'failed': layers.edges(found.failed_squares(), stride, 1),
    'reason': found.reason,
    'rules': {} if found.reason else _rules(run, found),
  }
  shown = _shown(run, folder, facts, SEARCHED)
  _save_regions(run, folder / f'{group}.geojson', shown, found)
  _save_detections(run, out / f'detections/{group}.csv', shown, found)
  heatmap.save_overlay(
    folder / f'{group}_thumbnail.png', Image.fromarray(found.thumbnail)
  )
  workdir.write_json(folder / f'{group}.json', facts)


def _rules(run: Run, found: SlideFound) -> dict[str, dict[str, float | None]]:
  by_name = {k: rule_scores(run, k, v) for k, v in found.maps.items()}
  plain = lambda value: value if np.isfinite(value) else None  # For JSON.
  return {
    rule: {name: plain(scores[rule]) for name, scores in by_name.items()}
    for rule in RULES
  }


def _ome(folder: pathlib.Path, group: str, name: str = '') -> pathlib.Path:
  return folder / f'{group}{name and f"_{name}"}.ome.tif'


def _shown_name(run: Run) -> str:
  """What of a run's calibration the map that is shown goes by."""
  dense = run.config.score.dense
  return f'map.{dense}' if dense else run.primary


def _shown(run: Run, folder: pathlib.Path, facts: dict, most: int) -> Shown:
  """The map of outlines, detections and the overlay, at a bounded size."""
  dense = run.config.score.dense
  path = _ome(folder, facts['group'], dense)
  maps, halved = read_ome(path, most)
  return maps[dense or run.primary], facts['downsample'] * 2**halved


def _save_regions(run, path, shown: Shown, found: SlideFound) -> None:
  name = _shown_name(run)
  regions = find_regions(shown[0], threshold(run, name), shown[1], found.mpp_xy)
  write_geojson(
    path,
    [
      Polygon(r.ring, 'Anomalous', holes=r.holes, colour=REGION)
      for r in regions
    ],
    [
      {
        f'{name} max': r.highest,
        f'{name} mean': r.mean,
        'Area µm^2': r.area,
      }
      for r in regions
    ],
  )


def _save_detections(run, path, shown: Shown, found: SlideFound) -> None:
  score, (values, downsample) = run.config.score, shown
  radius = max(1, round(score.nms_radius / (downsample * found.mpp)))
  normal = run.calibration[_shown_name(run)]['value']
  least = score.detect_above or normal[len(normal) // 2]
  path.parent.mkdir(exist_ok=True)
  write_detections(path, suppress(values, radius, least, downsample))


def draw(
  run: Run,
  folder: pathlib.Path,
  facts: dict,
  highest: float,
  polygons: Sequence[Polygon] = (),
) -> None:
  """Pictures of the map over the slide, from the median normal up.

  GROUP_overlay.png is all in one; GROUP_heat.png and GROUP_layers.json are
  what the report lays over the thumbnail.
  """
  name = _shown_name(run)
  known = run.calibration[name]['value']
  limits = known[len(known) // 2], max(highest, known[len(known) // 2] + 1e-6)
  values, downsample = _shown(run, folder, facts, DRAWN)
  rows, columns = values.shape
  squares = Grid(downsample, downsample, columns, rows)
  group, size = facts['group'], (facts['width'], facts['height'])
  with Image.open(folder / f'{group}_thumbnail.png') as image:
    thumbnail = np.asarray(image)
  label = run.config.score.dense or run.primary
  scores = heatmap.ScoreMap(values, squares, size)
  height, width = thumbnail.shape[:2]
  drawn = heatmap.draw_overlay(
    thumbnail,
    scores,
    label=label,
    polygons=polygons,
    failed=facts.get('failed', ()),  # Not of slides scored by older versions.
    tissue=np.isfinite(scores.over(width, height)),  # Of the whole slide.
    threshold=threshold(run, name),
    limits=limits,
    mpp=facts['mpp'],
  )
  heatmap.save_overlay(folder / f'{group}_overlay.png', drawn)
  heat = Image.fromarray(layers.coloured(values, limits))
  heatmap.save_overlay(folder / f'{group}_heat.png', heat)
  step = max(size) / max(thumbnail.shape)  # A pixel of the thumbnail.
  workdir.write_json(
    folder / f'{group}_layers.json',
    {
      'size': size,
      'map': (columns * downsample, rows * downsample),
      'label': label,
      'limits': limits,
      'threshold': threshold(run, name),
      'tissue': layers.edges(np.isfinite(values), downsample, step),
      'above': layers.edges(values > threshold(run, name), downsample, step),
      'annotations': layers.rings(polygons, step),
      'failed': facts.get('failed', []),
    },
  )


def highest_drawn(
  run: Run, folder: pathlib.Path, slides: Sequence[dict]
) -> float:
  """Where the colours end that the overlays of some slides share."""
  tops = []
  for facts in slides:
    values, _ = _shown(run, folder, facts, DRAWN)
    known = values[np.isfinite(values)]
    tops.append(known[:: -(-len(known) // SAMPLED) or 1].copy())
  values = np.concatenate(tops) if tops else np.zeros(0)
  return float(np.quantile(values, 0.995)) if len(values) else 0.0


def table(run: Run, slides: Sequence[dict]) -> pa.Table:
  """A row a slide; null where it has no score, and `reason` says why."""
  columns = collections.defaultdict(list)
  for facts in slides:
    for name in ('group', 'path', 'annotation', 'label', 'tiles'):
      columns[name].append(facts[name])
    columns['tiles_failed'].append(tiles_failed(facts))
    for name in ('tiles_unnormalised', 'reason', 'width', 'height', 'mpp'):
      columns[name].append(facts[name])
    columns['exhaustive'].append(facts['exhaustive'])
    for rule in RULES:
      for name in run.names:
        columns[column(rule, name)].append(
          facts['rules'].get(rule, {}).get(name)
        )
  return pa.table(
    {
      name: pa.array(values, _type(name, values))
      for name, values in columns.items()
    }
  )


def _type(name: str, values: list) -> pa.DataType | None:
  """Of a column that may be empty of values."""
  if name in ('width', 'height'):
    return pa.int64()
  if name == 'exhaustive':  # Whether all lesions are drawn, if that is known.
    return pa.bool_()
  return pa.float64() if name == 'mpp' or '.' in name else None


def tiles_failed(facts: dict) -> int:
  return len(facts['failures']) if facts['opened'] else 0


def failures(slides: Sequence[dict], stage: str) -> list[dict]:
  """Lines for failures.jsonl: tiles, and slides that could not be opened."""
  return [
    {'stage': stage, 'item': facts['path']} | failure
    for facts in slides
    for failure in facts['failures']
  ]


def warn(slides: Sequence[dict]) -> None:
  """Says in a line each what failed."""
  unscored = [facts for facts in slides if facts['reason']]
  tiles = sum(map(tiles_failed, slides))
  if unscored:
    logging.warning(
      '%d of %d slides have no score, the first: %s (%s).',
      len(unscored),
      len(slides),
      unscored[0]['group'],
      unscored[0]['reason'].rstrip('.'),
    )
  if tiles:
    logging.warning(
      '%d tiles could not be read; failures.jsonl lists them.', tiles
    )
