"""CycleGAN against own PyTorch code, by the names of the original."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.configs.cyclegan import get_config
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import cyclegan
from jaxmed.nn import cycle
from jaxmed.nn.cyclegan import Discriminator, Generator
from jaxmed.weights.names import from_foreign, to_foreign

ROWS, SIDE = 4, 16
# Of the original's names: what an instance norm does not take away again.
FELT = ('weight', 'model.18.bias', 'model.0.bias', 'model.8.bias')


def tiny(**changes):
  config = get_config('tiny')
  config.train.batch = ROWS
  config.data.size = SIDE
  config.score.names = ('ssim', 'residual')  # Of half the size no SSIM is.
  config.score.maps = ('residual',)
  config.update_from_flattened_dict(changes)
  return config


def info(config):
  side = config.data.size
  return Info((side, side, 3), ROWS, {'a': 8, 'b': 8})


def quickly(function):
  """Compiled with little care: it runs only once or twice."""
  options = {'xla_backend_optimization_level': 0}
  return jax.jit(function, compiler_options=options)


def batches(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda: rng.integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8)
  batch = lambda first: Batch(
    jnp.asarray(draw()), jnp.arange(first, first + ROWS), jnp.zeros(ROWS, int)
  )
  return {'a': batch(0), 'b': batch(100)}


def padded(whole):
  """The same with its last row declared padding, and something else in it."""
  return {
    d: b.replace(row=b.row.at[-1].set(-1), image=b.image.at[-1].set(7))
    for d, b in whole.items()
  }


@pytest.fixture(scope='module')
def trained():
  """A tiny method whose rate falls at once, its state and compiled step."""
  config = tiny(**{'train.decay_from': 0.0})
  method = cyclegan.build(config, info(config))
  init = method.phases[0].init
  state = quickly(lambda key: init(key, State()))(jax.random.key(0))
  return method, state, quickly(method.phases[0].step)


def count(network) -> int:
  shapes = jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameters_are_as_many_as_the_original_has():
  assert count(Generator(3, 64, 9)) == 11_378_179
  assert count(Generator(3, 64, 6)) == 7_837_699
  assert count(Discriminator(64, 3)) == 2_764_737


def test_a_logit_of_the_discriminator_sees_seventy_pixels():
  seen = lambda side: (
    jax.eval_shape(
      Discriminator(4, 3).init_with_output,
      jax.random.key(0),
      jnp.zeros((1, side, side, 3)),
    )[0].shape
  )
  assert seen(256) == (1, 30, 30, 1)
  # By the sizes and steps of its windows, from the last to the first.
  field = 1
  for stride in (1, 1, 2, 2, 2):
    field = (field - 1) * stride + 4
  assert field == 70


def torch_networks(torch, blocks=1, dim=4, layers=2):
  """Generator and discriminator, written as chains of torch's layers."""
  nn = torch.nn
  norm = lambda n: nn.InstanceNorm2d(n)

  class Block(nn.Module):
    def __init__(self, n):
      super().__init__()
      half = lambda: [nn.ReflectionPad2d(1), nn.Conv2d(n, n, 3), norm(n)]
      self.conv_block = nn.Sequential(*half(), nn.ReLU(), *half())

    def forward(self, x):
      return x + self.conv_block(x)

  def generator():
    chain = [nn.ReflectionPad2d(3), nn.Conv2d(3, dim, 7), norm(dim), nn.ReLU()]
    for n in (dim, 2 * dim):
      down = nn.Conv2d(n, 2 * n, 3, stride=2, padding=1)
      chain += [down, norm(2 * n), nn.ReLU()]
    chain += [Block(4 * dim) for _ in range(blocks)]
    for n in (4 * dim, 2 * dim):
      up = nn.ConvTranspose2d(n, n // 2, 3, 2, padding=1, output_padding=1)
      chain += [up, norm(n // 2), nn.ReLU()]
    chain += [nn.ReflectionPad2d(3), nn.Conv2d(dim, 3, 7), nn.Tanh()]
    return nn.ModuleDict({'model': nn.Sequential(*chain)})

  def discriminator():
    chain, n = [nn.Conv2d(3, dim, 4, 2, 1), nn.LeakyReLU(0.2)], dim
    for i in range(1, layers + 1):
      conv = nn.Conv2d(n, 2 * n, 4, 2 if i < layers else 1, 1)
      chain, n = [*chain, conv, norm(2 * n), nn.LeakyReLU(0.2)], 2 * n
    chain += [nn.Conv2d(n, 1, 4, 1, 1)]
    return nn.ModuleDict({'model': nn.Sequential(*chain)})

  return nn.ModuleDict(
    {
      'netG_A': generator(),
      'netG_B': generator(),
      'netD_A': discriminator(),
      'netD_B': discriminator(),
    }
  )


def train_in_torch(torch, networks, a, b, steps, rate):
  """Two optimisers over four networks; the losses of each step."""
  of = lambda *names: itertools.chain(
    *(networks[name].parameters() for name in names)
  )
  run = lambda name, x: networks[name]['model'](x)
  optimisers = [
    torch.optim.Adam(of(f'net{n}_A', f'net{n}_B'), rate, betas=(0.5, 0.999))
    for n in 'GD'
  ]
  mse, l1, logged = torch.nn.MSELoss(), torch.nn.L1Loss(), []
  for step in range(steps):
    for optimiser in optimisers:
      optimiser.zero_grad()
      optimiser.param_groups[0]['lr'] = rate * (1 - (step + 1) / 13)
    fake_b, fake_a = run('netG_A', a), run('netG_B', b)
    says = lambda x, real: mse(x, torch.full_like(x, real))
    terms = {
      'gan/b': says(run('netD_A', fake_b), 1.0),
      'gan/a': says(run('netD_B', fake_a), 1.0),
      'cycle/a': l1(run('netG_B', fake_b), a),
      'cycle/b': l1(run('netG_A', fake_a), b),
      'identity/b': l1(run('netG_A', b), b),
      'identity/a': l1(run('netG_B', a), a),
    }
    weights = {'gan': 1, 'cycle': 10, 'identity': 5}
    sum(weights[k[:-2]] * v for k, v in terms.items()).backward()
    optimisers[0].step()
    optimisers[1].zero_grad()
    for name, net, real, fake in (
      ('b', 'netD_A', b, fake_b),
      ('a', 'netD_B', a, fake_a),
    ):
      both = says(run(net, real), 1.0) + says(run(net, fake.detach()), 0.0)
      terms[f'discriminator/{name}'] = both / 2
      (both / 2).backward()
    optimisers[1].step()
    logged.append({k: float(v.detach()) for k, v in terms.items()})
  return logged


def to_torch(torch, x):
  signed = np.asarray(x, np.float32) / 127.5 - 1
  return torch.from_numpy(signed.transpose(0, 3, 1, 2).copy())


@pytest.mark.slow
def test_networks_losses_and_three_steps_are_those_of_torch(trained):
  torch = pytest.importorskip('torch')
  method, state, step = trained
  networks, batch = torch_networks(torch), batches()
  checkpoint = to_foreign(method.table, {'params': state.params})
  networks.load_state_dict(
    {k: torch.from_numpy(v.copy()) for k, v in checkpoint.items()}
  )
  a, b = (to_torch(torch, batch[d].image) for d in 'ab')
  with torch.no_grad():
    there = networks['netG_A']['model'](a)
    back = networks['netG_B']['model'](there)
  found = quickly(method.score)(state, batch['a'], jax.random.key(0))
  for panel, theirs in (('as b', there), ('reconstruction', back)):
    ours = 2 * found.panels[panel] - 1
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
  residual = (back - a).abs().mean(dim=(1, 2, 3)).numpy() / 2
  np.testing.assert_allclose(found.image['residual'], residual, rtol=1e-4)

  expected = train_in_torch(torch, networks, a, b, 3, tiny().train.rate)
  for losses in expected:
    state, scalars = step(state, batch, jax.random.key(1))
    for name, value in losses.items():
      assert scalars[name] == pytest.approx(value, rel=2e-3), name
  after = to_foreign(method.table, {'params': state.params})
  for name, theirs in networks.state_dict().items():
    if name.endswith(FELT):
      # Adam makes a whole step of a gradient that is nearly nothing.
      away = np.abs(after[name] - theirs.numpy())
      assert np.quantile(away, 0.95) < 1e-4, name
      assert not np.array_equal(after[name], checkpoint[name])


def test_the_vanilla_loss_is_the_cross_entropy():
  logits = jnp.array([-3.0, 0.5, 2.0])
  for real in (0.0, 1.0):
    probability = 1 / (1 + np.exp(-np.asarray(logits)))
    expected = -np.log(probability if real else 1 - probability)
    found = cycle.LOGITS['vanilla'](logits, real)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_loss_is_the_weighted_sum_and_both_parts_move(trained):
  _, state, step = trained
  after, scalars = step(state, batches(), jax.random.key(1))
  weights = tiny().train.weights
  total = sum(
    weights[term] * scalars[f'{term}/{d}'] for term in weights for d in 'ab'
  )
  np.testing.assert_allclose(scalars['generator/loss'], total, rtol=1e-5)
  for part in ('generator', 'discriminator'):
    for d in 'ab':
      moved = jax.tree.map(
        lambda x, y: np.any(x != y),
        state.params[part][d],
        after.params[part][d],
      )
      assert all(jax.tree.leaves(moved)), (part, d)


def test_padding_counts_for_nothing_and_is_not_kept(trained):
  _, state, step = trained
  one, other = padded(batches()), padded(batches())
  other['a'] = other['a'].replace(image=other['a'].image.at[-1].set(200))
  results = [step(state, b, jax.random.key(1)) for b in (one, other)]
  jax.tree.map(np.testing.assert_array_equal, *results)
  history = results[0][0].memory['history']
  np.testing.assert_array_equal(history['a'].count, [1, 1, 1, 0])
  assert not np.any(history['b'].images[-1])


def test_a_mean_is_over_what_is_not_padding(trained):
  _, state, step = trained
  same = jax.tree.map(lambda x: x[jnp.zeros(ROWS, int)], batches())
  _, four = step(state, same, jax.random.key(1))
  _, three = step(state, padded(same), jax.random.key(1))
  for name, value in four.items():
    np.testing.assert_allclose(value, three[name], rtol=1e-4, err_msg=name)


def test_history_is_of_fifty_images_and_is_left_behind():
  method = cyclegan.build(get_config('paper'), Info((256, 256, 3), 8, {}))
  phase = method.phases[0]
  key = jax.random.key(0)
  state = jax.eval_shape(phase.init, key, State())
  images = state.memory['history']['a'].images
  assert images.shape == (8, 7, 256, 256, 3)  # 50, rounded up.
  assert jax.eval_shape(phase.finish, key, state).memory == {}


def test_no_identity_is_made_where_it_has_no_weight():
  config = tiny(**{'train.weights.identity': 0.0})
  phase = cyclegan.build(config, info(config)).phases[0]
  key = jax.random.key(0)
  state = jax.eval_shape(phase.init, key, State())
  _, scalars = jax.eval_shape(phase.step, state, batches(), key)
  assert 'cycle/a' in scalars and 'identity/a' not in scalars


def test_the_rate_falls_to_nothing_after_the_last_step():
  train = get_config('paper').train
  train.steps, train.decay_from, train.rate = 8, 0.5, 1.0
  rates = [float(cycle.make_schedule(train)(i)) for i in range(9)]
  np.testing.assert_allclose(
    rates, [1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0], atol=1e-6
  )


@pytest.mark.slow
def test_routes_go_through_their_domains_and_are_averaged(trained):
  state, batch = trained[1], batches()['a']
  found = {}
  for routes in (('ab',), ('aba',), ('bab',), ('ab', 'bab')):
    config = tiny(**{'score.routes': routes})
    method = cyclegan.build(config, info(config))
    found[routes] = quickly(method.score)(state, batch, jax.random.key(0))
  both = found['ab', 'bab']
  for name, value in both.image.items():
    one, other = (found[r,].image[name] for r in ('ab', 'bab'))
    np.testing.assert_allclose(value, (one + other) / 2, rtol=1e-5)
    assert not np.allclose(one, other)
  assert set(both.panels) == {'reconstruction', 'as a', 'by bab'}
  there = found['ab',].panels['reconstruction']
  np.testing.assert_allclose(there, found['aba',].panels['as b'], atol=1e-6)
  assert 0 <= there.min() < there.max() <= 1


def test_names_are_the_originals_both_ways(trained):
  method, state, _ = trained
  foreign = to_foreign(method.table, {'params': state.params})
  assert foreign['netG_A.model.11.weight'].shape == (16, 8, 3, 3)
  old = {'netG_B.model.10.conv_block.2.running_mean': np.zeros(16)}
  back = from_foreign(method.table, foreign | old, {'params': state.params})
  jax.tree.map(np.testing.assert_array_equal, back['params'], state.params)


@pytest.mark.slow
def test_bfloat16_computes_and_float32_keeps(trained):
  config = tiny(**{'train.precision': 'bfloat16'})
  method = cyclegan.build(config, info(config))
  step, key = method.phases[0].step, jax.random.key(1)
  after, scalars = jax.eval_shape(step, trained[1], batches(), key)
  kept = jax.tree.leaves((after.params, after.memory['history'], scalars))
  assert {x.dtype.name for x in kept} == {'float32', 'int32'}
  score = jax.make_jaxpr(method.score)(trained[1], batches()['a'], key)
  assert 'bf16' in str(score)


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'score.names': ('sim',)}, "Did you mean 'ssim'"),
    ({'score.routes': ('aa',)}, "route in score.routes 'aa'"),
    ({'score.routes': ()}, 'score.routes is empty'),
    ({'model.gan': 'lsgen'}, "Did you mean 'lsgan'"),
    ({'train.precision': 'float16'}, 'Known: bfloat16, float32'),
    ({'data.size': 30}, 'multiple of 4'),
    ({'data.size': 8}, 'at least 12 px'),
    ({'model.discriminator.layers': 3}, 'at least 24 px'),
    ({'model.history': -1}, 'model.history is -1'),
    ({'train.decay_from': 1.5}, 'from 0 to 1'),
  ],
)
def test_what_cannot_be_is_said_at_once(changes, says):
  config = tiny(**changes)
  with pytest.raises(UserError, match=says):
    cyclegan.build(config, info(config))


@pytest.mark.parametrize(
  'preset', ['phantom', 'folder', 'slides', 'camelyon16']
)
def test_presets_build(preset):
  config = get_config(preset)
  side = config.data.size
  method = cyclegan.build(config, Info((side, side, 3), 4, {'a': 4, 'b': 4}))
  assert method.phases[0].steps == config.train.steps
  assert config.eval.primary in config.score.names
