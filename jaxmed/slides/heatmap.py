"""Shows the scores of a slide's tiles as colours over its thumbnail."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from jaxmed.slides import grid
from jaxmed.slides.annotations import Polygon
from jaxmed.slides.layers import Ring, corners

LONGEST = 900  # Pixels of the picture's longer side, the bar apart.
FAILED = '#d00000'


@dataclasses.dataclass(frozen=True)
class ScoreMap:
  """A score for each tile of a grid; NaN where none was given.

  size: (width, height) of the slide's level 0.
  """

  values: Float[np.ndarray, 'rows columns']
  tiles: grid.Grid
  size: tuple[int, int]

  def over(self, width: int, height: int) -> Float[np.ndarray, 'height width']:
    """The map as a picture of the whole slide; overlapping tiles average.

    Each pixel takes the mean of the tiles that lie over its centre.
    """
    known = np.isfinite(self.values)
    rows = _members(self.tiles.y, self.tiles.tile, self.size[1], height)
    columns = _members(self.tiles.x, self.tiles.tile, self.size[0], width)
    total = rows @ np.where(known, self.values, 0.0) @ columns.T
    count = rows @ known.astype(np.float64) @ columns.T
    with np.errstate(invalid='ignore', divide='ignore'):
      return np.where(count > 0, total / count, np.nan)

  def squares(self) -> Float[np.ndarray, 'height width']:
    """The map as a picture with a pixel for each `stride` px of the slide.

    As of `over`, each takes the mean of the tiles that lie over its centre.
    """
    tiles = self.tiles
    reach = max(1, math.ceil(tiles.tile / tiles.stride - 0.5))
    shape = tiles.rows + reach - 1, tiles.columns + reach - 1
    total, count = np.zeros(shape), np.zeros(shape)
    known = np.isfinite(self.values)
    values = np.where(known, self.values, 0.0)
    for row, column in np.ndindex(reach, reach):
      at = slice(row, row + tiles.rows), slice(column, column + tiles.columns)
      total[at] += values
      count[at] += known
    with np.errstate(invalid='ignore', divide='ignore'):
      return np.where(count > 0, total / count, np.nan).astype(np.float32)


def _members(
  starts: np.ndarray, tile: int, side: int, pixels: int
) -> Float[np.ndarray, 'pixels tiles']:
  """Which pixels' centres each tile covers."""
  centres = ((np.arange(pixels) + 0.5) * side / pixels)[:, None]
  inside = (centres >= starts) & (centres < starts + tile)
  return inside.astype(np.float64)


def draw_overlay(
  thumbnail: UInt8[np.ndarray, 'height width 3'],
  scores: ScoreMap,
  *,
  label: str = 'score',
  polygons: Sequence[Polygon] = (),
  failed: Sequence[Ring] = (),
  tissue: Bool[np.ndarray, 'rows columns'] | None = None,
  threshold: float | None = None,
  limits: tuple[float, float] | None = None,
  mpp: float | None = None,
  alpha: float = 0.55,
  colours: str = 'inferno',
) -> Image.Image:
  """The map over a gray thumbnail, with a bar that says what colours mean.

  Outlines: annotated lesions in white on black, the tissue in green; tiles
  that could not be read, `failed` as layers.edges has them, are hatched. Tiles
  above `threshold` are framed and the bar marks it. `limits` of the colours
  are the 2nd and 99.5th percentile of the map unless given, so that maps of
  several slides can share them. With `mpp` a scale bar is drawn.
  """
  # pyplot isn't used: it keeps every figure, and is not for threads.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  thumbnail = _fitted(thumbnail)
  height, width = thumbnail.shape[:2]
  values = scores.over(width, height)
  low, high = limits or _limits(scores.values)
  bar = 130
  figure = Figure(figsize=((width + bar) / 100, height / 100), dpi=100)
  canvas = FigureCanvasAgg(figure)
  axes = figure.add_axes((0, 0, width / (width + bar), 1))
  axes.set_axis_off()
  extent = (0, scores.size[0], scores.size[1], 0)
  axes.imshow(_faded(thumbnail), extent=extent, interpolation='nearest')
  picture = axes.imshow(
    np.ma.masked_invalid(values),
    extent=extent,
    cmap=colours,
    vmin=low,
    vmax=high,
    alpha=alpha,
    interpolation='nearest',
  )
  if tissue is not None:
    _outline(axes, tissue, scores.size, '#1b9e5a', 0.9)
  if threshold is not None:
    above = np.where(np.isfinite(values), values, -np.inf) > threshold
    _outline(axes, above, scores.size, '#19d3f3', 1.3)
  for ring in (ring for polygon in polygons for ring in polygon.rings):
    ring = np.concatenate([ring, ring[:1]])
    axes.plot(*ring.T, color='black', linewidth=3.2)
    axes.plot(*ring.T, color='white', linewidth=1.6)
  _hatch(axes, failed)
  axes.set_xlim(0, scores.size[0])
  axes.set_ylim(scores.size[1], 0)
  if mpp:
    _scale_bar(axes, scores.size, mpp)
  _colour_bar(figure, picture, width, bar, label, threshold)
  canvas.draw()
  return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def save_overlay(path: str | os.PathLike, overlay: Image.Image) -> None:
  """Writes a PNG that appears whole or not at all."""
  temporary = pathlib.Path(f'{path}.tmp')
  # Tissue is grain: harder compression takes twice as long, and gains 8 %.
  overlay.save(temporary, format='PNG', compress_level=1)
  os.replace(temporary, path)


