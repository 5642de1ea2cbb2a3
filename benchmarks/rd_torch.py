"""Reverse distillation's networks and step in eager PyTorch, to compare with.

Names of modules are those of the original, so our checkpoints load.
"""

import torch
from torch import nn
from torch.nn import functional

BLOCKS = {
  'resnet18': (1, 0, (2, 2, 2), 2),
  'resnet50': (4, 64, (3, 4, 6), 3),
  'wide_resnet50_2': (4, 128, (3, 4, 6), 3),
}  # Expansion, channels of the 3 x 3 of 64, blocks, and the bottleneck's.


def convolution(inputs: int, outputs: int, window: int, stride: int = 1):
  pad = window // 2
  return nn.Conv2d(inputs, outputs, window, stride, pad, bias=False)


def doubling(inputs: int, outputs: int):
  return nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)


class Block(nn.Module):
  """A residual block; `size` is '', 'half' or 'double'."""

  def __init__(self, inputs: int, outputs: int, inner: int, size: str = ''):
    super().__init__()

    def sized(inputs, outputs, window):
      if size == 'double':
        return doubling(inputs, outputs)
      return convolution(inputs, outputs, window, 2 if size == 'half' else 1)

    if inner:
      layers = (
        convolution(inputs, inner, 1),
        sized(inner, inner, 3),
        convolution(inner, outputs, 1),
      )
    else:
      layers = sized(inputs, outputs, 3), convolution(outputs, outputs, 3)
    self.count = len(layers)
    for number, layer in enumerate(layers, 1):
      width = outputs if number == len(layers) else inner or outputs
      setattr(self, f'conv{number}', layer)
      setattr(self, f'bn{number}', nn.BatchNorm2d(width))
    if size or inputs != outputs:
      name = 'upsample' if size == 'double' else 'downsample'
      short = sized(inputs, outputs, 1), nn.BatchNorm2d(outputs)
      setattr(self, name, nn.Sequential(*short))
      self.short = getattr(self, name).forward
    else:
      self.short = lambda x: x

  def forward(self, x):
    y = x
    for number in range(1, self.count + 1):
      y = getattr(self, f'conv{number}')(y)
      y = getattr(self, f'bn{number}')(y)
      if number < self.count:
        y = functional.relu(y, inplace=True)
    return functional.relu(y + self.short(x), inplace=True)


def stage(inputs: int, outputs: int, inner: int, count: int, size: str):
  blocks = [Block(inputs, outputs, inner, size)]
  blocks += [Block(outputs, outputs, inner) for _ in range(count - 1)]
  return nn.Sequential(*blocks)


class Teacher(nn.Module):
  """A ResNet of torchvision's down to its third stage."""

  def __init__(self, name: str):
    super().__init__()
    expansion, inner, counts, _ = BLOCKS[name]
    self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(64)
    inputs = 64
    for number, count in enumerate(counts):
      outputs = 64 * 2**number * expansion
      size = 'half' if number else ''
      blocks = stage(inputs, outputs, inner * 2**number, count, size)
      setattr(self, f'layer{number + 1}', blocks)
      inputs = outputs

  def forward(self, x):
    x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
    x = functional.max_pool2d(x, 3, 2, 1)
    found = []
    for number in (1, 2, 3):
      x = getattr(self, f'layer{number}')(x)
      found.append(x)
    return found


class Bottleneck(nn.Module):
  def __init__(self, name: str):
    super().__init__()
    expansion, inner, _, count = BLOCKS[name]
    one, two, three = (expansion * n for n in (64, 128, 256))
    for number, (inputs, outputs) in enumerate(
      ((one, two), (two, three), (two, three)), 1
    ):
      setattr(self, f'conv{number}', convolution(inputs, outputs, 3, 2))
      setattr(self, f'bn{number}', nn.BatchNorm2d(outputs))
    self.bn_layer = stage(3 * three, 2 * three, 8 * inner, count, 'half')

  def forward(self, stages):
    half = lambda n, x: functional.relu(
      getattr(self, f'bn{n}')(getattr(self, f'conv{n}')(x)), inplace=True
    )
    one, two, three = stages
    return self.bn_layer(
      torch.cat([half(2, half(1, one)), half(3, two), three], 1)
    )


class Decoder(nn.Module):
  def __init__(self, name: str):
    super().__init__()
    expansion, inner, counts, _ = BLOCKS[name]
    inputs = 512 * expansion
    for number in (1, 2, 3):
      share = 2 ** (3 - number)
      outputs = 64 * share * expansion
      blocks = stage(
        inputs, outputs, inner * share, counts[number - 1], 'double'
      )
      setattr(self, f'layer{number}', blocks)
      inputs = outputs

  def forward(self, x):
    found = []
    for number in (1, 2, 3):
      x = getattr(self, f'layer{number}')(x)
      found.append(x)
    return found[::-1]


class Trainer:
  """A step of the original's loop."""

  def __init__(self, name: str, train, teacher: dict, student: dict, device):
    self.teacher = Teacher(name)
    self.student = nn.ModuleDict(
      {'bn': Bottleneck(name), 'decoder': Decoder(name)}
    )
    for module, weights in ((self.teacher, teacher), (self.student, student)):
      given = {k: torch.tensor(v) for k, v in weights.items()}
      missing, unused = module.load_state_dict(given, strict=False)
      left = [k for k in missing if not k.endswith('num_batches_tracked')]
      assert not left and not unused, (left, unused)
    self.teacher.to(device).eval()
    self.student.to(device).train()
    self.adam = torch.optim.Adam(
      self.student.parameters(), train.rate, (train.beta1, train.beta2)
    )

  def __call__(self, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
      stages = self.teacher(images)
    answers = self.student['decoder'](self.student['bn'](stages))
    loss = sum(
      (1 - functional.cosine_similarity(f.flatten(1), g.flatten(1))).mean()
      for f, g in zip(stages, answers, strict=True)
    )
    self.adam.zero_grad()
    loss.backward()
    self.adam.step()
    return loss.detach()
