"""PaDiM: --config=configs/padim.py, or configs/padim.py:PRESET.

What is kept is a covariance at every place of the first layer's grid, so
`channels` counts squared: 550 at 56 x 56 places are 1.9 GB, 100 are 63 MB.

`wrn50`, `resnet18`, `resnet50v2` and `squeezenet1_1` look through networks
trained on ImageNet, whose weights `jaxmed weights` brings. The other presets
need none: `small` is an untrained network, its weights are called `random`. To
look at their data through a trained one, give its trunk, weights and layers:

  --config.model.trunk=squeezenet1_1 --config.model.weights=imagenet
  --config.model.layers="('fire3','fire5','fire7')"
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('padim', preset, PRESETS)


def wrn50(config: ConfigDict) -> ConfigDict:
  """The constants of the paper's WideResNet-50 on MVTec, for a folder."""
  config = defaults.folder(config)
  config.data.resize = 256
  config.data.size = 224
  config.model = ConfigDict(
    {
      'trunk': 'wide_resnet50_2',
      'weights': 'imagenet',
      'weights_seed': 0,  # Of random ones.
      'layers': ('layer1', 'layer2', 'layer3'),  # The finest first.
      'channels': 550,  # Drawn from all layers'; 0: all of them.
      'channel_seed': 1024,
      'epsilon': 0.01,  # On the covariance's diagonal.
      'sigma': 4.0,  # Of the map, px.
    }
  )
  config.train.batch = 32
  config.train.log_every = 1
  config.score.batch = 32
  config.eval.primary = 'mahalanobis'
  return config


def resnet18(config: ConfigDict) -> ConfigDict:
  """The paper's small one: 100 of ResNet-18's 448 channels."""
  config = wrn50(config)
  config.model.update({'trunk': 'resnet18', 'channels': 100})
  return config


def resnet50v2(config: ConfigDict) -> ConfigDict:
  """Gluon's ResNet-50 v2, whose stages are those of the paper's network.

  100 channels, which the covariances of a few hundred images can fill; with
  thousands of images the paper's 550 say more.
  """
  config = wrn50(config)
  config.model.update(
    {
      'trunk': 'resnet50v2',
      'layers': ('stage1', 'stage2', 'stage3'),
      'channels': 100,
    }
  )
  return config


def squeezenet1_1(config: ConfigDict) -> ConfigDict:
  """A small trunk, quick on a CPU: grids of 55, 27 and 13 places at 224 px."""
  config = wrn50(config)
  config.model.update(
    {
      'trunk': 'squeezenet1_1',
      'layers': ('fire3', 'fire5', 'fire7'),
      'channels': 100,
      'epsilon': 1.0,  # No norms: features are ten times those of a ResNet.
    }
  )
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder, in the untrained trunk."""
  return _untrained(wrn50(config))


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, in the untrained trunk."""
  config = defaults.slides(_untrained(wrn50(config)))
  config.data.resize = 0
  return config


def camelyon16(config: ConfigDict) -> ConfigDict:
  """Camelyon16's patches of 512 px at half their scale, as on MVTec."""
  config = defaults.camelyon16(_untrained(wrn50(config)), tile=512)
  config.score.stride = 224
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """Phantom patches of 64 px, in the untrained trunk."""
  config = defaults.phantom(_untrained(wrn50(config)))
  config.data.resize = 0
  config.data.size = 64
  config.train.batch = 64
  config.score.batch = 64
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px and 20 channels, for tests."""
  config = defaults.tiny(_untrained(wrn50(config)))
  config.data.resize = 0
  config.model.channels = 20
  config.train.batch = 8
  config.score.batch = 64
  return config


def _untrained(config: ConfigDict) -> ConfigDict:
  config.model.update(
    {
      'trunk': 'small',
      'weights': 'random',
      'layers': ('stage1', 'stage2', 'stage3'),
      'channels': 100,
    }
  )
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'wrn50': wrn50,
  'resnet18': resnet18,
  'resnet50v2': resnet50v2,
  'squeezenet1_1': squeezenet1_1,
  'camelyon16': camelyon16,
  'tiny': tiny,
}
