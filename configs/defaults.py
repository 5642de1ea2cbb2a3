"""What every method's config has: the same groups, the same names."""

from ml_collections import ConfigDict

from jaxmed import errors

# In `model` of methods that reconstruct: what the score `lpips` needs, once
# score.names or score.maps has it.
LPIPS = {
  'lpips': 'squeeze',  # Or alex, vgg.
  'lpips_weights': 'imagenet',  # Or random, or a checkpoint's path.
  'weights_seed': 0,  # Of random ones.
}


def defaults(method: str, preset: str) -> ConfigDict:
  """The groups data, train, score, eval and report; a method adds model."""
  return ConfigDict(
    {
      'method': method,
      'preset': preset,
      'seed': 0,
      'data': {
        'name': 'phantom',
        'path': '',  # Of the images, for `folder`.
        'dir': '',  # Of prepared data; else $JAXMED_DATA or ~/.cache/jaxmed.
        'size': 64,  # Side of the square images that the networks see.
        'channels': 3,
        'resize': 0,  # The shorter side first becomes this; 0: left alone.
        'stain': '',  # Or macenko, reinhard: what every method sees is made
        'stain_target': '',  # like this image; '' is a standard one.
        'crop': 'centre',  # Or random: where training images are cut.
        'cohorts': {'normal': ''},  # Queries on index.parquet.
        'shots': {},  # Of a cohort so many examples, drawn; 0: all.
        'validation': '',
        'test': '',
        'test_per_class': 0,  # Drawn at random with eval.seed; 0: all.
        'options': {},  # Of the data set's builder.
      },
      'model': {},
      'train': {
        'batch': 4,
        'steps': 100,
        'precision': 'float32',  # Or bfloat16.
        'augment': (),  # Of jaxmed.pipeline.augment.
        'save_minutes': 5.0,
        'keep': 2,
        'log_every': 10,
        'fsdp': False,
        'init_from': '',  # A run's folder, or a checkpoint: first weights.
        'init_parts': (),  # Of the method, to take from there; (): all.
        'select': 'last',  # Or fid, validation_loss: the state to score with.
        'watch': {
          'every': 0,  # Steps between looks at training; 0: never.
          'images': 1000,  # Generated for each look's FID.
          'real': 5000,  # Images these are compared with, and validation
          # normals that are scored, at most and drawn; 0: all.
          'cohort': 'normal',  # That what is generated should be like.
          'trunk': 'inception_fid',  # Or squeezenet1_1 ..., a checkpoint's
          # path, or random: what FID's features are of.
          'collapse': 20,  # Logged steps with an adversary's loss at zero
          # that are warned of; 0: none.
        },
      },
      'score': {
        'batch': 64,
        'slides': True,  # Also whole test slides, where the data has any.
        'scheme': 'tiles',  # Or ncrf: tiles around each pixel of level 6.
        'stride': 0,  # Between the tiles of a slide, px; 0: tile by tile.
        'tissue': 0.5,  # Least tissue of a tile that is scored.
        'tissue_method': '',  # stain, codait, otsu; '': otsu if ncrf, or stain.
        'max_failed': 0.01,
        'dense': '',  # A pixel map to be blended over slides, e.g. residual.
        'map_mpp': 4.0,  # Micrometres per pixel of that.
        'above': 0.0,  # For outlines, mean_above; 0: that of the normals.
        'top_k': 10,  # Tiles whose mean is a slide's score top_k.
        'nms_radius': 187.0,  # Micrometres; NCRF's 12 px of level 6.
        'detect_above': 0.0,  # Least detection; 0: the normals' median.
      },
      'eval': {
        'primary': '',  # The score named first, chosen before any test.
        'quantile': 0.95,  # Of validation normals: the threshold.
        'slide_rule': 'max',  # Or mean, mean_above, top_k: named first.
        'specificity': 0.9,  # At which sensitivity is given.
        'resamples': 2000,
        'seed': 0,  # Of resamples, and of drawing `test_per_class`.
        'protocol': '',  # Or camelyon16: also the FROC of slides' lesions.
        'strict': True,  # The FROC as the official script has it, quirks too.
      },
      'report': {'examples': 6},
    }
  )


def phantom(config: ConfigDict) -> ConfigDict:
  """Phantom H&E slides; every image is a 64 px patch of 32 micrometres."""
  healthy = "label == 0 and tissue >= 0.9 and split == '{}' and domain == 'A'"
  train = healthy.format('train')
  config.data.name = 'phantom'
  config.data.options = {
    'seed': 0,
    'train': 3,  # Healthy slides of each scanner, A and B.
    'train_lesion': 0,  # Slides with lesions, for methods that see a few.
    'validation': 1,  # Healthy slides of scanner A.
    'validation_lesion': 0,  # For methods that fit a probability.
    'test_normal': 3,
    'test_lesion': 4,
    'side': 2048,  # Of training slides, px.
    'test_side': 2560,
    'mpp': 0.5,
  }
  config.data.cohorts = {
    'normal': train,
    'a': train,
    'b': train.replace("'A'", "'B'"),
  }
  config.data.validation = healthy.format('validation')
  config.data.test = (
    "split == 'test' and tissue >= 0.9 and (label == 0 or lesion >= 0.8)"
  )
  config.data.test_per_class = 400
  config.train.save_minutes = 0.5  # Of the few minutes that it takes.
  config.train.watch.trunk = 'random'  # It needs nothing that is not here.
  config.train.watch.images = config.train.watch.real = 500
  return config


