"""GANomaly: networks, two steps, and the original's test of seven images.

What follows from gradients is computed in float64, so that no rectifier near
its kink takes another side than the original's.
"""

import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.metrics import roc_auc_score

from jaxmed.method import State
from jaxmed.methods.ganomaly import TABLE, Ganomaly, distances
from jaxmed.weights.names import from_foreign, to_foreign
from tests.golden import filling

PREFIX = {'generator': 'netg.', 'discriminator': 'netd.'}


def compute(manifest, directory):
  # The labels are drawn anew with each case, and no rule makes them.
  with np.load(directory / 'outputs.npz') as outputs:
    labels = outputs['test/labels']
  run = Run(manifest, np.float32)
  found = run.forward() | run.test(labels)
  with jax.enable_x64(True):
    run = Run(manifest, np.float64)
    found |= run.train() | run.moved()
  exact = {f'float64/{name}': array for name, array in found.items()}
  return exact | found


class Run:
  """The networks in one precision, filled, with the inputs."""

  def __init__(self, manifest, dtype):
    sizes = manifest['hyperparameters']
    model = {
      'width': sizes['ngf'],  # ndf is read nowhere.
      'z': sizes['nz'],
      'extra': sizes['extralayers'],
      'statistics': 'running',
    }
    train = {
      'rate': sizes['lr'],
      'beta1': sizes['beta1'],
      'precision': 'float32',
      'redraw_below': 1e-5,
      'weights': {
        'adversarial': sizes['w_adv'],
        'image': sizes['w_con'],
        'code': sizes['w_enc'],
      },
    }
    side = sizes['isize']
    image = side, side, sizes['nc']
    self.manifest = manifest
    self.gan = Ganomaly(ConfigDict(model), ConfigDict(train), image)
    self.gan.adam = filling.recording(self.gan.adam)
    self.given = filling.state(manifest)
    self.x = {
      name: array.transpose(0, 2, 3, 1).astype(dtype)
      for name, array in filling.inputs(manifest).items()
    }
    self.state = self._filled(dtype)

  def _filled(self, dtype) -> State:
    made = jax.eval_shape(lambda: self.gan.init(jax.random.key(0), State()))
    trees = {'params': made.params, 'batch_stats': made.batch_stats}
    trees = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), trees)
    plain = {name.partition('.')[2]: x for name, x in self.given.items()}
    assert len(plain) == len(self.given)
    filled = from_foreign(TABLE, plain, trees)
    opt = {k: self.gan.adam.init(v) for k, v in filled['params'].items()}
    return State(opt=opt, **filled)

  def forward(self) -> dict:
    """What the networks give in both modes, and the test."""
    found, x1 = {}, self.x['x1']

    @jax.jit
    def train(state):
      params, stats = state.params, state.batch_stats
      drawn, _ = self.gan.draw(params['generator'], stats['generator'], x1)
      judged = [
        self.gan.judge(params['discriminator'], stats['discriminator'], x)[0]
        for x in (x1, drawn[0])
      ]
      return drawn, judged

    @jax.jit
    def evaluate(state):
      drawn = self.gan.reconstruct(state, x1)
      variables = {
        'params': state.params['discriminator'],
        'batch_stats': state.batch_stats['discriminator'],
      }
      judge = lambda x: self.gan.discriminator.apply(variables, x)
      return drawn, [judge(x) for x in (x1, drawn[0])]

    for mode, run in (('train', train), ('eval', evaluate)):
      (y, *codes), (real, fake) = run(self.state)
      found[f'{mode}/fake'] = filling.nchw(y)
      for name, z in zip(('latent_i', 'latent_o'), codes, strict=True):
        found[f'{mode}/{name}'] = z[:, :, None, None]
      for end, (logit, features) in (('', real), ('_fake', fake)):
        found[f'{mode}/pred{end}'] = jax.nn.sigmoid(logit)
        found[f'{mode}/feat{end}'] = filling.nchw(features)
    return found

  def train(self) -> dict:
    """Two steps, then what the original tests with the result's statistics."""
    found, state, key = {}, self.state, jax.random.key(0)
    step = filling.jit(self.gan.step)
    for number in (1, 2):
      x, prefix = self.x[f'x{number}'], f'step{number}'
      state, scalars = step(state, x, np.ones(len(x), bool), key)
      found |= {f'{prefix}/{their}': scalars[our] for our, their in LOSSES}
      gradients = {part: opt[0] for part, opt in state.opt.items()}
      gradients = self._theirs({'params': gradients})
      found[f'{prefix}/grad_l2'] = np.array(
        [
          filling.summary('l2', gradients[name])
          for name in self.manifest[f'{prefix}/after/names']
        ]
      )
      trees = {'params': state.params, 'batch_stats': state.batch_stats}
      after = self._theirs(trees)
      for what in ('after', 'after_buffers'):
        found |= self._summaries(f'{prefix}/{what}', after)
    return found

  def test(self, labels) -> dict:
    """In training mode, batch by batch, as the original does."""
    batches = self._batches()
    draw = jax.jit(self.gan.draw)
    codes = []
    for x in batches:
      stats = self.state.batch_stats['generator']
      (_, *both), _ = draw(self.state.params['generator'], stats, x)
      codes.append(both)
    z, again = (np.concatenate(one) for one in zip(*codes, strict=True))
    raw = np.asarray(distances(z, again)['latent'])
    scaled = (raw - raw.min()) / np.ptp(raw)
    reconstruct = jax.jit(self.gan.reconstruct)
    in_use = [reconstruct(self.state, x)[1:] for x in batches]
    in_use = [distances(*both)['latent'] for both in in_use]
    return {
      'test/raw': raw,
      'test/an_scores': scaled,
      'test/latent_i': z,
      'test/latent_o': again,
      'test/labels': labels,
      'test/auc': np.array(roc_auc_score(labels, scaled)),
      'test/raw_eval_mode': np.concatenate(in_use),
    }

  def moved(self) -> dict:
    """Statistics after passes in training mode from the filled ones."""

    @filling.jit
    def drawn(state, stats, x):
      return self.gan.draw(state.params['generator'], stats, x)

    @filling.jit
    def judged(state, stats, x):
      return self.gan.judge(state.params['discriminator'], stats, x)

    state, stats = self.state, dict(self.state.batch_stats)
    (y, *_), first = drawn(state, stats['generator'], self.x['x1'])
    seen = stats['discriminator']
    for x in (self.x['x1'], y):
      _, seen = judged(state, seen, x)
    tested = stats['generator']
    for x in self._batches():
      _, tested = drawn(state, tested, x)
    passes = {
      'train': {'generator': first, 'discriminator': seen},
      'test': stats | {'generator': tested},
    }
    found = {}
    for name, stats in passes.items():
      after = self._theirs({'batch_stats': stats})
      found |= self._summaries(f'{name}/after_buffers', after)
    return found

  def _batches(self) -> list:
    """Of the test, of which the last may be smaller."""
    images = np.concatenate([self.x['x1'], self.x['x_rest']])
    size = self.manifest['hyperparameters']['batchsize']
    return [images[i : i + size] for i in range(0, len(images), size)]

  def _theirs(self, trees: dict) -> dict:
    """By the names in the manifest, which say the network first."""
    found = {}
    for part, prefix in PREFIX.items():
      only = {k: {part: v[part]} for k, v in trees.items() if part in v}
      plain = to_foreign(TABLE, only)
      found |= {prefix + name: array for name, array in plain.items()}
    return found

  def _summaries(self, prefix: str, after: dict) -> dict:
    names = self.manifest[f'{prefix}/names']
    return filling.summaries(prefix, names, after, self.given)


LOSSES = (
  ('generator/loss', 'err_g'),
  ('generator/adversarial', 'err_g_adv'),
  ('generator/image', 'err_g_con'),
  ('generator/code', 'err_g_enc'),
  ('discriminator/loss', 'err_d'),
  ('discriminator/real', 'err_d_real'),
  ('discriminator/fake', 'err_d_fake'),
)
