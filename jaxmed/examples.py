"""Pictures of the examples that a report shows: input, panels, map, mask."""

import contextlib
import pathlib

import matplotlib
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from jaxmed import workdir
from jaxmed.datasets.records import Records
from jaxmed.scoring.score import Part, Run

# (what a report calls them, their label, whether the highest are meant)
RANKS = (
  ('highest anomalous', 1, True),
  ('highest normal', 0, True),
  ('lowest anomalous', 1, False),
  ('lowest normal', 0, False),
)


def show(run: Run, records: Records) -> None:
  """Writes examples/ and examples.json."""
  table = pq.read_table(run.folder / 'scores.parquet').to_pylist()
  chosen = _choose(table, run.primary, run.config.report.examples)
  folder = run.folder / 'examples'
  folder.mkdir(exist_ok=True)
  rows = np.unique([one['row'] for _, one in chosen]).astype(np.int32)
  parts = _parts(run, records, rows)
  scale = _scale(parts) if parts else {}
  drawn = {
    row: panels
    for part in parts
    for row, panels in _draw(part, folder, scale).items()
  }
  workdir.write_json(
    run.folder / 'examples.json',
    [_describe(rank, one, drawn[one['row']]) for rank, one in chosen],
  )


def _choose(table: list[dict], primary: str, count: int) -> list[tuple]:
  """The extremes of each class, by the primary score."""
  column = f'score.{primary}'
  test = [
    one for one in table if one['split'] == 'test' and np.isfinite(one[column])
  ]
  test.sort(key=lambda one: one[column])
  chosen = []
  for rank, label, highest in RANKS:
    of_class = [one for one in test if one['label'] == label]
    ends = of_class[::-1] if highest else of_class
    chosen += [(rank, one) for one in ends[:count]]
  return chosen


def _parts(run: Run, records: Records, rows: np.ndarray) -> list[Part]:
  if not len(rows):
    return []
  with contextlib.closing(run.open(records, rows)) as batches:
    return list(run.parts(batches, run.map_names, panels=True))


def _scale(parts: list[Part]) -> dict[str, float]:
  """The brightest value of each map, the same for all examples."""
  names = parts[0].pixel
  return {
    name: float(max(np.quantile(part.pixel[name], 0.999) for part in parts))
    for name in names
  }


def _draw(part: Part, folder: pathlib.Path, scale: dict) -> dict[int, dict]:
  drawn = {}
  for i, row in enumerate(part.batch.row.tolist()):
    pictures = {'input': np.asarray(part.batch.unit[i])}
    pictures |= {name: panel[i] for name, panel in part.panels.items()}
    for name, values in part.pixel.items():
      share = np.clip(values[i] / max(scale[name], 1e-12), 0, 1)
      pictures[f'{name} map'] = matplotlib.colormaps['inferno'](share)[..., :3]
    if part.batch.mask is not None:
      pictures['mask'] = part.batch.mask[i].astype(np.float32)
    drawn[row] = {
      name: _write(folder / f'{row}_{name.replace(" ", "_")}.png', picture)
      for name, picture in pictures.items()
    }
  return drawn


def _write(path: pathlib.Path, picture: np.ndarray) -> str:
  pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
  if pixels.ndim == 3 and pixels.shape[-1] == 1:
    pixels = pixels[..., 0]
  Image.fromarray(pixels).save(path)
  return f'{path.parent.name}/{path.name}'


def _describe(rank: str, one: dict, panels: dict[str, str]) -> dict:
  """For JSON, which has no NaN: only the primary score is finite."""
  scores = {
    k.removeprefix('score.'): v if np.isfinite(v) else None
    for k, v in one.items()
    if k[:6] == 'score.'
  }
  facts = {k: one[k] for k in ('row', 'key', 'group', 'label', 'kind')}
  return facts | {'rank': rank, 'scores': scores, 'panels': panels}
