"""Draws a phantom slide: lymphatic tissue, its nuclei, and lesions in it.

Two planes are built, the densities of haematoxylin and eosin; a scanner (see
phantom_scanner.py) makes a picture of them. What marks a lesion is the size,
shape and arrangement of its nuclei; density and colour vary at least as much
within healthy tissue. Lengths are in micrometres.
"""

import dataclasses
import functools

import numpy as np
import threadpoolctl
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from jaxmed.datasets import phantom_cells as cells
from jaxmed.datasets import phantom_scanner as scanners
from jaxmed.datasets import phantom_structures as structures
from jaxmed.datasets.phantom_field import (
  Field,
  Frame,
  Grain,
  Plane,
  lattice,
  step,
  thinned,
)
from jaxmed.slides import annotations

COARSE = 4  # Anatomy is planned on every fourth pixel.
BAND = 64  # Rows worked on at a time.


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that decides a slide's pixels.

  lesions: their diameters; an irregular outline adds up to half.
  pen, fold: whether there is a pen mark, a fold.
  """

  seed: tuple[int, ...]
  width: int
  height: int
  mpp: float
  scanner: scanners.Scanner
  lesions: tuple[float, ...] = ()
  pen: bool = False
  fold: bool = False


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A slide's pixels, and the outlines of its lesions."""

  pixels: UInt8[np.ndarray, 'height width 3']
  lesions: list[annotations.Polygon]


def draw(plan: Plan) -> Drawn:
  """Draws a slide; the same plan gives the same pixels."""
  # One thread: the products are small, the last bit of a sum depends on how
  # it is shared out, and slides are drawn side by side.
  with threadpoolctl.threadpool_limits(1, 'blas'):
    return _draw(plan)


def _draw(plan: Plan) -> Drawn:
  rng = np.random.default_rng(plan.seed)
  frame = Frame.whole(plan.width, plan.height, plan.mpp)
  anatomy = plan_anatomy(rng, frame)
  outlines, lesion = plan_lesions(rng, frame, anatomy, plan.lesions)
  ground = plan_ground(rng, frame)
  h, e = draw_ground(frame, ground, anatomy)
  draw_normal_cells(rng, frame, h, anatomy, ground, lesion)
  structures.draw_fat(rng, frame, h, e, anatomy, lesion)
  structures.draw_vessels_and_glands(rng, frame, h, e, anatomy, lesion)
  if plan.lesions:
    draw_lesions(rng, frame, h, e, ground, lesion)
  if plan.fold:
    structures.draw_fold(rng, frame, h, e, anatomy, lesion)
  for rows, band in frame.bands(BAND):
    soft = step(anatomy.depth(band), 0.6)
    h[rows] *= soft
    e[rows] *= soft
  pen = structures.draw_pen(rng, frame, anatomy) if plan.pen else None
  pixels = scanners.scan(rng, plan.scanner, frame, h, e, pen)
  return Drawn(pixels, outlines)


@dataclasses.dataclass(frozen=True)
class Anatomy:
  """Where what is. Values are of places on a frame.

  outline, tears: fields that shape the tissue.
  follicles, trabeculae: fields whose level sets they are.
  """

  extent: tuple[float, float]
  outline: Field
  tears: Field
  follicles: Field
  trabeculae: Field
  crowding: tuple[Field, Field]
  fat: Field

  def depth(self, frame: Frame) -> Plane:
    """About how far a place lies inside the tissue; negative outside."""
    height, width = self.extent
    y = (frame.y / height - 0.5)[:, None].astype(np.float32)
    x = (frame.x / width - 0.5)[None].astype(np.float32) * 1.05
    wobble = self.outline(frame)
    depth = 0.44 - np.hypot(y, x) - 0.038 * wobble
    # Some glass stays at the border of the slide.
    height, width = (np.float32(0.5) - np.abs(axis) for axis in (y, x / 1.05))
    margin = 0.02 + 0.008 * np.abs(wobble)
    np.minimum(depth, np.minimum(height, width) - margin, out=depth)
    tear = (2.4 - self.tears(frame)) * 40
    return np.minimum(depth * min(self.extent), tear)

  def septum(self, frame: Frame) -> Plane:
    """Fibrous trabeculae, from 0 to 1."""
    return step(0.20 - np.abs(self.trabeculae(frame)), 0.03)

  def follicle(self, frame: Frame, septum: Plane) -> tuple[Plane, Plane]:
    """Lymph follicles and their pale centres, from 0 to 1."""
    level = self.follicles(frame)
    rest = 1 - septum
    return step(level - 0.75, 0.06) * rest, step(level - 1.35, 0.06) * rest

  def density(self, frame: Frame) -> Plane:
    """The share of places that a lymphocyte takes."""
    septum = self.septum(frame)
    follicle, centre = self.follicle(frame, septum)
    fine, wide = (field(frame) for field in self.crowding)
    density = 0.58 + 0.20 * fine + 0.22 * wide
    density += follicle * (0.97 - density)
    density *= 1 - centre
    return np.clip(density, 0, 1) * (1 - 0.97 * septum) + 0.10 * centre


