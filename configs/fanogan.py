"""f-AnoGAN: --config=configs/fanogan.py, or configs/fanogan.py:PRESET."""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('fanogan', preset, PRESETS)


def paper(config: ConfigDict) -> ConfigDict:
  """The original's constants: 64 px, full width, both trainings' lengths.

  The code counts epochs, 7 of about a million patches, in batches of 64 and
  five critics' batches to a generator step; the encoder has 50,000 steps.
  """
  config = defaults.folder(config)
  config.data.size = 64
  config.data.resize = 64
  config.model = ConfigDict(
    {
      'dim': 64,
      'z': 128,
      'tanh': True,  # At the encoder's end.
      'penalty': 10.0,  # lambda.
      'kappa': 1.0,  # Of features, in the encoder's loss and the score.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 64
  config.train.steps = 22_000  # 7 * 1e6 / (5 * 64).
  config.train.update(
    {
      'critics': 5,
      'rate': 1e-4,
      'encoder_steps': 50_000,
      'encoder_rate': 5e-5,
    }
  )
  config.train.augment = ('flip',)
  config.train.log_every = 100
  config.train.watch.every = 1000
  config.score.update(
    {
      'names': ('izi_f', 'ssim', 'residual', 'z_distance'),
      'maps': ('residual',),
    }
  )
  config.eval.primary = 'izi_f'
  return config


def camelyon16(config: ConfigDict) -> ConfigDict:
  """The middle 64 px of Camelyon16's patches of 512 px."""
  config = defaults.camelyon16(paper(config), tile=512)
  config.data.resize = 0
  config.score.stride = 512  # One score a patch of a slide.
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """A narrow network, few steps: three minutes on two cores."""
  config = defaults.phantom(_narrow(paper(config)))
  config.data.resize = 0
  config.train.update(
    {'batch': 8, 'critics': 3, 'steps': 200, 'encoder_steps': 300}
  )
  config.train.watch.every = 50
  config.score.names = (
    'structure_half',
    'izi_f',
    'ssim',
    'residual',
    'z_distance',
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
  config.model.update({'dim': 2, 'z': 4})
  config.train.update({'batch': 8, 'critics': 2, 'encoder_steps': 6})
  config.train.steps = 6
  config.train.augment = ()
  config.train.log_every = 1
  config.train.watch.every = 2
  return config


def _narrow(config: ConfigDict) -> ConfigDict:
  """What a CPU can train: an eighth of the width, ten times the rates."""
  config.model.update({'dim': 8, 'z': 32})
  config.train.update(
    {
      'batch': 16,
      'steps': 400,
      'rate': 1e-3,
      'encoder_steps': 1500,
      'encoder_rate': 1e-3,
      'augment': ('flip', 'rot90'),
      'log_every': 10,
    }
  )
  config.train.watch.update({'every': 100, 'trunk': 'random'})
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'paper': paper,
  'camelyon16': camelyon16,
  'tiny': tiny,
}
