"""The supervised baseline: losses, weights, calibration, what it refuses."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import roc_auc_score

from jaxmed import learn, methods, workdir
from jaxmed.configs import densenet as configs
from jaxmed.datasets import write
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import densenet
from jaxmed.nn import trunk
from jaxmed.nn.densenet import DenseNet121
from jaxmed.pipeline import augment
from jaxmed.provenance import Provenance
from jaxmed.scoring.score import Run
from jaxmed.training.run import Stopped
from jaxmed.weights import npz
from jaxmed.weights.names import to_foreign

SIZES = {'blocks': (1, 2), 'growth': 4, 'stem_width': 8}
COUNTS = {'labelled': (30, 10), 'calibration': (9, 4)}


def _info(counts=None, unknown=0):
  counts = COUNTS | (counts or {})
  examples = {k: sum(v) + unknown for k, v in counts.items()}
  return Info((32, 32, 3), 8, examples, counts)


def _config(**model):
  config = configs.get_config('tiny')
  config.train.update({'batch': 8, 'steps': 40, 'rate': 1e-2})
  config.model.update(model)
  return config


def _batches(count, seed=0):
  """A quarter of the images has a bright square somewhere."""
  dice = np.random.default_rng(seed)
  images = dice.integers(0, 120, (count, 32, 32, 3), np.uint8)
  label = (np.arange(count) % 4 == 0).astype(np.int32)
  for number in np.flatnonzero(label):
    x, y = dice.integers(0, 24, 2)
    images[number, y : y + 8, x : x + 8] += 120
  row = np.arange(count, dtype=np.int32)
  for i in range(0, count, 8):
    yield Batch(*(v[i : i + 8] for v in (images, row, label)))


@pytest.fixture(scope='module')
def trained():
  """Fitted, then calibrated by 13 images in two batches."""
  method = methods.build(_config(), _info())
  fit, calibrate = method.phases
  key = jax.random.key(0)
  begun, step = jax.jit(fit.init)(key, State()), jax.jit(fit.step)
  state, losses = begun, []
  for batch in list(_batches(80)) * 4:
    state, scalars = step(state, {'labelled': batch}, key)
    losses.append(float(scalars['densenet/loss']))
  fitted = state
  state, step = calibrate.init(key, state), jax.jit(calibrate.step)
  whole, last = _batches(16, seed=1)
  row = np.where(np.arange(8) < 5, last.row, -1)
  loud = np.where((row >= 0)[:, None, None, None], last.image, 255)
  for batch in (whole, last.replace(row=row, image=loud.astype(np.uint8))):
    state, _ = step(state, {'calibration': batch}, key)
  kept = state.memory
  state = calibrate.finish(key, state)
  return types.SimpleNamespace(
    method=method,
    begun=begun,
    fitted=fitted,
    state=state,
    kept=kept,
    losses=losses,
  )


def _score(trained, state, batch):
  return jax.jit(trained.method.score)(state, batch, jax.random.key(0))


def test_it_learns_what_it_is_told(trained):
  assert np.mean(trained.losses[-5:]) < 0.6 * np.mean(trained.losses[:5])
  said, label = [], []
  for batch in _batches(40, seed=2):
    said.append(_score(trained, trained.state, batch).image['probability'])
    label.append(batch.label)
  said, label = np.concatenate(said), np.concatenate(label)
  assert roc_auc_score(label, said) > 0.95


def test_the_calibration_keeps_the_order_and_only_a_scale(trained):
  batch = next(_batches(8, seed=3))
  before = _score(trained, trained.fitted, batch).image
  after = _score(trained, trained.state, batch).image
  assert set(trained.state.memory) == {'slope', 'offset'}
  assert not trained.state.opt
  slope = float(trained.state.memory['slope'])
  assert slope > 0 and slope != 1 and trained.state.memory['offset'] == 0
  np.testing.assert_allclose(
    after['log_odds'], slope * before['log_odds'], rtol=1e-5
  )
  sigmoid = 1 / (1 + np.exp(-np.asarray(after['log_odds'], np.float64)))
  np.testing.assert_allclose(after['probability'], sigmoid, rtol=1e-5)


def test_what_pads_the_pass_is_in_no_fit(trained):
  kept = trained.kept
  np.testing.assert_array_equal(kept['full'][1], np.arange(8) < 5)
  first, _ = _batches(16, seed=1)
  want = _score(trained, trained.fitted, first).image['log_odds']
  np.testing.assert_allclose(kept['odds'][0], want, rtol=1e-5)
  np.testing.assert_array_equal(kept['label'][0], first.label)
  assert kept['odds'].shape == (2, 8)


def test_the_mean_of_the_map_before_it_is_enlarged_is_the_log_odds(trained):
  batch = next(_batches(8, seed=4))
  score = _score(trained, trained.state, batch)
  assert score.pixel['cam'].shape == (8, 32, 32)
  # Bilinear from 4 x 4 to 32 x 32 with half-pixel places: quarters at the
  # border are repeated, and so the mean stays nearly the same.
  odds = np.asarray(score.image['log_odds'])
  mean = np.asarray(score.pixel['cam']).mean(axis=(1, 2))
  np.testing.assert_allclose(mean, odds, rtol=1e-3, atol=1e-3)


def test_two_classes_are_a_softmax():
  logits = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
  label = np.arange(7) % 2
  for smoothing in (0.0, 0.1):
    target = optax.smooth_labels(jax.nn.one_hot(label, 2), smoothing)
    want = optax.softmax_cross_entropy(logits, target)
    found = densenet.cross_entropy(
      densenet.log_odds(logits), label.astype(np.float32), smoothing
    )
    np.testing.assert_allclose(found, want, rtol=1e-5)
  method = methods.build(_config(classes=2), _info())
  state = jax.eval_shape(method.phases[0].init, jax.random.key(0), State())
  assert state.params['densenet']['classifier']['kernel'].shape[1] == 2


def test_the_loss_weighs_classes_by_their_frequency(trained):
  weights = densenet.class_weights((30, 10), 'inverse')
  assert weights == (40 / 60, 40 / 20)
  assert densenet.class_weights((30, 10), 'none') == (1.0, 1.0)
  batch, state = next(_batches(80)), trained.begun
  variables = {
    'params': state.params['densenet'],
    'batch_stats': state.batch_stats['densenet'],
  }
  network = trunk.Trunk(DenseNet121(classes=1, **SIZES))
  run = functools.partial(network.apply, train=True, mutable=['batch_stats'])
  odds = jax.jit(run)(variables, batch.unit)[0]['logits'][:, 0]
  each = optax.sigmoid_binary_cross_entropy(odds, batch.label)
  want = (np.array(weights)[batch.label] * each).mean()
  assert trained.losses[0] == pytest.approx(float(want), rel=1e-4)
  assert float(want) != pytest.approx(float(each.mean()), rel=1e-2)


def test_the_rate_rises_and_falls_as_a_cosine():
  train = types.SimpleNamespace(rate=2.0, warmup=10, steps=110)
  rate = densenet.schedule(train)
  found = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
  np.testing.assert_allclose(found, [0, 1, 2, 1, 0], atol=1e-6)
  train.warmup = 0
  assert float(densenet.schedule(train)(0)) == 2.0


@pytest.mark.parametrize('name', ['adam', 'sgd'])
def test_optimisers_decay_as_pytorchs(name):
  torch = pytest.importorskip('torch')
  dice = np.random.default_rng(0)
  start = {'kernel': dice.normal(size=(3, 2)), 'bias': dice.normal(size=2)}
  gradients = [jax.tree.map(dice.normal, start) for _ in range(3)]
  gradients = [
    {k: np.broadcast_to(v, start[k].shape) for k, v in g.items()}
    for g in gradients
  ]
  train = types.SimpleNamespace(
    optimiser=name, weight_decay=0.3, rate=0.1, warmup=0, steps=10**9
  )
  ours = densenet.optimiser(train)
  params = jax.tree.map(jnp.asarray, start)
  slots = ours.init(params)
  theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
  groups = [
    {'params': [theirs['kernel']], 'weight_decay': 0.3},
    {'params': [theirs['bias']], 'weight_decay': 0.0},
  ]
  make = {
    'adam': functools.partial(torch.optim.Adam, lr=0.1),
    'sgd': functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
  }
  optimiser = make[name](groups)
  for gradient in gradients:
    gradient = jax.tree.map(jnp.asarray, gradient)
    update, slots = ours.update(gradient, slots, params)
    params = optax.apply_updates(params, update)
    for key, parameter in theirs.items():
      parameter.grad = torch.tensor(np.asarray(gradient[key], np.float64))
    optimiser.step()
  for key, parameter in theirs.items():
    np.testing.assert_allclose(
      params[key], parameter.detach().numpy(), rtol=1e-4
    )


def test_images_are_calibrated_as_they_are():
  method = methods.build(_config(), _info())
  fit, calibrate = (augment.wrap(p, ('flip',)) for p in method.phases)
  assert calibrate.step is method.phases[1].step
  assert fit.step is not method.phases[0].step
  (alone,) = methods.build(_config(calibration='none'), _info()).phases
  assert alone.name == 'fit'


@pytest.mark.parametrize(
  ('counts', 'unknown', 'complaint'),
  [
    ({'labelled': (40, 0)}, 0, "'labelled' holds 40 normal and 0 anomalous"),
    ({'labelled': (0, 7)}, 0, "'labelled' holds 0 normal and 7 anomalous"),
    ({'calibration': (9, 0)}, 0, 'calibration=none'),
    ({}, 3, '3 of 43 examples .* have no label.*label >= 0'),
  ],
)
def test_cohorts_that_cannot_teach_are_refused(counts, unknown, complaint):
  with pytest.raises(UserError, match=complaint):
    methods.build(_config(), _info(counts, unknown))


def test_without_a_calibration_its_cohort_may_be_anything():
  config, info = _config(calibration='none'), _info({'calibration': (9, 0)})
  assert len(methods.build(config, info).phases) == 1


@pytest.mark.parametrize(
  ('model', 'complaint'),
  [
    ({'trunk': 'resnet18'}, "No model.trunk 'resnet18'"),
    ({'classes': 3}, 'No model.classes 3'),
    ({'class_weights': 'inverted'}, "Did you mean 'inverse'"),
    ({'calibration': 'plat'}, "Did you mean 'platt'"),
    ({'label_smoothing': 1.0}, 'less than 1'),
    ({'weights': 'imagenet'}, 'are no densenet121, so there are no weights'),
  ],
)
def test_what_is_wrong_with_a_config_is_said(model, complaint):
  config = _config()
  with pytest.raises(UserError, match=complaint):
    config.model.update(model)
    methods.build(config, _info())


def test_steps_and_optimisers_are_checked():
  config = _config()
  config.train.warmup = 40
  with pytest.raises(UserError, match='40 of 40 steps'):
    methods.build(config, _info())
  config = _config()
  config.train.optimiser = 'adamw'
  with pytest.raises(UserError, match="Did you mean 'adam'"):
    methods.build(config, _info())


@pytest.fixture
def public(monkeypatch, tmp_path):
  """A checkpoint of a small network that goes by the name of the public one."""
  small = functools.partial(DenseNet121, **SIZES)
  monkeypatch.setitem(trunk.NETWORKS, 'densenet121', small)
  network = small(classes=5)
  init = jax.jit(network.init)
  variables = init(jax.random.key(7), jnp.zeros((1, 32, 32, 3)))
  arrays = to_foreign(network.table(), variables)
  npz.write(tmp_path / 'public.npz', arrays)
  return tmp_path / 'public.npz', arrays


@pytest.mark.slow
def test_it_begins_with_a_trunk_that_scoring_does_not_read(
  public, tmp_path, monkeypatch
):
  monkeypatch.setenv('JAXMED_DATA', str(tmp_path / 'data'))
  path, arrays = public
  config = _config(weights=str(path))
  config.train.update({'batch': 32, 'steps': 2, 'rate': 0.0, 'warmup': 0})
  config.train.save_minutes = 9.0
  data, folder = write.prepare(config.data, progress=False), tmp_path / 'run'
  folder.mkdir()
  workdir.settle(folder, config, fresh=False)
  train = functools.partial(
    learn.train, config, folder, data, Provenance(folder), jax.devices()[:1]
  )
  with pytest.raises(Stopped):
    train(stop=lambda at: at.event == 1)
  train()
  path.unlink()
  run = Run(folder, jax.devices()[:1])
  assert not run.state.frozen and not run.weights
  table = run.method.table
  kept = {
    field: getattr(run.state, field) for field in ('params', 'batch_stats')
  }
  found = to_foreign(table, kept)
  assert found['classifier.weight'].shape[0] == 1  # Of five classes there.
  same = [k for k in arrays if 'classifier' not in k and 'running' not in k]
  assert same
  for name in same:  # The rate is 0.
    np.testing.assert_array_equal(found[name], arrays[name])
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  (part,) = run.parts([run.place(images, np.arange(2))])
  assert np.isfinite(part.image['probability']).all()
