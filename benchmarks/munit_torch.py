"""MUNIT in eager PyTorch, only for benchmarks/munit_step.py to race with.

The same networks, losses and order as jaxmed/methods/munit.py, whose exported
names fit the modules here.
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional as F

OTHER = {'a': 'b', 'b': 'a'}


class Conv(nn.Module):
  """Reflected border, convolution, norm, activation."""

  def __init__(self, cin, cout, size, stride=1, norm=None, act=F.relu):
    super().__init__()
    self.conv = nn.Conv2d(cin, cout, size, stride)
    self.pad, self.norm, self.act = (size - stride + 1) // 2, norm, act

  def forward(self, x):
    x = self.conv(F.pad(x, (self.pad,) * 4, mode='reflect'))
    x = self.norm(x) if self.norm else x
    return self.act(x) if self.act else x


class LayerNorm(nn.Module):
  def __init__(self, features):
    super().__init__()
    self.gamma = nn.Parameter(torch.ones(features))
    self.beta = nn.Parameter(torch.zeros(features))

  def forward(self, x):
    deviation, mean = torch.std_mean(x.float(), (1, 2, 3), keepdim=True)
    x = (x - mean) / (deviation + 1e-5)
    return x * self.gamma[:, None, None] + self.beta[:, None, None]


class Block(nn.Module):
  def __init__(self, width, norm=None):
    super().__init__()
    acts = F.relu, None
    self.model = nn.ModuleList(
      Conv(width, width, 3, norm=norm, act=a) for a in acts
    )

  def forward(self, x):
    return x + self.model[1](self.model[0](x))

  def adapt(self, x, norms):
    first, second = (
      lambda y, n=n: (
        F.instance_norm(y) * n[:, 1, :, None, None] + n[:, 0, :, None, None]
      )
      for n in norms
    )
    pad = lambda y: F.pad(y, (1,) * 4, mode='reflect')
    y = F.relu(first(self.model[0].conv(pad(x))))
    return x + second(self.model[1].conv(pad(y)))


class Holder(nn.Module):
  """A step in the original's names."""

  def __init__(self, **parts):
    super().__init__()
    for name, part in parts.items():
      setattr(self, name, part)


class Generator(nn.Module):
  def __init__(self, model):
    super().__init__()
    dim, depth = model.dim, model.downsamplings
    wide, norm = dim * 2**depth, F.instance_norm
    widths = [dim, 2 * dim, 4 * dim, 4 * dim, 4 * dim]
    style = [Conv(3, dim, 7)]
    style += [
      Conv(a, b, 4, 2) for a, b in zip(widths, widths[1:], strict=False)
    ]
    style += [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4 * dim, model.style_dim, 1)]
    self.enc_style = Holder(model=nn.Sequential(*style))
    content = [Conv(3, dim, 7, norm=norm)]
    content += [
      Conv(dim * 2**i, dim * 2 ** (i + 1), 4, 2, norm) for i in range(depth)
    ]
    blocks = [Block(wide, norm) for _ in range(model.residual_blocks)]
    content += [Holder(model=nn.ModuleList(blocks))]
    self.enc_content = Holder(model=nn.ModuleList(content))
    blocks = [Block(wide) for _ in range(model.residual_blocks)]
    decoder = [Holder(model=nn.ModuleList(blocks))]
    for i in range(depth, 0, -1):
      cin, cout = dim * 2**i, dim * 2 ** (i - 1)
      up = Conv(cin, cout, 5)
      up.norm = LayerNorm(cout)
      decoder += [nn.Upsample(scale_factor=2), up]
    decoder += [Conv(dim, 3, 7, act=torch.tanh)]
    self.dec = Holder(model=nn.ModuleList(decoder))
    sizes = [model.style_dim, model.mlp_dim, model.mlp_dim]
    sizes += [4 * model.residual_blocks * wide]
    self.mlp = Holder(
      model=nn.ModuleList(
        Holder(fc=nn.Linear(a, b))
        for a, b in zip(sizes, sizes[1:], strict=False)
      )
    )

  def style(self, x):
    return self.enc_style.model(x)

  def content(self, x):
    *convs, last = self.enc_content.model
    for layer in (*convs, *last.model):
      x = layer(x)
    return x

  def decode(self, x, style):
    norms = style.flatten(1)
    first, second, last = (layer.fc for layer in self.mlp.model)
    norms = last(F.relu(second(F.relu(first(norms)))))
    blocks, *layers = self.dec.model
    shape = len(x), len(blocks.model), 2, 2, x.shape[1]
    for i, block in enumerate(blocks.model):
      pair = norms.reshape(shape)[:, i]
      x = block.adapt(x, (pair[:, 0], pair[:, 1]))
    for layer in layers:
      x = layer(x)
    return x


