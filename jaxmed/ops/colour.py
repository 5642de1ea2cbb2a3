"""The colours of H&E: stains taken apart, made alike, or changed at random.

Macenko et al., A method for normalizing histology slides for quantitative
analysis, ISBI 2009, with the constants of the code in common use
(github.com/mitkovetta/staining-normalization):

  D      = -ln((255 x + 1) / LIGHT), the optical density of each channel
  tissue = cells of CELL x CELL px whose mean D is at least BETA everywhere
  plane  = of the two first eigenvectors of the tissue's covariance
  W      = unit vectors of that plane at the 1st and 99th percentile of the
           tissue's angles; haematoxylin is the one with more red
  C      = the least squares solution of W C = D
  M      = the 99th percentile of C, by stain
  x'     = (LIGHT exp(-W_target C M_target / M) - 1) / 255

The code's cells are single pixels. In a JPEG, whose colours are noise from one
pixel to the next, the plane is then turned by that noise: of 89 patches of
Camelyon16, 9 % came out with stains unlike H&E, with cells of 4 px 1 %.
The code takes M of all pixels and leaves the 1 out on the way back. Here M is
of all that is not glass (D at least BETA in any channel), so that a tile with
little tissue is not stained the more, and what is made like itself stays as it
was, but for what neither stain explains.

Reinhard et al., Color transfer between images, 2001: mean and deviation of all
that is not glass are made those of a target, in the paper's space, Ruderman's
l alpha beta (not CIE L*a*b*). Glass stays as it is; in between, it is mixed.

Ruifrok and Johnston, Quantification of histochemical staining by color
deconvolution, 2001, give the HED space in which Tellez et al. 2018 jitter.

Images are [..., h, w, 3], uint8 or uint16 or float in [0, 1]; results are
float. Each is normalised for itself. One that cannot be (`ok` is False: glass,
one colour, gray, stains unlike H&E) is given back as it came.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxmed.method import RandomKey
from jaxmed.ops.quantile import quantile

LIGHT = 240.0  # Transmitted through glass, of 255.
BETA = 0.15
TAILS = 0.01, 0.99
CELL = 4
LEAST_CELLS = 32  # Of tissue; fewer say nothing of a stain.
LEAST_ANGLE = np.deg2rad(4)  # Between two stains; less is noise of one.
LEAST_LIKENESS = 0.5  # Cosine of W's difference and the reference's.
LEAST_DEVIATION = 0.002  # In l alpha beta; less is one colour, or gray.

# Optical density (natural logarithm) in base 10, of haematoxylin, eosin, DAB.
HED = np.array(
  [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32
)
LEAST_LIGHT = 1e-6  # As in scikit-image: black has a density, too.

LMS = np.array(
  [
    [0.3811, 0.5783, 0.0402],
    [0.1967, 0.7244, 0.0782],
    [0.0241, 0.1288, 0.8444],
  ]
)
RUDERMAN = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array(
  [[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]]
)

Pixels = Array  # [*b, h, w, 3], uint8 or uint16 or float.
Planes = Float[Array, 'b 3 n']
Images = Float[Array, '*b h w 3']


@struct.dataclass
class Stain:
  """How haematoxylin and eosin look, as Macenko sees it.

  Attributes:
    matrix: W, a column for each.
    maxima: M.
    ok: whether there were two stains to be found.
  """

  matrix: Float[Array, '*b 3 2']
  maxima: Float[Array, '*b 2']
  ok: Bool[Array, '*b']


@struct.dataclass
class Statistics:
  """Of the tissue's colours in l alpha beta, as Reinhard matches them."""

  mean: Float[Array, '*b 3']
  deviation: Float[Array, '*b 3']
  ok: Bool[Array, '*b']


# The reference of the code above; it belongs to LIGHT = 240.
MACENKO = Stain(
  np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]], np.float32),
  np.array([1.9705, 1.0308], np.float32),
  np.bool_(True),
)
# A region of TCGA-A2-A3XS-DX1, the standard of HistomicsTK's examples
# (Amgad et al. 2019).
REINHARD = Statistics(
  np.array([8.74108109, -0.12440419, 0.0444982], np.float32),
  np.array([0.6135447, 0.10989545, 0.0286032], np.float32),
  np.bool_(True),
)

_LIKE = {Stain: MACENKO, Statistics: REINHARD}


def fit_macenko(images: Pixels) -> Stain:
  """The stain of an image, or of several taken together."""
  images = images.reshape(-1, *images.shape[-2:])  # One above the other.
  return _single(_stain(_density(_planes(images)), images.shape))


def normalise_macenko(
  images: Pixels, target: Stain = MACENKO, source: Stain | None = None
) -> tuple[Images, Bool[Array, '*b']]:
  """Images as if stained like the target, and whether each could be.

  `source` is what they were stained with if that is known, e.g. of a whole
  slide; else it is found for each.
  """
  planes = _planes(images)
  density = _density(planes)
  target = _each(target)
  source = _each(source) if source else _stain(density, images.shape)
  scale = _over(target.maxima, source.maxima)
  turn = _product(target.matrix * scale[..., None, :], _inverse(source.matrix))
  light = LIGHT * jnp.exp(-_mixed(turn, density))
  return _chosen(source.ok, (light - 1) / 255, planes, images.shape)


