"""AnoGAN against own PyTorch code, by the names of DCGAN's example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.configs.anogan import get_config
from jaxmed.errors import UserError
from jaxmed.method import Batch, Info, State
from jaxmed.methods import anogan
from jaxmed.weights.names import from_foreign, to_foreign

ROWS, SIDE, STEPS = 4, 16, 3
DICE = np.random.default_rng(0)
IMAGES = DICE.integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8)
Z = DICE.uniform(-1, 1, (ROWS, 4)).astype(np.float32)
BATCH = Batch(jnp.asarray(IMAGES), jnp.arange(ROWS), jnp.zeros(ROWS, int))
VALID = jnp.ones(ROWS, bool)


def tiny(**changes):
  config = get_config('tiny')
  config.train.batch, config.data.size = ROWS, SIDE
  config.score.names = ('anogan', 'residual_loss', 'features', 'l1')
  config.update_from_flattened_dict(changes)
  return config


def info(config):
  side = config.data.size
  return Info((side, side, 3), ROWS, {'normal': 8})


def quickly(function):
  """Compiled with little care: it runs only a few times."""
  options = {'xla_backend_optimization_level': 0}
  return jax.jit(function, compiler_options=options)


@pytest.fixture(scope='module')
def gan():
  return anogan.Anogan(tiny(), (SIDE, SIDE, 3))


@pytest.fixture(scope='module')
def update(gan):
  return quickly(gan.update)


@pytest.fixture(scope='module')
def search(gan):
  """The compiled beginning and step of a search."""
  return quickly(gan.search_init), quickly(gan.search_step)


@pytest.fixture(scope='module')
def states(gan, update):
  """At the beginning, and after some steps with scalars of each."""
  signed = 2 * BATCH.unit - 1
  state = quickly(lambda key: gan.init(key, State()))(jax.random.key(0))
  first, logged = state, []
  for _ in range(STEPS):
    state, scalars = update(state, signed, Z, VALID)
    logged.append(scalars)
  return first, state, logged


def trees(state):
  return {'params': state.params, 'batch_stats': state.batch_stats}


@pytest.mark.parametrize(
  ('side', 'generator', 'discriminator'),
  # At 64 px those of PyTorch's example; elsewhere by arithmetic.
  [(64, 3_576_704, 2_765_568), (32, 1_068_928, 663_296)],
)
def test_parameters_are_as_many_as_the_example_has(
  side, generator, discriminator
):
  gan = anogan.Anogan(get_config('paper'), (side, side, 3))
  params = jax.eval_shape(gan.init, jax.random.key(0), State()).params
  count = lambda part: sum(x.size for x in jax.tree.leaves(params[part]))
  assert count('generator') == generator
  assert count('discriminator') == discriminator


@pytest.mark.parametrize('side', anogan.SIDES)
def test_every_size_is_made_and_judged(side):
  gan = anogan.Anogan(tiny(), (side, side, 1))
  state = jax.eval_shape(gan.init, jax.random.key(0), State())
  made = jax.eval_shape(gan.generate, state, jnp.zeros((2, 4)))
  assert made.shape == (2, side, side, 1)
  width = 4 * side // 8  # Of the map of 4 x 4.
  features = jax.eval_shape(gan.features, state, made)
  assert features.shape == (2, 16 * width)


def torch_networks(torch, dim=4, z=4):
  """Chains of torch's layers, for 16 px."""
  nn, widths = torch.nn, (2 * dim, dim)
  up = lambda n, m, stride, pad: nn.ConvTranspose2d(
    n, m, 4, stride, pad, bias=False
  )
  made, before = [], z
  for i, width in enumerate(widths):
    layer = up(before, width, 2 if i else 1, 1 if i else 0)
    made, before = [*made, layer, nn.BatchNorm2d(width), nn.ReLU()], width
  made += [up(before, 3, 2, 1), nn.Tanh()]
  down = lambda n, m: nn.Conv2d(n, m, 4, 2, 1, bias=False)
  judged = [down(3, dim), nn.LeakyReLU(0.2), down(dim, 2 * dim)]
  judged += [nn.BatchNorm2d(2 * dim), nn.LeakyReLU(0.2)]
  judged += [nn.Conv2d(2 * dim, 1, 4, bias=False)]
  wrap = lambda chain: nn.ModuleDict({'main': nn.Sequential(*chain)})
  return nn.ModuleDict({'netG': wrap(made), 'netD': wrap(judged)})