class Discriminator(nn.Module):
  def __init__(self, critic):
    super().__init__()
    leaky = lambda x: F.leaky_relu(x, 0.2)

    def scale():
      widths = [3, *(critic.dim * 2**i for i in range(critic.layers))]
      convs = [
        Conv(a, b, 4, 2, act=leaky)
        for a, b in zip(widths, widths[1:], strict=False)
      ]
      return nn.Sequential(*convs, nn.Conv2d(widths[-1], 1, 1))

    self.cnns = nn.ModuleList(scale() for _ in range(critic.scales))

  def forward(self, x):
    logits = []
    for scale in self.cnns:
      logits.append(scale(x).float())
      x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    return logits


class Trainer:
  """D's update, then G's, each by its own Adam."""

  def __init__(self, model, train, checkpoint, device, bf16):
    self.weights, self.style_dim = train.weights, model.style_dim
    self.device, self.bf16 = device, bf16
    nets = Holder(
      **{f'gen_{d}': Generator(model) for d in OTHER},
      **{f'dis_{d}': Discriminator(model.discriminator) for d in OTHER},
    )
    nets.load_state_dict(
      {k: torch.tensor(v) for k, v in checkpoint.items()}, strict=True
    )
    nets = nets.to(device)
    self.gen = {d: getattr(nets, f'gen_{d}') for d in OTHER}
    self.dis = {d: getattr(nets, f'dis_{d}') for d in OTHER}
    self.adams = {
      part: torch.optim.Adam(
        [p for net in both.values() for p in net.parameters()],
        train.rate,
        (train.beta1, train.beta2),
        weight_decay=train.weight_decay,
      )
      for part, both in (('dis', self.dis), ('gen', self.gen))
    }

  def __call__(self, x):
    cast = (
      torch.autocast(self.device, torch.bfloat16)
      if self.bf16
      else contextlib.nullcontext()
    )
    found = {}
    for part, loss in (('dis', self.critics), ('gen', self.generators)):
      self.adams[part].zero_grad()
      with cast:
        value = loss(x, {d: self.draw(len(x[d])) for d in OTHER})
      value.backward()
      self.adams[part].step()
      name = {'dis': 'discriminator', 'gen': 'generator'}[part]
      found[name] = value.detach()
    return found

  def draw(self, batch):
    return torch.randn(batch, self.style_dim, 1, 1, device=self.device)

  def critics(self, x, s):
    with torch.no_grad():
      content = {d: self.gen[d].content(x[d]) for d in OTHER}
      fake = {d: self.gen[d].decode(content[o], s[d]) for d, o in OTHER.items()}
    return sum(
      (no**2).mean() + ((yes - 1) ** 2).mean()
      for d in OTHER
      for no, yes in zip(self.dis[d](fake[d]), self.dis[d](x[d]), strict=True)
    )

  def generators(self, x, s):
    w, gen = self.weights, self.gen
    content = {d: gen[d].content(x[d]) for d in OTHER}
    own = {d: gen[d].style(x[d]) for d in OTHER}
    cross = {d: gen[d].decode(content[o], s[d]) for d, o in OTHER.items()}
    again = {d: gen[d].content(cross[d]) for d in OTHER}
    loss = 0.0
    for d, o in OTHER.items():
      image = gen[d].decode(content[d], own[d])
      cycle = gen[d].decode(again[o], own[d])
      loss = loss + w.image * F.l1_loss(image.float(), x[d])
      loss = loss + w.cycle * F.l1_loss(cycle.float(), x[d])
      loss = loss + w.content * F.l1_loss(again[o], content[d])
      loss = loss + w.style * F.l1_loss(gen[d].style(cross[d]).float(), s[d])
      judged = self.dis[d](cross[d])
      loss = loss + w.gan * sum(((y - 1) ** 2).mean() for y in judged)
    return loss
