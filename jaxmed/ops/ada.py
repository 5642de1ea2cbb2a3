"""Augmentation that a discriminator sees, and how much of it (ADA).

Karras et al., Training generative adversarial networks with limited data,
NeurIPS 2020, appendix B: the parts blit, geometry and colour, in the order and
with the constants of the authors' code (`bgc` there).

Every image, real or drawn, is changed by draws of its own, each of which is
made with probability p. As long as p < 0.8 or so, a generator still has to
learn the images and not their changes. All of it can be differentiated.

An image's blits and geometry are one matrix G, of output to input places, about
the image's middle. If G has blits only, pixels are moved and nothing else.
Otherwise, in one axis after the other, the image is made twice as large by the
wavelet symlet-6, looked up at G's places linearly on a grid twice as fine, and
made small again by the same wavelet, which together change nothing where G
does nothing. Beyond its edges an image goes on mirrored; the original has
zeros beyond the first mirror image.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmed import errors
from jaxmed.method import Images, RandomKey

SHIFT = 0.125  # Of the side: the most by whole pixels, the deviation by parts.
SCALE = 0.2  # Deviation of log2, of both scalings.
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # Deviations; of log2 but b.
STEPS = 4  # After which p changes.
TARGET = 0.6  # Of the mean sign of the discriminator on real images.
RANGE = 500_000  # Real images in which p goes from 0 to 1 at its fastest.
MOST = 16  # Draws of either kind that one image's place or colour takes.
SYMLET = (  # Daubechies' least asymmetric wavelet of six vanishing moments.
  0.015404109327027373,
  0.0034907120842174702,
  -0.11799011114819057,
  -0.048311742585633,
  0.4910559419267466,
  0.787641141030194,
  0.3379294217276218,
  -0.07263752278646252,
  -0.021060292512300564,
  0.04472490177066578,
  0.0017677118642428036,
  -0.007800708325034148,
)
CENTRE = 5  # Of the wavelet's taps: the one that lies on the pixel itself.
MARGIN = 3  # Px beyond the edges that are enlarged too: what its taps reach.

Scalar = Float[Array, ''] | float
Place = Float[Array, '3 3']
Colour = Float[Array, '4 4']


def augment(images: Images, key: RandomKey, p: Scalar) -> Images:
  """Square images in [-1, 1], each changed by its own draws; p = 0: as given.

  Image i of a batch has the key fold_in(key, i).
  """
  side, channels = images.shape[1], images.shape[3]
  if images.shape[2] != side or channels not in (1, 3):
    raise errors.UserError(
      'ADA changes square images, gray or RGB, not'
      f' {" x ".join(map(str, images.shape[1:]))}; change --config.data.size'
      ' or data.channels, or set --config.train.ada=False.'
    )

  def one(image, number):
    place_key, colour_key = jax.random.split(jax.random.fold_in(key, number))
    place, blit = draw_place(place_key, p, side)
    return paint(move(image, place, blit), draw_colour(colour_key, p, channels))

  return jax.vmap(one)(images, jnp.arange(len(images)))


def adapt(
  p: Scalar, sign: Scalar, images: Scalar, target: float = TARGET
) -> Float[Array, '']:
  """p after so many real images, whose mean sign D(x) was `sign`.

  More where the discriminator tells real images too well; it stays in [0, 1].
  """
  step = jnp.sign(sign - target) * images / RANGE
  return jnp.clip(p + step, 0.0, 1.0)


def fresh() -> dict[str, Float[Array, '']]:
  """What `follow` keeps: p, and what it has seen since p last changed."""
  return {name: jnp.zeros(()) for name in ('strength', 'sign', 'steps')}


def follow(
  kept: dict[str, Float[Array, '']],
  sign: Scalar,
  batch: int,
  target: float = TARGET,
) -> dict[str, Float[Array, '']]:
  """After a step whose real images had this mean sign D(x).

  p changes every `STEPS` steps, by the mean of their signs.
  """
  steps, total = kept['steps'] + 1, kept['sign'] + sign
  due = steps >= STEPS
  p = adapt(kept['strength'], total / steps, steps * batch, target)
  return {
    'strength': jnp.where(due, p, kept['strength']),
    'sign': jnp.where(due, 0.0, total),
    'steps': jnp.where(due, 0.0, steps),
  }


def draw_place(
  key: RandomKey, p: Scalar, side: int
) -> tuple[Place, Bool[Array, '']]:
  """G of one image, and whether it has blits only."""
  draws = _Draws(key)
  flip = draws.flip(p) & draws.coin()
  g = _scaling(jnp.where(flip, -1.0, 1.0), 1.0)
  turns = jnp.where(draws.flip(p), draws.quarters(), 0)
  g = _dot(g, _turn(turns))
  whole = jnp.stack([draws.signed(), draws.signed()])
  whole = jnp.round(whole * SHIFT * side)
  g = _dot(g, _shift(jnp.where(draws.flip(p), whole, 0.0)))

  # A rotation before and one after the stretch, together with probability p.
  once = 1 - jnp.sqrt(jnp.clip(1 - p, 0.0, 1.0))
  drawn = [draws.flip(q) for q in (p, once, p, once, p)]
  scaled, before, stretched, after, shifted = drawn
  s = jnp.where(scaled, draws.factor(SCALE), 1.0)
  g = _dot(g, _scaling(1 / s, 1 / s))
  g = _dot(g, _rotation(jnp.where(before, draws.angle(), 0.0)))
  s = jnp.where(stretched, draws.factor(SCALE), 1.0)
  g = _dot(g, _scaling(1 / s, s))
  g = _dot(g, _rotation(jnp.where(after, draws.angle(), 0.0)))
  part = jnp.stack([draws.normal(), draws.normal()]) * SHIFT * side
  g = _dot(g, _shift(jnp.where(shifted, part, 0.0)))
  return g, ~jnp.stack(drawn).any()


def draw_colour(key: RandomKey, p: Scalar, channels: int = 3) -> Colour:
  """What multiplies (red, green, blue, 1) of one image."""
  draws = _Draws(key)
  gray = jnp.array([1.0, 1.0, 1.0, 0.0]) / np.sqrt(3)
  along = jnp.outer(gray, gray)  # What of a colour is gray.
  b = jnp.where(draws.flip(p), BRIGHTNESS * draws.normal(), 0.0)
  c = jnp.eye(4).at[:3, 3].set(b)
  s = jnp.where(draws.flip(p), draws.factor(CONTRAST), 1.0)
  c = _dot(jnp.diag(jnp.stack([s, s, s, 1.0])), c)
  flip = draws.flip(p) & draws.coin()
  c = _dot(jnp.eye(4) - 2 * along * flip, c)
  if channels > 1:
    c = _dot(_hue(jnp.where(draws.flip(p), draws.angle(), 0.0)), c)
    s = jnp.where(draws.flip(p), draws.factor(SATURATION), 1.0)
    c = _dot(along + (jnp.eye(4) - along) * _colours_only(s), c)
  return c


def move(
  image: Float[Array, 'h h c'], place: Place, blit: Bool[Array, '']
) -> Float[Array, 'h h c']:
  """The image whose pixels are those at G's places."""
  side = image.shape[0]
  middle = (side - 1) / 2
  whole = _mirror(_places(place, jnp.arange(side) - middle) + middle, side)
  rows, columns = jnp.round(whole).astype(jnp.int32)
  moved = image[rows, columns]

  up, down = _enlarging(side), _reducing(side)
  fine = jnp.arange(-CENTRE, down.shape[1] - CENTRE) / 2 - middle
  at = _places(place, fine) + middle
  near = (at >= -MARGIN) & (at <= side - 1 + MARGIN)
  at = 2 * (jnp.where(near, at, _mirror(at, side)) + MARGIN)
  large = jnp.einsum('ij,kl,jlc->ikc', up, up, image, precision='highest')
  fine = _linear(large, at)
  smooth = jnp.einsum('ij,kl,jlc->ikc', down, down, fine, precision='highest')
  return jnp.where(blit, moved, smooth)


