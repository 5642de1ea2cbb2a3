"""AnoGAN: --config=configs/anogan.py, or configs/anogan.py:PRESET."""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('anogan', preset, PRESETS)


def paper(config: ConfigDict) -> ConfigDict:
  """The paper's constants: 64 px, 20 epochs of a million patches, 500 steps.

  What it does not give is DCGAN's: the batch, Adam, the noise. The rate of
  the search is a choice.
  """
  config = defaults.folder(config)
  config.data.size = 64
  config.data.resize = 64
  config.model = ConfigDict(
    {
      'dim': 64,
      'z': 100,
      'prior': 'uniform',  # Or normal.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 128
  config.train.steps = 156_000  # 20 * 1e6 / 128.
  config.train.update({'rate': 2e-4, 'beta1': 0.5, 'beta2': 0.999})
  config.train.augment = ('flip',)
  config.train.log_every = 100
  config.score.slides = False  # Every tile is a search of its own.
  config.score.update(
    {
      'names': ('anogan', 'residual_loss', 'features', 'ssim'),
      'maps': ('residual',),
      'feature_weight': 0.1,  # lambda, in the search and the score.
      'search': {'steps': 500, 'rate': 0.01},
    }
  )
  config.eval.primary = 'anogan'
  return config


def camelyon16(config: ConfigDict) -> ConfigDict:
  """The middle 64 px of Camelyon16's patches of 512 px."""
  config = defaults.camelyon16(paper(config), tile=512)
  config.data.resize = 0
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """A narrow network, few steps: three minutes on two cores."""
  config = defaults.phantom(_narrow(paper(config)))
  config.data.resize = 0
  config.train.steps = 400
  config.train.watch.every = 100
  config.score.names = (
    'structure_half',
    'anogan',
    'residual_loss',
    'features',
    'ssim',
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
  config.model.update({'dim': 4, 'z': 4})
  config.train.batch = 8
  config.train.augment = ()
  config.train.log_every = 1
  config.score.batch = 8
  config.score.search.steps = 3
  return config


def _narrow(config: ConfigDict) -> ConfigDict:
  """What a CPU can train and search: an eighth of the width."""
  config.model.update({'dim': 8, 'z': 32})
  config.train.update(
    {
      'batch': 16,
      'steps': 2000,
      'rate': 1e-3,
      'augment': ('flip', 'rot90'),
      'log_every': 10,
    }
  )
  config.score.search.update({'steps': 100, 'rate': 0.05})
  return config


PRESETS = {
  'phantom': phantom,
  'paper': paper,
  'camelyon16': camelyon16,
  'folder': folder,
  'slides': slides,
  'tiny': tiny,
}
