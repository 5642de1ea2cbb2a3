"""Networks that are one convolution after the other: AlexNet, VGG.

Every convolution is followed by a ReLU, whose output is a stage; between some
of them lies a pool. The classifier is dense and looks at a fixed size.
"""

from typing import NamedTuple

from flax import linen as nn

from jaxmed.nn.precision import wide
from jaxmed.nn.staged import Features, Staged
from jaxmed.nn.torchlike import average_to, convolution, demand, max_pool
from jaxmed.weights.names import TORCH, Table, nchw_rows


class Conv(NamedTuple):
  """A convolution and its ReLU, which gives the stage its name."""

  stage: str
  features: int
  window: int = 3
  stride: int = 1
  pad: int = 1

  @property
  def layer(self) -> str:
    return self.stage.replace('relu', 'conv')


class Pool(NamedTuple):
  """The largest of each window."""

  window: int
  stride: int = 2
  pad: int = 0


def stages(layers: tuple[Conv | Pool, ...]) -> tuple[str, ...]:
  return tuple(layer.stage for layer in layers if isinstance(layer, Conv))


class Chain(Staged):
  """A chain of `layers`, then three dense ones on side x side features.

  `dense` has torchvision's numbers of these. Dropout, in training, lies
  before the last two.
  """

  layers = ()
  side = 7
  hidden = 4096  # Features of the classifier's first two layers.
  dense = (0, 3, 6)

  @property
  def built(self) -> tuple[Conv | Pool, ...]:
    """The layers to the last stage, or to the classifier."""
    if self.classes:
      return self.layers
    names = [getattr(layer, 'stage', '') for layer in self.layers]
    return self.layers[: names.index(self.stages[-1]) + 1]

  @property
  def least(self) -> int:
    side = 1
    for layer in reversed(self.built):
      side = (side - 1) * layer.stride + layer.window - 2 * layer.pad
    return side

  @nn.compact
  def features(self, x, train, valid) -> Features:
    del valid  # Nothing here looks at the batch.
    features = {}
    for layer in self.built:
      if isinstance(layer, Pool):
        x = max_pool(x, *layer)
        continue
      demand(x, layer.window, layer.pad)
      conv = convolution(
        *layer[1:], bias=True, dtype=self.dtype, name=layer.layer
      )
      x = features[layer.stage] = nn.relu(conv(x))
    if not self.classes:
      return features
    x = average_to(x, self.side).reshape(len(x), -1)
    for number, width in enumerate((self.hidden, self.hidden, self.classes)):
      dense = nn.Dense(width, dtype=self.dtype, name=f'dense{number}')
      x = dense(x)
      if number < 2:
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return features | {'logits': wide(x)}

  def table(self) -> Table:
    """torchvision counts convolutions, ReLUs and pools alike."""
    rows, ignore, number = [], [], 0
    for layer in self.layers:
      if isinstance(layer, Conv):
        name = f'features.{number}.{{leaf}}'
        if layer.stage in self.stages:
          rows.append((name, f'{layer.layer}/{{leaf}}'))
        else:
          ignore.append(rf'features\.{number}\..*')
      number += 2 if isinstance(layer, Conv) else 1
    if not self.classes:
      return Table(TORCH, tuple(rows), (*ignore, r'classifier\..*'))
    rows += [
      (f'classifier.{theirs}.{{leaf}}', f'dense{ours}/{{leaf}}')
      for ours, theirs in enumerate(self.dense)
    ]
    last = [x for x in self.layers if isinstance(x, Conv)][-1].features
    layouts = (('dense0/kernel', nchw_rows(last)),)
    return Table(TORCH, tuple(rows), tuple(ignore), layouts)
