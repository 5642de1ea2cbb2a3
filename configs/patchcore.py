"""PatchCore: --config=configs/patchcore.py, or configs/patchcore.py:PRESET.

`wrn50`, `resnet50v2` and `squeezenet1_1` look through networks trained on
ImageNet, whose weights `jaxmed weights` brings. The other presets need none:
`small` is an untrained network, and its weights are called `random`. To look
at their data through a trained one, give its trunk, weights and layers:

  --config.model.trunk=squeezenet1_1 --config.model.weights=imagenet
  --config.model.layers="('fire5','fire7')"
"""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('patchcore', preset, PRESETS)


def wrn50(config: ConfigDict) -> ConfigDict:
  """The constants of the original's WideResNet-50 on MVTec, for a folder."""
  config = defaults.folder(config)
  config.data.resize = 256
  config.data.size = 224
  config.model = ConfigDict(
    {
      'trunk': 'wide_resnet50_2',
      'weights': 'imagenet',
      'weights_seed': 0,  # Of random ones.
      'layers': ('layer2', 'layer3'),  # The finest first.
      'unit_length': False,  # Features are, at every place of each layer.
      'patch': 3,
      'pretrain_dim': 1024,
      'target_dim': 1024,
      'sampler': 'approximate',  # Or greedy.
      'coreset_share': 0.1,  # Of the bank ...
      'coreset_size': 0,  # ... or so many, if not 0.
      'bank_gb': 16.0,  # The most that the bank may take, on all devices.
      'projection': 128,  # Wherein the coreset is chosen; 0: no projection.
      'starts': 10,  # Of the approximate sampler.
      'neighbours': 1,
      'squared': True,  # Distances, as the code has them; the paper: False.
      'reweight': 0,  # Nearest rows of the paper's weight: 9; 0: none.
      'sigma': 4.0,  # Of the map, px.
      'chunk': 2**24,  # Most distances held in memory at once.
    }
  )
  config.train.batch = 8
  config.train.log_every = 1
  config.score.batch = 8
  config.eval.primary = 'nearest'
  return config


def resnet50v2(config: ConfigDict) -> ConfigDict:
  """As `wrn50`, in Gluon's ResNet-50 v2: the same grids, half as wide."""
  config = wrn50(config)
  config.model.trunk = 'resnet50v2'
  config.model.layers = ('stage2', 'stage3')
  return config


def squeezenet1_1(config: ConfigDict) -> ConfigDict:
  """A small trunk, quick on a CPU: grids of 27 and 13 places at 224 px.

  The stages lie where layer2 and layer3 do in a ResNet, at an eighth and a
  sixteenth of the image; a patch is described by half as many numbers.
  """
  config = wrn50(config)
  config.model.update(
    {
      'trunk': 'squeezenet1_1',
      'layers': ('fire5', 'fire7'),
      'unit_length': True,  # It has no norms: else bright places lie far away.
      'pretrain_dim': 512,
      'target_dim': 512,
    }
  )
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder, in the untrained trunk."""
  config = _untrained(wrn50(config))
  config.model.coreset_size = 2000
  return config


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, in the untrained trunk."""
  config = defaults.slides(_untrained(wrn50(config)))
  config.data.resize = 0
  config.model.coreset_size = 2000
  return config


def camelyon16(config: ConfigDict) -> ConfigDict:
  """Camelyon16's patches of 512 px at half their scale, as on MVTec.

  No bank holds what 80,000 patches show; the first 2,000 drawn are kept.
  """
  config = defaults.camelyon16(_untrained(wrn50(config)), tile=512)
  config.data.cohorts.normal += ' and draw < 2000'
  config.model.coreset_size = 10_000
  config.score.stride = 224
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """Phantom patches of 64 px, in the untrained trunk."""
  config = defaults.phantom(_untrained(wrn50(config)))
  config.data.resize = 0
  config.data.size = 64
  config.model.coreset_size = 1000
  config.train.batch = 64
  config.score.batch = 64
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """32 px and a core of 32 patches, for tests."""
  config = defaults.tiny(_untrained(wrn50(config)))
  config.data.resize = 0
  config.model.update(
    {'coreset_size': 32, 'pretrain_dim': 24, 'target_dim': 16, 'projection': 8}
  )
  config.score.batch = 64
  return config


def _untrained(config: ConfigDict) -> ConfigDict:
  config.model.update(
    {
      'trunk': 'small',
      'weights': 'random',
      'layers': ('stage2', 'stage3'),
      'pretrain_dim': 128,
      'target_dim': 128,
      'projection': 32,
    }
  )
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'wrn50': wrn50,
  'resnet50v2': resnet50v2,
  'squeezenet1_1': squeezenet1_1,
  'camelyon16': camelyon16,
  'tiny': tiny,
}
