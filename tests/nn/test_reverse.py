import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxmed.errors import UserError
from jaxmed.nn.reverse import TABLE, Block, Double, Reverse
from jaxmed.weights.names import NamesError, from_foreign, to_foreign


def _pair(teacher: str, shortcut: int = 1, side: int = 64) -> Reverse:
  model = ConfigDict({'teacher': teacher, 'shortcut': shortcut})
  return Reverse(model, 'float32', (side, side, 3))


def _count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _abstract(pair: Reverse):
  params, stats = jax.eval_shape(pair.init, jax.random.key(0))
  return {'params': {'student': params}, 'batch_stats': {'student': stats}}


@pytest.mark.parametrize(
  ('teacher', 'shortcut', 'bottleneck', 'unused', 'decoder'),
  [
    ('resnet18', 1, 12_205_312, 525_312, 3_703_168),
    ('resnet18', 3, 15_351_040, 525_312, 3_703_168),
    ('resnet50', 1, 39_222_272, 8_392_704, 15_821_824),
    ('resnet50v2', 1, 39_222_272, 8_392_704, 15_821_824),
    ('wide_resnet50_2', 1, 67_277_824, 8_392_704, 24_917_504),
    ('wide_resnet50_2', 3, 117_609_472, 8_392_704, 24_917_504),
  ],
)
def test_parameters_are_as_many_as_the_originals(
  teacher, shortcut, bottleneck, unused, decoder
):
  params, _ = jax.eval_shape(_pair(teacher, shortcut).init, jax.random.key(0))
  assert _count(params['bottleneck']) == bottleneck - unused
  assert _count(params['decoder']) == decoder


def test_the_wide_teacher_has_as_many_as_the_original_uses():
  network = _pair('wide_resnet50_2').teacher
  image = jnp.zeros((1, 64, 64, 3))
  variables = jax.eval_shape(network.init, jax.random.key(0), image)
  assert _count(variables['params']) == 24_862_528


@pytest.mark.parametrize('teacher', ['resnet18', 'resnet50v2', 'tiny'])
def test_the_student_answers_in_the_teachers_shapes(teacher):
  pair = _pair(teacher)
  image = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
  key = jax.random.key(0)
  variables = jax.eval_shape(pair.teacher.init, key, image)
  seen = jax.eval_shape(pair.teacher.apply, variables, image)
  stages = [seen[name] for name in pair.like.stages]
  made, _ = jax.eval_shape(pair.student.init_with_output, key, stages)
  assert [x.shape for x in made] == [x.shape for x in stages]


def test_a_transposed_convolution_is_pytorchs():
  torch = pytest.importorskip('torch')
  dice = np.random.default_rng(0)
  x = dice.standard_normal((2, 3, 4, 5)).astype(np.float32)
  theirs = torch.nn.ConvTranspose2d(5, 6, 2, 2, bias=False)
  made = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
  kernel = theirs.weight.detach().numpy().transpose(2, 3, 1, 0)
  ours = Double(6).apply({'params': {'kernel': kernel}}, x)
  np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), made, atol=1e-5)


def test_layers_begin_as_the_authors_do():
  block = Block(64, 32, 'double')
  init = jax.jit(block.init)
  made = init(jax.random.key(0), jnp.zeros((1, 4, 4, 128)))['params']
  # Kaiming's normal by what goes out; PyTorch's own uniform, +-1 / sqrt(fan).
  outer = np.asarray(made['conv3']['kernel'])
  np.testing.assert_allclose(outer.std(), np.sqrt(2 / 64), rtol=0.1)
  kernel = np.asarray(made['conv2']['kernel'])
  bound = 1 / np.sqrt(32 * 4)
  assert 0.95 * bound < np.abs(kernel).max() <= bound
  np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.1)


def _checkpoint(pair: Reverse) -> dict[str, np.ndarray]:
  """As the authors' code writes it, with layers that are never used."""
  dice = np.random.default_rng(0)
  target = _abstract(pair)
  fill = lambda leaf: dice.standard_normal(leaf.shape).astype(np.float32)
  named = to_foreign(TABLE, jax.tree.map(fill, target))
  unused = {
    'bn.conv4.weight': np.zeros((32, 64, 1, 1)),
    'bn.bn4.weight': np.zeros(32),
    'bn.bn4.running_var': np.ones(32),
    'bn.bn1.num_batches_tracked': np.array(7),
  }
  return named | unused


def test_a_checkpoint_of_the_authors_goes_in_and_comes_out():
  pair = _pair('tiny')
  named = _checkpoint(pair)
  filled = from_foreign(TABLE, named, _abstract(pair))
  again = to_foreign(TABLE, filled)
  assert set(named) - set(again) == {
    'bn.conv4.weight',
    'bn.bn4.weight',
    'bn.bn4.running_var',
    'bn.bn1.num_batches_tracked',
  }
  for name, array in again.items():
    np.testing.assert_array_equal(array, named[name], name)
  assert 'decoder.layer1.0.upsample.0.weight' in again
  assert again['decoder.layer1.0.conv1.weight'].shape == (32, 16, 2, 2)


def test_a_checkpoint_of_the_other_shortcut_is_refused():
  named = _checkpoint(_pair('tiny', 3))
  with pytest.raises(NamesError) as found:
    from_foreign(TABLE, named, _abstract(_pair('tiny', 1)))
  (problem,) = found.value.mismatched
  assert 'bn.bn_layer.0.downsample.0.weight' in problem
  named = _checkpoint(_pair('tiny'))
  del named['bn.conv2.weight']
  with pytest.raises(NamesError, match='bottleneck/conv2/kernel'):
    from_foreign(TABLE, named, _abstract(_pair('tiny')))


@pytest.mark.parametrize(
  ('pair', 'says'),
  [
    (('vgg16',), "No teacher 'vgg16'"),
    (('resnet18', 2), 'model.shortcut is 2'),
    (('resnet18', 1, 80), '80 x 80 px .* a multiple of 32'),
  ],
)
def test_what_cannot_be_is_said(pair, says):
  with pytest.raises(UserError, match=says):
    _pair(*pair)
