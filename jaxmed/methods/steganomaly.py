"""SteGANomaly: a CycleGAN whose hidden signal is taken away on the bridge.

Baur, Graf, Wiestler, Albarqouni, Navab: SteGANomaly: Inhibiting CycleGAN
Steganography for Unsupervised Anomaly Detection in Brain MRI, MICCAI 2020. Its
networks and losses are those of CycleGAN (jaxmed/methods/cyclegan.py), of
healthy images, a, and of images with less in them, b: there, simulated scans.
A generator that makes b of a hides the rest of the image in faint, fast
ripples, and the other finds it there, lesions and all (Chu, Zhmoginov,
Sandler: CycleGAN, a Master of Steganography, 2017). So what is of b goes over
a bridge before it is made an image of a:

  x_ab = G_b(x_a),  y = G_a(bridge(x_ab)),  cycle |y - x_a|

  gaussian   bridge(x) = N(sigma) * x, a low-pass; sigma in px (`model.sigma`)
  noise      bridge(x) = x + n, n ~ N(0, noise^2) at every pixel, of images in
             [-1, 1] (`model.noise`), which is louder than what hides
             (Bashkirova, Usman, Saenko, 2019)
  none       CycleGAN

in training and in scoring. b's own images go over it, too, so that G_a sees
the same on both ways; D_b sees what G_b makes as it is.

Where there is no second domain, cohort b is made one (`model.simplify`):

  levels     smoothed by `model.simple_sigma` px, then each channel rounded to
             one of `model.levels` values: shapes, and no texture
  none       cohort b is such images already
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmed.errors import UserError, unknown
from jaxmed.method import Images, Info, Method
from jaxmed.nn.cycle import Bridge, Keys, make_method
from jaxmed.ops.gaussian import smooth

BRIDGES = ('gaussian', 'noise', 'none')
SIMPLER = ('levels', 'none')


def build(config: ConfigDict, info: Info) -> Method:
  _check(config.model)
  views = {'b': lambda x: simplify(config.model, x)}
  return make_method(config, info, make_bridge(config.model), views)


def make_bridge(model: ConfigDict) -> Bridge:
  """What images of b pass on their way to a."""

  def noise(keys: Keys, x: Images) -> Images:
    def draw(key):
      *_, key = jax.random.split(key, 3)  # The others are the history's.
      return jax.random.normal(key, x.shape[1:], x.dtype)

    return x + model.noise * jax.vmap(draw)(keys)

  return {
    'gaussian': lambda keys, x: smooth(x, model.sigma),
    'noise': noise,
    'none': lambda keys, x: x,
  }[model.bridge]


def simplify(model: ConfigDict, x: Images) -> Images:
  """Images in [0, 1] with less in them."""
  if model.simplify == 'none':
    return x
  steps = model.levels - 1
  return jnp.round(smooth(x, model.simple_sigma) * steps) / steps


def _check(model: ConfigDict) -> None:
  for name, known in (('bridge', BRIDGES), ('simplify', SIMPLER)):
    if model[name] not in known:
      raise unknown(f'model.{name} of steganomaly', model[name], known)
  if model.levels < 2:
    raise UserError(
      f'steganomaly: model.levels is {model.levels}, which leaves nothing of '
      'an image; set it to 2 at least.'
    )
  for name in ('sigma', 'noise', 'simple_sigma'):
    if model[name] < 0:
      raise UserError(
        f'steganomaly: model.{name} is {model[name]}; it cannot be negative.'
      )
