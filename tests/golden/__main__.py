"""`python -m tests.golden DIR...`: our networks against the originals'."""

import pathlib
import sys

from tests.golden import check


def main(arguments: list[str]) -> int:
  if not arguments or arguments[0].startswith('-'):
    print('usage: python -m tests.golden DIR...', file=sys.stderr)
    return 2
  lines, wrong = 0, 0
  for argument in arguments:
    try:
      found = check.check(pathlib.Path(argument))
    except Exception as error:  # The other cases are still to be told of.
      kind = type(error).__name__
      print(f'{argument}: {kind}: {error}', file=sys.stderr)
      wrong += 1
      continue
    for line in found:
      print(f'{pathlib.Path(argument).name:12} {line}', flush=True)
    lines += len(found)
    wrong += sum(not line.passed for line in found)
  print(f'{lines} outputs of {len(arguments)} cases, {wrong} wrong.')
  return 1 if wrong or not lines else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
