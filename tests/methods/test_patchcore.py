import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmed import methods, pretrained
from jaxmed.configs import patchcore as configs
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import patchcore
from jaxmed.nn.trunk import trunk as build_trunk

INFO = Info(image=(32, 32, 3), batch=8, examples={'normal': 21})
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
PLACES = 8 * 8  # Of stage2 at 32 px.


def _batches():
  """21 images in batches of 8; what pads them is the loudest of all."""
  row = np.where(np.arange(24) < 21, np.arange(24), -1).astype(np.int32)
  images = np.where(
    (row >= 0)[:, None, None, None], IMAGES, np.uint8([0, 255] * 16)[:, None]
  )
  label = np.zeros(8, np.int32)
  return [Batch(images[i : i + 8], row[i : i + 8], label) for i in (0, 8, 16)]


def _run(config, devices=1):
  """One pass and its finish, sharded as the runner would."""
  mesh = jax.make_mesh(
    (devices, 1),
    ('data', 'model'),
    (AxisType.Auto,) * 2,
    devices=jax.devices()[:devices],
  )
  place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  method = methods.build(config, INFO)
  (phase,) = method.phases
  trunk, _ = pretrained.load('trunk', config.model, INFO)
  state = jax.device_put(State(frozen={'trunk': trunk}), place())
  state = phase.init(jax.random.key(0), state)
  bank = jax.device_put(state.memory['bank'], place(None, 'data'))
  full = jax.device_put(state.memory['full'], place(None, 'data'))
  state = state.put(memory={'bank': bank, 'full': full})
  step = jax.jit(phase.step)
  for batch in _batches():
    given = {'normal': jax.device_put(batch, place('data'))}
    state, scalars = step(state, given, jax.random.key(1))
  return method, state, jax.jit(phase.finish)(jax.random.key(2), state), scalars


@pytest.fixture(scope='module')
def done():
  return _run(configs.get_config('tiny'))


def test_the_bank_is_every_patch_and_padding_is_in_no_core(done):
  _, state, after, scalars = done
  assert scalars['images'] == 21 and scalars['patch_norm'] > 0
  assert state.memory['bank'].shape == (3, 8, PLACES, 16)
  full = np.asarray(state.memory['full'])
  assert full.sum() == 21 and not full[2, 5:].any()
  assert list(after.memory) == ['core']
  core = np.asarray(after.memory['core'])
  assert core.shape == (32, 16)
  rows = np.asarray(state.memory['bank']).reshape(-1, 16)
  kept = np.repeat(full.reshape(-1), PLACES)
  found = (core[:, None] == rows[None]).all(axis=-1)
  assert (found.any(axis=1) & (found & kept).any(axis=1)).all()
  assert not (found & ~kept).any()


def test_the_whole_bank_as_core_holds_all_but_the_padding():
  config = configs.get_config('tiny')
  config.model.coreset_size = 21 * PLACES
  config.model.sampler = 'greedy'
  _, state, after, _ = _run(config)
  bank, full = state.memory['bank'], state.memory['full']
  rows = np.asarray(bank[full]).reshape(-1, 16)
  ordered = lambda x: np.asarray(x)[np.lexsort(np.asarray(x).T)]
  np.testing.assert_array_equal(ordered(rows), ordered(after.memory['core']))


def test_features_of_length_one_are_all_that_the_bank_is_of(done):
  config = configs.get_config('tiny')
  config.model.unit_length = True
  _, state, _, _ = _run(config)
  bank = np.asarray(state.memory['bank'][0])
  network = build_trunk(config.model.trunk)
  trunk, _ = pretrained.load('trunk', config.model, INFO)
  stages = jax.jit(network.apply)(trunk, _batches()[0].unit)
  layers = [np.asarray(stages[name]) for name in config.model.layers]
  layers = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in layers]
  sizes = (config.model[k] for k in ('patch', 'pretrain_dim', 'target_dim'))
  expected = jax.jit(patchcore.embed, static_argnums=(1, 2, 3))(layers, *sizes)
  np.testing.assert_allclose(
    bank, np.asarray(expected).reshape(bank.shape), rtol=1e-4, atol=1e-5
  )
  assert np.abs(bank - np.asarray(done[1].memory['bank'][0])).max() > 0.01


