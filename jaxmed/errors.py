"""What a user can mend. The command line prints it as one sentence."""

import difflib
import sys
from collections.abc import Callable, Iterable

from absl import logging


class UserError(Exception):
  """Says what was found, what was expected, and what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
  """An error for a misspelt name: the closest match, and all known ones."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  listed = ', '.join(known) or 'none'
  return UserError(f'No {kind} {name!r}.{hint} Known: {listed}.')


def exit_code(main: Callable[[], int | None], debug: bool) -> int:
  """Runs a command; what a user can mend becomes one sentence and a 2."""
  try:
    return main() or 0
  except UserError as error:
    if debug:
      raise
    logging.get_absl_handler().flush()
    sys.stderr.write(f'jaxmed: {error}\n')
    return 2
