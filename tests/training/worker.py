"""One of two processes that train a miniature together.

python -m tests.training.worker ADDRESS PROCESS FOLDER STOP
"""

import contextlib
import pathlib
import sys

import jax

from jaxmed.training import distributed
from jaxmed.training.run import Policy, Stopped
from tests.training import miniature


def main(address: str, process: str, folder: str, stop: str):
  jax.config.update('jax_num_cpu_devices', 1)
  distributed.initialize(False, address, 2, int(process))
  for name in ('adversaries', 'bank'):
    place = pathlib.Path(folder) / name
    with contextlib.suppress(Stopped):
      miniature.train(
        getattr(miniature, name),
        place,
        watch=miniature.Chooser(place),
        policy=Policy(log_every=2),
        stop=lambda at: at.event == int(stop),
      )


if __name__ == '__main__':
  main(*sys.argv[1:])
