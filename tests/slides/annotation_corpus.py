"""Annotations as they should not be, and large ones; made when they are run.

`CASES` is for anyone who reads annotations. As a program it reads each case in
a process of its own and says what came of it, a line of JSON a case:

  python -m tests.slides.annotation_corpus FOLDER
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import resource
import struct
import sys
import time
from collections.abc import Callable

import numpy as np
import tifffile

from jaxmed.slides import annotation_files
from jaxmed.slides.annotations import AnnotationError, rasterise

SIZE = (1000, 800)  # Of the slide.
SECONDS, MEGABYTES = 5, 512
MILLION = 10**6


@dataclasses.dataclass(frozen=True)
class Case:
  """One file, or several, and what reading it is to give.

  name: of the file, without its suffix.
  write: makes it.
  error: a pattern of the error's message, which names the file too; '' where
    the file is good.
  polygons: how many a good file has.
  read: what is done with the file.
  """

  name: str
  suffix: str
  write: Callable[[pathlib.Path], object]
  error: str = ''
  polygons: int = 0
  read: Callable[[pathlib.Path], object] = lambda path: (
    annotation_files.read_annotation(path, SIZE)
  )

  @property
  def file(self) -> str:
    return f'{self.name}{self.suffix}'


def _says(content: str | bytes) -> Callable[[pathlib.Path], object]:
  """Writes a file that has just this."""
  content = content.encode() if isinstance(content, str) else content
  return lambda path: path.write_bytes(content)


def _asap(inside: str, before: str = '') -> Callable[[pathlib.Path], object]:
  return _says(
    f'<?xml version="1.0"?>{before}<ASAP_Annotations><Annotations>{inside}'
    '</Annotations></ASAP_Annotations>'
  )


def _ring(*corners: tuple[str, str], kind: str = 'Polygon') -> str:
  rows = ''.join(
    f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>'
    for i, (x, y) in enumerate(corners)
  )
  return (
    f'<Annotation Name="A" Type="{kind}" PartOfGroup="Tumor" Color="#F4FA58">'
    f'<Coordinates>{rows}</Coordinates></Annotation>'
  )


SQUARE = ((10, 10), (50, 10), (50, 50), (10, 50))
ENTITIES = ''.join(
  f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "lol"}">' for i in range(10)
)


def _geometry(kind: str, coordinates: object) -> str:
  return json.dumps({'type': kind, 'coordinates': coordinates})


def _closed(ring: list | tuple) -> list:
  return [list(p) for p in (*ring, ring[0])]


@functools.cache
def _coast(points: int = MILLION) -> np.ndarray:
  """A ring with as many corners as a coast, inside the slide."""
  angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
  noise = np.random.default_rng(0).uniform(-1, 1, points)
  radius = 300 + 40 * np.sin(9 * angle) + noise
  return np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] + 400


def _large_xml(path: pathlib.Path) -> None:
  corners = _coast().round(2).tolist()
  rows = '\n'.join(
    f'<Coordinate Order="{i}" X="{x}" Y="{y}" />'
    for i, (x, y) in enumerate(corners)
  )
  _asap(f'<Annotation Name="A"><Coordinates>{rows}</Coordinates></Annotation>')(
    path
  )


def _large_json(path: pathlib.Path) -> None:
  path.write_text(_geometry('Polygon', [_closed(_coast().tolist())]))


def _many(path: pathlib.Path) -> None:
  """2,500 nuclei of 100 corners each."""
  angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
  ring = np.stack([np.cos(angle), np.sin(angle)], 1) * 3
  places = np.stack(np.mgrid[0:50, 0:50], -1).reshape(-1, 2) * 7 + 10
  features = [
    f'{{"type": "Feature", "geometry": {_geometry("Polygon", [r])}}}'
    for r in (ring + places[:, None]).round(2).tolist()
  ]
  path.write_text(
    f'{{"type": "FeatureCollection", "features": [{",".join(features)}]}}'
  )


def _read_and_fill(path: pathlib.Path) -> list:
  polygons = annotation_files.read_annotation(path, SIZE)
  assert rasterise(polygons, *SIZE).any()
  return polygons


def _mask(pixels: np.ndarray, **options) -> Callable[[pathlib.Path], object]:
  return lambda path: tifffile.imwrite(path, pixels, metadata=None, **options)


def _marked(value: float, dtype=np.uint8, size=SIZE) -> np.ndarray:
  pixels = np.zeros(size[::-1], dtype)
  pixels[20:60, 30:90] = value
  return pixels


def _cut_mask(path: pathlib.Path) -> None:
  noise = np.random.default_rng(0).integers(0, 2, SIZE[::-1], np.uint8)
  _mask(noise, tile=(256, 256), compression='deflate')(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _bomb_mask(path: pathlib.Path) -> None:
  """A header of a strip of 10^12 pixels that are not there."""
  entries = (
    (256, 4, 10**6),  # Width.
    (257, 4, 10**6),  # Height.
    (258, 3, 8),
    (259, 3, 1),
    (262, 3, 1),
    (273, 4, 8),  # Where the strip begins.
    (277, 3, 1),
    (278, 4, 10**6),  # Rows of the strip.
    (279, 4, 100),
  )
  fields = [struct.pack('<HHII', tag, t, 1, v) for tag, t, v in entries]
  header = struct.pack('<2sHIH', b'II', 42, 8, len(fields))
  path.write_bytes(header + b''.join(fields) + bytes(4))


def _two(path: pathlib.Path) -> None:
  _asap(_ring(*SQUARE))(path)
  _says(_geometry('Polygon', [_closed(SQUARE)]))(path.with_suffix('.geojson'))


def _find(path: pathlib.Path) -> object:
  named = annotation_files.by_slide(path.parent)
  return annotation_files.find_annotation(named, f'{path.stem}.svs')


def _orphan(path: pathlib.Path) -> None:
  named = annotation_files.by_slide(path.parent)
  errors = annotation_files.without_slide(named, ['another.svs'])
  raise next(e for e in errors if path.name in str(e))


def _outside(path: pathlib.Path) -> None:
  _asap(_ring(*SQUARE) + _ring((1200, 10), (1300, 10), (1300, 90)))(path)


CASES = [
  # ASAP's XML.
  Case('empty', '.xml', _says(''), 'no annotation in ASAP'),
  Case('blank', '.xml', _says(' \n\n'), 'no annotation in ASAP'),
  Case('text', '.xml', _says('Dear colleague'), 'no annotation in ASAP'),
  Case('junk', '.xml', _says(os.urandom(10**5)), 'no annotation in ASAP'),
  Case('zeros', '.xml', _says(bytes(10**6)), 'no annotation in ASAP'),
  Case('root', '.xml', _says('<html/>'), 'begins with <html>'),
  Case('bare', '.xml', _says('<ASAP_Annotations/>'), 'no <Annotations>'),
  Case('none', '.xml', _asap(''), '', 0),
  Case(
    'cut',
    '.xml',
    _says('<ASAP_Annotations><Annotations><Annotation Name="A"><Coord'),
    'no annotation in ASAP',
  ),
  Case(
    'laughs',
    '.xml',
    _asap('&e9;', f'<!DOCTYPE a [{ENTITIES}]>'),
    'EntitiesForbidden',
  ),
  Case(
    'external',
    '.xml',
    _asap('&x;', '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
    'EntitiesForbidden',
  ),
  Case(
    'nan', '.xml', _asap(_ring(*SQUARE, ('nan', '1'))), "'A' .* is not finite"
  ),
  Case(
    'infinite', '.xml', _asap(_ring(*SQUARE, ('1', '-inf'))), 'is not finite'
  ),
  Case(
    'word', '.xml', _asap(_ring(*SQUARE, ('left', '1'))), 'without a number'
  ),
  Case(
    'lacking',
    '.xml',
    _asap('<Annotation Name="A"><Coordinate Order="0" X="1"/></Annotation>'),
    'without a number',
  ),
  Case('far', '.xml', _asap(_ring(*SQUARE, ('1e300', '1'))), 'on no slide'),
  Case('outside', '.xml', _outside, 'outside the slide'),
  Case(
    'partly',
    '.xml',
    _asap(_ring((-50, -50), (90, -50), (90, 90))),
    '',
    1,
    _read_and_fill,
  ),
  Case(
    'crossing',
    '.xml',
    _asap(_ring((10, 10), (90, 90), (90, 10), (10, 90))),
    '',
    1,
    _read_and_fill,
  ),
  Case('two_points', '.xml', _asap(_ring((1, 1), (9, 9))), '', 0),
  Case('dot', '.xml', _asap(_ring((1, 1), kind='Dot')), '', 0),
  Case(
    'deep',
    '.xml',
    _asap('<a>' * 10**5),
    'no annotation in ASAP.*mismatched tag',
  ),
  Case('large', '.xml', _large_xml, '', 1, _read_and_fill),
  # GeoJSON.
  Case('empty', '.geojson', _says(''), 'is not JSON'),
  Case('text', '.geojson', _says('Dear colleague'), 'not GeoJSON.*Dear'),
  Case('junk', '.geojson', _says(b'\xff' * 10**5), 'is not GeoJSON'),
  Case('latin', '.geojson', _says(b'{"type": "\xe4"}'), 'is not JSON'),
  Case('cut', '.geojson', _says('{"type": "Feat'), 'is not JSON'),
  Case('number', '.json', _says('[1, 2]'), 'has 1 where an object'),
  Case('other', '.json', _says('{"slides": []}'), 'where an object'),
  Case(
    'topology', '.geojson', _says('{"type": "Topology"}'), "'Topology', which"
  ),
  Case(
    'featureless',
    '.geojson',
    _says('{"type": "FeatureCollection", "features": {}}'),
    'without a list of features',
  ),
  Case('shapeless', '.geojson', _says('{"type": "Feature"}'), 'a geometry'),
  Case(
    'lacking',
    '.geojson',
    _says('{"type": "Polygon"}'),
    'without a list of coordinates',
  ),
  Case('hollow', '.geojson', _says(_geometry('Polygon', [])), 'without coord'),
  Case(
    'strings',
    '.geojson',
    _says(_geometry('Polygon', [[['1', '2'], ['3', '4'], ['5', '1']]])),
    'as numbers',
  ),
  Case(
    'ragged',
    '.geojson',
    _says(_geometry('Polygon', [[[1, 2], [3], [4, 5]]])),
    'broken coordinates',
  ),
  Case(
    'flat',
    '.geojson',
    _says(_geometry('Polygon', [[1, 2], [3, 4], [4, 5]])),
    'as numbers',
  ),
  Case(
    'null',
    '.geojson',
    _says(_geometry('Polygon', [[[1, 2], [None, 4], [4, 5]]])),
    'as numbers',
  ),
  Case(
    'nan',
    '.geojson',
    _says('{"type": "Polygon", "coordinates": [[[NaN, 1]]]}'),
    'has NaN',
  ),
  Case(
    'infinite',
    '.geojson',
    _says('{"type": "Polygon", "coordinates": [[[1, -Infinity]]]}'),
    'has -Infinity',
  ),
  Case(
    'overflow',
    '.geojson',
    _says('{"type": "Polygon", "coordinates": [[[1e999, 1], [2, 3], [4, 5]]]}'),
    'on no slide',
  ),
  Case(
    'digits',
    '.geojson',
    _says(f'{{"type": "Polygon", "coordinates": [[[{"9" * 5000}, 1]]]}}'),
    'is not JSON',
  ),
  Case(
    'far',
    '.geojson',
    _says(_geometry('Polygon', [_closed([*SQUARE, (10**40, 1)])])),
    'numbers|on no slide',
  ),
  Case(
    'two_points',
    '.geojson',
    _says(_geometry('Polygon', [_closed([(1, 1), (9, 9)])])),
    'ring of 2 points',
  ),
  Case('deep', '.geojson', _says('[' * MILLION), 'nested too deeply'),
  Case(
    'deep_geometry',
    '.geojson',
    _says(
      '{"type": "GeometryCollection", "geometries": [' * 5000 + ']}' * 5000
    ),
    'nested too deeply',
  ),
  Case(
    'outside',
    '.geojson',
    _says(_geometry('Polygon', [_closed([(5, 900), (9, 900), (9, 950)])])),
    'outside the slide',
  ),
  Case(
    'crossing',
    '.geojson',
    _says(_geometry('Polygon', [[(10, 10), (90, 90), (90, 10), (10, 90)]])),
    '',
    1,
    _read_and_fill,
  ),
  Case('large', '.geojson', _large_json, '', 1, _read_and_fill),
  Case('many', '.geojson', _many, '', 2500, _read_and_fill),
  # Masks.
  Case('good_mask', '.tif', _mask(_marked(1)), '', 1, _read_and_fill),
  Case('empty_mask', '.tif', _says(''), "can't be read as a mask"),
  Case('text_mask', '.tif', _says('Dear colleague'), "can't be read as a mask"),
  Case('cut_mask', '.tif', _cut_mask, "can't be read as a mask"),
  Case('bomb_mask', '.tif', _bomb_mask, 'not of the shape of its slide'),
  Case(
    'bomb_of_square_slide',
    '.tif',
    _bomb_mask,
    'pieces of',
    read=lambda path: annotation_files.read_annotation(path, (10**5, 10**5)),
  ),
  Case('float_mask', '.tif', _mask(_marked(1, np.float32)), 'type float32'),
  Case('gray_mask', '.tif', _mask(_marked(7)), 'has pixels of 7'),
  Case(
    'both_marks',
    '.tif',
    _mask(np.maximum(_marked(1), _marked(255)[::-1])),
    'has pixels of 1, 255',
  ),
  Case(
    'mask_of_another',
    '.tif',
    _mask(_marked(255, size=(900, 800))),
    'mask of another one',
  ),
  # Files of the wrong name, or none.
  Case('absent', '.xml', lambda path: None, 'There is no annotation'),
  Case('absent', '.geojson', lambda path: None, 'There is no annotation'),
  Case('absent_mask', '.tif', lambda path: None, 'There is no annotation'),
  Case('folder', '.xml', lambda path: path.mkdir(), "can't be read"),
  Case('strange', '.csv', _says('x,y'), 'expected one of .xml'),
  Case('twice', '.xml', _two, 'twice.geojson; keep one', read=_find),
  Case(
    'orphan', '.xml', _asap(_ring(*SQUARE)), 'belongs to no slide', read=_orphan
  ),
]


def _outcome(case: Case, path: pathlib.Path) -> dict:
  """What reading gives, in this process."""
  began = time.process_time()
  try:
    found = case.read(path)
    said = {'error': '', 'polygons': len(found)}
  except AnnotationError as error:
    said = {'error': str(error)}
  except BaseException as error:
    said = {'error': '', 'strange': repr(error)[:300]}
  return said | {'seconds': time.process_time() - began}


def _apart(case: Case, path: pathlib.Path) -> dict:
  """What reading gives in a process that is killed where it takes too long."""
  end, begin = os.pipe()
  child = os.fork()
  if not child:
    # Twice what it should take at most, for machines where others compute.
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
    with os.fdopen(begin, 'w') as pipe:
      json.dump(_outcome(case, path), pipe)
    os._exit(0)
  os.close(begin)
  with os.fdopen(end) as pipe:
    text = pipe.read()
  _, status, used = os.wait4(child, 0)
  said = json.loads(text) if text else {'error': '', 'strange': str(status)}
  return said | {
    'megabytes': used.ru_maxrss / 1024,
    'seconds': used.ru_utime + used.ru_stime,  # Of the processor.
  }


def expected(case: Case, said: dict) -> bool:
  """Whether what came of a case is what should have."""
  if 'strange' in said:
    return False
  if not case.error:
    return not said['error'] and said['polygons'] == case.polygons
  matches = re.search(case.error, said['error'], re.DOTALL)
  return bool(matches) and case.file in said['error']


def main(folder: pathlib.Path) -> None:
  for case in CASES:
    path = folder / case.file
    # Not written here, where the process would keep the memory.
    child = os.fork()
    if not child:
      case.write(path)
      os._exit(0)
    os.waitpid(child, 0)
    said = _apart(case, path)
    if said['seconds'] >= SECONDS:  # Once more: others may have computed.
      said = _apart(case, path)
    print(json.dumps({'case': case.file} | said), flush=True)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
