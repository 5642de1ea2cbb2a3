"""DenseNet-121, supervised: --config=configs/densenet.py, or with :PRESET.

It needs anomalous images for training and for its calibration, which the
presets take from the test: by the options `train_lesion`, `train_sick` and
their like of the data sets.
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('densenet', preset, PRESETS)


def whole(config: ConfigDict) -> ConfigDict:
  """The network as published, from public weights; training is our choice."""
  config.data.size = 224
  config.model = ConfigDict(
    {
      'trunk': 'densenet121',
      'weights': 'imagenet',  # Or random: trained from nothing.
      'blocks': (6, 12, 24, 16),
      'growth': 32,
      'stem_width': 64,
      'classes': 1,  # One logit; 2: a softmax of two.
      'class_weights': 'inverse',  # Of frequency, in the loss; or none.
      'label_smoothing': 0.0,
      'calibration': 'temperature',  # Or platt, none.
    }
  )
  config.train.batch = 32
  config.train.steps = 3000
  config.train.update(
    {
      'optimiser': 'adam',  # Or sgd, of momentum 0.9.
      'rate': 1e-4,
      'weight_decay': 1e-4,  # Added to the gradient.
      'warmup': 100,  # Steps.
    }
  )
  config.train.augment = ('flip', 'flip_vertical', 'rot90', 'colour')
  config.eval.primary = 'probability'
  return config


def camelyon16(config: ConfigDict) -> ConfigDict:
  """25,000 patches of each class, as the published baseline has.

  They come from nine tenths of the tumour slides for training; the others'
  and the validation normals are for the calibration.
  """
  config = defaults.camelyon16(whole(config), tile=512)
  config.data.size = 512
  config.data.options.validation_tumour = 0.1
  config.data.cohorts = {
    'labelled': "split == 'train' and draw < 25000",
    'calibration': "split == 'validation'",
  }
  config.train.steps = 15_000
  config.train.warmup = 500
  config.train.precision = 'bfloat16'
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder, half of its anomalies for training; from nothing."""
  config = defaults.folder(_untrained(whole(config)))
  config.data.resize = 256
  return _divided(config)


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, half of the patients with a lesion for training.

  From nothing, like `folder`; --config.model.weights=imagenet is better where
  these weights are at hand.
  """
  config = defaults.slides(_untrained(whole(config)))
  return _divided(config)


def phantom(config: ConfigDict) -> ConfigDict:
  """Phantom patches of 64 px, a narrow network: minutes on two cores."""
  config = _drawn(defaults.phantom(_narrow(whole(config))))
  config.data.size = 64
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px and a network of three layers, for tests."""
  config = _drawn(defaults.tiny(_narrow(whole(config))))
  config.data.options.update({'train_lesion': 1, 'validation_lesion': 1})
  config.model.update({'blocks': (1, 2), 'growth': 4, 'stem_width': 8})
  config.train.batch = 32
  config.train.steps = 6
  config.train.warmup = 2
  config.train.augment = ()
  config.train.log_every = 1
  return config


def _untrained(config: ConfigDict) -> ConfigDict:
  """From random weights it learns at ten times the rate."""
  config.model.weights = 'random'
  config.train.rate = 1e-3
  return config


def _narrow(config: ConfigDict) -> ConfigDict:
  config = _untrained(config)
  config.model.update({'blocks': (2, 4, 4, 2), 'growth': 16, 'stem_width': 32})
  config.train.update({'batch': 32, 'steps': 300, 'warmup': 20})
  return config


def _divided(config: ConfigDict) -> ConfigDict:
  """Both classes are trained with, calibrated and tested."""
  config.data.options.update({'train_sick': 0.5, 'validation_sick': 0.1})
  config.data.cohorts = {
    'labelled': "split == 'train' and label >= 0",
    'calibration': "split == 'validation' and label >= 0",
  }
  return config


def _drawn(config: ConfigDict) -> ConfigDict:
  """Phantom slides with lesions for training, too, of the same scanner."""
  config.data.options.update({'train_lesion': 4, 'validation_lesion': 2})
  seen = (
    "split == '{}' and domain == 'A' and tissue >= 0.9 and "
    '(label == 0 or lesion >= 0.8)'
  )
  config.data.cohorts = {
    'labelled': seen.format('train'),
    'calibration': seen.format('validation'),
  }
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'camelyon16': camelyon16,
  'tiny': tiny,
}
