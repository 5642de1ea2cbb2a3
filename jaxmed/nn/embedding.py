"""A row of features of each image: what Frechet distances are measured on.

A trunk's deepest stage, averaged over its places. For `inception_fid` that is
FID's own row of 2,048: images are first made 299 x 299 px, without
antialiasing, as in the port of that network to PyTorch.
"""

from jaxtyping import Array, Float

from jaxmed.method import Images, PyTree
from jaxmed.nn.inception import SIDE, Inception
from jaxmed.nn.trunk import Trunk
from jaxmed.ops import resize


def embed(
  trunk: Trunk, variables: PyTree, images: Images
) -> Float[Array, 'b d']:
  """The rows of images in [0, 1], gray or RGB."""
  if isinstance(trunk.network, Inception):
    images = resize.bilinear(images, (SIDE, SIDE))
  features = trunk.apply(variables, images)[trunk.stages[-1]]
  return features.mean((1, 2))
