"""The weights and inputs that a manifest names, made by the rule."""

import json
import pathlib
import re

import jax
import numpy as np
import optax

from tests.golden import rule

# Kinds of `state` in cases of PyTorch code; the others are TensorFlow's.
TORCH_KINDS = ('param', 'buffer', 'norm', 'weight')


def read(directory: pathlib.Path) -> dict:
  return json.loads((directory / 'manifest.json').read_text())


def state(manifest: dict) -> dict[str, np.ndarray]:
  """Every parameter and buffer, by the original's name."""
  return {
    name: _weight(manifest, name, shape, kind)
    for name, shape, kind in manifest['state']
  }


def inputs(manifest: dict) -> dict[str, np.ndarray]:
  """Every input, in the original's layout."""
  key = manifest['case'], manifest['seed']
  kinds = {
    'image': lambda *what: rule.image(*key, *what),
    'vector': lambda *what: rule.vector(*key, *what),
    'image01': lambda *what: 0.5 * (rule.image(*key, *what) + 1),
    'uniform01': lambda *what: 1 / (1 + np.exp(-rule.vector(*key, *what))),
  }
  return {
    name: kinds[kind](name, shape).astype(np.float32)
    for name, shape, kind in manifest['inputs']
  }


def kept(x: np.ndarray, text: str) -> np.ndarray:
  """What a case keeps of an output: all, or every so many as its text says."""
  found = re.search(r'strided \[([^]]*)\]', text)
  steps = found[1].split(', ') if found else []
  return x[tuple(slice(None, None, int(s.strip(':') or 1)) for s in steps)]


def _weight(manifest: dict, name: str, shape, kind: str) -> np.ndarray:
  key = manifest['case'], manifest['seed'], name, shape
  if kind in TORCH_KINDS:
    return rule.weight(*key, norm=kind == 'norm')
  return rule.weight_tf(*key, kind)


def jit(function):
  """Compiled with little care: it runs only once or twice."""
  return jax.jit(
    function, compiler_options={'xla_backend_optimization_level': 0}
  )


def quickly(function, *arguments):
  """The result of what is run but once."""
  return jit(function)(*arguments)


def recording(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """The same, which keeps the gradient it was last given in its state."""

  def update(gradient, state, params):
    updates, kept = inner.update(gradient, state[1], params)
    return updates, (gradient, kept)

  init = lambda params: (params, inner.init(params))
  return optax.GradientTransformation(init, update)


def nchw(x: jax.Array) -> jax.Array:
  """Images as PyTorch has them."""
  return x.transpose(0, 3, 1, 2)


def nhwc(x: np.ndarray) -> np.ndarray:
  """Images as we have them; a code of one pixel as a vector."""
  return x[:, :, 0, 0] if x.shape[2:] == (1, 1) else x.transpose(0, 2, 3, 1)


def summary(what: str, array: np.ndarray) -> np.ndarray | float:
  """What an output called `.../what` keeps of each parameter."""
  flat = np.asarray(array, np.float64).ravel()
  if what == 'first8':
    return np.pad(flat[:8], (0, max(0, 8 - flat.size)))
  kept = {
    'sum': np.sum,
    'abs_sum': lambda x: np.abs(x).sum(),
    'l2': np.linalg.norm,
  }
  return kept[what](flat)


def summaries(
  prefix: str, names: list[str], after: dict, before: dict | None = None
) -> dict[str, np.ndarray]:
  """The outputs `prefix/sum` ... of named arrays, in the manifest's order."""
  found = {
    f'{prefix}/{what}': np.array([summary(what, after[n]) for n in names])
    for what in ('sum', 'abs_sum', 'first8')
  }
  if before is not None:
    change = {
      n: np.asarray(after[n], np.float64) - np.asarray(before[n], np.float64)
      for n in names
    }
    found[f'{prefix}/change_abs_sum'] = np.array(
      [summary('abs_sum', change[n]) for n in names]
    )
  return found
