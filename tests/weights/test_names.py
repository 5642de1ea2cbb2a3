"""Names and layouts of checkpoints, in both conventions, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmed.errors import UserError
from jaxmed.weights import names
from jaxmed.weights.names import TF, TORCH, Table, from_foreign, to_foreign


class Net(nn.Module):
  """Two convolutions with a square kernel, norm, up, flatten, square dense."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), name='conv_0')(x)
    x = nn.BatchNorm(use_running_average=True, name='norm_0')(x)
    x = nn.Conv(4, (3, 3), name='conv_1')(nn.relu(x))
    x = nn.ConvTranspose(4, (2, 2), (2, 2), transpose_kernel=True, name='up')(x)
    x = nn.Dense(5, name='fold')(x.reshape(x.shape[0], -1))
    return nn.Dense(5, name='head')(nn.relu(x))


PART = {'net': Net()}
ROWS = (
  ('model.{i}.conv.{leaf}', 'net/conv_{i}/{leaf}'),
  ('model.{i}.bn.{leaf}', 'net/norm_{i}/{leaf}'),
  ('{m}.{leaf}', 'net/{m}/{leaf}'),
)
TABLE = Table(TORCH, ROWS, layouts=(('fold/kernel', names.nchw_rows(4)),))


def torch_net():
  torch = pytest.importorskip('torch')
  layer = lambda **parts: torch.nn.ModuleDict(parts)
  torch.manual_seed(0)
  net = layer(
    model=torch.nn.ModuleList(
      [
        layer(
          conv=torch.nn.Conv2d(3, 4, 3, padding=1), bn=torch.nn.BatchNorm2d(4)
        ),
        layer(conv=torch.nn.Conv2d(4, 4, 3, padding=1)),
      ]
    ),
    up=torch.nn.ConvTranspose2d(4, 4, 2, 2),
    fold=torch.nn.Linear(4 * 4 * 6, 5),
    head=torch.nn.Linear(5, 5),
  ).eval()
  net['model'][0]['bn'].running_mean.normal_()

  def forward(x):
    first, second = net['model']
    x = torch.relu(first['bn'](first['conv'](x)))
    x = net['up'](second['conv'](x)).flatten(1)
    return net['head'](torch.relu(net['fold'](x)))

  return net, forward


def target():
  shapes = jax.eval_shape(
    Net().init, jax.random.key(0), jnp.zeros((1, 2, 3, 3))
  )
  return {name: {'net': tree} for name, tree in shapes.items()}


def checkpoint():
  rng = np.random.default_rng(0)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target())
  return {
    name: rng.standard_normal(array.shape).astype(array.dtype)
    for name, array in to_foreign(TABLE, zeros).items()
  }


def test_torch_network_gives_the_same_and_comes_back_bit_for_bit():
  net, forward = torch_net()
  state = {k: v.numpy() for k, v in net.state_dict().items()}
  variables = from_foreign(TABLE, state, target())
  x = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype('f4')
  ours = Net().apply({k: v['net'] for k, v in variables.items()}, x)
  import torch

  theirs = forward(torch.from_numpy(x.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)
  back = to_foreign(TABLE, variables)
  del state['model.0.bn.num_batches_tracked']
  assert set(back) == set(state)
  for name in state:
    np.testing.assert_array_equal(back[name], state[name])


def test_tensorflow_names_keep_their_layout():
  table = Table(
    TF,
    (
      ('G/G.{m}/G.{m}.Filters', 'generator/{m}/kernel'),
      ('G/G.{m}/G.{m}.Biases', 'generator/{m}/bias'),
      ('G/{norm:G.*BN.}/{leaf}', 'generator/{norm}/{leaf}'),
      ('{rest:.*}/{leaf}', '{rest}/{leaf}'),
    ),
    layouts=(('/u$', names.reshaped((1, 2), (2,))),),
  )
  shapes = {
    'G/G.Res1.Conv1/G.Res1.Conv1.Filters': (3, 3, 2, 2),
    'G/G.Res1.Conv1/G.Res1.Conv1.Biases': (2,),
    'G/G.Res1.BN1/gamma': (2,),
    'G/G.Res1.BN1/moving_variance': (2,),
    'critic/fc/y/kernel': (2, 2),
    'critic/fc/y/bias': (2,),
  }
  foreign = {
    name: np.random.default_rng(i).standard_normal(shape)
    for i, (name, shape) in enumerate(shapes.items())
  }
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, np.float64)
  trees = from_foreign(
    table,
    foreign,
    {
      'params': {
        'generator': {
          'Res1.Conv1': {'kernel': leaf(3, 3, 2, 2), 'bias': leaf(2)},
          'G.Res1.BN1': {'scale': leaf(2)},
        },
        'critic': {'fc': {'y': {'kernel': leaf(2, 2), 'bias': leaf(2)}}},
      },
      'batch_stats': {'generator': {'G.Res1.BN1': {'var': leaf(2)}}},
    },
  )
  np.testing.assert_array_equal(
    trees['params']['critic']['fc']['y']['kernel'],
    foreign['critic/fc/y/kernel'],
  )
  back = to_foreign(table, trees)
  assert {k: v.tobytes() for k, v in back.items()} == {
    k: v.tobytes() for k, v in foreign.items()
  }