def folder(config: ConfigDict) -> ConfigDict:
  """A folder of images: normal/ and abnormal/, or MVTec's layout."""
  config.data.name = 'folder'
  normal = "label == 0 and split == 'train'"
  config.data.cohorts = {
    'normal': normal,
    'a': f"{normal} and domain == 'a'",  # The normals, halved by chance.
    'b': f"{normal} and domain == 'b'",
  }
  config.data.validation = "label == 0 and split == 'validation'"
  config.data.test = "split == 'test'"
  config.data.options = {
    'seed': 0,
    'train': 0.6,  # Of the normals of a plain folder; by patient if it says.
    'train_sick': 0.0,  # Of the patients with an anomaly.
    'validation': 0.1,
    'validation_sick': 0.0,
    'group': '',  # A pattern for file names, whose group is the patient.
    'labels': '',  # A CSV file in data.path: path,label[,group,split,...].
  }
  return config


def slides(config: ConfigDict) -> ConfigDict:
  """A folder of slides, or what `jaxmed tile` has made of one."""
  config.data.name = 'slides'
  config.data.size = 256  # As `jaxmed tile` has it.
  normal = "label == 0 and split == 'train'"
  config.data.cohorts = {
    'normal': normal,
    'a': f"{normal} and domain == 'a'",  # The patients, halved by chance.
    'b': f"{normal} and domain == 'b'",
  }
  config.data.validation = "label == 0 and split == 'validation'"
  config.data.test = "split == 'test' and label >= 0"
  config.data.test_per_class = 5000
  # Of a folder of slides; what is tiled already has its own.
  config.data.options = {
    'annotations': '',
    'labels': '',
    'splits': '',
    'group': '',
    'seed': 0,
    'train_sick': 0.0,  # Of the patients with a lesion.
    'validation_sick': 0.0,
    'mpp': 0.0,
    'slide_mpp': 0.0,
    'tissue': 0.5,
  }
  return config


def camelyon16(config: ConfigDict, tile: int = 0) -> ConfigDict:
  """Camelyon16's slides by the published protocol; see the data set.

  `tile` is the side of the patches, of which networks see the middle; 0: they
  see all, data.size.
  """
  healthy = "label == 0 and tissue >= 0.9 and split == '{}'"
  train = healthy.format('train')
  config.data.name = 'camelyon16'
  config.data.options = {
    'protocol': 'munit',  # Or fwrd, with data.size = 256.
    'tile': tile,
    'seed': 0,
    'validation': 0.1,  # Of the normal slides for training.
    'validation_tumour': 0.0,  # Of the others, for supervised methods.
    # Patches that are drawn; 0: all; -1: as many as the protocol has.
    'normal': -1,
    'tumour': -1,
    'test': -1,
    'test_slides': '',  # tumour, or all; else as the protocol has it.
    'method': '',  # Of finding tissue, the same.
  }
  config.data.cohorts = {
    'normal': train,
    'a': f"{train} and domain == 'A'",
    'b': f"{train} and domain == 'B'",
  }
  config.data.validation = healthy.format('validation')
  config.data.test = (
    "split == 'test' and tissue >= 0.9 and (label == 0 or lesion >= 0.9)"
  )
  config.eval.protocol = 'camelyon16'
  return config


def tiny(config: ConfigDict) -> ConfigDict:
  """The phantom in a size that tests can afford: 32 px, seconds."""
  config = phantom(config)
  config.data.size = 32
  config.data.options.update(
    {
      'train': 1,
      'validation': 1,
      'test_normal': 1,
      'test_lesion': 1,
      'side': 512,
      'test_side': 512,
    }
  )
  config.data.test_per_class = 16
  config.train.steps = 12
  config.train.save_minutes = 0.0  # So short a run is soon killed.
  config.train.watch.images = config.train.watch.real = 16
  config.eval.resamples = 200
  config.report.examples = 2
  return config


def choose(method: str, preset: str | None, presets: dict) -> ConfigDict:
  """The config of a preset, by name; an unknown one lists those there are."""
  preset = preset or 'phantom'
  if preset not in presets:
    raise errors.unknown(f'preset of {method}', preset, presets)
  return presets[preset](defaults(method, preset))