def test_eight_devices_keep_the_core_of_one(done):
  _, _, eight, _ = _run(configs.get_config('tiny'), devices=8)
  # The same rows in the same order; convolutions of one image round anew.
  np.testing.assert_allclose(
    done[2].memory['core'], eight.memory['core'], rtol=1e-5, atol=1e-6
  )


def test_scores_are_distances_to_the_core(done):
  method, state, after, _ = done
  batch = _batches()[0]
  score = jax.jit(method.score)(after, batch, jax.random.key(0))
  patches = np.asarray(state.memory['bank'])[0].astype(np.float64)
  core = np.asarray(after.memory['core'])
  away = np.square(patches[:, :, None] - core).sum(-1).min(-1)
  np.testing.assert_allclose(
    score.image['nearest'], away.max(axis=1), rtol=1e-3
  )
  assert score.pixel['nearest'].shape == (8, 32, 32)
  assert list(score.image) == ['nearest']


def test_roots_and_more_neighbours_and_the_papers_weight(done):
  _, state, after, _ = done
  config = configs.get_config('tiny')
  config.model.update({'squared': False, 'neighbours': 2, 'reweight': 5})
  method = methods.build(config, INFO)
  score = jax.jit(method.score)(after, _batches()[1], jax.random.key(0))
  patches = np.asarray(state.memory['bank'])[1].astype(np.float64)
  core = np.asarray(after.memory['core'], np.float64)
  away = np.sqrt(np.square(patches[:, :, None] - core).sum(-1))
  scores = np.sort(away, axis=-1)[..., :2].mean(axis=-1)
  np.testing.assert_allclose(
    score.image['nearest'], scores.max(axis=1), rtol=1e-3
  )
  for i, worst in enumerate(scores.argmax(axis=1)):
    row = away[i, worst].argmin()
    around = np.square(core - core[row]).sum(axis=1).argsort()[:5]
    assert row in around
    others = np.exp(away[i, worst, around]).sum()
    weight = 1 - np.exp(away[i, worst, row]) / others
    np.testing.assert_allclose(
      score.image['reweighted'][i], weight * scores[i].max(), rtol=1e-3
    )


def test_averages_are_those_of_the_bins():
  x = np.random.default_rng(0).standard_normal((2, 3, 18)).astype(np.float32)
  for width in (1, 4, 5, 6, 18, 40):
    bins = [
      x[..., i * 18 // width : -(-(i + 1) * 18 // width)].mean(axis=-1)
      for i in range(width)
    ]
    np.testing.assert_allclose(
      patchcore.adaptive_average(x, width), np.stack(bins, -1), atol=1e-6
    )


def test_patches_are_torchs_unfold():
  torch = pytest.importorskip('torch')
  x = np.random.default_rng(0).standard_normal((2, 5, 7, 3), np.float32)
  for size, stride in ((3, 1), (3, 2), (5, 3), (2, 1), (4, 3)):
    unfold = torch.nn.Unfold(size, padding=(size - 1) // 2, stride=stride)
    theirs = unfold(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    ours = np.asarray(patchcore.patchify(x, size, stride))
    ours = ours.reshape(2, -1, 3 * size * size).transpose(0, 2, 1)
    np.testing.assert_array_equal(ours, theirs)


def test_grays_are_seen_as_rgb():
  config = configs.get_config('tiny')
  gray = dataclasses.replace(INFO, image=(32, 32, 1))
  one, _ = pretrained.load('trunk', config.model, gray)
  three, facts = pretrained.load('trunk', config.model, INFO)
  jax.tree.map(np.testing.assert_array_equal, one, three)
  assert facts == {'network': 'small', 'weights': 'random', 'seed': 0}
  network = patchcore.trunk('small')
  images = IMAGES[:2, ..., :1] / np.float32(255)
  a = network.apply(one, images)
  b = network.apply(one, np.repeat(images, 3, axis=-1))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  shapes = [a[stage].shape[1:] for stage in network.stages]
  assert shapes == [(16, 16, 32), (8, 8, 64), (4, 4, 128)]


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'coreset_size': 5000}, 'coreset of 5000 .* bank of 1344 patches'),
    ({'coreset_size': 0, 'coreset_share': 1e-5}, 'coreset of 0'),
    ({'neighbours': 33}, '33 nearest rows of a coreset of 32'),
    ({'reweight': 40}, 'config.model.reweight to 32'),
    ({'sampler': 'greedi'}, "Did you mean 'greedy'"),
    ({'patch': 0}, 'Patches of 0 do not fit'),
    ({'bank_gb': 5e-5}, 'bank of 21 images would take 8.6e-05 GB'),
    ({'layers': ('stage4',)}, "No stage of small 'stage4'"),
    ({'trunk': 'wide_resnet50'}, "Did you mean 'wide_resnet50_2'"),
  ],
)
def test_what_cannot_be_is_said(changes, says):
  config = configs.get_config('tiny')
  config.model.update(changes)
  with pytest.raises(UserError, match=says):
    methods.build(config, INFO)


