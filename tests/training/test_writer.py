import jax.numpy as jnp
import pytest

from jaxmed.method import Phase
from jaxmed.training import writer


@pytest.mark.parametrize(('seen', 'images'), [(None, 32), (8, 8)])
def test_images_are_those_that_networks_see(seen, images, monkeypatch):
  monkeypatch.setattr(writer.time, 'monotonic', lambda: 0.0)
  meter = writer.Meter(8, jnp.float32)
  phase = Phase('p', None, None, ('a', 'b'), steps=3, batches=2, seen=seen)
  meter.step(phase)
  monkeypatch.setattr(writer.time, 'monotonic', lambda: 2.0)
  assert meter.read()['images_per_s'] == images / 2
