"""From a method's coarse anomaly map to one of the image's size."""

from jaxtyping import Array, Float

from jaxmed.ops import gaussian, resize


def anomaly_map(
  scores: Float[Array, 'b h w'],
  size: tuple[int, int],
  sigma: float = 4.0,
  align_corners: bool = False,
) -> Float[Array, 'b y x']:
  """Enlarges bilinearly, then smooths: the one way every method does it.

  `sigma` is in pixels of the result, 0 leaves it as it is; 4 is PatchCore's
  and PaDiM's. `align_corners` is True in the reverse distillation papers.
  """
  scores = scores[..., None]
  if scores.shape[1:3] != tuple(size):
    scores = resize.bilinear(scores, size, align_corners)
  return gaussian.smooth(scores, sigma)[..., 0]
