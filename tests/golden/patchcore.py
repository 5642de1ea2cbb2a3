"""PatchCore against the original: patches, coresets, neighbours, maps."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmed.methods import patchcore
from jaxmed.ops import maps, nearest
from tests.golden import filling


def compute(manifest, directory):
  del directory
  sizes = manifest['hyperparameters']
  given = filling.inputs(manifest)
  weights = filling.state(manifest)
  layers = {
    split: [
      given[f'{split}_{layer}'].transpose(0, 2, 3, 1)
      for layer in ('layer2', 'layer3')
    ]
    for split in ('train', 'test')
  }
  points = given['points']
  core, found = _bank(layers['train'], weights.get('bank_mapper.weight'), sizes)
  return {
    **_patches(layers['test'], sizes, manifest['outputs']),
    **_coresets(points, weights.get('mapper.weight'), sizes),
    **found,
    **_scores(_embed(layers['test'], sizes), core, manifest),
    'segmentation': _map(given['patch_scores'], sizes),
  }


def _embed(layers, sizes):
  return patchcore.embed(
    layers,
    sizes['patchsize'],
    sizes['pretrain_embed_dimension'],
    sizes['target_embed_dimension'],
  )


def _project(points, mapper):
  """Without a mapper the case has points as wide as they are to be."""
  return points if mapper is None else nearest.project(points, mapper)


def _flat(x):
  """Places of all images in one row."""
  return np.asarray(x).reshape(-1, *x.shape[3:])


def _patches(layers, sizes, texts):
  size, width = sizes['patchsize'], sizes['pretrain_embed_dimension']
  one, other = (patchcore.patchify(x, size) for x in layers)
  strided = patchcore.patchify(layers[0], size, stride=2)
  of_images = lambda x: x.reshape(len(x), -1, *x.shape[3:])
  flat = one.reshape(-1, np.prod(one.shape[3:]))
  together = patchcore.preprocess(layers, size, width)
  return {
    'patches_layer2': of_images(one),
    'patches_layer3': of_images(other),
    'patches_layer2_stride2': of_images(strided),
    'mean_mapper_layer2': patchcore.adaptive_average(flat, width),
    'preprocessed': filling.kept(_flat(together), texts['preprocessed']),
    'embedding_test': _flat(_embed(layers, sizes)),
  }


def _pick(points, share, starts=None):
  count = int(len(points) * share)
  valid = jnp.ones(len(points), bool)
  starts = None if starts is None else jnp.array(starts)
  pick = jax.jit(nearest.coreset, static_argnames='count')
  return np.asarray(pick(points, valid, count=count, starts=starts), np.int64)


def _coresets(points, mapper, sizes):
  reduced = _project(points, mapper)
  share, starts = sizes['percentage'], sizes['starts']
  return {
    'reduced_points': reduced,
    'coreset_greedy_projected': _pick(reduced, share),
    'coreset_greedy_unprojected': _pick(points, share),
    'coreset_approximate_projected': _pick(reduced, share, starts),
    'coreset_approximate_unprojected': _pick(points, share, starts),
    'coreset_approximate_one_start': _pick(reduced, share, starts[:1]),
  }


def _bank(layers, mapper, sizes):
  embedding = _flat(_embed(layers, sizes))
  points = _project(embedding, mapper)
  index = _pick(points, sizes['bank_percentage'], sizes['bank_starts'])
  found = {'embedding_train': embedding, 'bank_indices': index}
  return embedding[index], found


def _map(scores, sizes):
  return maps.anomaly_map(scores, sizes['target_size'], sizes['gaussian_sigma'])


def _scores(patches, core, manifest):
  found, sizes = {}, manifest['hyperparameters']
  names = manifest['outputs']
  counts = [int(n[len('maps_nn') :]) for n in names if n.startswith('maps_nn')]
  for count in counts:
    away, which = nearest.nearest(patches, core, count)
    scores = away.mean(axis=-1)
    found |= {
      f'patch_scores_nn{count}': scores,
      f'nearest_nn{count}': np.asarray(_flat(which), np.int64),
      f'image_scores_nn{count}': scores.max(axis=(1, 2)),
      f'maps_nn{count}': _map(scores, sizes),
    }
  return found