def in_torch(torch, gan, state):
  """The networks with our numbers, the images, and the noise."""
  networks = torch_networks(torch)
  names = anogan.names(len(gan.generator.widths))
  ours = to_foreign(names, trees(state))
  counts = {k for k in networks.state_dict() if k.endswith('_tracked')}
  ours = {k: torch.from_numpy(v.copy()) for k, v in ours.items()}
  known = networks.load_state_dict(ours, strict=False)
  assert set(known.missing_keys) <= counts and not known.unexpected_keys
  x = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
  return networks, x, torch.from_numpy(Z.copy())[:, :, None, None]


def test_three_steps_of_training_are_those_of_torch(gan, states):
  torch = pytest.importorskip('torch')
  first, after, logged = states
  networks, x, z = in_torch(torch, gan, first)
  g, d = (networks[name]['main'] for name in ('netG', 'netD'))
  rate, bce = tiny().train.rate, torch.nn.BCEWithLogitsLoss()
  adams = [
    torch.optim.Adam(net.parameters(), rate, betas=(0.5, 0.999))
    for net in (g, d)
  ]
  says = lambda x, real: bce(d(x), torch.full((ROWS, 1, 1, 1), real))
  for scalars in logged:
    fake = g(z)
    d.zero_grad()
    real_loss, fake_loss = says(x, 1.0), says(fake.detach(), 0.0)
    (real_loss + fake_loss).backward()
    adams[1].step()
    g.zero_grad()
    loss = says(fake, 1.0)
    loss.backward()
    adams[0].step()
    for name, theirs in (
      ('discriminator/real', real_loss),
      ('discriminator/fake', fake_loss),
      ('generator/loss', loss),
    ):
      theirs = theirs.detach().item()
      assert scalars[name] == pytest.approx(theirs, rel=1e-3), name
  ours = to_foreign(anogan.names(2), trees(after))
  for name, theirs in networks.state_dict().items():
    if not name.endswith('_tracked'):
      away = np.abs(ours[name] - theirs.numpy())
      assert np.quantile(away, 0.95) < 1e-4, name


def test_the_search_is_that_of_torch(gan, search, states):
  torch = pytest.importorskip('torch')
  config = tiny()
  method, (init, step) = anogan.build(config, info(config)), search
  key, state = jax.random.key(3), states[1]
  found = init(key, state, BATCH)
  networks, x, _ = in_torch(torch, gan, state)
  g, d = (networks[name]['main'].eval() for name in ('netG', 'netD'))
  z = torch.from_numpy(np.array(found['z']))[:, :, None, None]
  z.requires_grad_(True)
  adam = torch.optim.Adam([z], config.score.search.rate)

  def terms():
    y = g(z)
    residual = (x - y).abs().sum(dim=(1, 2, 3))
    away = (d[:-1](x) - d[:-1](y)).abs().sum(dim=(1, 2, 3))
    return 0.9 * residual + 0.1 * away, residual, away

  for number in range(4):
    adam.zero_grad()
    terms()[0].sum().backward()
    adam.step()
    with torch.no_grad():
      z.clamp_(-1, 1)
    found = step(key, state, BATCH, found, number)
  theirs = z.detach().numpy()[:, :, 0, 0]
  np.testing.assert_allclose(found['z'], theirs, atol=1e-4)
  score = quickly(method.score)(state, BATCH, key, found)
  for name, values in zip(anogan.OWN, terms(), strict=True):
    np.testing.assert_allclose(
      score.image[name], values.detach().numpy(), rtol=1e-4, err_msg=name
    )
  # In [-1, 1] and a sum, it is that of [0, 1] and a mean so many times.
  np.testing.assert_allclose(
    score.image['residual_loss'], 2 * 3 * SIDE**2 * score.image['l1'], rtol=1e-4
  )


