"""DenseNet-121 that is told which images are anomalous: what labels are worth.

The supervised baseline that unsupervised methods are compared with, e.g. in
Stepec and Skocaj, Unsupervised Detection of Cancerous Regions in Histology
Imagery using Image-to-Image Translation, CVPRW 2021; the network is that of
Huang et al., Densely Connected Convolutional Networks, CVPR 2017. The paper
says of its training how many patches it has (25,000 of each class) and no
more, so all else here is a choice.

With f(x) the features after the last norm and ReLU, at places u,

  log-odds l(x) = mean_u w . f_u(x) + b
  loss          = mean over images of c_y H(t, sigmoid l(x))
                  H is the cross entropy, y the label, t = y (1 - e) + e / 2
                  its smoothed target, and c_y = n / (2 n_y) the weight of a
                  class of n_y of the n images
  probability   = sigmoid(s l(x) + o)
                  s and o are fitted to the log-odds of the cohort
                  `calibration`, which is not trained on: s alone, by the same
                  weights of classes (`temperature`), or both, by its images
                  as they come (`platt`)
  cam           = s (w . f_u(x) + b) + o at every place u: what the head says
                  of a place (Zhou et al., CVPR 2016); the mean over places is
                  the image's `log_odds`

With two classes, w and b are the differences of both rows of the head, and
the loss is that of a softmax. In training, norms see the batch's own
statistics; in scoring the running ones, so no image depends on its
neighbours. The learning rate rises for `warmup` steps and falls as a cosine.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxmed.errors import UserError, unknown
from jaxmed.method import (
  Batch,
  Batches,
  Info,
  Method,
  Phase,
  PyTree,
  RandomKey,
  Score,
  State,
  valid_mean,
)
from jaxmed.nn.densenet import DenseNet121
from jaxmed.nn.fit import fit, start
from jaxmed.nn.precision import dtype_of
from jaxmed.nn.trunk import Trunk, trunk
from jaxmed.ops import calibration
from jaxmed.ops.maps import anomaly_map
from jaxmed.weights.names import Table

PART = 'densenet'
NAME = 'densenet121'
CLASSES = (1, 2)
WEIGHTS = ('inverse', 'none')
CALIBRATIONS = ('temperature', 'platt', 'none')
OPTIMISERS = ('adam', 'sgd')


def log_odds(logits: Float[Array, '*b classes']) -> Float[Array, '*b']:
  """Of an anomaly: the one logit, or how far the second is above the first."""
  return logits[..., 0] if logits.shape[-1] == 1 else jnp.diff(logits)[..., 0]


def cross_entropy(
  log_odds: Float[Array, ' b'], label: Float[Array, ' b'], smoothing: float
) -> Float[Array, ' b']:
  """H."""
  target = label * (1 - smoothing) + smoothing / 2
  return jax.nn.softplus(log_odds) - target * log_odds


def class_weights(counts: tuple[int, int], kind: str) -> tuple[float, float]:
  """c of normal and of anomalous images."""
  if kind == 'none' or not all(counts):
    return 1.0, 1.0
  return tuple(sum(counts) / (2 * count) for count in counts)


def schedule(train: ConfigDict) -> optax.Schedule:
  """Rises from nothing for `warmup` steps, then falls to it as a cosine."""
  return optax.warmup_cosine_decay_schedule(
    0.0 if train.warmup else train.rate, train.rate, train.warmup, train.steps
  )


def optimiser(train: ConfigDict) -> optax.GradientTransformation:
  """As PyTorch has them: decay is added to the gradient, of kernels only."""
  scale = {'adam': optax.scale_by_adam(), 'sgd': optax.trace(0.9)}
  if train.optimiser not in scale:
    raise unknown('train.optimiser', train.optimiser, OPTIMISERS)
  kernels = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
  return optax.chain(
    optax.add_decayed_weights(train.weight_decay, kernels),
    scale[train.optimiser],
    optax.scale_by_learning_rate(schedule(train)),
  )


def build(config: ConfigDict, info: Info) -> Method:
  model = config.model
  _check(config, info)
  bare = DenseNet121(
    classes=model.classes,
    dtype=dtype_of(config.train.precision),
    blocks=tuple(model.blocks),
    growth=model.growth,
    stem_width=model.stem_width,
  )
  network, deepest = Trunk(bare), bare.every[-1]
  steps = optimiser(config.train)
  labelled = info.labels.get('labelled', (0, 0))
  weights = jnp.array(class_weights(labelled, model.class_weights))

  def init(rng: RandomKey, state: State):
    made = network.init(rng, jnp.zeros((1, *info.image)))
    params, stats = made['params'], made['batch_stats']
    if given := state.frozen.get('trunk'):  # All but the classifier.
      params, stats = params | given['params'], given['batch_stats']
    state = state.replace(
      frozen={k: v for k, v in state.frozen.items() if k != 'trunk'},
      memory={'slope': jnp.ones(()), 'offset': jnp.zeros(())},
    )
    return start(state, PART, steps, params).put(batch_stats={PART: stats})

  def step(state: State, batches: Batches, rng: RandomKey):
    del rng
    batch, stats = batches['labelled'], state.batch_stats[PART]

    def loss(params: PyTree):
      found, after = network.apply(
        {'params': params, 'batch_stats': stats},
        batch.unit,
        train=True,
        valid=batch.valid,
        mutable=['batch_stats'],
      )
      odds = log_odds(found['logits'])
      label = batch.label.astype(odds.dtype)
      each = cross_entropy(odds, label, model.label_smoothing)
      right = ((odds > 0) == (batch.label > 0)).astype(odds.dtype)
      value = valid_mean(weights[batch.label] * each, batch.valid)
      scalars = {f'{PART}/accuracy': valid_mean(right, batch.valid)}
      return value, (after['batch_stats'], scalars)

    state, (after, more), scalars = fit(state, PART, steps, loss)
    return state.put(batch_stats={PART: after}), scalars | more

  def seen(state: State, batch: Batch):
    found = network.apply(state.variables(PART), batch.unit)
    return log_odds(found['logits']), found[deepest]

  def score(state: State, batch: Batch, rng: RandomKey) -> Score:
    del rng
    odds, features = seen(state, batch)
    head = state.params[PART]['classifier']
    places = log_odds(features @ head['kernel']) + log_odds(head['bias'])
    slope, offset = state.memory['slope'], state.memory['offset']
    odds, places = (slope * x + offset for x in (odds, places))
    return Score(
      {'probability': jax.nn.sigmoid(odds), 'log_odds': odds},
      {'cam': anomaly_map(places, info.image[:2], sigma=0.0)},
    )

  phases = [
    Phase('fit', init, step, ('labelled',), steps=config.train.steps),
  ]
  if model.calibration != 'none':
    balanced = model.class_weights != 'none'
    phases.append(_calibrate(model.calibration, balanced, info, seen))
  return Method(
    tuple(phases),
    score,
    needs=() if model.weights == 'random' else ('trunk',),
    table=_table(bare.table()),
  )


def _calibrate(kind: str, balanced: bool, info: Info, seen) -> Phase:
  """One pass that keeps every image's log-odds, and the fit to them."""

  def init(rng: RandomKey, state: State):
    del rng
    shape = info.batches('calibration'), info.batch
    kept = {
      'odds': jnp.zeros(shape),
      'label': jnp.zeros(shape, jnp.int32),
      'full': jnp.zeros(shape, bool),
      'next': jnp.int32(0),
    }
    return state.replace(opt={}).put(memory=kept)

  def step(state: State, batches: Batches, rng: RandomKey):
    del rng
    batch, memory = batches['calibration'], state.memory
    odds, _ = seen(state, batch)
    new = {'odds': odds, 'label': batch.label, 'full': batch.valid}
    here = memory['next']
    kept = {k: memory[k].at[here].set(v) for k, v in new.items()}
    state = state.put(memory=kept | {'next': here + 1})
    right = ((odds > 0) == (batch.label > 0)).astype(odds.dtype)
    return state, {f'{PART}/accuracy': valid_mean(right, batch.valid)}

  def finish(rng: RandomKey, state: State):
    del rng
    flat = [state.memory[k].reshape(-1) for k in ('odds', 'label', 'full')]
    both = kind == 'platt'
    slope, offset = calibration.fit(
      *flat, offset=both, balanced=balanced and not both
    )
    return state.replace(memory={'slope': slope, 'offset': offset})

  return Phase(
    'calibrate', init, step, ('calibration',), finish=finish, augment=False
  )


