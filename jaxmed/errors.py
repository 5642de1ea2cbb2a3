"""What a user can mend. The command line prints it as one sentence."""

import difflib
import errno
import os
from collections.abc import Iterable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # Of an OSError: the disk is full.


class UserError(Exception):
  """Says what was found, what was expected, and what to do."""


def printable(text: str, most: int = 300) -> str:
  """A name or a line from a file, as it may be shown on a terminal."""
  fits = text.isprintable() and len(text) <= most
  return text if fits else f'{text!r:.{most}}'


def is_text(path: str | os.PathLike) -> bool:
  """Whether a name can be written into tables and pages, all in UTF-8."""
  try:
    os.fspath(path).encode()
  except UnicodeEncodeError:
    return False
  return True


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
  """An error for a misspelt name: the closest match, and what is known.

  Of more than 30 known names, only those that come near are listed.
  """
  known = sorted(known)
  close = difflib.get_close_matches(str(name), known, n=5, cutoff=0.5)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  label, listed = 'Known', known
  if len(known) > 30 and close:
    label, listed = 'Near', close
  return UserError(
    f'No {kind} {name!r}.{hint} {label}: {", ".join(listed) or "none"}.'
  )