def test_a_search_makes_every_image_fit_better_within_the_prior(
  gan, search, states
):
  state, x, (init, step) = states[1], 2 * BATCH.unit - 1, search
  found = init(jax.random.key(0), state, BATCH)
  error = quickly(
    lambda found: gan.weigh(
      *gan.errors(state, x, found['features'], found['z'])[:2]
    )
  )
  before = error(found)
  for number in range(20):
    found = step(jax.random.key(0), state, BATCH, found, number)
  assert np.all(error(found) < before)
  assert np.abs(found['z']).max() <= 1


def test_a_search_starts_from_its_row_and_knows_no_neighbour(search, states):
  key, state, (init, step) = jax.random.key(0), states[1], search
  other = BATCH.replace(
    image=jnp.flip(BATCH.image, 0).at[0].set(BATCH.image[0]),
    row=jnp.array([0, 7, 8, -1]),
  )
  ends = []
  for batch in (BATCH, other):
    found = init(key, state, batch)
    for number in range(3):
      found = step(key, state, batch, found, number)
    ends.append(np.asarray(found['z']))
  np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-5)
  assert not np.allclose(ends[0][1:], ends[1][1:])


def test_training_leaves_out_what_is_not_valid(states, update):
  signed = 2 * BATCH.unit - 1
  valid = VALID.at[-1].set(False)
  one, other = (
    update(states[0], x, Z, valid) for x in (signed, signed.at[-1].set(1))
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)
  whole = update(states[0], signed, Z, VALID)[1]
  assert abs(whole['discriminator/real'] - one[1]['discriminator/real']) > 1e-6


def test_samples_and_panels_are_images(states):
  config = tiny(**{'model.prior': 'normal', 'score.search.steps': 0})
  method, key = anogan.build(config, info(config)), jax.random.key(0)
  sample = quickly(lambda key: method.sample(states[1], key, 5))
  one, other = sample(key), sample(jax.random.key(1))
  assert one.shape == (5, SIDE, SIDE, 3)
  assert 0 <= one.min() < one.max() <= 1 and not np.allclose(one, other)
  assert method.search.steps == 0


def test_names_are_the_examples_both_ways(states):
  table = anogan.names(2)
  foreign = to_foreign(table, trees(states[1]))
  assert foreign['netG.main.0.weight'].shape == (4, 8, 4, 4)
  assert foreign['netD.main.3.running_var'].shape == (8,)
  back = from_foreign(table, foreign, trees(states[1]))
  jax.tree.map(np.testing.assert_array_equal, back, trees(states[1]))


def test_bfloat16_computes_and_float32_keeps(states):
  config = tiny(**{'train.precision': 'bfloat16'})
  gan = anogan.Anogan(config, (SIDE, SIDE, 3))
  x = 2 * BATCH.unit - 1
  after, scalars = jax.eval_shape(gan.update, states[0], x, Z, VALID)
  kept = jax.tree.leaves((after.params, after.batch_stats, scalars))
  assert {leaf.dtype.name for leaf in kept} == {'float32'}
  assert 'bf16' in str(jax.make_jaxpr(gan.generate)(states[0], Z))


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'data.size': 48}, '16, 32, 64 or 128 pixels, not 48 x 48'),
    ({'data.size': 256}, 'not 256 x 256'),
    ({'model.prior': 'gauss'}, 'Known: normal, uniform'),
    ({'train.precision': 'float16'}, 'Known: bfloat16, float32'),
    ({'score.feature_weight': 1.5}, 'from 0 to 1'),
    ({'score.search.steps': -1}, '500 is as published'),
    ({'score.names': ('anogn',)}, "Did you mean 'anogan'"),
  ],
)
def test_what_cannot_be_is_said_at_once(changes, says):
  config = tiny(**changes)
  with pytest.raises(UserError, match=says):
    anogan.build(config, info(config))


@pytest.mark.parametrize(
  'preset', ['phantom', 'folder', 'slides', 'camelyon16']
)
def test_presets_build(preset):
  config = get_config(preset)
  side = config.data.size
  method = anogan.build(config, Info((side, side, 3), 4, {'normal': 4}))
  assert method.phases[0].steps == config.train.steps
  assert config.eval.primary in config.score.names
