"""Public weights: what is said of them agrees with itself."""

import re

import pytest

from jaxmed.errors import UserError
from jaxmed.nn import trunk
from jaxmed.weights import registry, store
from jaxmed.weights.registry import REGISTRY, Entry


@pytest.mark.parametrize('name', REGISTRY)
def test_an_entry_says_all_that_is_needed(name):
  entry = REGISTRY[name]
  assert store.path_of(name).name == f'{name}.safetensors'
  assert entry.licence and entry.citation
  if not entry.url:
    assert entry.note and not entry.sha256
    return
  assert entry.url.startswith('https://') and entry.size > 2**20
  # The publishers put the first digits into the name.
  digits = re.search(r'-([0-9a-f]{8})\.pth$', entry.file)[1]
  assert entry.sha256.startswith(digits)
  assert len(entry.sha256) in (len(digits), 64)


def test_every_trunk_of_imagenet_has_an_entry():
  networks = {entry.network for entry in REGISTRY.values()}
  assert set(trunk.NETWORKS) - {'small'} <= networks


def test_sizes_are_those_of_float32_parameters():
  """A file of a state dict is a little more than its parameters."""
  counts = {
    'alexnet': 61_100_840,
    'vgg16': 138_357_544,
    'squeezenet1_1': 1_235_496,
    'resnet18': 11_689_512,
    'resnet50': 25_557_032,
    'wide_resnet50_2': 68_883_240,
    'densenet121': 7_978_856,
  }
  for name, count in counts.items():
    # Wide ResNet-50-2 is published in half precision.
    width = 2 if name == 'wide_resnet50_2' else 4
    assert 0 <= REGISTRY[name].size - width * count < 600_000, name


def test_hashes_fit_whole_or_by_their_first_digits():
  make = lambda sha256: Entry('x', 'x', 'https://x/x.pth', sha256, 1, 'l', 'c')
  whole, first = make('ab' * 32), make('ab' * 4)
  assert whole.check == 'SHA-256' and 'first 8 digits' in first.check
  for entry in (whole, first):
    assert entry.fits('ab' * 32) and not entry.fits('ba' * 32)
  assert first.fits('ab' * 4 + '00' * 28)
  assert not whole.fits('ab' * 4 + '00' * 28)
  assert not REGISTRY['resnet50v2'].fits('ab' * 32)


@pytest.mark.parametrize(
  'url, sha256', [('http://x/x.pth', 'ab' * 32), ('https://x/x.pth', 'abc')]
)
def test_an_entry_without_https_or_hash_cannot_be_made(url, sha256):
  with pytest.raises(ValueError, match='x: '):
    Entry('x', 'x', url, sha256, 1, 'l', 'c')


def test_a_misspelt_name_gets_the_nearest():
  with pytest.raises(UserError, match="Did you mean 'resnet18'"):
    registry.find('resnet81')
