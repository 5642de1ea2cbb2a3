"""What the golden cases of reverse distillation share.

Maps, features and losses are computed in float32. Batch norms over a few
pixels make float32 gradients noisy, so the gradients and the step are also
computed wholly in float64, for the outputs called `..._f64`.
"""

import re
from collections.abc import Callable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxmed.method import State
from jaxmed.methods.rd import distances
from jaxmed.nn.fit import fit, start
from jaxmed.nn.reverse import TABLE, Reverse
from jaxmed.ops import cosine
from jaxmed.ops.maps import combined_map
from jaxmed.weights.names import from_foreign, to_foreign
from tests.golden import filling

# loss(teacher's stages, student's) -> what is minimised
Loss = Callable[[list, list], jax.Array]
UNUSED = re.compile(r'bn\.(conv|bn)4\.')
COUNTER = 'num_batches_tracked'


class Distillation:
  """A teacher and its student, filled by the rule, in one type."""

  def __init__(self, manifest: dict, shortcut: int, weights: dict, dtype):
    sizes = manifest['hyperparameters']
    assert sizes['weight_decay'] == 0
    self.manifest, self.sizes, self.dtype = manifest, sizes, dtype
    model = ConfigDict({'teacher': sizes['backbone'], 'shortcut': shortcut})
    self.pair = Reverse(model, 'float32', (64, 64, 3))
    self.weights = {k: _as(v, dtype) for k, v in weights.items()}
    image = filling.inputs(manifest)['image'].transpose(0, 2, 3, 1)
    self.image = image.astype(dtype)
    self.adam = optax.adam(
      sizes['lr'], *sizes['adam_betas'], eps=sizes['adam_eps']
    )
    self.teacher = self._teach()

  def _teach(self) -> list[jax.Array]:
    """The teacher's stages; the images are normalised already."""
    network = self.pair.teacher.network
    target = jax.eval_shape(network.init, jax.random.key(0), self.image)
    own = {
      name.removeprefix('encoder.'): array
      for name, array in self.weights.items()
      if name.startswith('encoder.')
    }
    variables = from_foreign(network.table(), own, self._typed(target))
    stages = jax.jit(network.apply)(variables, self.image)
    return [stages[name] for name in self.pair.like.stages]

  def _typed(self, target):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, self.dtype), target
    )

  def state(self) -> State:
    """The student's parameters and statistics, without an optimiser."""
    params, stats = jax.eval_shape(self.pair.init, jax.random.key(0))
    target = {
      'params': {'student': params},
      'batch_stats': {'student': stats},
    }
    own = {
      name: array
      for name, array in self.weights.items()
      if name.startswith(('bn.', 'decoder.'))
    }
    return State(**from_foreign(TABLE, own, self._typed(target)))

  def in_use(self, state: State) -> tuple[jax.Array, list[jax.Array]]:
    """The bottleneck's map and the student's stages, running statistics."""
    variables = {
      'params': state.params['student'],
      'batch_stats': state.batch_stats['student'],
    }
    student = self.pair.student.bind(variables)
    summary = student.bottleneck(self.teacher)
    return summary, student.decoder(summary)

  def in_training(self, state: State):
    """The same with batch statistics."""

    def both(student):
      summary = student.bottleneck(self.teacher, train=True)
      return summary, student.decoder(summary, train=True)

    variables = {
      'params': state.params['student'],
      'batch_stats': state.batch_stats['student'],
    }
    found, _ = self.pair.student.apply(
      variables, method=both, mutable=['batch_stats']
    )
    return found

  def step(self, state: State, loss: Loss) -> dict:
    """One step of Adam, as the outputs name what comes of it."""
    fresh = state.batch_stats['student']

    def objective(params):
      answers, after = self.pair.learn(params, fresh, self.teacher, None)
      return loss(self.teacher, answers), after

    state = start(state, 'student', self.adam, state.params['student'])
    update = jax.jit(
      lambda state: fit(state, 'student', self.adam, objective),
      donate_argnums=0,
    )
    state, stats, scalars = update(state)
    params = state.params['student']
    # Of nothing but this gradient; which spares computing it twice.
    mean, share = state.opt['student'][0].mu, 1 - self.sizes['adam_betas'][0]
    gradient = jax.tree.map(lambda x: np.asarray(x) / share, mean)
    found = {'loss_train': scalars['student/loss']}
    if self.dtype == np.float32:
      found['loss_after_step'], _ = jax.jit(objective)(params)
    after = to_foreign(TABLE, {'params': {'student': params}})
    buffers = to_foreign(TABLE, {'batch_stats': {'student': stats}})
    return {
      **found,
      **self._gradients(gradient),
      **self._moved(after),
      **self._buffers(buffers),
    }

  def _gradients(self, gradient) -> dict:
    """Zero where the original has none."""
    named = to_foreign(TABLE, {'params': {'student': gradient}})
    rows = [
      named.get(name, np.zeros_like(self.weights[name]))
      for name in self.sizes['param_order']
    ]
    return {
      'grad': np.stack([_row(x) for x in rows]),
      'grad_norm': np.array([filling.summary('l2', x) for x in rows]),
    }

  def _moved(self, after: dict) -> dict:
    names = self.sizes['param_order']
    wide = lambda x: np.asarray(x, np.float64)
    after = [after.get(name, self.weights[name]) for name in names]
    delta = [
      wide(x) - wide(self.weights[name])
      for x, name in zip(after, names, strict=True)
    ]
    return {
      'step_param': np.stack([_row(x) for x in after]),
      'step_delta': np.stack([_row(x) for x in delta]),
    }

  def _buffers(self, after: dict) -> dict:
    """After one pass; ours count no batches, and need not."""

    def one(name):
      if UNUSED.match(name):
        return self.weights[name]
      return np.ones(()) if name.endswith(COUNTER) else after[name]

    rows = [_row(one(name)) for name in self.sizes['buffer_order']]
    return {'step_buffer': np.stack(rows)}


