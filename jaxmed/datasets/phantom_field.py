"""Smooth random fields in micrometres, on which phantom tissue is built.

A field is a function of a place on the slide: noise at the nodes of a grid,
interpolated. It can be looked at on any frame: the whole slide, a window of
it, or every fourth pixel; and costs two small matrix products there.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Float64
from PIL import Image

Plane = Float32[np.ndarray, 'height width']


@dataclasses.dataclass(frozen=True)
class Frame:
  """A raster of places: pixel (i, j) lies at (y[i], x[j]), in micrometres."""

  y: Float64[np.ndarray, ' height']
  x: Float64[np.ndarray, ' width']
  mpp: float
  # Fields' weights of the columns, which are the same for every band.
  kept: dict = dataclasses.field(default_factory=dict, repr=False)

  @classmethod
  def whole(cls, width: int, height: int, mpp: float) -> 'Frame':
    return cls(
      (np.arange(height) + 0.5) * mpp, (np.arange(width) + 0.5) * mpp, mpp
    )

  @property
  def shape(self) -> tuple[int, int]:
    return len(self.y), len(self.x)

  def coarser(self, factor: int) -> 'Frame':
    """The centres of blocks of factor x factor pixels."""
    height, width = (math.ceil(side / factor) for side in self.shape)
    mpp = self.mpp * factor
    start = self.y[0] - self.mpp / 2, self.x[0] - self.mpp / 2
    return Frame(
      start[0] + (np.arange(height) + 0.5) * mpp,
      start[1] + (np.arange(width) + 0.5) * mpp,
      mpp,
    )

  def bands(self, height: int) -> Iterator[tuple[slice, 'Frame']]:
    """The frame in strips of rows, which fit into a processor's cache."""
    for top in range(0, len(self.y), height):
      rows = slice(top, min(top + height, len(self.y)))
      yield rows, Frame(self.y[rows], self.x, self.mpp, self.kept)

  def around(
    self, y: float, x: float, radius: float
  ) -> tuple[tuple[slice, slice], 'Frame']:
    """The square around a place: its pixels here, and it as a frame."""
    rows = slice(*np.searchsorted(self.y, (y - radius, y + radius)))
    columns = slice(*np.searchsorted(self.x, (x - radius, x + radius)))
    frame = Frame(self.y[rows], self.x[columns], self.mpp)
    return (rows, columns), frame

  def look_up(
    self, plane: np.ndarray, points: Float64[np.ndarray, 'points 2']
  ) -> np.ndarray:
    """The values of a plane over this frame at (y, x) in micrometres."""
    index = []
    for place, axis in zip(points.T, (self.y, self.x), strict=True):
      start = axis[0] - self.mpp / 2
      cell = np.floor((place - start) / self.mpp).astype(int)
      index.append(np.clip(cell, 0, len(axis) - 1))
    return plane[tuple(index)]


@dataclasses.dataclass(frozen=True)
class Field:
  """Noise of about mean 0 and deviation 1, smooth over `cell` micrometres.

  Each octave halves the cell and the strength.
  """

  cell: float
  nodes: tuple[Float32[np.ndarray, 'rows columns'], ...]

  @classmethod
  def draw(
    cls, rng: np.random.Generator, frame: Frame, cell: float, octaves: int = 1
  ) -> 'Field':
    nodes = []
    for octave in range(octaves):
      shape = [
        int(axis[-1] * 2**octave / cell) + 5 for axis in (frame.y, frame.x)
      ]
      grid = rng.standard_normal(shape, np.float32)
      nodes.append(grid * np.float32(1.35 * 0.5**octave))
    return cls(cell, tuple(nodes))

  def __call__(self, frame: Frame) -> Plane:
    total = None
    for octave, nodes in enumerate(self.nodes):
      cell = self.cell / 2**octave
      rows = _weights(frame.y / cell, nodes.shape[0])
      key = cell, nodes.shape[1]
      if key not in frame.kept:
        frame.kept[key] = _weights(frame.x / cell, nodes.shape[1]).T.copy()
      part = (rows @ nodes) @ frame.kept[key]
      total = part if total is None else np.add(total, part, out=total)
    return total


