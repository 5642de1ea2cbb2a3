"""LPIPS, version 0.1: how different two images look, by a trunk's features.

Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric, CVPR 2018; constants follow the authors' code
(github.com/richzhang/PerceptualSimilarity). With f_l(x) the features of a
stage l after its ReLU, u = f / (|f| + 1e-10) over channels,

  d_l(x, y) = sum over channels of w_l (u_l(x) - u_l(y))^2     at every place
  d(x, y)   = sum over l of the mean of d_l over places

The heads w_l >= 0 were fitted to what people saw, and ship with the package;
the trunk was trained on ImageNet.

Images are in [0, 1] here, gray or RGB; the original's are in [-1, 1], and
giving it the others is the commonest mistake made with it.
"""

import functools
import importlib.resources

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxmed.errors import UserError, unknown
from jaxmed.method import Images, PyTree
from jaxmed.nn.norms import unit_length
from jaxmed.nn.staged import Staged
from jaxmed.nn.trunk import NETWORKS
from jaxmed.ops import resize

# Of each kind: the trunk, and the stages that are compared.
KINDS = {
  'alex': ('alexnet', ('relu1', 'relu2', 'relu3', 'relu4', 'relu5')),
  'vgg': ('vgg16', ('relu1_2', 'relu2_2', 'relu3_3', 'relu4_3', 'relu5_3')),
  'squeeze': (
    'squeezenet1_1',
    ('relu1', 'fire3', 'fire5', 'fire6', 'fire7', 'fire8', 'fire9'),
  ),
}
# Of images in [-1, 1]: nearly ImageNet's, rounded by the authors.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
SCALE = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)

Maps = list[Float[Array, 'b _h _w']]  # d_l, the finest stage first.


class Lpips(nn.Module):
  """A trunk and its heads. `__call__` is d; the equations' maps are `layers`.

  Variables begin with the published heads and a random trunk; see `variables`.
  """

  kind: str = 'squeeze'
  dtype: jnp.dtype | None = None  # Of the trunk; the rest is in float32.
  heads: bool = True  # False: squared differences are summed as they are.

  def setup(self):
    self.network = network(self.kind, dtype=self.dtype)
    if self.heads:
      self.weights = [
        self.param(f'head_{i}', lambda key, w=w: jnp.asarray(w))
        for i, w in enumerate(published_heads(self.kind))
      ]

  def __call__(self, x: Images, y: Images) -> Float[Array, ' b']:
    return total(self.layers(x, y))

  def spatial(self, x: Images, y: Images) -> Float[Array, 'b h w']:
    """d before the mean: every d_l enlarged to the images' size."""
    return spatial(self.layers(x, y), x.shape[1:3])

  def layers(self, x: Images, y: Images) -> Maps:
    """d_l of every stage. Both images are seen in one pass."""
    check(self.kind, x, y)
    # In turns, so that every device keeps the examples it has.
    both = jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:])
    features = self.features(both)
    return [
      _difference(features[stage], head)
      for stage, head in zip(
        find(self.kind)[1],
        self.weights if self.heads else [None] * len(features),
        strict=True,
      )
    ]

  def kept(self, images: Images) -> list[Float[Array, 'b _h _w _c']]:
    """u_l: what `against` needs of images that stay the same."""
    return [unit_length(feature) for feature in self.features(images).values()]

  def against(self, kept, y: Images) -> Float[Array, ' b']:
    """d of images whose `kept` is given, which are not seen again."""
    total = 0
    for i, (ours, theirs) in enumerate(zip(kept, self.kept(y), strict=True)):
      head = self.weights[i][None, None, None] if self.heads else 1.0
      squares = jnp.square(ours - theirs) * head
      total = total + squares.sum(axis=-1).mean(axis=(1, 2))
    return total

  def features(self, images: Images) -> dict[str, Float[Array, 'b _h _w _c']]:
    """f_l, in float32."""
    rgb = jnp.broadcast_to(images, (*images.shape[:-1], 3))
    features = self.network((2 * rgb - 1 - SHIFT) / SCALE)
    return {
      stage: features[stage].astype(jnp.float32) for stage in find(self.kind)[1]
    }


def total(maps: Maps) -> Float[Array, ' b']:
  return sum(d.mean(axis=(1, 2)) for d in maps)


def spatial(maps: Maps, size: tuple[int, int]) -> Float[Array, 'b h w']:
  return sum(resize.bilinear(d[..., None], size)[..., 0] for d in maps)


def variables(kind: str, trunk: PyTree) -> PyTree:
  """Variables of `Lpips(kind)`: its trunk's, and the published heads."""
  heads = {
    f'head_{i}': jnp.asarray(w) for i, w in enumerate(published_heads(kind))
  }
  return {'params': {'network': trunk['params'], **heads}}


@functools.cache
def published_heads(kind: str) -> tuple[np.ndarray, ...]:
  """w_l, version 0.1."""
  place = importlib.resources.files('jaxmed.weights')
  with (
    (place / 'lpips_heads_v0.1.npz').open('rb') as file,
    np.load(file, allow_pickle=False) as arrays,
  ):
    return tuple(
      arrays[f'{kind}.lin{i}.model.1.weight'].ravel()
      for i in range(len(find(kind)[1]))
    )


def find(kind: str) -> tuple[str, tuple[str, ...]]:
  """The entry of KINDS."""
  if kind not in KINDS:
    raise unknown('network of LPIPS', kind, KINDS)
  return KINDS[kind]


def network(kind: str, **fields) -> Staged:
  """The trunk of a kind, down to its last stage."""
  name, stages = find(kind)
  return NETWORKS[name](last=stages[-1], **fields)


def check(kind: str, x: Images, y: Images) -> None:
  """Whether two batches can be compared, by their shapes."""
  least = network(kind, parent=None).least  # Nobody's part, just looked at.
  if x.ndim != 4 or x.shape != y.shape:
    raise UserError(
      'LPIPS compares two batches [b, h, w, c] of one shape, but got '
      f'{list(x.shape)} and {list(y.shape)}.'
    )
  if x.shape[3] not in (1, 3):
    raise UserError(
      f'LPIPS sees gray or RGB images, not {x.shape[3]} channels; give it 1 '
      'or 3.'
    )
  if min(x.shape[1:3]) < least:
    raise UserError(
      f'LPIPS with the network {kind!r} needs images of {least} px at least, '
      f'but got {x.shape[1]} x {x.shape[2]}; enlarge them or use another '
      'score.'
    )


def _difference(pairs, head) -> Float[Array, 'b h w']:
  """d_l of the features of pairs of images."""
  pairs = unit_length(pairs).reshape(-1, 2, *pairs.shape[1:])
  squares = jnp.square(pairs[:, 0] - pairs[:, 1])
  if head is not None:
    squares = squares * head[None, None, None]
  return squares.sum(axis=-1)