def _table(table: Table) -> Table:
  """torchvision's names, for the part of a State."""
  rows = tuple((name, f'{PART}/{path}') for name, path in table.rows)
  return Table(table.convention, rows, table.ignore)


def _check(config: ConfigDict, info: Info) -> None:
  model = config.model
  for name, known in (
    ('trunk', (NAME,)),
    ('classes', CLASSES),
    ('class_weights', WEIGHTS),
    ('calibration', CALIBRATIONS),
  ):
    if model[name] not in known:
      raise unknown(f'model.{name}', model[name], map(str, known))
  if not 0 <= model.label_smoothing < 1:
    raise UserError(
      f'model.label_smoothing is {model.label_smoothing}; it has to be at '
      'least 0 and less than 1.'
    )
  if not 0 <= config.train.warmup < config.train.steps:
    raise UserError(
      f'train.warmup is {config.train.warmup} of {config.train.steps} steps; '
      'it has to be at least 0 and less than all.'
    )
  sizes = tuple(model.blocks), model.growth, model.stem_width
  known = trunk(NAME).network
  plain = tuple(known.blocks), known.growth, known.stem_width
  if model.weights != 'random' and sizes != plain:
    raise UserError(
      f'Blocks of {sizes[0]} layers, growth {sizes[1]} and a stem of '
      f'{sizes[2]} are no {NAME}, so there are no weights for them; set '
      '--config.model.weights=random, or the sizes '
      f'{plain[0]}, {plain[1]} and {plain[2]}.'
    )
  cohorts = ['labelled']
  cohorts += ['calibration'] if model.calibration != 'none' else []
  for name in cohorts:
    _check_labels(name, info)


def _check_labels(cohort: str, info: Info) -> None:
  """Both classes are there, and nothing else."""
  normal, anomalous = info.labels.get(cohort, (0, 0))
  count = info.examples.get(cohort, 0)
  if unlabelled := count - normal - anomalous:
    raise UserError(
      f'{unlabelled} of {count} examples of cohort {cohort!r} have no label, '
      f'which a supervised method cannot use; add "and label >= 0" to '
      f'--config.data.cohorts.{cohort}.'
    )
  if count and not (normal and anomalous):
    instead = ''
    if cohort == 'calibration':
      instead = ', or do without it by --config.model.calibration=none'
    raise UserError(
      f'Cohort {cohort!r} holds {normal} normal and {anomalous} anomalous '
      'examples, and a supervised method needs both; look at '
      f'--config.data.cohorts.{cohort}, and at the options of the data set '
      'that say how many anomalous ones are not kept for the test '
      f'(docs/methods/densenet.md){instead}.'
    )