def outputs(manifest: dict, shortcut: int, loss: Loss):
  """The outputs that both cases have, and (teacher, student) of both modes."""
  weights = filling.state(manifest)
  run = Distillation(manifest, shortcut, weights, np.float32)
  state = run.state()
  summary, student = jax.jit(run.in_use)(state)
  train_summary, train_student = jax.jit(run.in_training)(state)
  found = {
    **_stages('teacher', run.teacher, manifest),
    **_stages('student_eval', student, manifest),
    **_stages('student_train', train_student, manifest),
    'ocbe_eval': _channels_first(summary),
    'ocbe_train': _channels_first(train_summary),
    'cosine_eval': _cosines(run.teacher, student),
    'cosine_train': _cosines(run.teacher, train_student),
    'loss_eval': loss(run.teacher, student),
    **_maps(run, student),
    **run.step(state, loss),
  }
  pairs = {
    'eval': (run.teacher, student),
    'train': (run.teacher, train_student),
  }
  del state
  with jax.enable_x64(True):
    run = Distillation(manifest, shortcut, weights, np.float64)
    exact = run.step(run.state(), loss)
  names = 'loss_train', 'grad', 'grad_norm', 'step_delta'
  return found | {f'{name}_f64': exact[name] for name in names}, pairs


def _as(array: np.ndarray, dtype) -> np.ndarray:
  return array.astype(dtype) if array.dtype == np.float32 else array


def _row(array) -> np.ndarray:
  flat = np.asarray(array, np.float64)
  parts = (filling.summary(what, flat) for what in ('sum', 'abs_sum'))
  return np.array([*parts, *filling.summary('first8', flat)])


def _channels_first(x) -> np.ndarray:
  return np.asarray(x).transpose(0, 3, 1, 2)


def _stages(name: str, stages, manifest: dict) -> dict:
  """Every so many values of each, as the outputs' words say, and its sums."""
  found = {}
  for number, stage in enumerate(stages, 1):
    output, whole = f'{name}_f{number}', _channels_first(stage)
    found[output] = filling.kept(whole, _words(output, manifest))
    exact = whole.astype(np.float64)
    found[f'{output}_stats'] = [exact.mean(), exact.std(), np.abs(exact).sum()]
  return found


def _words(output: str, manifest: dict) -> str:
  return manifest['outputs'][output]


def _cosines(teacher, student) -> np.ndarray:
  return np.stack(
    [cosine.of_images(f, g) for f, g in zip(teacher, student, strict=True)]
  )


def _maps(run: Distillation, student) -> dict:
  """Square whatever the images, as the original makes them."""
  size = (run.image.shape[2],) * 2
  away = distances(run.teacher, student)
  sigma = run.sizes['gaussian_sigma']
  made = {
    (mode, s): np.asarray(combined_map(away, size, mode, s))
    for mode in ('add', 'multiply')
    for s in (0, sigma)
  }
  smooth, product = made['add', sigma], made['multiply', sigma]
  levels = [combined_map([level], size, sigma=0) for level in away]
  return {
    'map_levels': np.stack(levels, axis=1),
    'map_add': made['add', 0],
    'map_mul': made['multiply', 0],
    'map_add_smooth': smooth,
    'map_mul_smooth': product,
    'score_max': smooth.max(axis=(1, 2)),
    'score_mean': smooth.astype(np.float64).mean(axis=(1, 2)),
    'score_max_mul': product.max(axis=(1, 2)),
  }