def _weights(place: np.ndarray, count: int) -> Float32[np.ndarray, 'n count']:
  """Cubic convolution (Keys 1981, a = -1/2): shares of nodes in each place."""
  node = np.floor(place).astype(int)
  t = (place - node)[:, None]
  four = np.concatenate(
    [
      -0.5 * t + t**2 - 0.5 * t**3,
      1 - 2.5 * t**2 + 1.5 * t**3,
      0.5 * t + 2 * t**2 - 1.5 * t**3,
      -0.5 * t**2 + 0.5 * t**3,
    ],
    axis=1,
  )
  weights = np.zeros((len(place), count), np.float32)
  np.put_along_axis(weights, node[:, None] + np.arange(4), four, axis=1)
  return weights


def enlarge(coarse: Plane, frame: Frame, factor: int) -> Plane:
  """A plane over `frame.coarser(factor)`, interpolated onto `frame`."""
  height, width = frame.shape
  box = (0, 0, width / factor, height / factor)
  image = Image.fromarray(np.ascontiguousarray(coarse, np.float32))
  return np.asarray(image.resize((width, height), Image.BILINEAR, box=box))


def step(value: np.ndarray, width: float) -> np.ndarray:
  """From 0 below to 1 above, over a few `width`: the logistic function."""
  return 1 / (1 + np.exp(np.clip(-value / width, -30, 30)))


def blur(plane: Plane, variance: float) -> Plane:
  """Gaussian blur by passes of three taps; the variance in px^2.

  A pass with the weights w, 1 - 2w, w adds 2w to the variance.
  """
  passes = math.ceil(variance / 0.5)
  for _ in range(passes):
    weight = np.float32(variance / passes / 2)
    for axis in (0, 1):
      plane = _three_taps(plane, weight, axis)
  return plane


def _three_taps(plane: Plane, weight: np.float32, axis: int) -> Plane:
  """One pass along an axis; the border's pixels stay."""
  cut = lambda part: (part,) if axis == 0 else (slice(None), part)
  middle = cut(slice(1, -1))
  out = plane.copy()
  out[middle] *= 1 - 2 * weight
  sides = plane[cut(slice(2, None))] + plane[cut(slice(-2))]
  sides *= weight
  out[middle] += sides
  return out


class Grain:
  """Fine noise of deviation 1, correlated over `sigma` px; repeats itself.

  The period of 1,024 px is far beyond what the eye or a network compares.
  """

  SIDE = 1024

  def __init__(self, rng: np.random.Generator, frame: Frame, sigma: float):
    side = self.SIDE
    noise = rng.standard_normal((side, side), np.float32)
    if sigma:
      across, down = np.fft.rfftfreq(side), np.fft.fftfreq(side)
      squared = down[:, None] ** 2 + across[None] ** 2
      transfer = np.exp(-2 * (np.pi * sigma) ** 2 * squared)
      noise = np.fft.irfft2(np.fft.rfft2(noise) * transfer, s=noise.shape)
      noise = (noise / noise.std()).astype(np.float32)
    width = frame.shape[1]
    self._noise = np.tile(noise, (1, -(-width // side)))[:, :width]

  def __getitem__(self, rows: slice) -> Plane:
    places = np.arange(rows.start, rows.stop) % self.SIDE
    return self._noise[places]


def lattice(
  rng: np.random.Generator, frame: Frame, spacing: float, jitter: float
) -> Float64[np.ndarray, 'points 2']:
  """(y, x) of a hexagonal lattice, each point moved a little, shuffled."""
  extent = frame.y[-1], frame.x[-1]
  rows = np.arange(int(extent[0] / (spacing * 0.866)) + 1)
  columns = np.arange(int(extent[1] / spacing) + 1)
  row, column = np.meshgrid(rows, columns, indexing='ij')
  y, x = row * spacing * 0.866, (column + 0.5 * (row % 2)) * spacing
  points = np.stack([y.ravel(), x.ravel()], axis=1)
  points += rng.normal(0, jitter * spacing, points.shape)
  inside = (points >= 0).all(1) & (points < extent).all(1)
  return rng.permutation(points[inside])


def thinned(
  rng: np.random.Generator,
  points: Float64[np.ndarray, 'points 2'],
  probability: np.ndarray | float,
) -> Bool[np.ndarray, ' points']:
  """Which points stay, each with its own probability."""
  return rng.random(len(points)) < probability
