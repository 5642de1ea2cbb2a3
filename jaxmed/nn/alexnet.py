"""AlexNet, as torchvision has it.

Krizhevsky, One weird trick for parallelizing convolutional neural networks,
2014: in one piece, and without the normalisation of 2012's.
"""

from jaxmed.nn.chain import Chain, Conv, Pool, stages

LAYERS = (
  Conv('relu1', 64, 11, 4, 2),
  Pool(3),
  Conv('relu2', 192, 5, 1, 2),
  Pool(3),
  Conv('relu3', 384),
  Conv('relu4', 256),
  Conv('relu5', 256),
  Pool(3),
)


class AlexNet(Chain):
  """Of 61,100,840 parameters with 1,000 classes."""

  layers = LAYERS
  every = stages(LAYERS)
  side = 6
  dense = (1, 4, 6)
