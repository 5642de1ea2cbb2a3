"""StyleGAN2: --config=configs/stylegan2.py, or configs/stylegan2.py:PRESET."""

from ml_collections import ConfigDict

from jaxmed.configs import defaults


def get_config(preset: str | None = None) -> ConfigDict:
  return defaults.choose('stylegan2', preset, PRESETS)


def paper(config: ConfigDict) -> ConfigDict:
  """Config E at 256 px, with the original's constants and length.

  Config F is model.base = 16384 and train.r1 = 10.
  """
  config = defaults.folder(config)
  config.data.size = 256
  config.data.resize = 256
  config.model = ConfigDict(
    {
      'base': 8192,  # Channels are 2 base / side, at most
      'widest': 512,
      'widths': (),  # Of 4, 8 ... px; (): by base and widest.
      'w': 512,  # Numbers of z and of w.
      'layers': 8,  # Of the mapping network.
      'mapping_rate': 0.01,  # How much slower it learns.
      'group': 4,  # Images that the discriminator compares.
      'form': '',  # Of modulated convolutions: scaled, grouped; '': faster.
      'truncation': 1.0,  # Of samples; below 1: nearer to the mean.
      'encoder': False,  # Projections start from what one makes of an image.
      **defaults.LPIPS,
    }
  )
  config.train.batch = 32
  config.train.steps = 781_250  # 25,000 kimg.
  config.train.update(
    {
      'rate': 0.002,
      'beta1': 0.0,
      'beta2': 0.99,
      'mixing': 0.9,  # Probability of two w in an image.
      'r1': 100.0,  # gamma.
      'r1_every': 16,  # Steps; 0: never.
      'path': 2.0,
      'path_every': 4,
      'path_decay': 0.01,
      'path_shrink': 2,  # Of the batch, for its memory's sake.
      'average_kimg': 10.0,  # Half-life of the moving average.
      'w_decay': 0.995,
      'ada': False,  # D sees images changed at random, as often as it needs.
      'ada_target': 0.6,  # Of the mean sign of D on real images.
      'encoder_steps': 20_000,  # With model.encoder.
      'encoder_rate': 1e-3,
    }
  )
  config.train.augment = ('flip',)
  config.train.log_every = 100
  config.train.watch.every = 1600  # Samples and FID, each 51 kimg.
  config.score.update(
    {
      'batch': 16,  # Images that are projected at once.
      'names': ('lpips', 'ssim', 'residual', 'w_distance', 'critic'),
      'maps': ('residual',),
      'space': 'w',  # Or w+: a latent for every layer.
      'steps': 1000,  # Of an image's projection.
      'projection': {
        'loss': 'lpips',  # Or l1, which needs no weights.
        'pixel': 0.0,  # Weight of mean (x - y)^2 beside it.
        'noise': 1e5,  # Of what makes noise maps a picture.
        'optimise_noise': True,  # False: they are drawn, and stay.
        'rate': 0.1,
        'rate_up': 0.05,  # Share of the steps in which it rises,
        'rate_down': 0.25,  # and falls.
        'jitter': 0.05,  # Of w, in units of sigma,
        'jitter_until': 0.75,  # until this share of the steps.
        'samples': 10_000,  # For the mean of w, and sigma.
      },
    }
  )
  config.model.lpips = 'vgg'
  config.eval.primary = 'lpips'
  return config


def camelyon16(config: ConfigDict) -> ConfigDict:
  """Camelyon16's patches of 512 px, config E as published for them."""
  config = defaults.camelyon16(paper(config), tile=512)
  config.data.size = 512
  config.data.resize = 0
  config.score.stride = 512  # One score a patch of a slide.
  return config


def phantom(config: ConfigDict) -> ConfigDict:
  """A narrow network, few steps: compiling and searching take longest."""
  config = defaults.phantom(_narrow(paper(config)))
  config.data.resize = 0
  config.data.test_per_class = 100  # What a search has the time for.
  config.train.update({'batch': 8, 'steps': 300, 'average_kimg': 0.2})
  config.train.watch.every = 100
  config = _by_pixels(config, steps=20)
  config.score.names += ('structure_half',)
  config.eval.primary = 'structure_half'
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """Images of a folder at 64 px: an hour on two cores."""
  return _narrow(paper(config))


def slides(config: ConfigDict) -> ConfigDict:
  """Tiles of your own slides, made 64 px wide."""
  config = defaults.slides(_narrow(paper(config)))
  config.data.size = config.data.resize = 64
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """16 px and a dozen steps, for tests."""
  config = defaults.tiny(_narrow(paper(config)))
  config.data.size = 16
  config.data.resize = 0
  config.model.update({'base': 32, 'widest': 8, 'w': 8, 'layers': 2})
  config.train.update({'batch': 8, 'steps': 6, 'r1_every': 4, 'path_every': 2})
  config.train.augment = ()
  config.train.log_every = 1
  config.train.watch.every = 0
  config.score.projection.samples = 100
  config.score.batch = 8
  return _by_pixels(config, steps=4)


def _narrow(config: ConfigDict) -> ConfigDict:
  """What a CPU can train: an eighth of the width at 64 px."""
  config.data.size = config.data.resize = 64
  config.model.update({'base': 1024, 'widest': 64, 'w': 64, 'layers': 4})
  config.train.update(
    {
      'batch': 16,
      'steps': 3000,
      'r1': 10.0,
      'average_kimg': 1.0,
      'augment': ('flip', 'rot90'),
      'log_every': 10,
    }
  )
  config.train.watch.update({'every': 500, 'trunk': 'squeezenet1_1'})
  config.model.lpips = 'squeeze'
  config.score.update({'batch': 32, 'steps': 200})
  return config


def _by_pixels(config: ConfigDict, steps: int) -> ConfigDict:
  """Projections without LPIPS, for which weights have to be fetched."""
  config.score.projection.loss = 'l1'
  config.score.steps = steps
  config.score.names = ('ssim', 'residual', 'distance', 'w_distance', 'critic')
  config.eval.primary = 'ssim'
  return config


PRESETS = {
  'phantom': phantom,
  'folder': folder,
  'slides': slides,
  'paper': paper,
  'camelyon16': camelyon16,
  'tiny': tiny,
}
