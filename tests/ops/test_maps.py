import numpy as np
import pytest
from scipy import ndimage

from jaxmed.errors import UserError
from jaxmed.ops.maps import combined_map

DICE = np.random.default_rng(0)
LEVELS = [
  DICE.uniform(0, 1, (2, side, side)).astype(np.float32) for side in (8, 4, 2)
]


@pytest.mark.parametrize('mode', ['add', 'multiply'])
def test_levels_are_enlarged_as_in_pytorch_then_smoothed_as_in_scipy(mode):
  torch = pytest.importorskip('torch')
  enlarged = [
    torch.nn.functional.interpolate(
      torch.tensor(x)[:, None], (16, 12), mode='bilinear', align_corners=True
    )[:, 0].numpy()
    for x in LEVELS
  ]
  whole = np.sum(enlarged, 0) if mode == 'add' else np.prod(enlarged, 0)
  smooth = [ndimage.gaussian_filter(image, 4) for image in whole]
  np.testing.assert_allclose(
    combined_map(LEVELS, (16, 12), mode), smooth, rtol=1e-5
  )
  plain = combined_map(LEVELS, (16, 12), mode, sigma=0)
  np.testing.assert_allclose(plain, whole, rtol=1e-5, atol=1e-6)


def test_an_unknown_mode_is_refused():
  with pytest.raises(UserError, match="Did you mean 'multiply'"):
    combined_map(LEVELS, (16, 16), 'multiplye')
