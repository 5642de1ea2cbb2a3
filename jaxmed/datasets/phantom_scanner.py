"""From densities of two dyes to a picture: stain, light, focus and sensor.

Two scanners look at the same kind of tissue with different dyes, sharpness and
white: the two domains of an image translation.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, UInt8

from jaxmed.datasets.phantom_field import Field, Frame, Grain, Plane, blur

BAND = 64
MARGIN = 8  # Rows around a band that its blur sees.
DENSITY = 1.9  # Of a plane of 1, in natural logarithm.


@dataclasses.dataclass(frozen=True)
class Scanner:
  """How a scanner, and the laboratory beside it, renders tissue.

  stain: optical density of haematoxylin and of eosin in red, green, blue.
  gain: the strength of each.
  sharpness: deviation of the blur, in micrometres.
  """

  name: str
  stain: tuple[tuple[float, float, float], tuple[float, float, float]]
  gain: tuple[float, float]
  sharpness: float
  white: tuple[int, int, int]
  gamma: float
  noise: float = 1.2

  def absorbance(self) -> Float32[np.ndarray, '2 3']:
    """Per dye and channel, of a density of 1."""
    stain = np.asarray(self.stain, np.float32)
    stain /= np.linalg.norm(stain, axis=1, keepdims=True)
    return stain * np.float32(DENSITY * self.gamma)


# The vectors of A are those of Ruifrok and Johnston (2001).
SCANNERS = {
  'A': Scanner(
    'A',
    stain=((0.650, 0.704, 0.286), (0.072, 0.990, 0.105)),
    gain=(1.0, 1.0),
    sharpness=0.35,
    white=(243, 241, 244),
    gamma=1.0,
  ),
  'B': Scanner(
    'B',
    stain=((0.58, 0.74, 0.34), (0.12, 0.97, 0.20)),
    gain=(1.12, 0.85),
    sharpness=0.525,
    white=(238, 240, 238),
    gamma=1.08,
  ),
}


def scan(
  rng: np.random.Generator,
  scanner: Scanner,
  frame: Frame,
  h: Plane,
  e: Plane,
  ink: Float32[np.ndarray, 'height width 3'] | None = None,
) -> UInt8[np.ndarray, 'height width 3']:
  """The picture of haematoxylin and eosin; `ink` absorbs light above them.

  Stain varies from slide to slide and over a slide, and so does the focus.
  """
  strengths = [
    (gain * np.exp(rng.normal(0, spread)), spread, Field.draw(rng, frame, 300))
    for gain, spread in zip(scanner.gain, (0.10, 0.12), strict=True)
  ]
  focus = Field.draw(rng, frame, 175)
  noise = [Grain(rng, frame, 0) for _ in range(3)]
  light = _light(rng, frame)
  near = (scanner.sharpness / frame.mpp) ** 2
  far = (0.55 / frame.mpp) ** 2  # More, where the focus is off.
  absorbance = scanner.absorbance()
  picture = np.empty((*frame.shape, 3), np.uint8)
  for rows, band in frame.bands(BAND):
    top = max(0, rows.start - MARGIN)
    seen = slice(top, min(len(frame.y), rows.stop + MARGIN))
    inner = slice(rows.start - top, rows.stop - top)
    off = np.clip(0.30 + 0.30 * focus(band), 0, 1)
    dyes = []
    for plane, (gain, spread, field) in zip((h, e), strengths, strict=True):
      sharp = blur(np.maximum(plane[seen], 0), near)
      blurred = blur(sharp, far)[inner]
      dye = sharp[inner] + off * (blurred - sharp[inner])
      dyes.append(dye * (gain * np.exp(spread * field(band))))
    for channel, white in enumerate(scanner.white):
      density = dyes[0] * absorbance[0, channel]
      density += dyes[1] * absorbance[1, channel]
      if ink is not None:
        density += ink[rows, :, channel]
      value = np.exp(-density) * (white * light[rows])
      value += scanner.noise * noise[channel][rows]
      picture[rows, :, channel] = np.clip(value + 0.5, 0, 255)
  return picture


def _light(rng: np.random.Generator, frame: Frame) -> Plane:
  """Light that falls off a little to the corners, and dust in its way."""
  y = (frame.y / frame.y[-1] - 0.5) ** 2
  x = (frame.x / frame.x[-1] - 0.5) ** 2
  y, x = y.astype(np.float32), x.astype(np.float32)
  light = (1 - 0.03 * y)[:, None] - 0.03 * x
  extent = frame.y[-1], frame.x[-1]
  for _ in range(rng.poisson(12e-6 * extent[0] * extent[1])):
    place = rng.uniform(0, 1, 2) * extent
    size, dark = rng.uniform(1.0, 3.5), rng.uniform(0.1, 0.5)
    part, window = frame.around(*place, 3 * size)
    away = (window.y - place[0])[:, None] ** 2 + (window.x - place[1]) ** 2
    light[part] *= 1 - dark * np.exp(-away / size**2)
  return light
