"""Reverse distillation: --config=configs/rd.py, or configs/rd.py:PRESET.

The teacher is `small` and untrained wherever nothing else is said, because it
needs no download; what it finds, a trained one finds better:
--config.model.teacher=wide_resnet50_2 --config.model.weights=imagenet.
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('rd', preset, PRESETS)


def paper(config: ConfigDict) -> ConfigDict:
  """The original's constants on MVTec, for a folder: 200 epochs of 16.

  A category of MVTec has about 240 images for training.
  """
  config = defaults.folder(config)
  config.data.size = 256
  config.data.resize = 256
  config.model = ConfigDict(
    {
      'teacher': 'wide_resnet50_2',
      'weights': 'imagenet',
      'weights_seed': 0,  # Of random ones.
      'shortcut': 1,  # Window of the bottleneck's projection; FW-RD's is 3.
      'loss': 'flatten',  # As the code has it; the paper: pixel.
      'combine': 'add',  # Maps of the stages; or multiply.
      'sigma': 4.0,  # Of the map, px.
    }
  )
  config.train.update({'rate': 5e-3, 'beta1': 0.5, 'beta2': 0.999})
  config.train.batch = 16
  config.train.steps = 3000
  config.train.log_every = 10
  config.score.batch = 16
  config.eval.primary = 'cosine_max'
  return config


def resnet50v2(config: ConfigDict) -> ConfigDict:
  """Images of a folder at 128 px, with the ResNet-50-v2 of Gluon.

  An hour on two cores.
  """
  config = paper(config)
  config.data.size = config.data.resize = 128
  config.model.teacher = 'resnet50v2'
  config.train.steps = 600
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder at 128 px, with the untrained teacher."""
  config = _untrained(paper(config))
  config.data.size = config.data.resize = 128
  return config


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, with the untrained teacher."""
  config = defaults.slides(_untrained(paper(config)))
  config.data.resize = 0
  return config


def camelyon16(config: ConfigDict) -> ConfigDict:
  """FW-RD's patches of 256 px, on which it is compared with this.

  As many epochs of the 5,000 healthy patches as FW-RD's paper has.
  """
  config = defaults.camelyon16(paper(config))
  config.data.resize = 0
  config.data.options.protocol = 'fwrd'
  config.data.cohorts.normal = "label == 0 and split == 'train'"
  config.data.validation = "label == 0 and split == 'validation'"
  config.data.test = "split == 'test'"
  config.train.batch = 32
  config.train.steps = 7800  # 50 * 5,000 / 32.
  config.score.scheme = 'ncrf'
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """Phantom patches of 64 px, with the untrained teacher."""
  config = defaults.phantom(_untrained(paper(config)))
  config.data.resize = 0
  config.data.size = 64
  config.train.steps = 300
  config.score.batch = 64
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px, the smallest teacher and five steps, for tests."""
  config = defaults.tiny(_untrained(paper(config)))
  config.data.resize = 0
  config.train.batch = 8
  config.train.log_every = 1
  config.score.batch = 64
  config.model.teacher = 'tiny'
  config.train.steps = 5  # Each is saved, array by array.
  return config


def _untrained(config: ConfigDict) -> ConfigDict:
  config.model.teacher = 'small'
  config.model.weights = 'random'
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'paper': paper,
  'resnet50v2': resnet50v2,
  'camelyon16': camelyon16,
  'tiny': tiny,
}