def _limits(values: np.ndarray) -> tuple[float, float]:
  known = values[np.isfinite(values)]
  if not known.size:
    return 0.0, 1.0
  low, high = np.percentile(known, (2, 99.5))
  return float(low), float(high if high > low else low + 1)


def _fitted(thumbnail: np.ndarray) -> np.ndarray:
  """Enlarged or reduced, so that lines and letters have their size."""
  height, width = thumbnail.shape[:2]
  scale = LONGEST / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  return np.asarray(Image.fromarray(thumbnail).resize(size, Image.LANCZOS))


def _faded(thumbnail: np.ndarray) -> np.ndarray:
  """Nearly gray and light, so that the map's colours are its own."""
  pixels = thumbnail.astype(np.float32)
  gray = pixels.mean(axis=-1, keepdims=True)
  faded = gray + 0.25 * (pixels - gray)
  return (255 - 0.85 * (255 - faded)).astype(np.uint8)


def _outline(axes, mask, size, colour: str, width: float) -> None:
  """A line around what is marked, closed at the slide's border."""
  if not mask.any():
    return
  rows, columns = mask.shape
  across, down = size[0] / columns, size[1] / rows
  padded = np.pad(mask, 1).astype(np.float32)
  x = (np.arange(columns + 2) - 0.5) * across
  y = (np.arange(rows + 2) - 0.5) * down
  axes.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=width)


def _hatch(axes, rings: Sequence[Ring]) -> None:
  """Stripes over what is within the rings, but not within their holes."""
  from matplotlib import patches, path

  if not rings:
    return
  closed = [
    path.Path(np.concatenate([points, points[:1]]), closed=True)
    for points in map(corners, rings)
  ]
  style = {'hatch': '////', 'edgecolor': FAILED, 'facecolor': 'none'}
  whole = path.Path.make_compound_path(*closed)
  axes.add_patch(patches.PathPatch(whole, linewidth=1.2, **style))


def _scale_bar(axes, size: tuple[int, int], mpp: float) -> None:
  """A bar of a round length, about a sixth of the slide."""
  about = size[0] * mpp / 6
  power = 10 ** np.floor(np.log10(about))
  length = max(step * power for step in (1, 2, 5) if step * power <= about)
  left, bottom = 0.03 * size[0], size[1] - 0.035 * size[1]
  x = (left, left + length / mpp)
  axes.plot(x, (bottom, bottom), color='black', linewidth=3)
  text = f'{length / 1000:g} mm' if length >= 1000 else f'{length:g} µm'
  axes.text(np.mean(x), bottom - 0.012 * size[1], text, ha='center', size=11)


def _colour_bar(figure, picture, width, bar, label, threshold) -> None:
  whole = width + bar
  axes = figure.add_axes(((width + 18) / whole, 0.06, 20 / whole, 0.88))
  colour_bar = figure.colorbar(picture, cax=axes)
  colour_bar.solids.set_alpha(1)
  colour_bar.set_label(label, size=11)
  axes.tick_params(labelsize=10)
  if threshold is not None:
    low, high = picture.get_clim()
    at = float(np.clip(threshold, low, high))
    axes.axhline(at, color='#19d3f3', linewidth=2.5)