def plan_anatomy(rng: np.random.Generator, frame: Frame) -> Anatomy:
  field = functools.partial(Field.draw, rng, frame)
  return Anatomy(
    extent=(frame.y[-1], frame.x[-1]),
    outline=field(250, 3),
    tears=field(120, 2),
    follicles=field(165),
    trabeculae=field(280, 2),
    crowding=(field(60, 2), field(210)),
    fat=field(210),
  )


def plan_lesions(
  rng: np.random.Generator,
  frame: Frame,
  anatomy: Anatomy,
  diameters: tuple[float, ...],
) -> tuple[list[annotations.Polygon], Bool[np.ndarray, 'height width']]:
  """Outlines of lesions inside the tissue, and the mask that they enclose."""
  coarse = frame.coarser(COARSE)
  depth, wobble = anatomy.depth(coarse), Field.draw(rng, frame, 80, 2)(coarse)
  level = np.full(coarse.shape, -1.0, np.float32)
  taken = np.zeros(coarse.shape, bool)
  for diameter in sorted(diameters, reverse=True):
    blob = _place(rng, coarse, depth, wobble, taken, diameter / 2)
    level = np.maximum(level, blob)
    taken |= blob > -40  # Lesions stay apart.
  outlines = [_thinned(p) for p in annotations.outlines(level, COARSE)]
  height, width = frame.shape
  return outlines, annotations.rasterise(outlines, width, height)


def _thinned(polygon: annotations.Polygon) -> annotations.Polygon:
  """Every other point, to hundredths of a pixel."""
  outer, *holes = (ring[::2].round(2) for ring in polygon.rings)
  holes = tuple(ring for ring in holes if len(ring) >= 3)
  return dataclasses.replace(polygon, points=outer, holes=holes)


def _place(rng, coarse, depth, wobble, taken, radius: float) -> Plane:
  """The height of a lesion above its border, at the best of some places.

  A place is good where most of the lesion lies in tissue and in no other.
  """
  best, most = None, -1.0
  for _ in range(40):
    y, x = (rng.uniform(0.15, 0.85) * axis[-1] for axis in (coarse.y, coarse.x))
    away = np.hypot((coarse.y - y)[:, None], coarse.x - x)
    blob = (radius * (1 - 0.16 * wobble) - away).astype(np.float32)
    inside = blob > 0
    free = inside & (depth > 5) & ~taken
    share = free.sum() / max(1, inside.sum())
    if share > most:
      best, most = np.where(taken, -1, np.minimum(blob, depth)), share
    if share == 1:
      break
  return _one_piece(best)


def _one_piece(level: Plane) -> Plane:
  """Keeps the largest connected part above 0."""
  labels, count = ndimage.label(level > 0)
  if count < 2:
    return level
  largest = np.bincount(labels.ravel())[1:].argmax() + 1
  return np.where((labels == largest) | (level <= 0), level, -1)


@dataclasses.dataclass(frozen=True)
class Ground:
  """What lies between nuclei: fibres, a web of processes, and fine grain.

  Fibres are a one-dimensional noise read along a stream function: wavy
  collagen for one table look-up.
  """

  stream: tuple[Field, Field, Field]
  slope: tuple[float, float]
  table: Float[np.ndarray, ' entries']
  web: Field
  fine: Grain

  def flow(self, frame: Frame) -> Plane:
    wide, middle, narrow = (field(frame) for field in self.stream)
    y, x = self.slope
    ramp = (y * frame.y)[:, None] + (x * frame.x)[None]
    return 60 * wide + 9 * middle + 0.8 * narrow + ramp.astype(np.float32)

  def fibre(self, frame: Frame) -> Plane:
    place = self.flow(frame) * (2.6 * FIBRE_STEPS)
    return self.table[place.astype(np.int32) & (len(self.table) - 1)]


FIBRE_STEPS = 16  # Table entries between two independent values.


def plan_ground(rng: np.random.Generator, frame: Frame) -> Ground:
  field = functools.partial(Field.draw, rng, frame)
  knots = rng.standard_normal(4096)
  knots = ndimage.gaussian_filter1d(knots, 1.0, mode='wrap') * 1.9
  places = np.arange(4096 * FIBRE_STEPS) / FIBRE_STEPS
  table = np.interp(places, np.arange(4096), knots, period=4096)
  return Ground(
    stream=(field(350), field(90), field(13)),
    slope=tuple(rng.normal(0, 130 / 1024, 2)),
    table=table.astype(np.float32),
    web=field(11),
    fine=Grain(rng, frame, 0.5 / frame.mpp),
  )


