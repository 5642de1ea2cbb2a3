"""DenseNet in PyTorch, to compare with.

Written from the paper, with torchvision's names, so that a state_dict fits
both.
"""

import torch
from torch import nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
  def __init__(self, channels, growth):
    super().__init__()
    self.norm1 = nn.BatchNorm2d(channels)
    self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(4 * growth)
    self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

  def forward(self, seen):
    x = self.conv1(F.relu(self.norm1(torch.cat(seen, 1))))
    return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.Module):
  def __init__(self, layers, channels, growth):
    super().__init__()
    for i in range(layers):
      layer = DenseLayer(channels + i * growth, growth)
      self.add_module(f'denselayer{i + 1}', layer)

  def forward(self, x):
    seen = [x]
    for layer in self.children():
      seen.append(layer(seen))
    return torch.cat(seen, 1)


class Transition(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.norm = nn.BatchNorm2d(channels)
    self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

  def forward(self, x):
    return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
  def __init__(self, classes=1, blocks=(6, 12, 24, 16), growth=32, stem=64):
    super().__init__()
    self.features = nn.Sequential()
    add = self.features.add_module
    add('conv0', nn.Conv2d(3, stem, 7, 2, 3, bias=False))
    add('norm0', nn.BatchNorm2d(stem))
    add('relu0', nn.ReLU())
    add('pool0', nn.MaxPool2d(3, 2, 1))
    channels = stem
    for i, layers in enumerate(blocks, start=1):
      add(f'denseblock{i}', DenseBlock(layers, channels, growth))
      channels += layers * growth
      if i < len(blocks):
        add(f'transition{i}', Transition(channels))
        channels //= 2
    add('norm5', nn.BatchNorm2d(channels))
    self.classifier = nn.Linear(channels, classes)

  def forward(self, x):
    return self.classifier(F.relu(self.features(x)).mean((2, 3)))
