"""SteGANomaly: --config=configs/steganomaly.py, or .../steganomaly.py:PRESET.

All else is CycleGAN's (configs/cyclegan.py). Cohort a is scored; b is made
simpler than it is, unless model.simplify is none.
"""

from ml_collections import ConfigDict

from jaxmed.configs import cyclegan, defaults

BRIDGE = {
  'bridge': 'gaussian',  # Or noise, none.
  'sigma': 1.0,  # Of gaussian, px.
  'noise': 0.1,  # Of noise: its deviation, of images in [-1, 1].
  'simplify': 'levels',  # Or none: cohort b is simple already.
  'levels': 4,  # Of every channel ...
  'simple_sigma': 2.0,  # ... after smoothing by so many px.
}


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('steganomaly', preset, PRESETS)


def _bridged(preset):
  """A preset of CycleGAN, with the bridge."""

  def made(config: ConfigDict) -> ConfigDict:
    config = preset(config)
    config.model.update(BRIDGE)
    return config

  made.__doc__ = preset.__doc__
  return made


PRESETS = {name: _bridged(preset) for name, preset in cyclegan.PRESETS.items()}
