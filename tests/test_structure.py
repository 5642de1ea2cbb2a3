"""The house rules that a machine can check: imports, names, dependencies."""

import ast
import functools
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import time
import tokenize
import tomllib
from collections.abc import Iterator

import pytest

from tests.places import ROOT

PACKAGE = ROOT / 'jaxmed'
# What each room may import of ours. Rooms that are not listed see everything:
# they are the top floor.
EVERYBODYS = {'errors', 'progress'}
MAY_IMPORT = {
  'errors': set(),
  'progress': set(),
  'method': set(),
  'ops': {'method'},
  'nn': {'method', 'ops', 'weights'},
  'weights': {'method'},
  'methods': {'method', 'nn', 'ops', 'weights'},
  'slides': set(),
  'datasets': {'slides'},
  'pipeline': {'datasets', 'method', 'ops'},
  'training': {'method'},
  'metrics': set(),
  'report': set(),
  'workdir': set(),
  'provenance': {'workdir'},
  'pretrained': {'method', 'nn', 'weights'},
  'perceptual': {'method', 'nn', 'pipeline', 'pretrained'},
  'init_from': {'method', 'training', 'weights', 'workdir'},
  'watching': {
    'datasets',
    'method',
    'metrics',
    'nn',
    'pipeline',
    'pretrained',
    'provenance',
    'training',
    'weights',
    'workdir',
  },
  'learn': {
    'datasets',
    'init_from',
    'method',
    'methods',
    'pipeline',
    'pretrained',
    'provenance',
    'training',
    'watching',
    'workdir',
  },
  'scoring': {
    'datasets',
    'learn',
    'method',
    'methods',
    'metrics',
    'pipeline',
    'pretrained',
    'slides',
    'training',
    'workdir',
  },
  'evaluate_lesions': {'metrics', 'slides'},
  'evaluate': {'evaluate_lesions', 'metrics', 'workdir'},
  'examples': {'datasets', 'scoring', 'workdir'},
  'beforehand': {
    'datasets',
    'evaluate_lesions',
    'methods',
    'nn',
    'pipeline',
    'scoring',
    'slides',
    'training',
    'watching',
  },
  'command': {'training'},
  'comparing': {
    'beforehand',
    'command',
    'datasets',
    'metrics',
    'pipeline',
    'report',
    'scoring',
    'workdir',
  },
}
TOP = {'__init__', '__main__', 'commands', 'launch'}
BARRED = ('tensorflow', 'torch', 'torchvision')
FORBIDDEN = re.compile(r'(util|helper|common|manager|engine|misc|tool|base)s?')
# Imported under another name than that of the distribution's module, or by
# another distribution.
IMPORTED_AS = {'openslide-bin': 'openslide', 'orbax-checkpoint': 'orbax'}


def _files() -> list[pathlib.Path]:
  return sorted(PACKAGE.rglob('*.py'))


def _room(path: pathlib.Path) -> str:
  """The folder of the package, or the module, that a file is."""
  parts = path.relative_to(PACKAGE).parts
  return parts[0].removesuffix('.py')


