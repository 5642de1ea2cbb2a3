"""Settings that the cases copied here do not have, but others may."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmed.methods import munit as method
from tests.golden import alad, filling, healthygan, munit, stylegan2

HERE = pathlib.Path(__file__).parent


def changed(case: str, **settings) -> dict:
  """A case's manifest with other hyperparameters."""
  manifest = filling.read(HERE / case)
  manifest['hyperparameters'] |= settings
  return manifest


def test_munit_weighs_the_discriminators_loss_as_the_generators(monkeypatch):
  config = munit.configure(changed('munit', gan_w=3)['hyperparameters'])
  channels = dict.fromkeys('ab', 3)
  networks = method.Munit(config.model, config.train.weights, channels)
  image = lambda params, domain, x, *style: x
  for name in ('content', 'decode'):
    monkeypatch.setattr(networks, name, image)
  monkeypatch.setattr(networks, 'judge', lambda params, domain, x: [x])
  x = {d: jnp.full((2, 4, 4, 3), v) for d, v in (('a', 0.25), ('b', 0.5))}
  valid = dict.fromkeys('ab', jnp.ones(2, bool))
  total, losses = networks.discriminator_loss({}, {}, x, x, valid)
  assert losses['discriminator/a'] == pytest.approx(0.5**2 + 0.75**2)
  assert total == pytest.approx(3 * float(sum(losses.values())))


@pytest.mark.parametrize('policy', ['constant', 'step'])
def test_munits_rate_falls_only_by_steps(policy):
  given = changed('munit', lr_policy=policy, step_size=1)['hyperparameters']
  schedule = method.make_schedule(munit.configure(given).train)
  same = 1 if policy == 'constant' else given['gamma']
  assert schedule(0) == pytest.approx(same * given['lr'])


def test_each_network_of_healthygan_has_its_rate():
  manifest = changed('healthygan', g_lr=1e-3, d_lr=1e-5)
  given = manifest['hyperparameters']
  with jax.enable_x64(True):
    run = healthygan.Trace(manifest, 'step', given['trace_step'])
    for part, rate in healthygan.RATES.items():
      params, opt = run.state.params[part], run.state.opt[part]
      ones = jax.tree.map(np.ones_like, params)
      moved, _ = run.gan.adam[part].update(ones, opt, params)
      for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, -given[rate], rtol=1e-6)


def test_alads_third_cycle_is_seen_where_none_trains_by_it():
  run = alad.Run(changed('alad', allow_zz=False))
  rng = np.random.default_rng(0)
  names = (*alad.alad.LOGITS, *alad.alad.ZZ)
  found = run._losses({name: rng.standard_normal(2) for name in names})
  assert found['dis_loss_zz'] > 0 and found['cost_z'] > 0
  both = found['loss_generator'] - found['cost_x']
  assert 0 < both < found['loss_generator']
  run.sizes['allow_zz'] = True
  again = run._losses({name: np.zeros(2) for name in names})
  assert again['loss_generator'] == pytest.approx(5 * np.log(2))


def test_stylegan2_may_have_any_latents():
  assert stylegan2._gan(changed('stylegan2', style_dim=24)).z == 24
