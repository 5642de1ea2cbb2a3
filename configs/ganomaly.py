"""GANomaly: --config=configs/ganomaly.py, or configs/ganomaly.py:PRESET."""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('ganomaly', preset, PRESETS)


def paper(config: ConfigDict) -> ConfigDict:
  """The original's constants: 32 px, 15 epochs of CIFAR-10 without a class."""
  config = defaults.folder(config)
  config.data.size = config.data.resize = 32
  config.model = ConfigDict(
    {
      'width': 64,  # Of the largest map; it doubles with every halving.
      'z': 100,
      'extra': 0,  # Layers of one size more, after the first.
      'statistics': 'running',  # Of norms when scoring; 'batch' as released.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 64
  config.train.steps = 10_500  # 15 * 45,000 / 64.
  config.train.update(
    {
      'rate': 2e-4,
      'beta1': 0.5,
      'weights': {'adversarial': 1.0, 'image': 50.0, 'code': 1.0},
      'redraw_below': 1e-5,  # L_D, under which D begins anew; 0: never.
    }
  )
  config.train.log_every = 100
  config.score.update(
    {
      'names': ('latent', 'latent_l1', 'ssim', 'residual'),
      'maps': ('residual',),
    }
  )
  config.eval.primary = 'latent'
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """A narrow network, few steps: three minutes on two cores."""
  config = defaults.phantom(_narrow(paper(config)))
  config.data.size, config.data.resize = 64, 0
  config.train.steps = 600
  config.score.names = (
    'structure_half',
    'latent',
    'latent_l1',
    'ssim',
    'residual',
  )
  config.eval.primary = 'structure_half'
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder at 64 px: a quarter of an hour on two cores."""
  return _narrow(paper(config))


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, made 64 px wide."""
  config = defaults.slides(_narrow(paper(config)))
  config.data.size = config.data.resize = 64
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px and a dozen steps, for tests."""
  config = defaults.tiny(_narrow(paper(config)))
  config.data.resize = 0
  config.model.update({'width': 4, 'z': 4})
  config.train.update({'batch': 8, 'augment': (), 'log_every': 1})
  config.train.steps = 12
  return config


def _narrow(config: ConfigDict) -> ConfigDict:
  """What a CPU can train at 64 px: a quarter of the width."""
  config.data.size = config.data.resize = 64
  config.model.width = 16
  config.train.update(
    {
      'batch': 16,
      'steps': 3000,
      'rate': 5e-4,
      'augment': ('flip', 'rot90'),
      'log_every': 10,
    }
  )
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'paper': paper,
  'tiny': tiny,
}
