"""SqueezeNet 1.1: Iandola et al., 2016, as torchvision has it.

Its pools round up, and its first convolution has no padding.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxmed.nn.precision import wide
from jaxmed.nn.staged import Staged
from jaxmed.nn.torchlike import convolution, demand, max_pool
from jaxmed.weights.names import TORCH, Table

# Of each fire: torchvision's number, features of its squeeze and its two
# halves, and whether a pool lies before it.
FIRES = {
  'fire2': (3, 16, 64, True),
  'fire3': (4, 16, 64, False),
  'fire4': (6, 32, 128, True),
  'fire5': (7, 32, 128, False),
  'fire6': (9, 48, 192, True),
  'fire7': (10, 48, 192, False),
  'fire8': (11, 64, 256, False),
  'fire9': (12, 64, 256, False),
}


class Fire(nn.Module):
  """A 1 x 1 convolution to few features, then one of 1 x 1 beside one of 3 x 3.

  Attributes:
    squeezed: features between.
    half: features of each of the two.
  """

  squeezed: int
  half: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x):
    def conv(name, x, *sizes):
      layer = convolution(*sizes, bias=True, dtype=self.dtype, name=name)
      return nn.relu(layer(x))

    x = conv('squeeze', x, self.squeezed, 1)
    one = conv('expand1x1', x, self.half, 1)
    return jnp.concatenate([one, conv('expand3x3', x, self.half, 3)], -1)


class SqueezeNet(Staged):
  """Of 1,235,496 parameters with 1,000 classes; logits are never negative.

  Dropout, in training, lies before the classifier.
  """

  every = ('relu1', *FIRES)

  @property
  def least(self) -> int:
    # A pool that rounds up gives n of 2 n; the first convolution n of 2 n + 1.
    pools = sum(FIRES[stage][3] for stage in self.stages[1:])
    return 2 * 2**pools + 1

  @nn.compact
  def features(self, x, train, valid):
    del valid  # Nothing here looks at the batch.
    conv = lambda *sizes, name: nn.relu(
      convolution(*sizes, bias=True, dtype=self.dtype, name=name)(x)
    )
    demand(x, 3)
    x = conv(64, 3, 2, 0, name='conv1')
    features = {'relu1': x}
    for stage in self.stages[1:]:
      _, squeezed, half, pool = FIRES[stage]
      x = max_pool(x, 3, 2, up=True) if pool else x
      x = features[stage] = Fire(squeezed, half, self.dtype, name=stage)(x)
    if self.classes:
      x = nn.Dropout(0.5, deterministic=not train)(x)
      x = conv(self.classes, 1, name='classifier')
      features['logits'] = wide(x).mean((1, 2))
    return features

  def table(self) -> Table:
    rows = [('features.0.{leaf}', 'conv1/{leaf}')]
    rows += [
      (f'features.{number}.{{layer}}.{{leaf}}', f'{stage}/{{layer}}/{{leaf}}')
      for stage, (number, *_) in FIRES.items()
    ]
    ignore = [rf'features\.{FIRES[stage][0]}\..*' for stage in self.without]
    if self.classes:
      rows.append(('classifier.1.{leaf}', 'classifier/{leaf}'))
    else:
      ignore.append(r'classifier\..*')
    return Table(TORCH, tuple(rows), tuple(ignore))
