"""Larger things of a phantom slide: fat, vessels, glands, a fold, a pen mark.

The first three are healthy; the last two are artefacts, and no lesions either.
"""

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image, ImageDraw
from scipy import ndimage

from jaxmed.datasets import phantom_cells as cells
from jaxmed.datasets.phantom_field import (
  Field,
  Frame,
  Plane,
  enlarge,
  lattice,
  step,
  thinned,
)

COARSE = 4
# Optical density of felt pens in red, green and blue: blue, green, black.
INKS = ((1.7, 1.0, 0.25), (1.6, 0.55, 1.15), (1.6, 1.6, 1.55))
Mask = Bool[np.ndarray, 'height width']


def draw_fat(
  rng: np.random.Generator,
  frame: Frame,
  h: Plane,
  e: Plane,
  anatomy,
  lesion: Mask,
) -> None:
  """Lobules of fat: round empty cells in a thin net."""
  coarse = frame.coarser(COARSE)
  points = lattice(rng, frame, 37, 0.07)
  fat = coarse.look_up(anatomy.fat(coarse) > 1.55, points)
  for y, x in points[fat & ~frame.look_up(lesion, points)]:
    radius, stretch = rng.uniform(12.5, 18), rng.uniform(0.85, 1.2)
    part, window = frame.around(y, x, 24)
    away = np.hypot((window.y - y)[:, None], (window.x - x) * stretch)
    rest = step(away - radius, 0.4).astype(np.float32)
    rest = np.maximum(rest, lesion[part])
    h[part] *= rest
    e[part] *= rest


def draw_vessels_and_glands(
  rng: np.random.Generator,
  frame: Frame,
  h: Plane,
  e: Plane,
  anatomy,
  lesion: Mask,
) -> None:
  """Small vessels with red cells, and ducts of one regular layer of cells."""
  coarse = frame.coarser(COARSE)
  room = ~lesion[::COARSE, ::COARSE] & (anatomy.depth(coarse) > 30)
  room &= anatomy.fat(coarse) < 1.4
  room = ndimage.distance_transform_edt(room) * coarse.mpp
  points = lattice(rng, frame, 170, 0.2)
  points = points[
    thinned(rng, points, 0.5 * (coarse.look_up(room, points) > 30))
  ]
  spindle = cells.draw_bank(rng, cells.SPINDLE, frame.mpp)
  epithelium = cells.draw_bank(rng, cells.EPITHELIUM, frame.mpp)
  for place in points:
    if rng.random() < 0.5:
      _vessel(rng, frame, h, e, place, spindle)
    else:
      _gland(rng, frame, h, e, place, epithelium)


def _vessel(rng, frame, h, e, place, bank: cells.Bank) -> None:
  radii, turn = rng.uniform(7, 15, 2), rng.uniform(0, np.pi)
  part, window = frame.around(*place, 22)
  p, t = _turned(window, place, turn)
  rho = np.hypot(p / radii[0], t / radii[1])
  size = radii.mean()
  lumen = step(1 - rho, 0.6 / size).astype(np.float32)
  wall = np.exp(-(((rho - 1.12) * size / 1.6) ** 2)).astype(np.float32)
  plasma = np.full(window.shape, 0.05, np.float32)
  for _ in range(rng.integers(0, 14)):
    y, x = place + rng.uniform(-0.75, 0.75, 2) * size
    away = np.hypot((window.y - y)[:, None], window.x - x)
    disc = step(rng.uniform(2.6, 3.3) - away, 0.25)
    pale = 0.16 * np.exp(-((away / 1.3) ** 2))  # Biconcave.
    np.maximum(plasma, disc * (rng.uniform(0.42, 0.6) - pale), out=plasma)
  h[part] *= 1 - lumen
  h[part] += 0.02 * lumen
  e[part] += wall * 0.22 + lumen * (plasma - e[part])
  angles = _around(rng, 1.15 * size, 13)
  ring = radii * 1.12 * np.stack([np.cos(angles), np.sin(angles)], 1)
  cos, sin = np.cos(turn), np.sin(turn)
  points = place + ring @ np.array([[sin, cos], [cos, -sin]])
  steps = np.stack([-np.sin(angles), np.cos(angles)], 1) * radii
  y, x = (steps @ np.array([[sin, cos], [cos, -sin]])).T
  which = bank.along(np.arctan2(y, x))
  cells.paste(
    h, bank, points, which, rng.uniform(0.8, 1.1, len(points)), frame.mpp
  )


