"""ALAD against the original in TensorFlow 1."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmed.method import State
from jaxmed.methods import alad
from jaxmed.ops.compare import compare
from jaxmed.weights.names import from_foreign, to_foreign
from tests.golden import filling

OURS = {
  'z_gen': 'code',
  'x_gen': 'fake',
  'rec_x': 'seen',
  'rec_z': 'again',
  'l_encoder': 'xz_real',
  'l_generator': 'xz_fake',
  'x_logit_real': 'xx_real',
  'x_logit_fake': 'xx_fake',
  'z_logit_real': 'zz_real',
  'z_logit_fake': 'zz_fake',
}
# Of each loss: the part it trains, and the network.
TRAINS = {
  'dis_loss_xz': ('discriminator', 'xz'),
  'dis_loss_xx': ('discriminator', 'xx'),
  'dis_loss_zz': ('discriminator', 'zz'),
  'loss_generator': ('generator', 'generator'),
  'loss_encoder': ('generator', 'encoder'),
}


def compute(manifest, directory):
  del directory
  return Run(manifest).outputs()


class Run:
  def __init__(self, manifest):
    sizes = manifest['hyperparameters']
    # What the code fixes, because the method does.
    assert (sizes['leaky_relu'], sizes['bn_epsilon']) == (0.2, 1e-3)
    self.weights = filling.state(manifest)
    model = {
      'width': len(self.weights['encoder_model/encoder/layer_1/conv/bias']),
      'z': sizes['latent'],
      'dropout': sizes['dropout'],
      'spectral': sizes['spectral_norm'],
      'cycle_z': True,  # Its losses are stored where none is trained on.
      'joint': 'height',
    }
    train = {
      'rate': sizes['adam']['lr'],
      'beta1': sizes['adam']['beta1'],
      'ema': sizes['ema'],
      'precision': 'float32',
    }
    side = sizes['image_size']
    image = side, side, sizes['channels']
    self.manifest, self.sizes = manifest, sizes
    self.gan = alad.Alad(ConfigDict(model), ConfigDict(train), image)
    self.table = alad.names(ConfigDict(model), image)
    given = filling.inputs(manifest)
    self.x, self.z = given['x'], given['z']
    self.valid = np.ones(len(self.x), bool)
    made = jax.eval_shape(lambda: self.gan.init(jax.random.key(0), State()))
    trees = {'params': made.params, 'batch_stats': made.batch_stats}
    self.state = State(**from_foreign(self.table, self.weights, trees))

  def outputs(self) -> dict:
    params, stats = self.state.params, self.state.batch_stats
    plain = _without_rows(stats)
    trained, gradients, after = jax.jit(self._trained)(params, stats)
    in_use = jax.jit(self._in_use)
    found = self._named('train', trained) | self._gradients(gradients)
    found |= self._named('inference', in_use(params, stats))
    found |= self._named('no_spectral_norm', in_use(params, plain))
    found |= jax.jit(self._scores)(params, stats)
    trees = {'params': params, 'batch_stats': after}
    rows = self.manifest.get('spectral/u/names', [])
    after = to_foreign(self.table, trees)
    found |= filling.summaries('spectral/u', rows, after, self.weights)
    return found

  def _trained(self, params, stats):
    key = jax.random.key(0)

    def loss(params):
      seen, after = self.gan.look(
        params, stats, self.x, self.z, key, self.valid
      )
      values = self._losses(seen)
      # Of each network, the gradient of the one loss that trains it.
      return {name: values[name] for name in TRAINS}, (seen, after)

    seen, after = loss(params)[1]
    gradients = {}
    for name, (part, network) in TRAINS.items():

      def alone(tree, name=name, part=part, network=network):
        changed = params[part] | {network: tree}
        return loss(params | {part: changed})[0][name]

      gradients[name] = jax.grad(alone)(params[part][network])
    return seen, gradients, after

  def _in_use(self, params, stats):
    call = self.gan.in_use(params, stats)
    return alad.everything(call, self.x, self.z, None)

  def _losses(self, seen) -> dict:
    """By their names in the original, of our terms."""
    plain = self.gan.losses(seen, self.valid)
    flipped = self.gan.losses(seen, self.valid, flipped=True)
    pair = lambda terms, which: terms[f'{which}_real'] + terms[f'{which}_fake']
    x, z = pair(flipped, 'xx'), pair(flipped, 'zz')
    cycles = x + z if self.sizes['allow_zz'] else x
    return {
      'dis_loss_xz': pair(plain, 'xz'),
      'dis_loss_xx': pair(plain, 'xx'),
      'dis_loss_zz': pair(plain, 'zz'),
      'cost_x': x,
      'cost_z': z,
      'loss_generator': flipped['xz_fake'] + cycles,
      'loss_encoder': flipped['xz_real'] + cycles,
    }

  def _named(self, prefix: str, seen: dict) -> dict:
    found = {f'{prefix}/{their}': seen[our] for their, our in OURS.items()}
    losses = self._losses(seen)
    return found | {f'{prefix}/loss/{k}': v for k, v in losses.items()}

  def _gradients(self, gradients: dict) -> dict:
    found = {}
    for name, (part, network) in TRAINS.items():
      prefix = f'train/grad/{name}'
      tree = {'params': {part: {network: gradients[name]}}}
      theirs = to_foreign(self.table, tree)
      names = self.manifest[f'{prefix}/names']
      found |= filling.summaries(prefix, names, theirs)
    return found

  def _scores(self, params, stats) -> dict:
    y, own = self.gan.scores(params, stats, self.x)
    call = self.gan.in_use(params, stats)
    _, features = call('discriminator', 'xx', self.x, y)
    if self.sizes['degree'] != 1:  # Ours is the L1 norm.
      _, same = call('discriminator', 'xx', self.x, self.x)
      away = jnp.linalg.norm(features - same, self.sizes['degree'], axis=1)
      own = own | {'features': away}
    count = self.x[0].size  # Ours are means of images in [0, 1].
    far = compare((self.x + 1) / 2, (y + 1) / 2, ('l1', 'l2'))
    return {
      'inference/xx_features': features,
      'inference/score_fm': own['features'],
      'inference/score_ch': own['logits'],
      'inference/score_l1': 2 * count * far['l1'],
      'inference/score_l2': 2 * jnp.sqrt(count * far['l2']),
    }


def _without_rows(stats: dict) -> dict:
  """The statistics of networks without spectral norm."""
  plain = lambda x: _without_rows(x) if isinstance(x, dict) else x
  return {name: plain(x) for name, x in stats.items() if name != 'u'}
