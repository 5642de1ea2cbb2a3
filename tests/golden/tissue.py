"""Tissue masks against CODAIT's and NCRF's code, on real patches and a slide.

The patches and the slide are files of the shared data.
"""

import pathlib

import numpy as np
from PIL import Image

from jaxmed.slides import codait, otsu, reader
from tests.golden import check
from tests.places import ROOT

# A few pixels in ten thousand depend on the slide's decoder; each spoils a
# byte of packed bits.
DECODER = 8 * 3e-4


def compute(manifest, directory):
  constants = manifest['hyperparameters']
  with np.load(directory / 'outputs.npz') as outputs:
    extra, thumb = outputs['extra_tiles'], outputs['thumb']
  places = ROOT.parent, *directory.resolve().parents
  files = _files(constants, places)
  return {
    **_tiles(files, extra, constants),
    **_slide(constants, places),
    **_thumb(thumb, constants),
  }


def tolerance(name, manifest):
  """Areas may differ by 0.005; other numbers are counts or nearly so."""
  del manifest
  allowed = {'area': 0.005, 'slide_mask': DECODER, 'slide_fraction': 3e-4}
  exact = 'optical_density', 'wsi_filters', 'thumb_fraction', 'thumb_otsu'
  return allowed.get(name, 1e-9 if name in exact else None)


def _find(path: str, places) -> pathlib.Path:
  """A path as the manifest gives it: beside the repository, or the case."""
  for place in places:
    if (place / path).exists():
      return place / path
  raise check.NoData(f'needs {path}, expected at {places[0] / path}')


def _files(constants, places) -> list[np.ndarray]:
  folder = _find(constants['files_root'], places)
  images = []
  for name in constants['files']:
    with Image.open(folder / name) as image:
      images.append(np.asarray(image.convert('RGB')))
  return images


def _tiles(files, extra, constants) -> dict:
  tiles = [*files, *extra]
  beta = constants['beta']
  checks = [codait.tile_checks(tile, beta) for tile in tiles]
  edges = [codait.edges(tile) for tile in tiles]
  first, second = zip(*checks, strict=True)
  return {
    'area': [
      [edge.mean(), one.mean(), two.mean()]
      for edge, one, two in zip(edges, first, second, strict=True)
    ],
    'keep': [
      [
        codait.keep_tile(tile, len(tile), threshold, beta)
        for threshold in constants['thresholds']
      ]
      for tile in tiles
    ],
    'optical_density': [_density(tile, beta) for tile in tiles],
    'mask1_files': _packed(first[: len(files)]),
    'mask2_files': _packed(second[: len(files)]),
    'mask1_extra': _packed(first[len(files) :]),
    'mask2_extra': _packed(second[len(files) :]),
    'canny_extra': _packed(edges[len(files) :]),
    'wsi_filters': [_kept(tile) for tile in tiles],
  }


def _density(tile, beta) -> list[float]:
  density = codait.optical_density(tile)
  least = density.min(axis=-1)
  return [
    *density.mean(axis=(0, 1)),
    *density.std(axis=(0, 1)),
    density.min(),
    density.max(),
    least.mean(),
    (least >= beta).mean(),
  ]


def _kept(tile) -> list[float]:
  green = codait.not_green(tile, avoid_overmask=False)
  gray = codait.not_gray(tile)
  both = green & gray
  share = codait.tissue_share(tile, both, strict=True)
  return [green.mean(), gray.mean(), both.mean(), 100 * share]


def _slide(constants, places) -> dict:
  # The original read it with OpenSlide.
  slide = reader.Slide(_find(constants['slide'], places), mpp=1.0, direct=False)
  level = constants['slide_level']
  plane = slide.levels[level]
  image = slide.read(0, 0, plane.width, plane.height, level)
  slide.close()
  mask = otsu.otsu_mask(image, constants['RGB_min']).T
  return {
    'slide_mask': _packed(mask),
    'slide_mask_shape': mask.shape,
    'slide_fraction': mask.mean(),
    'slide_otsu': otsu.otsu_thresholds(image),
  }


def _thumb(thumb, constants) -> dict:
  mask = otsu.otsu_mask(thumb, constants['RGB_min'])
  return {
    'thumb_mask': _packed(mask),
    'thumb_fraction': mask.mean(),
    'thumb_otsu': otsu.otsu_thresholds(thumb),
  }


def _packed(masks) -> np.ndarray:
  return np.packbits(np.stack(masks).ravel())
