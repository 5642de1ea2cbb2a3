"""LPIPS against the original: three trunks by the rule, and the real one.

The heads are the package's. Weights of the real SqueezeNet and its images are
files of the shared data.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxmed.nn import lpips
from jaxmed.weights.names import from_foreign
from tests.golden import check, filling
from tests.places import ROOT


def compute(manifest, directory):
  constants = manifest['hyperparameters']
  places = ROOT.parent, *directory.resolve().parents
  _assert_constants(constants, places)
  given = {k: _nhwc(v) for k, v in filling.inputs(manifest).items()}
  weights, found = filling.state(manifest), {}
  for kind in constants['taps']:
    prefix = f'{kind}.'
    own = {
      name.removeprefix(prefix): array
      for name, array in weights.items()
      if name.startswith(prefix)
    }
    made = _kind(Measure(kind, own), given)
    found |= {f'{kind}_{name}': array for name, array in made.items()}
  return found | _real(constants, places)


class Measure:
  """LPIPS of images in [-1, 1], with these weights of the trunk."""

  def __init__(self, kind: str, weights: dict[str, np.ndarray]):
    trunk = lpips.network(kind)
    image = jnp.zeros((1, 64, 64, 3))
    target = jax.eval_shape(trunk.init, jax.random.key(0), image)
    filled = from_foreign(trunk.table(), weights, target)
    self.variables, self.kind = lpips.variables(kind, filled), kind
    self.layers = self._jit(lpips.Lpips(kind), self.variables, 'layers')
    self.features = self._jit(lpips.Lpips(kind), self.variables, 'features')
    headless = lpips.Lpips(kind, heads=False)
    bare = {'params': {'network': filled['params']}}
    self.baseline = self._jit(headless, bare, '__call__')

  def _jit(self, network, variables, method):
    apply = functools.partial(network.apply, method=method)
    run = jax.jit(lambda held, *x: apply(held, *map(_unit, x)))
    return lambda *x: run(variables, *x)

  def gradient(self, x, y):
    network = lpips.Lpips(self.kind)
    sum_of = lambda x: network.apply(self.variables, _unit(x), _unit(y)).sum()
    return jax.jit(jax.grad(sum_of))(x)


def _kind(measure, given):
  x, y = given['in0'], given['in1']
  distance = lambda *pair: _4d(lpips.total(measure.layers(*pair)))
  layers, size = measure.layers(x, y), x.shape[1:3]
  maps = [lpips.spatial([d], size) for d in layers]
  by_stage = measure.features(x)
  features = [by_stage[stage] for stage in lpips.find(measure.kind)[1]]
  twice = lambda x: 2 * x - 1
  return {
    'distance': _4d(lpips.total(layers)),
    'layers': _means(layers),
    'near': distance(x, 0.9 * x + 0.1 * y),
    'same': distance(x, x),
    'normalize': distance(twice(x), twice(y)),
    'odd': distance(given['odd0'], given['odd1']),
    'features': [_summary(np.asarray(f, np.float64)) for f in features],
    'feature_shapes': np.array(
      [(f.shape[3], *f.shape[1:3]) for f in features], np.int64
    ),
    'spatial': np.asarray(lpips.spatial(layers, size))[:, None],
    'spatial_layer_means': _means(maps),
    'baseline': _4d(measure.baseline(x, y)),
    'gradient': np.moveaxis(np.asarray(measure.gradient(x, y)), -1, 1),
  }


def _real(constants, places):
  with np.load(_find(constants['real_weights'], places)) as arrays:
    own = {k: v for k, v in arrays.items() if not k.startswith('classifier.')}
  measure, found = Measure('squeeze', own), {}
  folder = _find('shared/data/lpips_images', places)
  for names in constants['real_images']:
    x, y = (_read(folder, name) for name in names)
    layers, prefix = measure.layers(x, y), 'real_' + '_'.join(names)
    found |= {
      prefix: lpips.total(layers)[0],
      f'{prefix}_layers': _means(layers)[0],
      f'{prefix}_spatial': np.asarray(lpips.spatial(layers, x.shape[1:3]))[
        :, None
      ],
      f'{prefix}_baseline': measure.baseline(x, y)[0],
    }
  return found


def _read(folder, name: str) -> np.ndarray:
  mirrored = name.startswith('mirror_')
  with Image.open(folder / f'{name.removeprefix("mirror_")}.png') as image:
    pixels = np.asarray(image.convert('RGB'), np.float32) / 127.5 - 1
  return (pixels[:, ::-1] if mirrored else pixels)[None]


def _assert_constants(constants, places) -> None:
  """The case is of the version we have, and of the heads that we ship."""
  assert constants['version'] == '0.1', constants['version']
  for ours, name in ((lpips.SHIFT, 'shift'), (lpips.SCALE, 'scale')):
    np.testing.assert_array_equal(ours.ravel(), np.float32(constants[name]))
  with np.load(_find(constants['heads'], places)) as published:
    for kind in constants['taps']:
      for i, head in enumerate(lpips.published_heads(kind)):
        theirs = published[f'{kind}.lin{i}.model.1.weight'].ravel()
        np.testing.assert_array_equal(head, theirs)


def _find(path: str, places):
  """A path as the manifest gives it: beside the repository, or the case."""
  for place in places:
    if (place / path).exists():
      return place / path
  raise check.NoData(f'needs {path}, expected at {places[0] / path}')


def _summary(features) -> list[float]:
  return [
    features.mean(),
    features.std(ddof=1),
    np.abs(features).sum(),
    np.mean(~features.any(axis=-1)),
  ]


def _means(maps):
  return np.stack([np.asarray(d).mean(axis=(1, 2)) for d in maps], axis=1)


def _unit(x):
  return (x + 1) / 2


def _nhwc(x):
  return np.moveaxis(x, 1, -1)


def _4d(x):
  return np.asarray(x).reshape(-1, 1, 1, 1)