def _imports(path: pathlib.Path) -> Iterator[str]:
  """Full names of what a file imports, at the top or later."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path} has a relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _ours(path: pathlib.Path) -> set[str]:
  """The other rooms that a file imports from."""
  names = [n.split('.') for n in _imports(path) if n.startswith('jaxmed.')]
  rooms = {name[1] for name in names} - {'__version__', _room(path)}
  return rooms


def test_every_room_has_its_rule():
  rooms = {_room(path) for path in _files()}
  assert rooms == TOP | set(MAY_IMPORT)


@pytest.mark.parametrize('room', MAY_IMPORT)
def test_imports_go_one_way(room):
  allowed = MAY_IMPORT[room] | EVERYBODYS
  if room in EVERYBODYS:
    allowed = set()
  for path in _files():
    if _room(path) == room:
      strange = _ours(path) - allowed
      assert not strange, f'{path.relative_to(ROOT)} imports {strange}'


def test_the_rules_have_no_circle():
  def below(room: str, above: tuple[str, ...]) -> None:
    assert room not in above, f'{" <- ".join((*above, room))}'
    for other in MAY_IMPORT[room]:
      below(other, (*above, room))

  for room in MAY_IMPORT:
    below(room, ())


def test_a_method_is_read_alone():
  """No method imports another one."""
  for path in (PACKAGE / 'methods').glob('*.py'):
    names = [n for n in _imports(path) if n.startswith('jaxmed.methods')]
    assert not names, f'{path.name} imports {names}'


def test_configs_import_configs_alone():
  for path in (ROOT / 'configs').glob('*.py'):
    for name in _imports(path):
      if name.startswith('jaxmed'):
        assert name.startswith(('jaxmed.configs', 'jaxmed.errors')), (
          f'{path.name} imports {name}'
        )


def test_no_torch_and_no_tensorflow():
  for path in _files():
    for name in _imports(path):
      assert name.split('.')[0] not in BARRED, f'{path} imports {name}'


def test_files_are_named_for_what_they_do():
  for path in [*_files(), *(p for p in PACKAGE.rglob('*') if p.is_dir())]:
    assert not FORBIDDEN.fullmatch(path.stem), path


def test_nothing_prints_but_commands():
  may = {'commands', 'command', 'launch'}
  for path in _files():
    for node in ast.walk(ast.parse(path.read_text())):
      calls = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
      if calls and node.func.id == 'print':
        assert _room(path) in may, f'{path}, line {node.lineno}, prints'


def test_names_are_defined():
  """Ruff's F821, which pyproject.toml leaves out: names of dimensions, as in
  Float[Array, 'b c'], are undefined for it. They stand in strings.
  """
  done = subprocess.run(
    [sys.executable, '-m', 'ruff', 'check', '--isolated', '--select=F821']
    + ['--output-format=json', str(ROOT)],
    capture_output=True,
    text=True,
  )
  found = []
  for one in json.loads(done.stdout):
    place = one['location']['row'], one['location']['column'] - 1
    path = pathlib.Path(one['filename'])
    if path.suffix == '.py' and not _in_string(path, place):
      found.append(f'{path.name}, line {place[0]}: {one["message"]}')
  assert not found


@functools.cache
def _strings(path: pathlib.Path) -> list[tuple]:
  with path.open('rb') as file:
    tokens = tokenize.tokenize(file.readline)
    return [(t.start, t.end) for t in tokens if t.type == tokenize.STRING]


def _in_string(path: pathlib.Path, place: tuple[int, int]) -> bool:
  return any(start <= place < end for start, end in _strings(path))


def test_every_module_says_what_it_is_for():
  for path in _files():
    assert ast.get_docstring(ast.parse(path.read_text())), path


def test_dependencies_are_imported_and_imports_are_dependencies():
  with (ROOT / 'pyproject.toml').open('rb') as file:
    project = tomllib.load(file)['project']
  named = lambda listed: {re.match(r'[\w.-]+', d)[0] for d in listed}
  declared = named(project['dependencies'])
  extra = named(project['optional-dependencies']['beam'])
  imported = {n.split('.')[0] for path in _files() for n in _imports(path)}
  imported -= set(sys.stdlib_module_names) | {'jaxmed'}
  of = importlib.metadata.packages_distributions()
  plain = lambda name: re.sub(r'[-_.]+', '-', name).lower()
  used = {plain(d) for name in imported for d in of.get(name, [name])}
  used |= {d for d, name in IMPORTED_AS.items() if name in imported}
  assert {plain(d) for d in declared} <= used, 'declared, but never imported'
  for name in imported:
    known = {plain(d) for d in of.get(name, [name])}
    assert known & {plain(d) for d in declared | extra}, f'{name} undeclared'


def test_the_wheel_has_every_package():
  with (ROOT / 'pyproject.toml').open('rb') as file:
    packages = tomllib.load(file)['tool']['setuptools']['packages']
  folders = {
    '.'.join(path.parent.relative_to(ROOT).parts)
    for path in PACKAGE.rglob('__init__.py')
  }
  assert set(packages) == folders | {'jaxmed.configs'}


def test_the_wheel_has_every_file_beside_the_code():
  with (ROOT / 'pyproject.toml').open('rb') as file:
    data = tomllib.load(file)['tool']['setuptools']['package-data']
  for path in PACKAGE.rglob('*'):
    if path.is_file() and path.suffix not in ('.py', '.pyc'):
      package = '.'.join(path.parent.relative_to(ROOT).parts)
      patterns = data.get(package, [])
      assert any(path.match(p) for p in patterns), f'{path} is left out'


def test_import_is_quick_and_loads_nothing_heavy():
  heavy = (
    'jax',
    'flax',
    'grain',
    'matplotlib',
    'numpy',
    'orbax',
    'pyarrow',
    'sklearn',
    'tensorflow',
    'tensorflow_datasets',
    'torch',
  )
  code = (
    'import sys, jaxmed; from jaxmed import errors; '
    f'print([m for m in {heavy!r} if m in sys.modules])'
  )
  began = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.strip() == '[]', done.stdout + done.stderr
  assert time.monotonic() - began < 10  # Under 2 s where nobody else computes.


def test_the_command_answers_before_it_loads_jax():
  code = (
    'import sys\nfrom jaxmed.commands import cli\n'
    'try: cli.main(["score", "--help"])\nexcept SystemExit: pass\n'
    'print("jax" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.stdout.strip().endswith('False'), done.stdout + done.stderr


def test_every_benchmark_can_be_loaded():
  """In one process, as a script is: with its own folder to import from."""
  code = (
    'import importlib, pathlib, sys\n'
    'sys.path.insert(0, "benchmarks")\n'
    'for path in sorted(pathlib.Path("benchmarks").glob("*.py")):\n'
    '  try: importlib.import_module(path.stem)\n'
    '  except ModuleNotFoundError as error:\n'
    '    if error.name != "torch": raise\n'
    '  print(path.stem)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
  )
  assert not done.returncode, done.stderr
  assert 'real_data' in done.stdout.split()
