"""ALOCC: --config=configs/alocc.py, or configs/alocc.py:PRESET."""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('alocc', preset, PRESETS)


def paper(config: ConfigDict) -> ConfigDict:
  """The paper's loss and the code's constants, at 45 px; 40 epochs.

  An epoch is of about 30,000 patches, in batches of 128. The paper stops where
  its refinement falls below a limit that it does not give.
  """
  config = defaults.folder(config)
  config.data.size = config.data.resize = 45
  config.model = ConfigDict(
    {
      'width': 16,  # Of D's largest map, and half of R's.
      'decoder': 16,
      'refinement': 'paper',  # Or code; see the method.
      'weight': 0.4,  # lambda; as_code has 0.2.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 128
  config.train.steps = 9_400  # 40 * 30,000 / 128.
  config.train.update(
    {
      'rate': 2e-3,
      'noise': 0.155,  # Its standard deviation; images are in [-1, 1].
      'refinements': 2,  # Steps of R to each one of D.
    }
  )
  config.train.log_every = 100
  config.score.update(
    {
      'names': ('refined', 'direct', 'l2', 'residual', 'ssim'),
      'maps': ('residual',),
    }
  )
  config.eval.primary = 'refined'
  return config


def as_code(config: ConfigDict) -> ConfigDict:
  """The loss as released."""
  config = paper(config)
  config.model.update({'refinement': 'code', 'weight': 0.2})
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """The networks as they are, few steps: three minutes on two cores."""
  config = defaults.phantom(_short(paper(config)))
  config.data.resize = 0
  config.train.steps = 400
  config.score.names = (
    'structure_half',
    'refined',
    'direct',
    'ssim',
    'residual',
  )
  config.eval.primary = 'structure_half'
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder at 64 px: a quarter of an hour on two cores."""
  return _short(paper(config))


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, made 64 px wide."""
  config = defaults.slides(_short(paper(config)))
  config.data.size = config.data.resize = 64
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px and a few steps, for tests.

  Enough of them that the norms' running statistics have come near those of
  the batches: before, D sees next to nothing.
  """
  config = defaults.tiny(_short(paper(config)))
  config.data.resize = 0
  config.model.update({'width': 4, 'decoder': 4})
  config.train.update({'batch': 8, 'augment': (), 'log_every': 1})
  config.train.update({'steps': 24, 'rate': 1e-3})
  return config


def _short(config: ConfigDict) -> ConfigDict:
  """What a CPU can train at 64 px."""
  config.data.size = config.data.resize = 64
  config.train.update(
    {
      'batch': 16,
      'steps': 1500,
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
  'as_code': as_code,
  'tiny': tiny,
}
