"""`jaxmed weights`: what it says, stores, refuses and writes."""

import hashlib
import pathlib
import types

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxmed import command, methods, pretrained, workdir
from jaxmed.commands import cli
from jaxmed.configs import fanogan, patchcore
from jaxmed.method import Info, State
from jaxmed.methods.fanogan import TABLE
from jaxmed.nn.trunk import trunk
from jaxmed.weights import fetch, npz, read, registry, store
from jaxmed.weights.names import from_foreign, to_foreign
from tests.weights import publisher

INFO = Info((32, 32, 3), 8, {'normal': 16})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXMED_WEIGHTS', str(tmp_path / 'store'))
  monkeypatch.setattr(command, 'set_up', lambda: None)
  monkeypatch.setattr(fetch, 'PAUSE', 0.0)
  monkeypatch.chdir(tmp_path)
  return tmp_path / 'store'


@pytest.fixture
def jaxmed(capsys):
  """Runs `jaxmed weights ...`; gives its code, output and errors."""

  def run(*argv):
    code = cli.main(['weights', *(str(word) for word in argv)])
    shown = capsys.readouterr()
    return types.SimpleNamespace(code=code, out=shown.out, err=shown.err)

  return run


def checkpoint(network: str = 'small') -> dict[str, np.ndarray]:
  """Random numbers by the names of PyTorch's."""
  module = trunk(network)
  image = np.zeros((1, 32, 32, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), image)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal(x.shape).astype(x.dtype)
  return to_foreign(module.table(), jax.tree.map(draw, shapes))


def _row(text: str, name: str) -> list[str]:
  (line,) = (x for x in text.splitlines() if x.startswith(f'{name} '))
  return line.split()


def test_list_shows_what_is_public_and_what_is_here(jaxmed, folder):
  npz.write('a.npz', checkpoint())
  before = jaxmed('list').out
  assert _row(before, 'resnet18') == [
    'resnet18', 'resnet18', '44.7', 'BSD-3-Clause', 'no', 'SHA-256'
  ]  # fmt: skip
  assert str(folder) in before and 'mine' not in before
  assert jaxmed('import', 'a.npz', '--name', 'mine').code == 0
  after = jaxmed('list').out
  assert _row(after, 'mine')[1] == 'small' and ' yes ' in after
  assert 'names and shapes' in after
  store.path_of('mine').write_bytes(b'nothing')
  assert 'damaged' in _row(jaxmed('list').out, 'mine')


def test_torchs_own_checkpoint_is_imported_and_exported(jaxmed):
  torch = pytest.importorskip('torch')
  arrays = checkpoint('resnet18')
  state = {name: torch.from_numpy(x.copy()) for name, x in arrays.items()}
  state['bn1.num_batches_tracked'] = torch.tensor(5)
  state['fc.weight'] = torch.zeros(3, 512, dtype=torch.float16)
  state['fc.bias'] = torch.zeros(3)
  torch.save(state, 'mine.pth')
  shown = jaxmed('import', 'mine.pth', '--name', 'resnet18')
  assert shown.code == 0 and 'verified by names and shapes' in shown.out
  facts = store.facts_of('resnet18')
  content = pathlib.Path('mine.pth').read_bytes()
  assert facts.sha256 == hashlib.sha256(content).hexdigest()
  for kind in ('npz', 'safetensors'):
    shown = jaxmed('export', 'resnet18', '--to', kind, '--out', f'out.{kind}')
    assert shown.code == 0
    back = read.read(f'out.{kind}')
    assert set(back) == set(state)
    for name, tensor in state.items():
      np.testing.assert_array_equal(back[name], tensor.numpy())
  fields = types.SimpleNamespace(trunk='resnet18', weights='imagenet')
  config = patchcore.get_config('tiny').model
  config.update(vars(fields) | {'layers': ('layer1', 'layer2')})
  variables, _ = pretrained.load('trunk', config, INFO)
  theirs = arrays['layer2.0.conv1.weight'].transpose(2, 3, 1, 0)
  ours = variables['params']['layer2_0']['conv1']['kernel']
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
  ('file', 'name'),
  [
    ('squeezenet1_1.npz', 'squeezenet1_1'),
    ('resnet50v2_stages123.npz', 'resnet50v2'),
  ],
)
def test_real_weights_are_imported(jaxmed, shared, file, name):
  path = shared(f'data/weights/{file}')
  shown = jaxmed(
    'import', path, '--name', name, '--licence', 'BSD-3', '--source', 'a disk'
  )
  assert shown.code == 0, shown.err
  arrays, facts = store.load(name)
  assert (facts.network, facts.licence, facts.source) == (
    name, 'BSD-3', 'a disk'
  )  # fmt: skip
  with np.load(path) as theirs:
    assert set(arrays) == set(theirs)
    assert 'float16' in {theirs[n].dtype.name for n in theirs}
    for key, array in arrays.items():
      assert array.dtype == np.float32
      np.testing.assert_array_equal(array, theirs[key].astype(np.float32))


def test_another_architecture_is_refused_and_named(jaxmed):
  npz.write('a.npz', checkpoint())
  shown = jaxmed('import', 'a.npz', '--name', 'resnet18')
  assert shown.code == 2
  assert 'a.npz does not fit resnet18' in shown.err
  assert 'stage1_0.weight (32, 3, 3, 3)' in shown.err
  assert 'not in it: bn1/mean (64,)' in shown.err
  assert 'It fits small.' in shown.err
  shown = jaxmed('import', 'a.npz', '--name', 'mine', '--network', 'resnet')
  assert 'No network' in shown.err and "Did you mean 'resnet" in shown.err
  npz.write('b.npz', {'x': np.zeros(3, np.float32)})
  shown = jaxmed('import', 'b.npz', '--name', 'mine')
  assert 'fits no network here; name its network by --network' in shown.err
  shown = jaxmed('import', 'gone.pth', '--name', 'small')
  assert shown.code == 2 and 'gone.pth' in shown.err
  assert not store.names()


