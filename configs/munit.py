"""MUNIT: --config=configs/munit.py, or configs/munit.py:PRESET.

Cohorts a and b are healthy both; `score.routes` says whose content is shown
in whose style (jaxmed/methods/munit.py).
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('munit', preset, PRESETS)


def camelyon16(config: ConfigDict) -> ConfigDict:
  """The original's constants on Camelyon16's patches of 512 px.

  About 80,000 healthy patches of 270 training slides. The paper does not say
  which are X and which Y: here, those of either hospital's scanner.
  """
  config = defaults.camelyon16(_original(config))
  config.data.size = 512
  return config


def _original(config: ConfigDict) -> ConfigDict:
  """The constants of the original at 512 px, with the cycle on.

  The paper does not give the number of steps; the original's is this.
  """
  config.model = ConfigDict(
    {
      'dim': 64,
      'mlp_dim': 256,
      'style_dim': 8,
      'downsamplings': 2,
      'residual_blocks': 4,
      'discriminator': {'dim': 64, 'layers': 4, 'scales': 3},
      'gan': 'lsgan',
      'tied_init': False,  # Both generators start from one draw.
      'vgg': 'vgg16',  # Of train.weights.vgg, if that is not 0.
      'vgg_weights': 'imagenet',  # Or random, or a checkpoint's path.
      'vgg_input': 'caffe',  # As the original's; torchvision's weights want
      # 'torchvision'.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 1
  config.train.steps = 1_000_000
  config.train.augment = ('flip',)
  config.train.log_every = 100
  config.train.update(
    {
      'rate': 1e-4,
      'beta1': 0.5,
      'beta2': 0.999,
      'weight_decay': 1e-4,  # A part of the gradient.
      'schedule': 'step',  # Or cosine.
      'decay': 0.5,  # Of step: the factor ...
      'decay_steps': 100_000,  # ... after each so many.
      'warmup': 0,  # Of cosine: steps from nothing to the rate ...
      'last': 0.05,  # ... of which this much is left at the end.
      'weights': {
        'gan': 1.0,
        'image': 10.0,
        'style': 1.0,
        'content': 1.0,
        'cycle': 10.0,
        'vgg': 0.0,
      },
    }
  )
  config.score.batch = 16
  config.score.update(
    {
      'names': ('ssim', 'structure_half', 'residual'),
      'maps': ('structure', 'residual'),
      'routes': ('ab',),  # Or several, averaged: ba, aa, bb.
    }
  )
  config.eval.primary = 'ssim'
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """400 steps of a narrow network: two minutes on two cores.

  Independent first draws may settle on contents of opposite polarity, which
  nothing in so short a training puts right; hence the one draw.
  """
  config = _narrow(_original(config))
  return defaults.phantom(config)


def phantom_long(config: ConfigDict) -> ConfigDict:
  """The same for an hour on two cores, which finds no more (docs/log.md)."""
  config = phantom(config)
  config.train.steps = 12_000
  config.train.log_every = 100
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder at 64 px: a quarter of an hour on two cores."""
  config = defaults.folder(_narrow(_original(config)))
  config.data.resize = 64
  config.train.augment = ('flip',)
  config.train.steps = 2000
  return config


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, in a network that a CPU can train."""
  config = defaults.slides(_narrow(_original(config)))
  config.train.batch = 1
  config.train.steps = 2000
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px and a dozen steps, for tests."""
  config = defaults.tiny(_narrow(_original(config)))
  config.model.update({'dim': 4, 'mlp_dim': 8, 'style_dim': 2})
  config.model.residual_blocks = 1
  config.model.discriminator.update({'dim': 4, 'layers': 2, 'scales': 1})
  config.train.batch = 8
  config.train.warmup = 2
  config.train.log_every = 1
  return config


def _narrow(config: ConfigDict) -> ConfigDict:
  """What a CPU can train: an eighth of the width, ten times the rate."""
  config.data.size = 64
  config.model.update({'dim': 8, 'mlp_dim': 64, 'tied_init': True})
  config.model.discriminator.dim = 8
  config.train.update(
    {
      'batch': 4,
      'steps': 400,
      'rate': 1e-3,
      'schedule': 'cosine',
      'warmup': 20,
      'augment': ('flip', 'rot90'),
      'log_every': 10,
    }
  )
  config.score.batch = 8  # More, and a CPU maps new memory for every layer.
  config.score.names = ('structure_half', 'ssim', 'residual')
  config.eval.primary = 'structure_half'
  return config


PRESETS = {
  'phantom': phantom,
  'phantom_long': phantom_long,
  'camelyon16': camelyon16,
  'folder': folder,
  'slides': slides,
  'tiny': tiny,
}
