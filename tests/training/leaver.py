"""One of two processes, of which one cannot go on.

python -m tests.training.leaver ADDRESS PROCESS first|alone
"""

import sys

import jax

from jaxmed import command
from jaxmed.errors import UserError
from jaxmed.training import distributed


def main(address: str, process: str, which: str):
  jax.config.update('jax_num_cpu_devices', 1)
  distributed.initialize(False, address, 2, int(process))
  distributed.barrier('begun')
  if which == 'first':
    distributed.only_first(_fail, 'the test')
  elif process == '1':
    _fail()
  distributed.barrier('never')


def _fail():
  raise UserError('There is no disk.')


if __name__ == '__main__':
  run = lambda: main(*sys.argv[1:])
  sys.exit(distributed.exit_code(lambda: command.exit_code(run, False)))
