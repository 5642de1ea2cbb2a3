"""Trunks against torchvision's, stage by stage to the logits."""

import gc

import jax
import numpy as np

from jaxmed.nn import chain, densenet, squeezenet
from jaxmed.nn.torchlike import average_to, max_pool
from jaxmed.nn.trunk import NETWORKS
from jaxmed.weights.names import from_foreign
from tests.golden import filling


def compute(manifest, directory):
  del directory
  sizes, found = manifest['hyperparameters'], {}
  x = filling.inputs(manifest)['image'].transpose(0, 2, 3, 1)
  for name, count in sizes['parameter_counts'].items():
    network = NETWORKS[name](classes=sizes['num_classes'])
    layers = _run(network, x, _weights(manifest, name), count)
    for output, text in manifest['outputs'].items():
      if output.startswith(f'{name}.'):
        found[output] = _kept(output.removeprefix(f'{name}.'), layers, text)
    del layers
    gc.collect()  # A network may take a gigabyte with its weights.
  return found


def _weights(manifest, name: str) -> dict:
  """Of one network, without its name."""
  prefix = f'{name}.'
  state = [row for row in manifest['state'] if row[0].startswith(prefix)]
  weights = filling.state(manifest | {'state': state})
  return {k.removeprefix(prefix): v for k, v in weights.items()}


def _run(network, x, weights, count: int) -> dict:
  """What each layer gives, by torchvision's name."""
  target = jax.eval_shape(network.init, jax.random.key(0), x)
  assert sum(leaf.size for leaf in jax.tree.leaves(target['params'])) == count
  variables = from_foreign(network.table(), weights, target)

  @jax.jit
  def run(variables, x):
    features, aside = network.apply(
      variables, x, capture_intermediates=True, mutable='intermediates'
    )
    return _theirs(network, features, aside['intermediates'])

  return run(variables, x)


def _theirs(network, features, inside) -> dict:
  """Features by torchvision's names, and layers between the stages."""
  of = lambda name: inside[name]['__call__'][0]
  if isinstance(network, chain.Chain):
    return _chain(network, features)
  if isinstance(network, squeezenet.SqueezeNet):
    numbers = {stage: fire[0] for stage, fire in squeezenet.FIRES.items()}
    numbers |= {'relu1': 1}
    named = {f'features.{n}': features[k] for k, n in numbers.items()}
    return named | {'logits': features['logits']}
  if isinstance(network, densenet.DenseNet121):
    blocks = {f'denseblock{n}': of(f'denseblock{n}').x for n in range(1, 5)}
    others = ('transition1', 'transition2', 'transition3', 'norm5')
    named = blocks | {name: of(name) for name in others}
    named |= {'pool0': features['stem']}
    found = {f'features.{k}': x for k, x in named.items()}
    return found | {'logits': features['logits']}
  return features | {'conv1': of('conv1'), 'maxpool': features['stem']}


def _chain(network, features) -> dict:
  found, number = {'logits': features['logits']}, 0
  for layer in network.layers:
    if isinstance(layer, chain.Conv):
      x, number = features[layer.stage], number + 1
    else:
      x = max_pool(x, *layer)
    found[f'features.{number}'] = x
    number += 1
  return found | {'avgpool': average_to(x, network.side)}


def _kept(output: str, layers: dict, text: str) -> np.ndarray:
  """What the case keeps of a layer: every so many numbers, or of all a few."""
  x = np.asarray(layers[output.removesuffix('.stats')])
  x = x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
  if output.endswith('.stats'):
    x = x.astype(np.float64)
    return np.array([x.mean(), x.std(), np.abs(x).sum()])
  return filling.kept(x, text)
