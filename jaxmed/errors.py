"""What a user can mend. The command line prints it as one sentence."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """Says what was found, what was expected, and what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
  """An error for a misspelt name: the closest match, and all known ones."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  listed = ', '.join(known) or 'none'
  return UserError(f'No {kind} {name!r}.{hint} Known: {listed}.')