def _gland(rng, frame, h, e, place, bank: cells.Bank) -> None:
  outer = rng.uniform(15, 23)
  inner = outer * rng.uniform(0.35, 0.5)
  part, window = frame.around(*place, outer + 4)
  away = np.hypot((window.y - place[0])[:, None], window.x - place[1])
  body = step(outer - away, 0.5).astype(np.float32)
  lumen = step(inner - away, 0.5).astype(np.float32)
  cytoplasm = 0.33 + 0.03 * rng.standard_normal(1, np.float32)
  e[part] += body * (cytoplasm - e[part])
  e[part] += lumen * (0.03 - e[part])
  h[part] += body * (0.11 - h[part])
  h[part] *= 1 - 0.9 * lumen
  angles = _around(rng, outer * 0.76, 6.6)
  radial = np.stack([np.sin(angles), np.cos(angles)], 1)
  points = place + radial * outer * rng.normal(0.76, 0.02, (len(angles), 1))
  which = bank.along(angles + rng.normal(0, 0.12, len(angles)))
  cells.paste(
    h, bank, points, which, rng.uniform(0.85, 1.15, len(points)), frame.mpp
  )


def _turned(window: Frame, place, turn: float) -> tuple[Plane, Plane]:
  """Coordinates along an axis at the angle `turn`, and across it."""
  y, x = (window.y - place[0])[:, None], (window.x - place[1])[None]
  cos, sin = np.cos(turn), np.sin(turn)
  return cos * x + sin * y, cos * y - sin * x


def _around(rng, radius: float, spacing: float) -> np.ndarray:
  """Angles of nuclei about evenly around a circle."""
  count = max(3, round(2 * np.pi * radius / spacing))
  angles = np.arange(count) * 2 * np.pi / count
  return angles + rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.6 / count, count)


def draw_fold(
  rng: np.random.Generator,
  frame: Frame,
  h: Plane,
  e: Plane,
  anatomy,
  lesion: Mask,
) -> None:
  """A narrow curved band where the section lies double."""
  half = min(130.0, 0.18 * min(anatomy.extent))
  coarse = frame.coarser(COARSE)
  room = ~lesion[::COARSE, ::COARSE] & (anatomy.depth(coarse) > 10)
  room = ndimage.distance_transform_edt(room) * coarse.mpp
  places = np.argwhere(room >= min(half, 0.7 * room.max()))
  place = (rng.choice(places) + 0.5) * coarse.mpp
  part, window = frame.around(*place, half + 20)
  p, t = _turned(window, place, rng.uniform(0, np.pi))
  bend = 12 * np.sin(p / 45 + rng.uniform(0, 6.28))
  width = rng.uniform(5, 8) * np.sqrt(np.clip(1 - (p / half) ** 2, 0, 1))
  double = step(width - np.abs(t - bend), 0.7) * (width > 0.3)
  double = double.astype(np.float32)
  shift = rng.integers(8, 20, 2)
  for plane in (h, e):
    plane[part] += 0.9 * double * np.roll(plane[part], shift, (0, 1))


def draw_pen(
  rng: np.random.Generator, frame: Frame, anatomy
) -> Float32[np.ndarray, 'height width 3']:
  """A stroke over the glass along the tissue's border, and over the border."""
  coarse = frame.coarser(COARSE)
  tissue = anatomy.depth(coarse) > 0
  centre = np.array(anatomy.extent) / 2
  begin = rng.uniform(0, 2 * np.pi)
  angles = begin + np.linspace(0, rng.uniform(0.7, 1.2), 60)
  reach = np.arange(0, min(anatomy.extent) * 0.68, coarse.mpp)
  direction = np.stack([np.sin(angles), np.cos(angles)], 1)
  rays = centre + reach[:, None, None] * direction
  inside = coarse.look_up(tissue, rays.reshape(-1, 2)).reshape(len(reach), -1)
  border = reach[len(reach) - 1 - inside[::-1].argmax(0)]
  width = min(50.0, 0.05 * min(anatomy.extent))
  border = ndimage.gaussian_filter1d(border, 6) + width * np.linspace(
    -0.2, 0.9, 60
  )
  path = (centre + border[:, None] * direction) / coarse.mpp
  image = Image.new('F', coarse.shape[::-1])
  pencil = ImageDraw.Draw(image)
  pixels = width / coarse.mpp
  pencil.line(
    [(x, y) for y, x in path], fill=1, width=round(pixels), joint='curve'
  )
  for y, x in (path[0], path[-1]):
    box = (x - pixels / 2, y - pixels / 2, x + pixels / 2, y + pixels / 2)
    pencil.ellipse(box, fill=1)
  stroke = ndimage.gaussian_filter(np.asarray(image), 1.5)
  stroke *= 1 + 0.12 * Field.draw(rng, frame, 14, 2)(coarse)
  ink = INKS[rng.integers(len(INKS))]
  return enlarge(stroke, frame, COARSE)[..., None] * np.array(ink, np.float32)
