"""CycleGAN: --config=configs/cyclegan.py, or configs/cyclegan.py:PRESET.

Cohorts a and b are healthy both; `score.routes` says which way an image goes
before it is compared with itself (jaxmed/methods/cyclegan.py).
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('cyclegan', preset, PRESETS)


def paper(config: ConfigDict) -> ConfigDict:
  """The original's constants, at 256 px, on images of a folder.

  The code counts epochs, 100 at the full rate and 100 while it falls; of the
  paper's sets of about a thousand images that is 200,000 steps.
  """
  config = _original(defaults.folder(config))
  config.data.size = 256
  config.data.resize = 286
  config.data.crop = 'random'
  return config


def camelyon16(config: ConfigDict) -> ConfigDict:
  """Camelyon16's patches: a and b are those of either hospital's scanner."""
  config = _original(defaults.camelyon16(config, tile=512))
  config.data.size = 256  # The middle of 512 px.
  config.score.stride = 512  # One score a patch of a slide.
  return config


def _original(config: ConfigDict) -> ConfigDict:
  config.model = ConfigDict(
    {
      'dim': 64,
      'residual_blocks': 9,  # 6 below 256 px.
      'discriminator': {'dim': 64, 'layers': 3},  # Patches of 70 px.
      'gan': 'lsgan',  # Or vanilla.
      'history': 50,  # Images of each generator; 0: only the newest.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 1
  config.train.steps = 200_000
  config.train.augment = ('flip',)
  config.train.log_every = 100
  config.train.update(
    {
      'rate': 2e-4,
      'beta1': 0.5,
      'beta2': 0.999,
      'decay_from': 0.5,  # Of the steps: the rate falls to nothing from here.
      'weights': {
        'gan': 1.0,
        'cycle': 10.0,  # lambda.
        'identity': 5.0,  # lambda / 2, or 0: not at all.
      },
    }
  )
  config.score.batch = 16
  config.score.update(
    {
      'names': ('ssim', 'structure_half', 'residual'),
      'maps': ('structure', 'residual'),
      'routes': ('aba',),  # Or several, averaged: ab, ba, bab.
    }
  )
  config.eval.primary = 'ssim'
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """400 steps of a narrow network: two minutes on two cores."""
  return defaults.phantom(_narrow(_original(config)))


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
  config.model.update({'dim': 4, 'residual_blocks': 1, 'history': 16})
  config.model.discriminator.update({'dim': 4, 'layers': 2})
  config.train.batch = 8
  config.train.log_every = 1
  return config


def _narrow(config: ConfigDict) -> ConfigDict:
  """What a CPU can train: an eighth of the width, five times the rate."""
  config.data.size = 64
  config.model.update({'dim': 8, 'residual_blocks': 4})
  config.model.discriminator.dim = 8
  config.train.update(
    {
      'batch': 4,
      'steps': 400,
      'rate': 1e-3,
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
  'paper': paper,
  'camelyon16': camelyon16,
  'folder': folder,
  'slides': slides,
  'tiny': tiny,
}
