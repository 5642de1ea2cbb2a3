"""Public weights by name: where they are, what they are, how to tell.

An entry's name is also that of the network it fits, unless it says so. A
whole SHA-256 stands where one is known beyond doubt: each here is given by
several independent users of the file, and begins as its publisher's file name
does. Where that is not so, `sha256` holds the digits that the publisher put
into the file name, which is what PyTorch itself checks.
"""

import dataclasses
import re

from jaxmed import errors

TORCHVISION = 'https://download.pytorch.org/models/'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One file of weights.

  Attributes:
    name: by which it is asked for and stored.
    network: of jaxmed.nn.trunk, or of what else it is for.
    url: where it is published; '' if no file that can be read here is.
    sha256: of that file: all 64 digits, or the first ones, which the
      publisher put into its name.
    size: in bytes; 0 if not known.
    licence: of the weights, as their publisher states it.
    citation: what to cite.
    note: what one should know.
  """

  name: str
  network: str
  url: str
  sha256: str
  size: int
  licence: str
  citation: str
  note: str = ''

  def __post_init__(self):
    if self.url and not self.url.startswith('https://'):
      raise ValueError(f'{self.name}: {self.url} is not https.')
    if self.url and not re.fullmatch('[0-9a-f]{8,64}', self.sha256):
      raise ValueError(f'{self.name}: {self.sha256!r} is no SHA-256.')

  @property
  def file(self) -> str:
    """The name of the published file."""
    return self.url.rpartition('/')[2]

  @property
  def check(self) -> str:
    """How a file is known to be this one, in words."""
    if not self.url:
      return ''
    digits = len(self.sha256)
    return 'SHA-256' if digits == 64 else f'first {digits} digits of SHA-256'

  def fits(self, sha256: str) -> bool:
    """Whether a file with this hash is the published one."""
    return bool(self.sha256) and sha256.startswith(self.sha256)


def _torchvision(name: str, file: str, sha256: str, size: int, citation: str):
  return Entry(
    name, name, TORCHVISION + file, sha256, size, 'BSD-3-Clause', citation
  )


ENTRIES = (
  _torchvision(
    'alexnet',
    'alexnet-owt-7be5be79.pth',
    '7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02',
    244_408_911,
    'Krizhevsky, One weird trick for parallelizing convolutional neural '
    'networks, 2014',
  ),
  _torchvision(
    'vgg16',
    'vgg16-397923af.pth',
    '397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0',
    553_433_881,
    'Simonyan and Zisserman, Very Deep Convolutional Networks for '
    'Large-Scale Image Recognition, ICLR 2015',
  ),
  _torchvision(
    'squeezenet1_1',
    'squeezenet1_1-b8a52dc0.pth',
    'b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b',
    4_958_839,
    'Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer '
    'parameters, 2016',
  ),
  _torchvision(
    'resnet18',
    'resnet18-f37072fd.pth',
    'f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec',
    46_830_571,
    'He et al., Deep Residual Learning for Image Recognition, CVPR 2016',
  ),
  _torchvision(
    'resnet50',
    'resnet50-0676ba61.pth',
    '0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a',
    102_530_333,
    'He et al., Deep Residual Learning for Image Recognition, CVPR 2016',
  ),
  _torchvision(
    'wide_resnet50_2',
    'wide_resnet50_2-95faca4d.pth',
    '95faca4d11227dddf8633dbb5ff6c8a9003c1aa5b8945c73834b8007b10950b8',
    138_223_492,
    'Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016',
  ),
  _torchvision(
    'densenet121',
    'densenet121-a639ec97.pth',
    'a639ec97d7c33b07ae66f0b5fb7d0192f95a3b11b7576c66c0126c2a727c4395',
    32_342_954,
    'Huang et al., Densely Connected Convolutional Networks, CVPR 2017',
  ),
  Entry(
    'inception_fid',
    'inception_fid',
    'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
    'pt_inception-2015-12-05-6726825d.pth',
    '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2',
    95_628_359,
    'Apache-2.0',
    'Szegedy et al., Rethinking the Inception Architecture, CVPR 2016; Heusel '
    'et al., GANs Trained by a Two Time-Scale Update Rule, NeurIPS 2017',
  ),
  Entry(
    'resnet50v2',
    'resnet50v2',
    '',
    '',
    0,
    'Apache-2.0',
    'He et al., Identity Mappings in Deep Residual Networks, ECCV 2016',
    "Gluon's, as in the ONNX model zoo; published as ONNX, which is not read "
    'here: save its arrays by their names as .npz',
  ),
)
REGISTRY = {entry.name: entry for entry in ENTRIES}


def find(name: str) -> Entry:
  if name not in REGISTRY:
    raise errors.unknown('public weights', name, REGISTRY)
  return REGISTRY[name]