def test_public_weights_are_fetched_once(jaxmed, monkeypatch):
  npz.write('a.npz', checkpoint())
  content = pathlib.Path('a.npz').read_bytes()
  with publisher.serving() as server:
    entry = server.publish(content, 'small', network='small')
    monkeypatch.setitem(registry.REGISTRY, 'small', entry)
    assert 'verified by SHA-256; licence MIT' in jaxmed('fetch', 'small').out
    assert 'here already' in jaxmed('fetch', 'small').out
    assert len(server.asked) == 1
    # What is damaged is fetched again.
    path = store.path_of('small')
    path.write_bytes(path.read_bytes()[:-4])
    shown = jaxmed('verify')
    assert shown.code == 1 and str(path) in shown.out
    assert jaxmed('fetch', 'small').code == 0
    shown = jaxmed('verify', 'small')
    assert shown.code == 0 and 'from the published file' in shown.out
    # And what is published by that name but is another network is refused.
    npz.write('b.npz', {'x': np.zeros(3, np.float32)})
    content = pathlib.Path('b.npz').read_bytes()
    entry = server.publish(content, 'small', network='small')
    monkeypatch.setitem(registry.REGISTRY, 'small', entry)
    shown = jaxmed('fetch', 'small')
    assert shown.code == 2 and 'does not fit small' in shown.err
  assert "Did you mean 'vgg16'" in jaxmed('fetch', 'vgg61').err


def test_without_a_connection_it_says_what_to_do(jaxmed, monkeypatch):
  with publisher.serving() as server:
    entry = server.publish(b'', 'small', network='small')
  monkeypatch.setitem(registry.REGISTRY, 'small', entry)
  shown = jaxmed('fetch', 'small')
  assert shown.code == 2 and f'curl -fLO {entry.url}' in shown.err
  assert f'jaxmed weights import {entry.file} --name small' in shown.err


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of a finished run, without its training."""
  made = {}

  def get(config):
    if config.method not in made:
      folder = made[config.method] = tmp_path_factory.mktemp(config.method)
      frozen = {
        part: pretrained.load(part, config.model, INFO)[0]
        for part in methods.build(config, INFO).needs
      }
      state = State(frozen=frozen)
      for phase in methods.build(config, INFO).phases:
        state = jax.jit(phase.init)(jax.random.key(0), state)
      workdir.write_json(folder / 'config.json', workdir.plain_config(config))
      info = {'image': INFO.image, 'batch': 8, 'examples': INFO.examples}
      workdir.write_json(folder / 'info.json', info | {'mpp': None})
      ocp.save(folder / 'final', state.replace(opt={}, frozen={}))
      made[config.method] = folder, jax.device_get(state)
    return made[config.method]

  return get


def test_a_run_is_exported_by_its_originals_names(jaxmed, finished):
  folder, state = finished(fanogan.get_config('tiny'))
  trees = {'params': state.params, 'batch_stats': state.batch_stats}
  for out in ('run.npz', 'run.safetensors'):
    assert jaxmed('export', folder, '--out', out).code == 0
    arrays = read.read(out)
    assert 'Generator/Generator.Input/Generator.Input.W' in arrays
    back = from_foreign(TABLE, arrays, trees)
    jax.tree.map(np.testing.assert_array_equal, back, trees)
  jaxmed('export', folder, '--part', 'critic', '--out', 'critic.npz')
  assert {n.partition('/')[0] for n in read.read('critic.npz')} == {
    'Discriminator'
  }
  shown = jaxmed('export', folder, '--part', 'kritic', '--out', 'x.npz')
  assert shown.code == 2 and "Did you mean 'critic'" in shown.err


def test_a_runs_trunk_is_exported_by_torchs_names(jaxmed, finished):
  config = patchcore.get_config('tiny')
  folder, state = finished(config)
  assert jaxmed('export', folder, '--out', 'trunk.npz').code == 0
  arrays = read.read('trunk.npz')
  trunk_of_run = state.frozen['trunk']
  network = trunk('small', last='stage3')
  back = from_foreign(network.table(), arrays, trunk_of_run)
  jax.tree.map(np.testing.assert_array_equal, back, trunk_of_run)


@pytest.mark.parametrize(
  ('argv', 'says'),
  [
    (('gone', '--out', 'x.npz'), 'neither the folder of a run nor stored'),
    (('x' * 300, '--out', 'x.npz'), 'neither the folder of a run nor stored'),
    (('gone', '--out', 'x.bin'), 'The end of x.bin names no format'),
    (('gone', '--part', 'x', '--out', 'x.npz'), '--part is of a run'),
    (('mine', '--out', 'no/x.npz'), 'There is no folder no'),
  ],
)
def test_what_cannot_be_exported_is_said(jaxmed, argv, says):
  npz.write('a.npz', checkpoint())
  jaxmed('import', 'a.npz', '--name', 'mine')
  shown = jaxmed('export', *argv)
  assert shown.code == 2 and says in shown.err


def test_help_of_each_action_is_there(capsys):
  for action in ('list', 'fetch', 'import', 'verify', 'export'):
    with pytest.raises(SystemExit):
      cli.main(['weights', action, '--help'])
    assert len(capsys.readouterr().out.splitlines()) > 5
