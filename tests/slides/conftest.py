"""A small phantom slide with a lesion, drawn once."""

import dataclasses
import pathlib

import pytest

from jaxmed.datasets import phantom, phantom_scanner, phantom_tissue
from jaxmed.slides import annotations

PLAN = phantom_tissue.Plan(
  seed=(3,),
  width=704,
  height=520,
  mpp=0.5,
  scanner=phantom_scanner.SCANNERS['A'],
  lesions=(110,),
  pen=True,
)


@dataclasses.dataclass(frozen=True)
class Small:
  path: pathlib.Path
  annotation: pathlib.Path
  drawn: phantom_tissue.Drawn


@pytest.fixture(scope='session')
def small(tmp_path_factory) -> Small:
  path = tmp_path_factory.mktemp('slides') / 'small.tif'
  drawn = phantom_tissue.draw(PLAN)
  phantom.write_slide(path, drawn.pixels, PLAN.mpp)
  annotations.write_xml(path.with_suffix('.xml'), drawn.lesions)
  return Small(path, path.with_suffix('.xml'), drawn)
