"""PaDiM against its equations in NumPy: embedding, moments, distances, maps."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmed.methods import padim
from jaxmed.ops import maps, triangle
from tests.golden import filling

BATCH = 8  # The images come in batches, the last of them not full.
DRAWN = {'wide_resnet50_2': (550, 1792), 'resnet18': (100, 448)}


def compute(manifest, directory):
  del directory
  sizes, given = manifest['hyperparameters'], filling.inputs(manifest)
  texts = manifest['outputs']
  layers = {split: _layers(given, split) for split in ('train', 'test')}
  train, test = (padim.embed(x, sizes['channels']) for x in layers.values())
  every = padim.draw(0, sum(x.shape[-1] for x in layers['test']))
  embedding = padim.embed(layers['test'], every).transpose(0, 3, 1, 2)
  places = train.shape[1] * train.shape[2]
  block = padim.block_size(places, BATCH)
  memory = _moments(train, block)
  gaussian = padim.factorise(memory, places, sizes['epsilon'])
  assert not gaussian['failed']
  away = padim.distances(gaussian, padim.in_blocks(test, block))[:, :places]
  away = away.reshape(test.shape[:3])
  size, sigma = sizes['image_size'], sizes['gaussian_sigma']
  smooth = np.asarray(maps.anomaly_map(away, size, sigma))
  scaled = (smooth - smooth.min()) / np.ptp(smooth)
  drawn = {f'channels_{n}': padim.draw(*args) for n, args in DRAWN.items()}
  return {
    'embedding_test': filling.kept(embedding, texts['embedding_test']),
    'mean': memory['mean'].reshape(-1, test.shape[-1])[:places].T,
    'cov': filling.kept(_covariance(memory, sizes, places), texts['cov']),
    'distance': away,
    'map_upsampled': maps.anomaly_map(away, size, 0),
    'map_smooth': smooth,
    'map_normalised': scaled,
    'score': scaled.max(axis=(1, 2)),
    'score_raw': smooth.max(axis=(1, 2)),
    **drawn,
  }


def _layers(given, split):
  """Of all stages that there are, the finest first."""
  names = sorted(name for name in given if name.startswith(f'{split}_'))
  return [given[name].transpose(0, 2, 3, 1) for name in names]


def _moments(x, block):
  memory = padim.empty(x.shape[1] * x.shape[2], x.shape[-1], block)
  absorb = jax.jit(padim.absorb)
  for start in range(0, len(x), BATCH):
    some = x[start : start + BATCH]
    short = BATCH - len(some)
    some = jnp.pad(some, ((0, short), *[(0, 0)] * 3), constant_values=99)
    valid = np.arange(BATCH) < BATCH - short
    memory = absorb(memory, padim.in_blocks(some, block), valid)
  return memory


def _covariance(memory, sizes, places):
  channels = len(sizes['channels'])
  lower = triangle.unpack(memory['scatter'], channels)
  lower = np.asarray(lower).reshape(-1, channels, channels)[:places]
  whole = lower + np.tril(lower, -1).transpose(0, 2, 1)
  images = int(memory['images'])
  return whole / (images - 1) + sizes['epsilon'] * np.eye(channels)
