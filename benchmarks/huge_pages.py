"""MUNIT's training step on this CPU, with large pages asked for and without.

Processes of benchmarks/munit_step.py in turn, of a small and a larger network;
glibc's malloc asks for large pages if GLIBC_TUNABLES says so. Ratios are of
the medians over rounds of seconds a step, and of processor seconds.

  python benchmarks/huge_pages.py [--rounds 3]
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

import numpy as np

from jaxmed.commands.doctor import ASKING, PAGES

STEP = pathlib.Path(__file__).with_name('munit_step.py')
CASES = (
  '--size 64 --dim 8 --steps 5 --turns 5',
  '--size 128 --dim 32 --batch 2 --steps 1 --turns 3',
)
TIMES = re.compile(r'([\d.]+) s a step, processor ([\d.]+) s')


def seconds(case: str, asks: bool) -> tuple[float, ...]:
  """Of a step by the wall clock, and of the processor."""
  name, _, value = ASKING.partition('=')
  others = {k: v for k, v in os.environ.items() if k != name}
  told = subprocess.run(
    [sys.executable, str(STEP), *case.split()],
    env=others | ({name: value} if asks else {}),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  return tuple(map(float, TIMES.search(told).groups()))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=3)
  given = parser.parse_args()
  print(f'Linux gives large pages: {PAGES.read_text().strip()}')
  for case in CASES:
    turns = [
      [seconds(case, asks) for asks in (False, True)]
      for _ in range(given.rounds)
    ]
    small, large = np.median(turns, axis=0)
    wall, processor = small / large
    print(
      f'{case}: {small[0]:.2f} s a step, with large pages {large[0]:.2f}: '
      f'{wall:.2f} times as fast ({processor:.2f} by processor time), '
      f'load {os.getloadavg()[0]:.1f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