def fit_reinhard(images: Pixels) -> Statistics:
  """The colour statistics of an image, or of several taken together."""
  return _single(_statistics(_planes(images.reshape(-1, *images.shape[-2:]))))


def normalise_reinhard(
  images: Pixels,
  target: Statistics = REINHARD,
  source: Statistics | None = None,
) -> tuple[Images, Bool[Array, '*b']]:
  """Images in the target's colours, and whether each could be; see above."""
  planes = _planes(images)
  target = _each(target)
  source = _each(source) if source else _statistics(planes)
  scale = _over(target.deviation, source.deviation)[..., None]
  lab = (_ruderman(planes) - source.mean[..., None]) * scale
  lab = lab + target.mean[..., None]
  lms = jnp.exp(_mixed(np.linalg.inv(RUDERMAN), lab))
  made = _mixed(np.linalg.inv(LMS), lms) / 255
  glass = 1 - jnp.clip(_density(planes).max(axis=-2) / BETA, 0, 1)
  made = made + glass[:, None] * (planes - made)
  return _chosen(source.ok, made, planes, images.shape)


def to_hed(images: Pixels) -> Images:
  """Densities of haematoxylin, eosin and DAB, by logarithms to base 10."""
  planes = jnp.maximum(_planes(images), LEAST_LIGHT)
  hed = _mixed(np.linalg.inv(HED).T, -jnp.log10(planes))
  return _images(hed, images.shape)


def from_hed(hed: Images) -> Images:
  """The image of such densities, in [0, 1]."""
  planes = jnp.power(10, -_mixed(HED.T, _planes(hed)))
  return _images(jnp.clip(planes, 0, 1), hed.shape)


def jitter_hed(key: RandomKey, image: Images, strength: float) -> Images:
  """Tellez et al. 2018: each density s becomes a s + b.

  a is drawn from [1 - strength, 1 + strength] and b from [-strength, strength],
  for every stain, but once for all that is given.
  """
  scale, shift = jax.random.uniform(key, (2, 3), minval=-1, maxval=1) * strength
  many = (1,) * (image.ndim - 1)
  scale, shift = scale.reshape(*many, 3), shift.reshape(*many, 3)
  return from_hed(to_hed(image) * (1 + scale) + shift)


def _stain(density: Planes, shape) -> Stain:
  cells = _cells(density, shape)
  tissue = (cells >= BETA).all(axis=-2)
  along, across = _plane(cells, tissue)
  x, y = (_dot(axis, cells) for axis in (along, across))
  ends = quantile(*_twice(_turn(x, y), tissue), np.float32([TAILS]))
  first, second = (
    a[:, None] * along + b[:, None] * across
    for a, b in (_direction(ends[:, i]) for i in range(2))
  )
  swap = (first[..., 0] <= second[..., 0])[..., None]
  matrix = jnp.stack(
    [jnp.where(swap, second, first), jnp.where(swap, first, second)], axis=-1
  )
  angle = jnp.linalg.norm(jnp.cross(first, second), axis=-1)
  stained = (density >= BETA).any(axis=-2)
  amounts = _mixed(_inverse(matrix), density)
  maxima = quantile(amounts, *_twice(stained), TAILS[1])
  enough = tissue.sum(axis=-1) >= LEAST_CELLS
  apart = angle >= np.sin(LEAST_ANGLE)
  alike = _likeness(matrix) >= LEAST_LIKENESS
  positive = (maxima > BETA).all(axis=-1)
  return Stain(matrix, maxima, enough & apart & alike & positive)


def _twice(*rows: Array) -> list[Array]:
  """Each row of pixels for both of two."""
  return [jnp.stack([x, x], axis=1) for x in rows]


def _cells(density: Planes, shape) -> Planes:
  """Means of squares of CELL px; what does not fill one is left out."""
  height, width = shape[-3:-1]
  side = min(CELL, height, width)
  rows, columns = height // side, width // side
  x = density.reshape(-1, 3, height, width)
  x = x[..., : rows * side, : columns * side]
  x = x.reshape(-1, 3, rows, side, columns, side).mean(axis=(3, 5))
  return x.reshape(-1, 3, rows * columns)


def _likeness(matrix):
  """Of what tells the two stains apart, to what does in the reference."""
  apart = matrix[..., 0] - matrix[..., 1]
  usual = MACENKO.matrix[:, 0] - MACENKO.matrix[:, 1]
  usual = (usual / np.linalg.norm(usual)).reshape(1, 3)
  length = jnp.maximum(jnp.linalg.norm(apart, axis=-1), 1e-12)
  return (apart * usual).sum(axis=-1) / length


