"""What the commands share: flags, configs, logs, errors, exit codes."""

import importlib.resources
import logging as standard_logging
import os
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from jaxmed import errors
from jaxmed.errors import UserError

PREFIX = '--config.'


def parse_launch(argv: Sequence[str], about: str) -> flags.FlagValues:
  """The flags of a launch; every mistake in them is a `UserError`."""
  argv = [_with_path(word) for word in argv]
  values = flags.FlagValues()
  define = {'flag_values': values}
  config_flags.DEFINE_config_file(
    'config',
    None,
    'A config file, or the name of one of ours, and a preset: '
    'munit, munit:folder, configs/munit.py:tiny. Fields are overridden by '
    '--config.train.steps=200 and the like.',
    sys_argv=argv,
    **define,
  )
  flags.DEFINE_string(
    'workdir', '', "The run's folder; else runs/METHOD-PRESET.", **define
  )
  flags.DEFINE_bool('fresh', False, 'Begin the folder anew.', **define)
  flags.DEFINE_bool('debug', False, 'Tracebacks of every error.', **define)
  flags.DEFINE_bool(
    'distributed', False, 'One of several hosts (TPU pod, Slurm).', **define
  )
  flags.DEFINE_string(
    'coordinator', '', 'host:port of process 0, else found out.', **define
  )
  flags.DEFINE_integer('processes', 0, 'How many hosts.', **define)
  flags.DEFINE_integer('process', -1, 'Which of them this is.', **define)
  if any(word in ('--help', '-h', '-help') for word in argv):
    print(f'{about}\nConfigs: {", ".join(config_names())}.\n')
    print(values.get_help())
    raise SystemExit(0)
  path, preset = _config_path(argv)
  try:
    rest = values(argv)
    config = values.config
  except (KeyError, AttributeError):
    raise _misspelt(argv, path, preset) from None
  except flags.Error as error:
    raise UserError(f'{error}') from error
  if len(rest) > 1:
    raise UserError(f'No flag {rest[1]!r}; flags begin with --.')
  if not isinstance(config, ConfigDict):
    raise UserError(f'{path} gives no ConfigDict but {type(config).__name__}.')
  return values


def config_names() -> list[str]:
  """Of the configs that come with the package."""
  return sorted(
    path.name.removesuffix('.py')
    for path in importlib.resources.files('jaxmed.configs').iterdir()
    if path.name.endswith('.py')
    and path.name not in ('__init__.py', 'defaults.py')
  )


def set_up() -> None:
  """Our log in short lines, others' only from warnings on; a compile cache."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
    standard_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S')
  )
  ours = os.path.dirname(__file__)
  handler.addFilter(
    lambda record: (
      record.pathname.startswith(ours)
      or record.levelno >= standard_logging.WARNING
    )
  )
  if not flags.FLAGS.is_parsed():  # Grain's worker processes ask for them.
    flags.FLAGS(sys.argv[:1])
  import jax

  if not jax.config.jax_compilation_cache_dir:
    cache = pathlib.Path('~/.cache/jaxmed/compiled').expanduser()
    jax.config.update('jax_compilation_cache_dir', str(cache))


def exit_code(main: Callable[[], int | None], debug: bool) -> int:
  """Runs a command; what a user can mend becomes one sentence and a 2."""
  from jaxmed.training.run import Stopped

  try:
    return main() or 0
  except Stopped as stopped:
    sys.stderr.write(f'jaxmed: {stopped}\n')
    return 128 + (stopped.signal_number or 0)
  except KeyboardInterrupt:
    sys.stderr.write('jaxmed: Interrupted; the same command goes on.\n')
    return 130
  except UserError as error:
    if debug:
      raise
    sys.stderr.write(f'jaxmed: {" ".join(str(error).split())}\n')
    return 2


def _with_path(word: str) -> str:
  """`--config=munit:tiny` names one of ours; give its path."""
  if not word.startswith('--config='):
    return word
  name, colon, preset = word.removeprefix('--config=').partition(':')
  if name.endswith('.py') or '/' in name:
    return word
  if name not in config_names():
    raise errors.unknown('config', name, config_names())
  path = importlib.resources.files('jaxmed.configs') / f'{name}.py'
  return f'--config={path}{colon}{preset}'


def _config_path(argv: Sequence[str]) -> tuple[pathlib.Path, str | None]:
  given = [w.removeprefix('--config=') for w in argv if w[:9] == '--config=']
  if not given:
    raise UserError(
      'A launch needs --config, e.g. --config=munit or '
      f'--config=configs/munit.py:folder. Known: {", ".join(config_names())}.'
    )
  path, _, preset = given[-1].partition(':')
  if not pathlib.Path(path).is_file():
    raise UserError(
      f'There is no config file {path}. Known by name: '
      f'{", ".join(config_names())}.'
    )
  return pathlib.Path(path), preset or None


def _misspelt(
  argv: Sequence[str], path: pathlib.Path, preset: str | None
) -> UserError:
  """Which of the overrides names no field of the config."""
  get_config = runpy.run_path(str(path))['get_config']
  config = get_config(preset) if preset else get_config()
  known = list(_fields(config))
  for word in argv:
    if word.startswith(PREFIX):
      field = word.removeprefix(PREFIX).partition('=')[0]
      if field not in known:
        return errors.unknown('config field', field, known)
  return UserError(f'{path} cannot be read as a config.')


def _fields(config: ConfigDict, at: str = '') -> Iterator[str]:
  for name, value in config.items():
    yield f'{at}{name}'
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{at}{name}.')
