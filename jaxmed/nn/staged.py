"""What the networks of named stages have in common.

A network sees images that are normalised already and gives the features of
each stage by name, channels last, the finest first. It is built down to the
stage `last`; what lies below has no parameters, and its table of names lets
exactly those pass that belong there.
"""

from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxmed.errors import UserError, unknown
from jaxmed.nn.torchlike import NothingLeft
from jaxmed.weights.names import Table

# Of ImageNet's training images, in [0, 1]; what its networks subtract and
# divide by.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

Features = dict[str, Float[Array, 'b ...']]  # Of each stage, and 'logits'.


class Staged(nn.Module):
  """A network whose stages a method looks at.

  Subclasses say `every`, their stages, and compute them in `features`.

  Attributes:
    classes: of the classifier, whose output is called 'logits'; 0 for none.
    last: the deepest stage that is built; '' for all.
    dtype: what is computed in; None for that of images and parameters.
      Norms compute in float32 at least, and logits are that.
  """

  classes: int = 0
  last: str = ''
  dtype: Any = None
  every = ()
  mean, deviation = MEAN, DEVIATION  # How its images are normalised.

  def __post_init__(self):
    super().__post_init__()
    if self.last and self.last not in self.every:
      raise unknown(f'stage of {self.title}', self.last, self.every)
    if self.classes and self.stages != self.every:
      raise UserError(
        f'A classifier of {self.classes} classes is asked for of'
        f' {self.title} down to {self.last!r}, but it needs the whole network;'
        ' leave `last` empty, or `classes` 0.'
      )

  @property
  def title(self) -> str:
    return type(self).__name__

  @property
  def stages(self) -> tuple[str, ...]:
    """What there are features of, the finest first."""
    end = self.every.index(self.last) + 1 if self.last else len(self.every)
    return self.every[:end]

  @property
  def least(self) -> int:
    """The side of the smallest images of which something is left."""
    return 1

  @property
  def without(self) -> tuple[str, ...]:
    """The stages that are left out."""
    return self.every[len(self.stages) :]

  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    train: bool = False,
    valid: Bool[Array, ' b'] | None = None,
  ) -> Features:
    """Features; in training, norms see the valid images of the batch alone."""
    try:
      return self.features(x, train, valid)
    except NothingLeft:
      height, width = x.shape[1:3]
      raise UserError(
        f'Images of {height} x {width} px are too small for {self.title}:'
        f' on the way to {self.stages[-1]!r} nothing is left of them; give'
        f' images of at least {self.least} x {self.least} px, or look at'
        ' earlier stages.'
      ) from None

  def features(self, x, train, valid) -> Features:
    raise NotImplementedError

  def table(self) -> Table:
    """The names that a checkpoint of this network has."""
    raise NotImplementedError