def paint(image: Float[Array, 'h w c'], c: Colour) -> Float[Array, 'h w c']:
  """Its colours times C; a gray image's times the mean of C's rows."""
  if image.shape[-1] == 3:
    matrix, offset = c[:3, :3], c[:3, 3]
  else:
    row = c[:3].mean(axis=0)
    matrix, offset = row[None, :3].sum(axis=1, keepdims=True), row[3:]
  colours = jnp.einsum('hwc,dc->hwd', image, matrix, precision='highest')
  changed = colours + offset[None, None]
  return jnp.where((c == jnp.eye(4)).all(), image, changed)


class _Draws:
  """Draws in their order, all made at once: they compile as one."""

  def __init__(self, key: RandomKey):
    keys = jax.random.split(key)
    self._uniform = iter(jax.random.uniform(keys[0], (MOST,)))
    self._normal = iter(jax.random.normal(keys[1], (MOST,)))

  def flip(self, p: Scalar) -> Bool[Array, '']:
    return next(self._uniform) < p

  def coin(self) -> Bool[Array, '']:
    return next(self._uniform) < 0.5

  def quarters(self) -> Int[Array, '']:
    return jnp.floor(4 * next(self._uniform)).astype(jnp.int32)

  def signed(self) -> Float[Array, '']:
    return 2 * next(self._uniform) - 1

  def normal(self) -> Float[Array, '']:
    return next(self._normal)

  def angle(self) -> Float[Array, '']:
    return jnp.pi * self.signed()

  def factor(self, deviation: float) -> Float[Array, '']:
    return jnp.exp2(deviation * self.normal())