def draw_ground(
  frame: Frame, ground: Ground, anatomy: Anatomy
) -> tuple[Plane, Plane]:
  """Haematoxylin and eosin of the tissue before any nucleus."""
  h, e = np.empty(frame.shape, np.float32), np.empty(frame.shape, np.float32)
  for rows, band in frame.bands(BAND):
    septum = anatomy.septum(band)
    _, centre = anatomy.follicle(band, septum)
    web, fine = ground.web(band), ground.fine[rows]
    loose = 0.20 + 0.045 * web + 0.016 * fine
    fibrous = 0.48 + 0.15 * ground.fibre(band) + 0.018 * fine
    e[rows] = loose + septum * (fibrous - loose) + 0.06 * centre
    h[rows] = 0.05 + 0.015 * web + 0.007 * fine + 0.04 * (1 - septum)
  return h, e


def draw_normal_cells(
  rng: np.random.Generator,
  frame: Frame,
  h: Plane,
  anatomy: Anatomy,
  ground: Ground,
  lesion: Bool[np.ndarray, 'height width'],
) -> None:
  """Histiocytes, germinal centres, lymphocytes, and fibroblasts."""
  coarse = frame.coarser(COARSE)
  septum = anatomy.septum(coarse)
  _, centre = anatomy.follicle(coarse, septum)
  density = anatomy.density(coarse)
  healthy = 1.0 - lesion[::COARSE, ::COARSE]
  tissue = anatomy.depth(coarse) > -3

  def scatter(bank, spacing, jitter, share, strength, angle=None):
    points = lattice(rng, frame, spacing, jitter)
    share = coarse.look_up(share * tissue, points)
    points = points[thinned(rng, points, share)]
    count = len(points)
    which = rng.integers(0, len(bank), count)
    if angle is not None:
      turn = coarse.look_up(angle, points) + rng.normal(0, 0.15, count)
      which = bank.along(turn)
    depth = rng.uniform(*strength, count)
    cells.paste(h, bank, points, which, depth, frame.mpp)

  bank = functools.partial(cells.draw_bank, rng, mpp=frame.mpp)
  pale = bank(cells.CENTROBLAST)
  scatter(pale, 18, 0.3, 0.30 * (1 - septum) * healthy, (0.7, 1.1))
  scatter(pale, 10.5, 0.16, 0.85 * centre * healthy, (0.85, 1.2))
  lymphocytes = np.where(healthy > 0, density, 0.06)
  scatter(bank(cells.LYMPHOCYTE), 6.8, 0.17, lymphocytes, (0.85, 1.15))
  down, across = np.gradient(ground.flow(coarse))
  along = np.arctan2(down, across) + np.pi / 2
  spindles = (0.62 * septum + 0.03) * healthy
  scatter(bank(cells.SPINDLE), 13.5, 0.25, spindles, (0.8, 1.1), along)


def draw_lesions(
  rng: np.random.Generator,
  frame: Frame,
  h: Plane,
  e: Plane,
  ground: Ground,
  lesion: Bool[np.ndarray, 'height width'],
) -> None:
  """Crowded, large, irregular nuclei around slit-like lumina."""
  field = functools.partial(Field.draw, rng, frame)
  grade, walls, eosin = field(150), field(37.5), field(150)
  for rows, band in frame.bands(BAND):
    inside = lesion[rows]
    if not inside.any():
      continue
    wide = np.clip(eosin(band), -2, 2)
    fine = ground.fine[rows]
    stroma = 0.23 + 0.06 * wide + 0.045 * ground.web(band) + 0.014 * fine
    e[rows] += 0.8 * inside * (stroma - e[rows])
    floor = 0.08 + 0.005 * fine
    h[rows] = np.where(inside, np.maximum(h[rows], floor), h[rows])
  pale = cells.draw_bank(rng, cells.VESICULAR, frame.mpp)
  dark = cells.draw_bank(rng, cells.DARK, frame.mpp)
  points = lattice(rng, frame, 11.25, 0.17)
  points = points[frame.look_up(lesion, points)]
  coarse = frame.coarser(COARSE)
  lumen = step(0.13 - np.abs(coarse.look_up(walls(coarse), points)), 0.03)
  points = points[thinned(rng, points, 0.93 * (1 - lumen))]
  high = step(coarse.look_up(grade(coarse), points) - 0.5, 0.35)
  is_dark = thinned(rng, points, high)
  strength = rng.uniform(0.8, 1.2, len(points))
  for bank, chosen in ((pale, ~is_dark), (dark, is_dark)):
    which = rng.integers(0, len(bank), chosen.sum())
    cells.paste(h, bank, points[chosen], which, strength[chosen], frame.mpp)