def _plane(density: Planes, tissue):
  """Two axes of the plane, the first along the tissue's mean.

  They are the same whatever signs and order the eigenvectors come in, and no
  angle is near to where angles begin anew.
  """
  mean, covariance = _moments(density, tissue)
  normal = jnp.linalg.eigh(covariance)[1][..., 0]
  along = mean - (mean * normal).sum(axis=-1, keepdims=True) * normal
  along = along / jnp.maximum(
    jnp.linalg.norm(along, axis=-1, keepdims=True), 1e-12
  )
  return along, jnp.cross(normal, along)


def _moments(planes: Planes, where):
  """Mean and covariance of the pixels where `where` is true."""
  weight = where / jnp.maximum(where.sum(axis=-1, keepdims=True), 1)
  mean = (planes * weight[..., None, :]).sum(axis=-1)
  centred = planes - mean[..., None]
  rows = [
    (centred * (centred[..., i, :] * weight)[..., None, :]).sum(axis=-1)
    for i in range(planes.shape[-2])
  ]
  return mean, jnp.stack(rows, axis=-2)


def _turn(x, y):
  """In the order of the angle of (x, y), from -2 to 2, but quicker to find."""
  share = y / jnp.maximum(jnp.abs(x) + jnp.abs(y), 1e-12)
  return jnp.where(x >= 0, share, jnp.where(y >= 0, 2, -2) - share)


def _direction(turn):
  """The unit vector that has this turn."""
  x = 1 - jnp.abs(turn)
  y = jnp.clip(turn, -1, 1)
  y = jnp.where(jnp.abs(turn) > 1, 2 * jnp.sign(turn) - turn, y)
  length = jnp.sqrt(x * x + y * y)
  return x / length, y / length


def _statistics(planes: Planes) -> Statistics:
  tissue = (_density(planes) >= BETA).any(axis=-2)
  lab = _ruderman(planes)
  mean, covariance = _moments(lab, tissue)
  deviation = jnp.sqrt(jnp.diagonal(covariance, axis1=-2, axis2=-1))
  enough = tissue.sum(axis=-1) >= LEAST_CELLS * CELL**2
  varied = (deviation >= LEAST_DEVIATION).all(axis=-1)
  return Statistics(mean, deviation, enough & varied)


def _ruderman(planes: Planes) -> Planes:
  """l alpha beta, by natural logarithms of values up to 255.

  Other bases and ranges only scale and move the axes; these are HistomicsTK's.
  """
  lms = _mixed(LMS, jnp.maximum(255 * planes, 1))
  return _mixed(RUDERMAN, jnp.log(lms))


def _density(planes: Planes) -> Planes:
  return -jnp.log((255 * planes + 1) / LIGHT)


def _planes(images: Pixels) -> Planes:
  """Pixels in a row, channels apart: arithmetic on three is slow."""
  x = images.reshape(-1, math.prod(images.shape[-3:-1]), images.shape[-1])
  x = jnp.moveaxis(x, -1, -2)
  if jnp.issubdtype(images.dtype, jnp.floating):
    return x
  return x.astype(jnp.float32) / jnp.iinfo(images.dtype).max


def _each(fitted):
  """With an axis for images, be it of one for all."""
  return jax.tree.map(
    lambda x, like: x.reshape(-1, *like.shape), fitted, _LIKE[type(fitted)]
  )


def _single(fitted):
  return jax.tree.map(lambda x: x[0], fitted)


def _images(planes: Planes, shape) -> Images:
  return jnp.moveaxis(planes, -2, -1).reshape(shape)


def _chosen(ok, made: Planes, planes: Planes, shape):
  """What was made, where it could be."""
  made = jnp.where(ok[:, None, None], jnp.clip(made, 0, 1), planes)
  ok = jnp.broadcast_to(ok, len(planes)).reshape(shape[:-3])
  return _images(made, shape), ok


def _over(target, source):
  return target / jnp.where(jnp.abs(source) > 1e-6, source, 1)


def _dot(vector: Float[Array, 'b 3'], planes: Planes):
  return (vector[..., None] * planes).sum(axis=-2)


def _mixed(matrix, planes: Planes):
  """A matrix, or one for each image, times every pixel; exact in float32."""
  matrix = jnp.asarray(matrix, jnp.float32).reshape(-1, *matrix.shape[-2:])
  rows = [_dot(matrix[:, k], planes) for k in range(matrix.shape[-2])]
  return jnp.stack(rows, axis=-2)


def _product(a, b):
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _inverse(matrix: Float[Array, '*b 3 2']) -> Float[Array, '*b 2 3']:
  """The left inverse, zero where there is none."""
  transposed = jnp.swapaxes(matrix, -1, -2)
  square = _product(transposed, matrix)
  a, b, d = square[..., 0, 0], square[..., 0, 1], square[..., 1, 1]
  adjugate = jnp.stack(
    [jnp.stack([d, -b], axis=-1), jnp.stack([-b, a], axis=-1)], axis=-2
  )
  determinant = a * d - b * b
  inverse = jnp.where(determinant > 1e-9, 1 / determinant, 0)
  return _product(adjugate * inverse[..., None, None], transposed)
