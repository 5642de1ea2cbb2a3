"""The options of `jaxmed weights`; what they do is in weights_files.py."""

import argparse
import pathlib

from jaxmed.errors import UserError

ABOUT = (
  'Weights that others have trained: the ImageNet trunks that methods look '
  'through, and any checkpoint of the same networks. They are kept as '
  '.safetensors in $JAXMED_WEIGHTS, else ~/.cache/jaxmed/weights. No file can '
  'run code when it is read.'
)
SUFFIXES = {'.safetensors': 'safetensors', '.npz': 'npz'}


def add_options(parser: argparse.ArgumentParser) -> None:
  actions = parser.add_subparsers(metavar='ACTION', required=True)
  _add(
    actions,
    'list',
    _list,
    'all public weights, and what is here',
    'Names, networks, sizes, licences, whether they are here, and how what is '
    'here was verified.',
  )
  fetch = _add(
    actions,
    'fetch',
    _fetch,
    'download public weights',
    'Downloads, verifies by SHA-256, compares every name and shape with the '
    'network, and stores. Broken off, the same command goes on. On a machine '
    'without a connection it prints what to do on another one.',
  )
  fetch.add_argument(
    'names', nargs='+', metavar='NAME', help='see jaxmed weights list'
  )
  take = _add(
    actions,
    'import',
    _import,
    'store a file of weights under a name',
    'Reads .pth, .pt, .safetensors or .npz, or a checkpoint of TensorFlow, '
    'and stores it if every name and shape is that of the network; its '
    'classifier may be missing, or have any number of classes. Under the name '
    'of public weights it becomes what model.weights=imagenet means; under '
    'any other NAME a run takes it by --config.model.weights=NAME.',
  )
  take.add_argument(
    'file', type=pathlib.Path, metavar='FILE', help='to be imported'
  )
  take.add_argument(
    '--name', required=True, help='to store it by, such as resnet18 or mine'
  )
  take.add_argument(
    '--network',
    default='',
    metavar='NETWORK',
    help='that it is of (default: that of the name, or the one it fits)',
  )
  take.add_argument(
    '--source',
    default='',
    metavar='TEXT',
    help="where it is from, for the report (default: the file's path)",
  )
  take.add_argument(
    '--licence', default='', metavar='TEXT', help='of the weights'
  )
  verify = _add(
    actions,
    'verify',
    _verify,
    'look whether stored weights are still what they were',
    'Reads all numbers again. Exit code 1: something is damaged, and a line '
    'says what.',
  )
  verify.add_argument(
    'names', nargs='*', metavar='NAME', help='by default all that is stored'
  )
  export = _add(
    actions,
    'export',
    _export,
    "write a run's or stored weights for other programs",
    'Writes arrays by the names that the original code gives them, in its '
    "order of axes: PyTorch's for most networks. Of a run all that it has "
    'learned, or one part of it; a pretrained part, such as trunk, only if '
    'asked for, or if nothing was learned.',
  )
  export.add_argument(
    'what', metavar='RUN_OR_NAME', help="a run's folder, or a stored name"
  )
  export.add_argument(
    '--to',
    choices=sorted(SUFFIXES.values()),
    help='the format (default: by the end of --out)',
  )
  export.add_argument(
    '--out',
    required=True,
    type=pathlib.Path,
    metavar='FILE',
    help='where to write',
  )
  export.add_argument(
    '--part', default='', help='of the run, such as generator or trunk'
  )


def _add(actions, name, act, summary, description):
  parser = actions.add_parser(name, help=summary, description=description)
  parser.add_argument(
    '--debug', action='store_true', help='show the traceback of every error'
  )
  parser.set_defaults(act=act)
  return parser


def run(parsed: argparse.Namespace) -> tuple[str, int]:
  """Does what is asked; returns what to say, and the exit code."""
  return parsed.act(parsed)


def _list(parsed) -> tuple[str, int]:
  from jaxmed.commands import weights_files

  del parsed
  return weights_files.table(), 0


def _fetch(parsed) -> tuple[str, int]:
  from jaxmed.commands import weights_files

  return '\n'.join(weights_files.fetch_all(parsed.names)), 0


def _import(parsed) -> tuple[str, int]:
  from jaxmed.commands import weights_files

  said = weights_files.take(
    parsed.file, parsed.name, parsed.network, parsed.source, parsed.licence
  )
  return said, 0


def _verify(parsed) -> tuple[str, int]:
  from jaxmed.commands import weights_files

  said, good = weights_files.verify(parsed.names)
  return '\n'.join(said), 0 if good else 1


def _export(parsed) -> tuple[str, int]:
  from jaxmed.commands import weights_files

  kind = parsed.to or SUFFIXES.get(parsed.out.suffix)
  if kind is None:
    raise UserError(
      f'The end of {parsed.out} names no format; give it .safetensors or .npz, '
      'or --to one of these.'
    )
  said = weights_files.export(parsed.what, kind, parsed.out, parsed.part)
  return said, 0
