"""Nuclei of a phantom slide: what they look like, and putting them there.

A bank holds some hundred nuclei of one kind as small pictures of haematoxylin
density and coverage; a slide pastes them by the ten thousand.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import ndimage

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of nucleus; lengths in micrometres, densities of haematoxylin.

  wobble: how far the outline departs from an ellipse.
  base, rim, coarse: density of the inside, of the membrane, of clumps.
  grain: size of the chromatin's clumps.
  """

  radius: Range
  aspect: Range
  wobble: float
  base: Range
  rim: Range
  coarse: Range
  nucleoli: int = 0
  grain: float = 0.8
  count: int = 300


LYMPHOCYTE = Kind(
  (2.5, 3.7), (1, 1.35), 0.05, (0.55, 1.0), (0.05, 0.30), (0.03, 0.11),
  count=400,
)  # fmt: skip
CENTROBLAST = Kind(  # Also stands for histiocytes.
  (3.25, 4.75), (1, 1.35), 0.06, (0.35, 0.65), (0.12, 0.35), (0.03, 0.10),
  nucleoli=1,
)  # fmt: skip
EPITHELIUM = Kind(
  (2.7, 3.5), (1.2, 1.7), 0.04, (0.45, 0.80), (0.05, 0.25), (0.03, 0.09),
  count=180,
)  # fmt: skip
SPINDLE = Kind(
  (2.5, 3.5), (3.2, 6.5), 0.05, (0.55, 0.95), (0.0, 0.2), (0.02, 0.07),
  count=360,
)  # fmt: skip
VESICULAR = Kind(  # Of lesions: large, pale, with a membrane and nucleoli.
  (4.25, 7.25), (1, 1.9), 0.16, (0.20, 0.44), (0.25, 0.55), (0.08, 0.17),
  nucleoli=2, grain=1.0, count=260,
)  # fmt: skip
DARK = Kind(  # Of lesions: large and hyperchromatic.
  (4.0, 6.75), (1, 1.9), 0.18, (0.50, 0.90), (0.05, 0.25), (0.10, 0.22),
  nucleoli=2, grain=1.05, count=260,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Bank:
  """Pictures of nuclei: their density, coverage, and long axis in radians.

  `angle` rises, so that a nucleus of about a wanted angle is quickly found.
  """

  density: Float32[np.ndarray, 'count side side']
  coverage: Float32[np.ndarray, 'count side side']
  angle: Float[np.ndarray, ' count']

  def __len__(self) -> int:
    return len(self.angle)

  def along(self, angle: Float[np.ndarray, ' n']) -> Int[np.ndarray, ' n']:
    """The nucleus whose long axis comes next to each angle."""
    return np.searchsorted(self.angle, angle % np.pi) % len(self)


def draw_bank(rng: np.random.Generator, kind: Kind, mpp: float) -> Bank:
  """Draws `kind.count` nuclei of a kind.

  The outline is a rotated ellipse times 1 + wobble times four harmonics; the
  density base + rim + clumps + nucleoli.
  """
  count = kind.count
  uniform = lambda limits: rng.uniform(*limits, (count, 1, 1)).astype(
    np.float32
  )
  longest = kind.radius[1] * np.sqrt(kind.aspect[1]) * (1 + 1.5 * kind.wobble)
  side = 2 * int(np.ceil(longest / mpp + 1.5)) + 1
  centred = np.arange(side, dtype=np.float32) - side // 2
  shift = rng.uniform(-0.5, 0.5, (2, count, 1, 1)).astype(np.float32)
  y, x = centred[None, :, None] + shift[0], centred[None, None] + shift[1]
  angle = np.sort(rng.uniform(0, np.pi, count)).astype(np.float32)
  cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
  radius = uniform(kind.radius) / np.float32(mpp)
  stretch = np.sqrt(uniform(kind.aspect))
  p, t = (cos * x + sin * y) / stretch, (cos * y - sin * x) * stretch
  around = np.arctan2(t, p)
  bound = np.float32(1)
  for m, share in ((2, 1.0), (3, 0.8), (4, 0.5), (5, 0.4)):
    wave = np.cos(m * around + uniform((0, 2 * np.pi)))
    bound = bound + kind.wobble * share * uniform((-1, 1)) * wave
  rho = np.hypot(p, t) / (radius * np.maximum(bound, 0.35))
  edge = np.clip((rho - 1) * radius / 0.35, -30, 30)
  clumps = rng.standard_normal((count, side, side), np.float32)
  sigma = kind.grain / mpp
  clumps = ndimage.gaussian_filter(clumps, (0, sigma, sigma)) * 3.55 * sigma
  density = uniform(kind.base) + uniform(kind.coarse) * clumps
  rim = (rho - 0.86) * radius * mpp / 0.65
  density += uniform(kind.rim) * np.exp(-(rim**2))
  for _ in range(kind.nucleoli):
    turn, away = uniform((0, 2 * np.pi)), uniform((0, 0.5)) * radius
    far = (p - away * np.cos(turn)) ** 2 + (t - away * np.sin(turn)) ** 2
    size = uniform((0.6, 1.1)) / np.float32(mpp)
    density += uniform((0.1, 0.9)) * np.exp(-far / size**2)
  coverage = 1 / (1 + np.exp(edge))
  return Bank(
    np.maximum(density, 0.05).astype(np.float32),
    coverage.astype(np.float32),
    angle,
  )


def paste(
  plane: Float32[np.ndarray, 'height width'],
  bank: Bank,
  points: Float[np.ndarray, 'n 2'],
  which: Int[np.ndarray, ' n'],
  strength: Float[np.ndarray, ' n'],
  mpp: float,
) -> None:
  """Lays nuclei over a plane of haematoxylin at (y, x) in micrometres.

  Later ones cover earlier ones; those that cross the border are left out.
  """
  side = bank.coverage.shape[1]
  corner = np.floor(points / mpp).astype(int) - side // 2
  inside = (corner >= 0).all(1) & (
    corner <= np.subtract(plane.shape, side)
  ).all(1)
  for (y, x), index, factor in zip(
    corner[inside].tolist(),
    which[inside].tolist(),
    strength[inside].astype(np.float32),
    strict=True,
  ):
    under = plane[y : y + side, x : x + side]
    under += bank.coverage[index] * (bank.density[index] * factor - under)
