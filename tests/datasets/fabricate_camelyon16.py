"""A folder in the layout of Camelyon16: phantom slides under its names.

Three slides are drawn; the others are these, turned and mirrored.
"""

import dataclasses
import pathlib
import shutil

import numpy as np

from jaxmed.datasets import phantom, phantom_scanner, phantom_tissue
from jaxmed.slides import annotations

SIDE = 640
# The scanner of each slide, by number.
NORMAL = {1: 'A', 2: 'A', 3: 'A', 101: 'B', 102: 'B'}
TUMOUR = {1: 'A', 2: 'A', 10: 'A', 71: 'B'}  # 10 is not exhaustive.
TEST = {1: False, 2: True, 49: True, 114: True}
DIAMETERS = (85.0, 45.0)  # Of lesions, in micrometres.
MPP = {'A': 0.243, 'B': 0.226}
REFERENCE = {False: 'Normal,None,None', True: 'Tumor,IDC,Macro'}


def fabricate(root: pathlib.Path, side: int = SIDE) -> pathlib.Path:
  """Writes the official layout; with normal_086, as it was published first."""
  training, testing = root / 'training', root / 'testing'
  for folder in ('normal', 'tumor', 'lesion_annotations'):
    (training / folder).mkdir(parents=True)
  for folder in ('images', 'lesion_annotations'):
    (testing / folder).mkdir(parents=True)
  normal = {domain: draw(domain, side) for domain in 'AB'}
  tumour = draw('A', side, DIAMETERS)
  turn = 0

  def write(drawn, path, domain, outlines=None):
    nonlocal turn
    now = turned(drawn, turn)
    turn += 1
    phantom.write_slide(path, now.pixels, MPP[domain])
    if outlines:
      annotations.write_xml(outlines / f'{path.stem}.xml', now.lesions)

  for number, domain in NORMAL.items():
    path = training / f'normal/normal_{number:03d}.tif'
    write(normal[domain], path, domain)
  outlines = training / 'lesion_annotations'
  for number, domain in TUMOUR.items():
    path = training / f'tumor/tumor_{number:03d}.tif'
    write(tumour, path, domain, outlines)
  write(tumour, training / 'normal/normal_086.tif', 'A', outlines)
  (outlines / 'normal_086.xml').rename(outlines / 'tumor_111.xml')
  lines = []
  for number, sick in TEST.items():
    path = testing / f'images/test_{number:03d}.tif'
    outlines = testing / 'lesion_annotations' if sick else None
    write(tumour if sick else normal['A'], path, 'A', outlines)
    lines.append(f'{path.stem},{REFERENCE[sick]}\n')
  (testing / 'reference.csv').write_text(''.join(lines))
  return root


def rearrange(root: pathlib.Path, other: pathlib.Path) -> pathlib.Path:
  """The same slides in the layout of the newer release."""
  for name, pattern in (('images', '*.tif'), ('annotations', '*.xml')):
    (other / name).mkdir(parents=True)
    for path in root.rglob(pattern):
      now = path.name.replace('normal_086', 'tumor_111')
      shutil.copy2(path, other / name / now)
  return other


def draw(
  domain: str, side: int, lesions: tuple[float, ...] = ()
) -> phantom_tissue.Drawn:
  return phantom_tissue.draw(
    phantom_tissue.Plan(
      seed=(16, len(lesions)),
      width=side,
      height=side,
      mpp=MPP[domain],
      scanner=phantom_scanner.SCANNERS[domain],
      lesions=lesions,
    )
  )


def turned(drawn: phantom_tissue.Drawn, times: int) -> phantom_tissue.Drawn:
  """A square slide turned by quarters, and mirrored every other round."""
  side = len(drawn.pixels)
  pixels, rings = drawn.pixels, [one.rings for one in drawn.lesions]
  if times // 4 % 2:
    pixels = pixels[:, ::-1]
    rings = [[np.array([side, 0]) + r * [-1, 1] for r in one] for one in rings]
  for _ in range(times % 4):  # x becomes y; y becomes side - x.
    pixels = np.rot90(pixels)
    rings = [
      [np.stack([r[:, 1], side - r[:, 0]], axis=1) for r in one]
      for one in rings
    ]
  lesions = [
    dataclasses.replace(one, points=ring[0], holes=tuple(ring[1:]))
    for one, ring in zip(drawn.lesions, rings, strict=True)
  ]
  return phantom_tissue.Drawn(np.ascontiguousarray(pixels), lesions)