def test_patches_of_even_size_have_one_place_less_each_way():
  config = configs.get_config('tiny')
  config.model.patch = 2
  method, _, state, _ = _run(config)
  batch = _batches()[0]
  score = jax.jit(method.score)(state, batch, jax.random.key(0))
  assert np.isfinite(score.image['nearest']).all()
  assert score.pixel['nearest'].shape == batch.image.shape[:3]


def test_weights_must_be_asked_for():
  config = configs.get_config('tiny')
  config.model.weights = 'imagenet'
  with pytest.raises(UserError, match='weights=random'):
    pretrained.load('trunk', config.model, INFO)


def test_the_wide_resnet_waits_for_its_weights(monkeypatch, tmp_path):
  monkeypatch.setenv('JAXMED_WEIGHTS', str(tmp_path))
  model = configs.get_config('wrn50').model
  with pytest.raises(UserError, match='jaxmed weights fetch wide_resnet50_2'):
    pretrained.load('trunk', model, INFO)


def test_the_trunk_is_as_deep_as_what_is_loaded_of_it():
  config = configs.get_config('wrn50')
  info = dataclasses.replace(INFO, image=(64, 64, 3))
  trunk = pretrained.shapes('trunk', config.model, info)
  assert not any(part.startswith('layer4') for part in trunk['params'])
  method = methods.build(config, info)
  core = jax.ShapeDtypeStruct((8, config.model.target_dim), jnp.float32)
  state = State(frozen={'trunk': trunk}, memory={'core': core})
  row = jax.ShapeDtypeStruct((2,), jnp.int32)
  batch = Batch(jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8), row, row)
  score = jax.eval_shape(method.score, state, batch, jax.random.key(0))
  assert score.pixel['nearest'].shape == (2, 64, 64)


def test_no_step_gathers_the_bank():
  config = configs.get_config('tiny')
  method = methods.build(config, INFO)
  mesh = jax.make_mesh((8,), ('data',), (AxisType.Auto,))
  abstract = lambda tree, *spec: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape,
      x.dtype,
      sharding=NamedSharding(mesh, PartitionSpec(*spec[: jnp.ndim(x)])),
    ),
    tree,
  )
  trunk, _ = pretrained.load('trunk', config.model, INFO)
  state = method.phases[0].init(
    jax.random.key(0), State(frozen={'trunk': trunk})
  )
  memory = abstract(state.memory, None, 'data')
  state = abstract(state).replace(memory=memory)
  batch = abstract(_batches()[0], 'data')
  text = (
    jax.jit(method.phases[0].step, donate_argnums=0)
    .lower(state, {'normal': batch}, jax.random.key(0))
    .compile()
    .as_text()
  )
  for name in ('all-gather(', 'all-to-all(', 'collective-permute('):
    assert name not in text, name
