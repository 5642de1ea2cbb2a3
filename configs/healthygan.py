"""HealthyGAN: --config=configs/healthygan.py, or configs/healthygan.py:PRESET.

Cohort `mixed` holds unlabelled images, sick and healthy; all of `healthy` are
known to be healthy. No label is trained with; but there have to be sick images
in training, which the presets take from what would otherwise be the test.
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('healthygan', preset, PRESETS)


def covidx(config: ConfigDict) -> ConfigDict:
  """COVIDx at 256 px: 5,233 mixed X-rays, 10,031 healthy, 200 for the test."""
  return _listed(config, size=256, batch=16)


def chestxray14(config: ConfigDict) -> ConfigDict:
  """NIH's chest X-rays, frontal and of one finding: 8,195 mixed, 10,000 healthy.

  The paper has 4,000 of each class for validation, 10,000 for the test.
  """
  return _listed(config, size=256, batch=16)


def migraine(config: ConfigDict) -> ConfigDict:
  """Slices of MRI: 160 mixed brains, 424 of IXI's; 10 of each for the test.

  The paper does not say which slices.
  """
  return _listed(config, size=256, batch=16)


def _paper(config: ConfigDict) -> ConfigDict:
  """The original's constants: 400,000 batches of D, 200,000 of G."""
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
  config.train.steps = 200_000  # Each has `critics` batches.
  config.train.update(
    {
      'critics': 2,
      'rate': 1e-4,
      'beta1': 0.5,
      'beta2': 0.999,
      'decay': 'as_code',  # By a thousandth in all; or linear_to_zero.
      'decay_last': 100_000,  # So many batches at the end ...
      'decay_every': 1000,  # ... as the code has it, in steps of these.
      'small': 'square',  # Of a mask's mean; or absolute.
      'weights': {
        'penalty': 10.0,
        'reconstruction': 1.0,
        'identity': 1.0,
        'mask': 0.1,  # Of the sum of the next.
        'small': 1.0,
        'binary': 1.0,
        'variation': 0.0,
      },
    }
  )
  config.train.augment = ('flip',)
  config.train.log_every = 100
  config.score.batch = 32
  config.score.update(
    {
      'names': ('residual', 'ssim', 'mask'),
      'maps': ('residual', 'mask'),
    }
  )
  config.eval.primary = 'residual'
  return config
