"""ALAD: --config=configs/alad.py, or configs/alad.py:PRESET."""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('alad', preset, PRESETS)


def paper(config: ConfigDict) -> ConfigDict:
  """The original's constants for CIFAR-10: 32 px, 100 epochs of a class.

  The code stops after ten epochs without a better validation loss; a hundred
  is its limit.
  """
  config = defaults.folder(config)
  config.data.size = config.data.resize = 32
  config.model = ConfigDict(
    {
      'width': 128,  # Of the encoder's largest map.
      'z': 100,
      'dropout': 0.2,  # In the discriminators.
      'spectral': True,  # The code's --sn, which its README asks for.
      'cycle_z': True,  # D_zz, the code's --enable_dzz.
      'joint': 'height',  # Of D_xx's images, as released; or channels.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 32
  config.train.steps = 14_000  # 100 * 4,500 / 32.
  config.train.update({'rate': 2e-4, 'beta1': 0.5, 'ema': 0.999})
  config.train.log_every = 100
  config.score.update(
    {
      'names': ('features', 'logits', 'l1', 'l2'),
      'maps': ('residual',),
    }
  )
  config.eval.primary = 'features'
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """A narrow network, few steps: three minutes on two cores."""
  config = defaults.phantom(_narrow(paper(config)))
  config.data.resize = 0
  config.train.steps = 400
  config.train.ema = 0.98
  config.train.watch.every = 100
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
  """16 px and a few steps, for tests."""
  config = defaults.tiny(_narrow(paper(config)))
  config.data.size, config.data.resize = 16, 0
  config.model.update({'width': 4, 'z': 4})
  config.train.update({'batch': 8, 'augment': (), 'log_every': 1})
  config.train.update({'steps': 8, 'ema': 0.5})
  return config


def _narrow(config: ConfigDict) -> ConfigDict:
  """What a CPU can train at 64 px: an eighth of the width."""
  config.data.size = config.data.resize = 64
  config.model.update({'width': 16, 'z': 32})
  config.train.update(
    {
      'batch': 16,
      'steps': 2000,
      'rate': 5e-4,
      'ema': 0.99,
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