def _dot(a: Array, b: Array) -> Array:
  """Exact where its factors are whole: no faster, coarser product."""
  return jnp.matmul(a, b, precision='highest')


def _scaling(x: Scalar, y: Scalar) -> Place:
  return jnp.diag(jnp.stack([x * 1.0, y * 1.0, 1.0]))


def _shift(by: Float[Array, '2']) -> Place:
  return jnp.eye(3).at[:2, 2].set(-by)


def _rotation(angle: Scalar) -> Place:
  return _turning(jnp.cos(angle), jnp.sin(angle))


def _turn(quarters: Array) -> Place:
  """Whole numbers: a cosine of pi / 2 would not be 0."""
  cos, sin = jnp.array([1.0, 0, -1, 0]), jnp.array([0.0, 1, 0, -1])
  return _turning(cos[quarters], sin[quarters])


def _turning(cos: Scalar, sin: Scalar) -> Place:
  g = jnp.eye(3).at[0, 0].set(cos).at[1, 1].set(cos)
  return g.at[0, 1].set(-sin).at[1, 0].set(sin)


def _hue(angle: Scalar) -> Colour:
  """A rotation about the gray axis."""
  v = np.ones(3) / np.sqrt(3)
  cross = jnp.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turned = cos * jnp.eye(3) + sin * cross + (1 - cos) * jnp.outer(v, v)
  return jnp.eye(4).at[:3, :3].set(turned)


def _colours_only(s: Scalar) -> Colour:
  return jnp.ones((4, 4)).at[:3, :3].set(s)


def _places(place: Place, along: Float[Array, ' n']) -> Float[Array, '2 n n']:
  """Rows and columns, from the middle, at which the output's pixels lie."""
  x, y = along[None, :], along[:, None]
  columns, rows = (g[0] * x + g[1] * y + g[2] for g in place[:2])
  return jnp.stack([rows, columns])


def _mirror(place, side: int):
  """Into [0, side - 1], reflected at the middles of the outermost pixels."""
  last = side - 1
  return last - abs(place % (2 * last) - last)


def _linear(large: Float[Array, 'm m c'], at: Float[Array, '2 n n']):
  corner = jnp.clip(jnp.floor(at), 0, large.shape[0] - 2)
  (y, x), (rows, columns) = at - corner, corner.astype(jnp.int32)
  y, x = y[..., None], x[..., None]
  top, bottom = (
    (1 - x) * large[rows + i, columns] + x * large[rows + i, columns + 1]
    for i in (0, 1)
  )
  return (1 - y) * top + y * bottom


@functools.cache
def _enlarging(side: int) -> np.ndarray:
  """Pixels to values at every half pixel from -MARGIN on, in one axis.

  The value at k / 2 is sum 2 f[m] x[(k + CENTRE - m) / 2] where that is whole.
  """
  halves = range(-2 * MARGIN, 2 * (side - 1 + MARGIN) + 1)
  matrix = np.zeros((len(halves), side))
  for row, k in zip(matrix, halves, strict=True):
    for m, tap in enumerate(_taps()):
      if (k + CENTRE - m) % 2 == 0:
        row[_mirror((k + CENTRE - m) // 2, side)] += 2 * tap
  return matrix.astype(np.float32)


@functools.cache
def _reducing(side: int) -> np.ndarray:
  """The transpose: values at half pixels from -CENTRE / 2 on, to pixels."""
  taps = _taps()
  matrix = np.zeros((side, 2 * (side - 1) + len(taps)))
  for i in range(side):
    matrix[i, 2 * i : 2 * i + len(taps)] = taps
  return matrix.astype(np.float32)


def _taps() -> np.ndarray:
  return np.array(SYMLET) / np.sum(SYMLET)
