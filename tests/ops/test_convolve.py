import functools

import jax
import numpy as np
import pytest

from jaxmed.ops.convolve import convolve

# Height, width, window, stride: small maps are products on a CPU.
CASES = [
  (2, 2, 3, 1),
  (5, 4, 3, 2),
  (7, 7, 5, 2),
  (8, 6, 1, 1),
  (7, 5, 1, 2),
  (18, 17, 3, 1),
  (40, 33, 3, 2),
]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_values_and_gradients_are_pytorchs(case):
  torch = pytest.importorskip('torch')
  height, width, window, stride = case
  dice = np.random.default_rng(0)
  x = dice.standard_normal((2, height, width, 3)).astype(np.float32)
  kernel = dice.standard_normal((window, window, 3, 4)).astype(np.float32)
  theirs = [
    torch.tensor(a, requires_grad=True)
    for a in (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1))
  ]
  made = torch.nn.functional.conv2d(*theirs, stride=stride, padding=window // 2)
  weights = dice.standard_normal(made.shape).astype(np.float32)
  (made * torch.tensor(weights)).sum().backward()
  weights = weights.transpose(0, 2, 3, 1)

  def total(x, kernel):
    y = convolve(x, kernel, stride)
    return (y * weights).sum(), y

  run = jax.jit(jax.grad(total, (0, 1), has_aux=True))
  (dx, dk), y = run(x, kernel)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  close(y.transpose(0, 3, 1, 2), made.detach())
  close(dx.transpose(0, 3, 1, 2), theirs[0].grad)
  close(dk.transpose(3, 2, 0, 1), theirs[1].grad)


@pytest.fixture(params=['cpu', 'other'])
def backend(request, monkeypatch):
  """What runs elsewhere can run here, too."""
  monkeypatch.setattr(jax, 'default_backend', lambda: request.param)


@pytest.mark.parametrize('stride', [1, 2])
def test_padding_may_be_said(backend, stride):
  torch = pytest.importorskip('torch')
  dice = np.random.default_rng(0)
  x = dice.standard_normal((2, 17, 18, 3)).astype(np.float32)
  kernel = dice.standard_normal((3, 3, 3, 4)).astype(np.float32)
  theirs = torch.nn.functional.conv2d(
    torch.tensor(x.transpose(0, 3, 1, 2)),
    torch.tensor(kernel.transpose(3, 2, 0, 1)),
    stride=stride,
  )
  found = convolve(x, kernel, stride, pad=0).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-4)
