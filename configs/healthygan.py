"""HealthyGAN: --config=configs/healthygan.py, or configs/healthygan.py:PRESET.

Cohort `mixed` holds unlabelled images, sick and healthy; all of `healthy` are
known to be healthy. No label is trained with; but there have to be sick images
in training, which the presets take from what would otherwise be the test.
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults

LESION_SLIDES = 4  # Of the phantom, for training.


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('healthygan', preset, PRESETS)


def covidx(config: ConfigDict) -> ConfigDict:
  """COVIDx: 5,233 mixed X-rays, 10,031 healthy ones, 200 for the test.

  A folder with labels.csv, as of the next two; see docs/methods/healthygan.md.
  """
  return _listed(_paper(config))


def chestxray14(config: ConfigDict) -> ConfigDict:
  """NIH's chest X-rays, from behind: 8,195 mixed ones, 10,000 healthy.

  The paper has 4,000 of each class for validation and 10,000 for the test.
  """
  return _listed(_paper(config))


def migraine(config: ConfigDict) -> ConfigDict:
  """Slices of MRI: 160 mixed brains, 424 of IXI's; 10 of each for the test.

  The paper does not say which slices.
  """
  return _listed(_paper(config))


def _paper(config: ConfigDict) -> ConfigDict:
  """The original's constants at 256 px, for a folder.

  400,000 batches of the discriminator, 200,000 of the generator.
  """
  config = defaults.folder(config)
  config.data.size = config.data.resize = 256
  config.model = ConfigDict(
    {
      'generator_dim': 64,
      'residual_blocks': 6,
      'discriminator_dim': 64,
      'discriminator_layers': 6,
      'statistics': 'image',  # Of norms, to score; or running.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 16
  config.train.steps = 200_000  # Each of `critics` batches.
  config.train.update(
    {
      'critics': 2,
      'rate': 1e-4,
      'beta1': 0.5,
      'beta2': 0.999,
      'decay': 'as_code',  # By a thousandth in all; or linear_to_zero.
      'decay_last': 100_000,  # Batches at the end ...
      'decay_every': 1000,  # ... of which so many are a step, as in the code.
      'small': 'square',  # Of a mask's mean; or absolute.
      'weights': {
        'penalty': 10.0,
        'reconstruction': 1.0,
        'identity': 1.0,
        'mask': 0.1,  # Of the weighted sum of the next three.
        'small': 1.0,
        'binary': 1.0,
        'variation': 0.0,
      },
    }
  )
  config.train.augment = ('flip',)
  config.train.log_every = 100
  config.score.batch = 16
  config.score.update(
    {
      'names': ('residual', 'ssim', 'structure_half', 'mask'),
      'maps': ('residual', 'mask'),
    }
  )
  config.eval.primary = 'residual'
  return config


def _listed(config: ConfigDict) -> ConfigDict:
  """What is mixed is said by the column `kind` of a table in data.path."""
  config.data.options.labels = 'labels.csv'
  healthy = "label == 0 and kind != 'mixed' and split == '{}'"
  config.data.cohorts = {
    'mixed': "kind == 'mixed' and split == 'train'",
    'healthy': healthy.format('train'),
  }
  config.data.validation = healthy.format('validation')
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder at 64 px: half of the sick are mixed with normals."""
  config = _divided(_narrow(_paper(config)))
  config.data.resize = 64
  return config


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, made 64 px wide; mixed by patients."""
  config = _divided(defaults.slides(_narrow(_paper(config))))
  config.data.size = config.data.resize = 64
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """Phantom patches of 64 px, a narrow network: minutes on two cores."""
  config = _drawn(defaults.phantom(_narrow(_paper(config))), LESION_SLIDES)
  config.data.resize = 0
  config.train.steps = 300
  config.score.names = ('structure_half', 'residual', 'ssim', 'mask')
  config.eval.primary = 'structure_half'
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px and a few steps, for tests."""
  config = _drawn(defaults.tiny(_narrow(_paper(config))), 1)
  config.data.resize = 0
  config.model.update({'generator_dim': 4, 'residual_blocks': 1})
  config.model.update({'discriminator_dim': 4, 'discriminator_layers': 3})
  config.train.batch = 8
  config.train.steps = 6
  config.train.rate = 1e-4  # Scores of D begin near 0; rounding is not to show.
  config.train.augment = ()
  config.train.log_every = 1
  config.score.names = ('residual', 'mask')
  return config


def _narrow(config: ConfigDict) -> ConfigDict:
  """What a CPU can train: an eighth of the width, ten times the rate."""
  config.data.size = 64
  config.model.update(
    {
      'generator_dim': 8,
      'residual_blocks': 3,
      'discriminator_dim': 8,
      'discriminator_layers': 4,  # 4 x 4 patches, as the paper has.
    }
  )
  config.train.update(
    {
      'batch': 8,
      'steps': 2000,
      'rate': 1e-3,
      'decay': 'linear_to_zero',
      'decay_last': 300,
      'augment': ('flip', 'rot90'),
      'log_every': 10,
    }
  )
  return config


def _divided(config: ConfigDict) -> ConfigDict:
  """Half of the sick, by patient, and half of the normal ones are mixed."""
  config.data.options.train_sick = 0.5
  config.data.cohorts = {
    'mixed': "split == 'train' and (label != 0 or domain == 'b')",
    'healthy': "split == 'train' and label == 0 and domain == 'a'",
  }
  return config


def _drawn(config: ConfigDict, lesions: int) -> ConfigDict:
  """All tiles of phantom slides with lesions are mixed: a third has some."""
  first = config.data.options.train
  groups = [f'train_{first + number:03d}_A' for number in range(lesions)]
  listed = ', '.join(map(repr, groups))
  config.data.options.train_lesion = lesions
  config.data.cohorts = {
    'mixed': f'tissue >= 0.9 and group in ({listed},)',
    'healthy': (
      "label == 0 and tissue >= 0.9 and split == 'train' and domain == 'A'"
      f' and group not in ({listed},)'
    ),
  }
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'covidx': covidx,
  'chestxray14': chestxray14,
  'migraine': migraine,
  'tiny': tiny,
}
