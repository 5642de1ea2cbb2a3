"""The same ten test images under every method: what each says, and where.

Five anomalous and five normal ones, from the highest to the lowest by the mean
of their ranks under all runs: what all find, what divides them, and what all
miss. Nothing is drawn by chance, so the same runs show the same images.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image
from scipy import stats

from jaxmed.comparing.comparison_runs import Entry, Method
from jaxmed.datasets import images
from jaxmed.datasets.records import open_records
from jaxmed.errors import UserError
from jaxmed.pipeline import frame

EACH = 5  # Of either class.
SIDE = 160  # px, at least: outlines need room.
OUTLINE = (64, 240, 255)
MAPS = ('maps/pixel.npz', 'maps/shown.npz')  # The first that there is.
Pixels = UInt8[np.ndarray, 'h w 3']


def examples(
  methods: Sequence[Method], kept: Bool[np.ndarray, ' n']
) -> list[dict]:
  """What the page shows of each example, pictures as pixels.

  Of a method with several seeds, its first run stands for it.
  """
  firsts = [method.first for method in methods]
  saved = [_maps(entry) for entry in firsts]
  everyone = [entry for method in methods for entry in method.entries]
  chosen = choose(everyone, kept & _mapped(firsts, saved))
  pictures, missing = _pictures(firsts[0], chosen)
  drawn = [
    _draw(entry, maps, chosen)
    for entry, maps in zip(firsts, saved, strict=True)
  ]
  test = firsts[0].test
  return [
    {
      'key': str(test['key'][i]),
      'group': str(test['group'][i]),
      'label': int(test['label'][i]),
      'image': pictures[n] if pictures else None,
      'missing': missing,
      'scores': [float(entry.test[entry.column][i]) for entry in firsts],
      'maps': [maps[n] for maps in drawn],
    }
    for n, i in enumerate(chosen)
  ]


def choose(
  entries: Sequence[Entry], allowed: Bool[np.ndarray, ' n']
) -> list[int]:
  """Places among the test images: anomalous ones, then normal ones."""
  ranks = np.mean(
    [stats.rankdata(e.test[e.column], nan_policy='omit') for e in entries],
    axis=0,
  )
  chosen = []
  for label in (1, 0):
    places = np.flatnonzero(allowed & (entries[0].test['label'] == label))
    places = places[np.argsort(-ranks[places], kind='stable')]
    if len(places):
      steps = np.linspace(0, len(places) - 1, min(EACH, len(places)))
      chosen += places[np.round(steps).astype(int)].tolist()
  return chosen


def map_name(entry: Entry, names: Sequence[str]) -> str:
  """The map that stands for a run: its primary score's, if there is one."""
  dense = (entry.run.config.get('score') or {}).get('dense', '')
  for name in (entry.primary, dense):
    if name in names:
      return name
  return next(iter(names), '')


def _maps(entry: Entry) -> dict[str, np.ndarray]:
  """Rows, masks and the one map of a run; nothing if it has kept none."""
  paths = [path for name in MAPS if (path := entry.folder / name).exists()]
  if not paths:
    return {}
  with np.load(paths[0]) as saved:
    names = [name for name in saved.files if name not in ('row', 'mask')]
    name = map_name(entry, names)
    if not name:
      return {}
    values = saved[name]
    empty = np.zeros(values.shape, bool)
    mask = saved['mask'].astype(bool) if 'mask' in saved.files else empty
    return {'row': saved['row'], 'mask': mask, 'map': values}


def _mapped(
  entries: Sequence[Entry], saved: Sequence[dict]
) -> Bool[np.ndarray, ' n']:
  """Images of which every run that keeps maps has one; all if there is none."""
  found = [
    np.isin(entry.test['row'], maps['row'])
    for entry, maps in zip(entries, saved, strict=True)
    if maps
  ]
  everything = np.ones(len(entries[0].test['row']), bool)
  common = np.logical_and.reduce([everything, *found])
  return common if common.any() else everything


def _draw(
  entry: Entry, saved: dict, chosen: Sequence[int]
) -> list[Pixels | None]:
  """Heat maps with outlines, on one scale for the run."""
  if not saved:
    return [None] * len(chosen)
  places = {row: i for i, row in enumerate(saved['row'].tolist())}
  found = [places.get(int(entry.test['row'][i])) for i in chosen]
  values = {
    i: saved['map'][i].astype(np.float32) for i in found if i is not None
  }
  if not values:
    return [None] * len(chosen)
  low, high = np.nanquantile(np.stack([*values.values()]), (0.01, 0.999))
  return [
    None if i is None else _heat(values[i], saved['mask'][i], low, high)
    for i in found
  ]


def _heat(
  values: Float[np.ndarray, 'h w'], mask: Bool[np.ndarray, 'h w'], low, high
) -> Pixels:
  share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
  colours = matplotlib.colormaps['inferno'](np.nan_to_num(share))[..., :3]
  return _outlined(np.round(colours * 255).astype(np.uint8), mask)


def _pictures(entry: Entry, chosen: Sequence[int]) -> tuple[list[Pixels], str]:
  """The images as the first run has seen them; or why there are none."""
  rows = [int(entry.test['row'][i]) for i in chosen]
  directory = entry.records()
  if directory is None:
    return [], 'its data is not here any more'
  try:
    records = open_records(directory)
    data = ConfigDict(entry.run.config['data'])
    fitting = frame.Frame.of(data, records.bits)
    encoded = records.read(rows)
  except (UserError, OSError, IndexError) as error:
    return [], f'its data cannot be read: {error}'
  drawn = []
  for row, one in zip(rows, encoded, strict=True):
    pixels = np.empty(fitting.shape, fitting.dtype)
    fitting.fit(pixels, frame.decode(one.image), row)
    mask = np.zeros(pixels.shape[:2], bool)
    if one.mask:
      mask = fitting.fit_mask(images.decode_mask(one.mask))
    drawn.append(_outlined(_colour(pixels), mask))
  return drawn, ''


def _colour(pixels: np.ndarray) -> Pixels:
  if pixels.dtype == np.uint16:
    pixels = np.round(pixels / 257).astype(np.uint8)
  return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _outlined(pixels: Pixels, mask: Bool[np.ndarray, 'h w']) -> Pixels:
  """Enlarged, so that the line is thin, with the edge of the mask in cyan."""
  times = max(1, -(-SIDE // max(pixels.shape[:2])))
  size = [side * times for side in pixels.shape[1::-1]]
  image = Image.fromarray(np.ascontiguousarray(pixels))
  large = np.array(image.resize(size, Image.Resampling.BICUBIC))
  mask = np.kron(mask, np.ones((times, times), bool))
  padded = np.pad(mask, 1, mode='edge')
  inner = mask.copy()
  for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
    inner &= padded[down : down + mask.shape[0], right : right + mask.shape[1]]
  large[mask & ~inner] = OUTLINE
  return large
