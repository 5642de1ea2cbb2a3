"""FW-RD: --config=configs/fwrd.py, or configs/fwrd.py:PRESET.

The cohort `few` is of tumour patches for training, `data.shots.few` of them.
The teacher is `small` and untrained but in the presets of Camelyon16.
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults

SICK = "label == 1 and split == 'train'"
# Six pixels of level 6, each of 64 pixels of 0.243 micrometres.
NMS_RADIUS = 93.3


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('fwrd', preset, PRESETS)


def camelyon16(config: ConfigDict) -> ConfigDict:
  """The paper: 500 tumour patches, 50 epochs, a shortcut of 1 x 1."""
  config = camelyon16_code(config)
  config.data.shots.few = 500
  config.model.shortcut = 1
  config.train.rate = 1e-5
  config.train.steps = 8600  # 50 * 5,500 / 32.
  return config


def camelyon16_code(config: ConfigDict) -> ConfigDict:
  """The code: all 1,001 tumour patches, 10 epochs, a shortcut of 3 x 3."""
  config = _few(defaults.camelyon16(_original(config)))
  config.data.size = 256
  config.data.options.protocol = 'fwrd'
  config.data.cohorts.normal = "label == 0 and split == 'train'"
  config.data.validation = "label == 0 and split == 'validation'"
  config.data.test = "split == 'test'"
  config.score.update(
    {
      'scheme': 'ncrf',
      'above': 2.01,  # Of patches whose mean is a slide's score.
      'nms_radius': NMS_RADIUS,
      'detect_above': 2.0,
    }
  )
  return config


def _original(config: ConfigDict) -> ConfigDict:
  """The constants of the code."""
  config.model = ConfigDict(
    {
      'teacher': 'wide_resnet50_2',
      'weights': 'imagenet',
      'weights_seed': 0,  # Of random ones.
      'shortcut': 3,  # Window of the bottleneck's projection; RD's is 1.
      'alpha': 0.1,  # Weight of normal images; 1 - alpha: of tumour.
      'gamma': 2.0,  # How much less what is easy counts.
      'few_share': 0.0,  # Of a batch; 0: the share of `few` of all images.
      'sigma': 4.0,  # Of the map, px.
    }
  )
  config.data.shots = {'few': 0}  # Of the cohort; 0: all there are.
  config.train.update({'rate': 1e-6, 'beta1': 0.5, 'beta2': 0.999})
  config.train.batch = 32
  config.train.steps = 1876  # 10 * 6,001 / 32.
  config.train.log_every = 10
  config.score.batch = 32
  config.eval.primary = 'cosine_mean'
  config.eval.slide_rule = 'mean_above'
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder at 128 px; 20 % of the sick patients are trained on."""
  config = _few(defaults.folder(_quick(_original(config))))
  config.data.size = config.data.resize = 128
  config.data.options.train_sick = 0.2
  config.train.steps = 1000
  return config


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, some with outlined lesions for training."""
  return _few(defaults.slides(_quick(_original(config))))


def phantom(config: ConfigDict) -> ConfigDict:
  """Phantom patches of 64 px, and 20 of lesions from a slide of their own."""
  config = _few(defaults.phantom(_quick(_original(config))))
  config.data.size = 64
  config.data.cohorts.few = f'{SICK} and tissue >= 0.9 and lesion >= 0.8'
  config.data.shots.few = 20
  config.data.options.train_lesion = 1
  config.train.steps = 300
  config.score.batch = 64
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px, the smallest teacher and five steps, for tests."""
  config = _few(defaults.tiny(_quick(_original(config))))
  config.data.cohorts.few = f'{SICK} and lesion >= 0.8'
  config.data.shots.few = 5
  config.data.options.train_lesion = 1
  config.train.batch = 8
  config.train.log_every = 1
  config.score.batch = 64
  config.model.teacher = 'tiny'
  config.train.steps = 5  # Each is saved, array by array.
  return config


def _few(config: ConfigDict) -> ConfigDict:
  """A cohort of few, which the data's own cohorts do not have."""
  config.data.cohorts.few = SICK
  return config


def _quick(config: ConfigDict) -> ConfigDict:
  """What begins from nothing and has few steps: RD's rate, an eighth sick."""
  config.model.teacher = 'small'
  config.model.weights = 'random'
  config.model.few_share = 0.125
  config.train.rate = 5e-3
  config.train.batch = 16
  config.score.batch = 16
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'camelyon16': camelyon16,
  'camelyon16_code': camelyon16_code,
  'tiny': tiny,
}
