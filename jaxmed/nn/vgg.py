"""VGG-16: Simonyan and Zisserman, ICLR 2015, as torchvision has it."""

from jaxmed.nn.chain import Chain, Conv, Pool, stages

LAYERS = tuple(
  layer
  for number, (count, features) in enumerate(
    ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1
  )
  for layer in (
    *(Conv(f'relu{number}_{i + 1}', features) for i in range(count)),
    Pool(2),
  )
)


class VGG16(Chain):
  """Of 138,357,544 parameters with 1,000 classes."""

  layers = LAYERS
  every = stages(LAYERS)