def test_wrong_checkpoints_are_refused_with_every_list():
  state = checkpoint()
  state['model.7.conv.weight'] = state.pop('model.1.conv.weight')
  state['extra'] = np.zeros(1)
  state['head.bias'] = np.zeros(7, np.float32)
  with pytest.raises(UserError, match='head.bias') as caught:
    from_foreign(TABLE, state, target())
  assert set(caught.value.unused) == {'model.7.conv.weight', 'extra'}
  assert caught.value.missing == ('net/conv_1/kernel',)
  assert '(7,)' in caught.value.mismatched[0]


def test_a_leaf_named_twice_is_refused():
  table = Table(
    TORCH, (('old.{leaf}', 'net/head/{leaf}'), *ROWS), (), TABLE.layouts
  )
  state = checkpoint()
  state['old.bias'] = state['head.bias']
  with pytest.raises(UserError, match='already'):
    from_foreign(table, state, target())


@pytest.mark.parametrize(
  ('array', 'says'),
  [
    (np.full(4, 1j), 'complex'),
    (np.full(4, 1e300), 'beyond float32'),
    (np.full(4, '1'), 'no numbers'),
  ],
)
def test_numbers_that_the_network_cannot_hold(array, says):
  state = checkpoint()
  state['head.bias'] = np.resize(array, state['head.bias'].shape)
  with pytest.raises(UserError, match=f'head.bias.*{says}'):
    from_foreign(TABLE, state, target())
  state['head.bias'] = np.full(state['head.bias'].shape, np.inf)
  from_foreign(TABLE, state, target())  # Infinite as it was.


def test_what_a_checkpoint_says_cannot_steer_a_terminal():
  state = checkpoint() | {'\x1b[2J': np.ones(1), 'a' * 10**6: np.ones(1)}
  with pytest.raises(UserError) as caught:
    from_foreign(TABLE, state, target())
  assert '\x1b' not in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('wrapper', ['', 'state_dict.', 'model_state_dict.'])
def test_a_training_keeps_weights_in_a_dict(wrapper, prefix):
  state = checkpoint()
  stored = {f'{wrapper}{prefix}{name}': x for name, x in state.items()}
  if wrapper:
    stored['optimizer.state.0.exp_avg'] = np.ones(3)
  assert names.unwrapped(stored).keys() == state.keys()
  mixed = {'module.x': np.ones(1), 'y': np.ones(1)}
  assert names.unwrapped(mixed) is mixed


def test_what_a_table_ignores_may_be_there_or_not():
  table = Table(TORCH, ROWS, (r'dummy\..*',), TABLE.layouts)
  state = checkpoint()
  plain = from_foreign(table, state, target())
  state |= {'dummy.mean': np.zeros(3), 'model.0.bn.num_batches_tracked': 1}
  same = from_foreign(table, state, target())
  jax.tree.map(np.testing.assert_array_equal, plain, same)


@pytest.mark.parametrize(
  'layout',
  [names.nchw_rows(2), names.nchw_columns(3), names.UNTRANSPOSED],
)
def test_layouts_undo_themselves(layout):
  array = np.arange(4 * 6).reshape(2, 2, 6)
  array = array if layout is names.UNTRANSPOSED else array.reshape(4, 6)
  there = layout.forward(array)
  assert not np.array_equal(there, array)
  np.testing.assert_array_equal(layout.back(there), array)


def test_untransposed_is_what_flax_transposes_by_default():
  kernel = np.random.default_rng(0).standard_normal((4, 4, 2, 3)).astype('f4')
  x = np.random.default_rng(1).standard_normal((1, 5, 5, 3)).astype('f4')
  bias = np.zeros(2, np.float32)
  up = lambda flag, k: nn.ConvTranspose(
    2, (4, 4), (2, 2), transpose_kernel=flag
  ).apply({'params': {'kernel': k, 'bias': bias}}, x)
  np.testing.assert_allclose(
    up(True, kernel),
    up(False, names.UNTRANSPOSED.forward(kernel)),
    atol=1e-5,
  )
