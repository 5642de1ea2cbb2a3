"""StyleGAN2's networks and step in eager PyTorch, to compare with.

Names of modules are those of the port, so our weights load. Modulated
convolutions are grouped ones, and filters convolve single channels, as there.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional


def leaky(x):
  return functional.leaky_relu(x, 0.2) * math.sqrt(2)


def parameter(*shape):
  return nn.Parameter(torch.zeros(shape))


def resample(x, up: int = 1, down: int = 1, pad=(0, 0), gain: float = 1.0):
  """The filter [1, 3, 3, 1]; it is symmetric, so nothing is turned round."""
  b, c, h, w = x.shape
  x = x.reshape(b * c, 1, h, w)
  if up > 1:
    x = x.reshape(b * c, 1, h, 1, w, 1)
    x = functional.pad(x, (0, up - 1, 0, 0, 0, up - 1))
    x = x.reshape(b * c, 1, h * up, w * up)
  taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
  kernel = gain * torch.outer(taps, taps)[None, None]
  x = functional.pad(x, (*pad, *pad))
  x = functional.conv2d(x, kernel, stride=down)
  return x.reshape(b, c, *x.shape[2:])


class Dense(nn.Module):
  def __init__(self, inputs: int, outputs: int, rate: float = 1.0):
    super().__init__()
    self.weight, self.bias = parameter(outputs, inputs), parameter(outputs)
    self.rate, self.scale = rate, rate / math.sqrt(inputs)

  def forward(self, x):
    bias = self.bias * self.rate
    return functional.linear(x, self.weight * self.scale, bias)


class Activate(nn.Module):
  def __init__(self, width: int):
    super().__init__()
    self.bias = parameter(width)

  def forward(self, x):
    return leaky(x + self.bias[:, None, None])


class Modulated(nn.Module):
  def __init__(self, inputs, outputs, window, style, up=False, plain=False):
    super().__init__()
    self.weight = parameter(1, outputs, inputs, window, window)
    self.modulation = Dense(style, inputs)
    self.up, self.plain = up, plain

  def forward(self, x, w):
    b, c, h, width = x.shape
    outputs, window = self.weight.shape[1], self.weight.shape[-1]
    style = self.modulation(w).view(b, 1, c, 1, 1)
    kernel = self.weight * style / math.sqrt(c * window**2)
    if not self.plain:
      energy = kernel.square().sum((2, 3, 4), keepdim=True)
      kernel = kernel * torch.rsqrt(energy + 1e-8)
    x = x.reshape(1, b * c, h, width)
    if self.up:
      kernel = kernel.transpose(1, 2).reshape(b * c, outputs, window, window)
      x = functional.conv_transpose2d(x, kernel, stride=2, groups=b)
      x = x.view(b, outputs, *x.shape[2:])
      return resample(x, pad=(1, 1), gain=4)
    kernel = kernel.view(b * outputs, c, window, window)
    x = functional.conv2d(x, kernel, padding=window // 2, groups=b)
    return x.view(b, outputs, h, width)


class Styled(nn.Module):
  def __init__(self, inputs, outputs, style, up=False):
    super().__init__()
    self.conv = Modulated(inputs, outputs, 3, style, up)
    self.noise = nn.Module()
    self.noise.weight = parameter(1)
    self.activate = Activate(outputs)

  def forward(self, x, w, noise):
    return self.activate(self.conv(x, w) + self.noise.weight * noise)


class ToRGB(nn.Module):
  def __init__(self, inputs, style):
    super().__init__()
    self.bias = parameter(1, 3, 1, 1)
    self.conv = Modulated(inputs, 3, 1, style, plain=True)

  def forward(self, x, w, below=None):
    image = self.conv(x, w) + self.bias
    if below is None:
      return image
    return image + resample(below, up=2, pad=(2, 1), gain=4)


class Generator(nn.Module):
  def __init__(self, widths, style: int, layers: int, rate: float):
    super().__init__()
    dense = [Dense(style, style, rate) for _ in range(layers)]
    self.style = nn.Sequential(nn.Identity(), *dense)
    self.input = nn.Module()
    self.input.input = parameter(1, widths[0], 4, 4)
    self.conv1 = Styled(widths[0], widths[0], style)
    self.to_rgb1 = ToRGB(widths[0], style)
    self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
    for inputs, outputs in zip(widths, widths[1:], strict=False):
      self.convs.append(Styled(inputs, outputs, style, up=True))
      self.convs.append(Styled(outputs, outputs, style))
      self.to_rgbs.append(ToRGB(outputs, style))
    self.layers = 2 * len(widths)
    self.sides = [2 ** ((i + 5) // 2) for i in range(self.layers - 1)]

  def map(self, z):
    x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
    for dense in self.style[1:]:
      x = leaky(dense(x))
    return x

  def forward(self, w, noises):
    x = self.input.input.expand(len(w), -1, -1, -1)
    x = self.conv1(x, w[:, 0], noises[0])
    image = self.to_rgb1(x, w[:, 1])
    for i, rgb in enumerate(self.to_rgbs):
      at = 2 * i + 1
      x = self.convs[at - 1](x, w[:, at], noises[at])
      x = self.convs[at](x, w[:, at + 1], noises[at + 1])
      image = rgb(x, w[:, at + 2], image)
    return image


class Conv(nn.Module):
  def __init__(self, inputs, outputs, window, stride=1):
    super().__init__()
    self.weight = parameter(outputs, inputs, window, window)
    self.stride, self.pad = stride, 0 if stride > 1 else window // 2

  def forward(self, x):
    scale = 1 / math.sqrt(self.weight[0].numel())
    return functional.conv2d(
      x, self.weight * scale, None, self.stride, self.pad
    )


class Blur(nn.Module):
  def __init__(self, pad):
    super().__init__()
    self.pad = pad

  def forward(self, x):
    return resample(x, pad=(self.pad, self.pad))


class Residual(nn.Module):
  def __init__(self, inputs, outputs):
    super().__init__()
    self.conv1 = nn.Sequential(Conv(inputs, inputs, 3), Activate(inputs))
    self.conv2 = nn.Sequential(
      Blur(2), Conv(inputs, outputs, 3, 2), Activate(outputs)
    )
    self.skip = nn.Sequential(Blur(1), Conv(inputs, outputs, 1, 2))

  def forward(self, x):
    return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
  def __init__(self, widths, group: int):
    super().__init__()
    large = widths[::-1]
    first = nn.Sequential(Conv(3, large[0], 1), Activate(large[0]))
    blocks = map(Residual, large, large[1:])
    self.convs = nn.Sequential(first, *blocks)
    last = widths[0]
    self.final_conv = nn.Sequential(Conv(last + 1, last, 3), Activate(last))
    self.final_linear = nn.ModuleList([Dense(16 * last, last), Dense(last, 1)])
    self.group = group

  def forward(self, x):
    x = self.convs(x)
    group = min(self.group, len(x))
    apart = x.view(group, -1, *x.shape[1:]).var(0, unbiased=False)
    apart = (apart + 1e-8).sqrt().mean((1, 2, 3)).repeat(group)
    apart = apart[:, None, None, None].expand(-1, 1, *x.shape[2:])
    x = self.final_conv(torch.cat([x, apart], 1)).flatten(1)
    return self.final_linear[1](leaky(self.final_linear[0](x)))[:, 0]


class Trainer:
  """A step of D, then of G, and the moving average."""

  def __init__(self, gan, weights: dict, device: str):
    widths, train = gan.synthesis.widths, gan.train
    mapping = gan.mapping
    self.generator = Generator(
      widths, mapping.width, mapping.layers, mapping.rate
    )
    self.discriminator = Discriminator(widths, gan.group)
    for prefix, part in (('g.', self.generator), ('d.', self.discriminator)):
      mine = {
        name.removeprefix(prefix): torch.tensor(value)
        for name, value in weights.items()
        if name.startswith(prefix) and 'noises' not in name
      }
      part.load_state_dict(mine)
      part.to(device)
    self.average = copy.deepcopy(self.generator).requires_grad_(False)
    self.device, self.decay, self.train = device, gan.decay, train
    self.adams = {
      part: torch.optim.Adam(
        part.parameters(), train.rate * c, (train.beta1**c, train.beta2**c)
      )
      for part, every in (
        (self.generator, train.path_every),
        (self.discriminator, train.r1_every),
      )
      for c in (every / (every + 1),)
    }
    self.mean = torch.zeros((), device=device)

  def styles(self, count: int):
    layers, generator = self.generator.layers, self.generator
    draw = lambda: generator.map(
      torch.randn(count, len(generator.style[1].bias), device=self.device)
    )
    w = draw()[:, None].repeat(1, layers, 1)
    if torch.rand(()) < self.train.mixing:
      first = int(torch.randint(1, layers, ()))
      w = torch.cat([w[:, :first], draw()[:, None].expand_as(w)[:, first:]], 1)
    return w

  def noises(self, count: int):
    return [
      torch.randn(count, 1, side, side, device=self.device)
      for side in self.generator.sides
    ]

  def update(self, part, loss):
    self.adams[part].zero_grad()
    loss.backward()
    self.adams[part].step()

  def __call__(self, real, r1: bool = False, path: bool = False):
    count = len(real)
    with torch.no_grad():
      fake = self.generator(self.styles(count), self.noises(count))
    of_real, of_fake = self.discriminator(real), self.discriminator(fake)
    loss = functional.softplus(-of_real).mean()
    self.update(self.discriminator, loss + functional.softplus(of_fake).mean())
    if r1:
      self.update(self.discriminator, self.r1(real))
    self.discriminator.requires_grad_(False)
    fake = self.generator(self.styles(count), self.noises(count))
    loss = functional.softplus(-self.discriminator(fake)).mean()
    self.update(self.generator, loss)
    self.discriminator.requires_grad_(True)
    if path:
      self.update(self.generator, self.path(count // self.train.path_shrink))
    with torch.no_grad():
      for mean, new in zip(
        self.average.parameters(), self.generator.parameters(), strict=True
      ):
        mean.mul_(self.decay).add_(new, alpha=1 - self.decay)
    return loss.detach()

  def r1(self, real):
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
      self.discriminator(real).sum(), real, create_graph=True
    )
    penalty = gradient.square().sum((1, 2, 3)).mean()
    return self.train.r1 / 2 * self.train.r1_every * penalty

  def path(self, count: int):
    w = self.styles(count)
    image = self.generator(w, self.noises(count))
    y = torch.randn_like(image) / math.sqrt(image[0, 0].numel())
    (gradient,) = torch.autograd.grad((image * y).sum(), w, create_graph=True)
    lengths = gradient.square().sum(2).mean(1).sqrt()
    mean = self.mean + self.train.path_decay * (lengths.mean() - self.mean)
    self.mean = mean.detach()
    penalty = (lengths - mean).square().mean()
    return self.train.path * self.train.path_every * penalty
