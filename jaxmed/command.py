"""What the commands share: flags, configs, logs, errors, exit codes."""

import contextlib
import importlib
import importlib.resources
import logging as standard_logging
import os
import pathlib
import re
import runpy
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from jaxmed import errors
from jaxmed.errors import UserError

PREFIX = '--config.'
# (type, what a user calls it); bool first, which is an int too.
KINDS = (
  (bool, 'true or false'),
  (int, 'a whole number'),
  (float, 'a number'),
  (tuple, 'a tuple'),
)


def parse_launch(argv: Sequence[str], about: str) -> flags.FlagValues:
  """The flags of a launch; every mistake in them is a `UserError`."""
  argv = [_with_path(word) for word in _joined(argv)]
  asks_help = any(word in ('--help', '-h', '-help') for word in argv)
  values = _flags(argv)
  if asks_help and not any(word.startswith('--config=') for word in argv):
    print(_help(values, about))
    raise SystemExit(0)
  path, preset = _config_path(argv)
  config = _read(path, preset)
  fields = dict(_fields(config))
  if asks_help:
    print(_help(values, about, fields))
    raise SystemExit(0)
  for word in argv:
    field = word.removeprefix(PREFIX).partition('=')[0]
    if word.startswith(PREFIX) and field not in fields:
      raise errors.unknown('config field', field, fields)
  try:
    rest = values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise _unfit(error, fields) from error
  if len(rest) > 1:
    raise UserError(f'No flag {rest[1]!r}; flags begin with --.')
  return values


def _flags(argv: Sequence[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  define = {'flag_values': values}
  config_flags.DEFINE_config_file(
    'config',
    None,
    'A config by name, or a file, and a preset after a colon: munit, '
    'munit:folder, configs/munit.py:tiny. A field of it is changed by '
    '--config.FIELD=VALUE, such as --config.train.steps=200.',
    sys_argv=argv,
    **define,
  )
  flags.DEFINE_string(
    'workdir', '', "The run's folder; by default runs/METHOD-PRESET.", **define
  )
  flags.DEFINE_bool(
    'fresh', False, 'Remove what the folder holds and begin anew.', **define
  )
  flags.DEFINE_bool(
    'debug', False, 'Show the traceback of every error.', **define
  )
  flags.DEFINE_bool(
    'distributed',
    False,
    'This is one of several hosts, which find each other (TPU pod, Slurm).',
    **define,
  )
  flags.DEFINE_string(
    'coordinator',
    '',
    'HOST:PORT of process 0, where hosts do not find each other; also needs '
    '--processes and --process.',
    **define,
  )
  flags.DEFINE_integer('processes', 0, 'How many hosts there are.', **define)
  flags.DEFINE_integer('process', -1, 'Which one this is, from 0.', **define)
  return values


def _help(
  values: flags.FlagValues, about: str, fields: Mapping[str, Any] | None = None
) -> str:
  """What --help prints; after a config, also its fields."""
  lines = [about, 'Flags:']
  order = ('config', 'workdir', 'fresh', 'debug')
  others = sorted(name for name in values if name not in order)
  for name in (*order, *others):
    kind = '' if values[name].boolean else '=' + name.upper()
    lines.append(f'  --{name}{kind}')
    lines.append(textwrap.indent(textwrap.fill(values[name].help, 72), ' ' * 6))
  lines += ['', 'Configs and their presets, the first by default:']
  for name in config_names():
    module = importlib.import_module(f'jaxmed.configs.{name}')
    presets = f'{name}: {", ".join(module.PRESETS)}'
    lines += textwrap.wrap(
      presets, 80, initial_indent='  ', subsequent_indent='    '
    )
  if fields is None:
    lines += ['', '--config=NAME --help also lists the fields of a config.']
  else:
    lines += [
      '',
      'Fields of this config, each changed by --config.FIELD=VALUE:',
    ]
    lines += [
      f'  {name} = {value!r}'
      for name, value in fields.items()
      if not isinstance(value, ConfigDict)
    ]
  return '\n'.join(lines)


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
    with _terminable():
      return main() or 0
  except Stopped as stopped:
    sys.stderr.write(f'jaxmed: {stopped}\n')
    return 128 + (stopped.signal_number or 0)
  except KeyboardInterrupt as stopped:
    sys.stderr.write('jaxmed: Interrupted; the same command goes on.\n')
    return 143 if isinstance(stopped, _Terminated) else 130
  except BrokenPipeError:  # Whoever reads has read enough: `| head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  except UserError as error:
    return _told(str(error), debug)
  except OSError as error:
    if error.errno not in errors.NO_ROOM:
      raise
    place = f' for {error.filename}' if error.filename else ''
    return _told(
      f'There is no space left{place} ({error.strerror}); make some, and the '
      'same command goes on.',
      debug,
    )


def _told(sentence: str, debug: bool) -> int:
  if debug:
    traceback.print_exc()
  sys.stderr.write(f'jaxmed: {" ".join(sentence.split())}\n')
  return 2


class _Terminated(KeyboardInterrupt):
  """A SIGTERM, where there is nothing to save."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
  """Ends at SIGTERM as at Ctrl-C: files are closed, and something is said."""

  def stop(number, frame):
    raise _Terminated

  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _joined(argv: Sequence[str]) -> list[str]:
  """`--config munit` as `--config=munit`, which is all that follows reads."""
  argv = list(argv)
  for i, word in enumerate(argv[:-1]):
    if word in ('--config', '-config'):
      return [*argv[:i], f'--config={argv[i + 1]}', *_joined(argv[i + 2 :])]
  return argv


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


def _read(path: pathlib.Path, preset: str | None) -> ConfigDict:
  """The config as its file gives it; absl reads it once more by itself."""
  try:
    get_config = runpy.run_path(str(path)).get('get_config')
    if get_config is None:
      raise UserError(
        f'The config file {path} defines no get_config(preset=None), which '
        'gives the config.'
      )
    config = get_config(preset) if preset else get_config()
  except UserError:
    raise
  except Exception as error:  # The file is anybody's code.
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == str(path)
    ]
    line = getattr(error, 'lineno', None) or (lines or [0])[-1]
    place = f' at line {line}' if line else ''
    raise UserError(
      f'The config file {path} fails{place}: {type(error).__name__}: '
      f'{getattr(error, "msg", error)}; --debug shows the traceback.'
    ) from error
  if not isinstance(config, ConfigDict):
    raise UserError(
      f'get_config of {path} gives no ConfigDict but a {type(config).__name__}.'
    )
  return config


def _fields(config: ConfigDict, at: str = '') -> Iterator[tuple[str, Any]]:
  """Dotted names and values, of groups too."""
  for name, value in config.items():
    yield f'{at}{name}', value
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{at}{name}.')


def _unfit(error: Exception, fields: Mapping[str, Any]) -> UserError:
  """What a flag should have been, where its error does not say so."""
  given = re.match(r'flag --config\.([\w.]+)=', str(error))
  if not given or given[1] not in fields:
    text = str(error).replace(' ?', '?')
    return UserError(text if text[-1:] in '.?' else f'{text}.')
  word = str(error).removeprefix('flag ').partition(': ')[0]
  now = fields[given[1]]
  if isinstance(now, ConfigDict):
    some = ', '.join(f'{given[1]}.{name}' for name in list(now)[:3])
    return UserError(f'{word} sets a group of fields; set one, such as {some}.')
  kinds = [words for kind, words in KINDS if isinstance(now, kind)]
  kind = kinds[0] if kinds else f'a {type(now).__name__}'
  return UserError(f'{word} does not fit: the field is {kind}, now {now!r}.')
