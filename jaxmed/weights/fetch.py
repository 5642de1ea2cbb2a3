"""Public weights and anybody's files, verified and taken into the store.

What is downloaded stays in FILE.part until all of it is there and its hash is
right; only then is it read. A transfer that breaks off is taken up where it
stopped, in the same call a few times and in any later one.
"""

import contextlib
import errno
import fcntl
import http.client
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from absl import logging

from jaxmed import __version__
from jaxmed.errors import UserError
from jaxmed.progress import Progress
from jaxmed.weights import checkpoint, read, registry, store
from jaxmed.weights.registry import Entry
from jaxmed.weights.store import Facts

CHUNK, MIB = 2**16, 2**20  # Bytes.
TIMEOUT = 30.0  # Seconds without a byte.
ATTEMPTS = 3  # In a row that brought nothing.
PAUSE = 1.0  # Seconds after the first; twice as long after each further.
LONGEST = 4 * 2**30  # Bytes of a file whose size is not known.

Arrays = dict[str, np.ndarray]
Fit = Callable[[Mapping[str, np.ndarray]], Arrays]


class FetchError(UserError):
  """Weights that could not be downloaded, or are not what was published."""


def fetch(entry: Entry, fit: Fit | None = None) -> Facts:
  """Downloads public weights into the store; see `keep` for `fit`."""
  path = download(entry)
  try:
    return keep(path, entry.name, entry.network, fit, entry.url)
  finally:
    path.unlink()


def keep(
  path: pathlib.Path,
  name: str,
  network: str,
  fit: Fit | None = None,
  source: str = '',
  licence: str = '',
) -> Facts:
  """Takes a file of weights into the store.

  Args:
    path: of a .pth, .pt, .safetensors or .npz file, or of a checkpoint of
      TensorFlow.
    name: to store it by.
    network: that it is for.
    fit: gives the arrays to store, or raises if they are not the network's;
      None where nothing here can tell.
    source: where the file is from; '' for its path, or for the URL of the
      published file that it is.
    licence: of the weights; '' for that of the published file, if it is one.
  """
  store.path_of(name)  # A bad name is known before much is read.
  path = checkpoint.index_of(path)
  arrays = read.read(path)
  arrays = fit(arrays) if fit else arrays
  sha256 = store.sha256_of(path)
  published = registry.REGISTRY.get(name)
  known = published if published and published.fits(sha256) else None
  facts = Facts(
    name=name,
    network=network,
    source=source or (known.url if known else str(path.resolve())),
    sha256=sha256,
    licence=licence or (known.licence if known else ''),
    citation=known.citation if known else '',
    verified=known.check if known else 'names and shapes' * bool(fit),
  )
  return store.save(facts, arrays)


def download(entry: Entry) -> pathlib.Path:
  """The published file, verified, in the store's folder."""
  if not entry.url:
    raise FetchError(
      f'There is no file of {entry.name} to download. It is {entry.note}, and '
      f'use jaxmed weights import FILE --name {entry.name}.'
    )
  folder = store.folder()
  partial = folder / f'{entry.file}.part'
  with _claim(partial):
    resumed = _size(partial) > 0
    _fill(entry, partial)
    if resumed and not _right(entry, partial):
      logging.warning('%s was resumed and is wrong; once anew.', entry.file)
      os.truncate(partial, 0)  # Its beginning may be of another file.
      _fill(entry, partial)
    if not _right(entry, partial):
      found = f'{store.sha256_of(partial)}, of {_size(partial)} bytes'
      partial.unlink()
      raise FetchError(
        f'What {entry.url} gave is not {entry.file}: its SHA-256 is {found}, '
        f'and that of {entry.file} begins with {entry.sha256}. It was '
        f'removed; try again from another network, or {_by_hand(entry)}.'
      )
    partial.replace(folder / entry.file)
  return folder / entry.file


def _right(entry: Entry, path: pathlib.Path) -> bool:
  return entry.fits(store.sha256_of(path))


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size


def _by_hand(entry: Entry) -> str:
  """What to do where there is no connection."""
  return (
    f'on a machine that can reach it run: curl -fLO {entry.url} ; bring '
    f'{entry.file} here and run: jaxmed weights import {entry.file} --name '
    f'{entry.name}'
  )


@contextlib.contextmanager
def _claim(partial: pathlib.Path) -> Iterator[None]:
  """Holds a download for this process: two of one file would mix."""
  try:
    partial.parent.mkdir(parents=True, exist_ok=True)
    file = partial.open('ab')
  except OSError as error:
    raise FetchError(
      f"{partial} can't be written: {error.strerror}; set JAXMED_WEIGHTS to a "
      'folder that can.'
    ) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise FetchError(
        f'Another process is downloading {partial}; wait for it.'
      ) from None
    try:
      yield
    finally:
      if partial.exists() and not _size(partial):
        partial.unlink()


def _fill(entry: Entry, partial: pathlib.Path) -> None:
  """Downloads until the file is whole, taking up what breaks off."""
  idle = 0
  while True:
    before = _size(partial)
    try:
      return _transfer(entry, partial)
    except urllib.error.HTTPError as error:
      error.close()
      if error.code < 500 and error.code not in (408, 429):
        raise FetchError(
          f'{entry.url} is refused: {error.code} {error.reason}. If you have '
          f'{entry.file} from elsewhere: jaxmed weights import {entry.file} '
          f'--name {entry.name}.'
        ) from error
      problem = f'{error.code} {error.reason}'
    except (OSError, http.client.HTTPException) as error:
      problem = str(getattr(error, 'reason', error)) or type(error).__name__
    size = _size(partial)
    idle = 0 if size > before else idle + 1
    if idle == ATTEMPTS:
      kept = (
        f'; its first {size} bytes are kept, and the same command goes on'
        if size
        else ''
      )
      raise FetchError(
        f'{entry.name} could not be downloaded: {problem}{kept}. Or '
        f'{_by_hand(entry)}.'
      )
    logging.warning('%s: %s; trying again.', entry.file, problem)
    time.sleep(PAUSE * 2 ** max(idle - 1, 0))


def _transfer(entry: Entry, partial: pathlib.Path) -> None:
  """One request, from where the file ends to the end of what it brings."""
  here = _size(partial)
  headers = {'User-Agent': f'jaxmed/{__version__}'}
  if here:
    headers['Range'] = f'bytes={here}-'
  request = urllib.request.Request(entry.url, headers=headers)
  try:
    answer = _OPENER.open(request, timeout=TIMEOUT)
  except urllib.error.HTTPError as error:
    if not here or error.code != 416:
      raise
    error.close()
    if _total(error.headers) != here:  # There is less of it than we have.
      os.truncate(partial, 0)
      raise ConnectionError('the file on the server is another one') from error
    return
  with answer:
    if answer.status == 206:
      total = _total(answer.headers)
      if _start(answer.headers) != here:
        os.truncate(partial, 0)
        raise ConnectionError('the server sent another part than asked for')
    else:  # It knows no ranges: all comes once more.
      os.truncate(partial, 0)
      length = answer.headers.get('Content-Length', '')
      here, total = 0, int(length) if length.isdecimal() else None
    _refuse_long(entry, total or 0)
    _copy(entry, answer, partial, here, total)
  if total is not None and _size(partial) < total:
    raise ConnectionError(f'it broke off before its end of {total} bytes')


def _copy(entry: Entry, answer, partial, here: int, total: int | None) -> None:
  """Appends what the answer brings."""
  expected = total or entry.size or here
  progress = Progress(-(-expected // MIB), entry.name, 'MiB', here // MIB)
  try:
    with partial.open('ab') as file:
      while piece := answer.read1(CHUNK):
        _write(file, piece, partial)
        progress.add((here + len(piece)) // MIB - here // MIB)
        here += len(piece)
        _refuse_long(entry, here)
  finally:
    progress.close()


def _write(file, piece: bytes, partial: pathlib.Path) -> None:
  try:
    file.write(piece)
    file.flush()
  except OSError as error:
    hint = ' and make room' if error.errno == errno.ENOSPC else ''
    raise FetchError(
      f"{partial} can't be written: {error.strerror}; set JAXMED_WEIGHTS to "
      f'another folder{hint}.'
    ) from error


def _refuse_long(entry: Entry, size: int) -> None:
  longest = entry.size or LONGEST
  if size > longest:
    raise FetchError(
      f'{entry.url} gives {size} bytes or more, and {entry.file} has '
      f'{longest} at most, so it is not that file; {_by_hand(entry)}.'
    )


def _start(headers) -> int | None:
  found = re.match(r'bytes (\d+)-', headers.get('Content-Range', ''))
  return int(found[1]) if found else None


def _total(headers) -> int | None:
  found = re.search(r'/(\d+)$', headers.get('Content-Range', ''))
  return int(found[1]) if found else None


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows no redirect out of https, and none to a file or to FTP."""

  def redirect_request(self, request, answer, code, message, headers, url):
    old, new = (x.partition(':')[0].lower() for x in (request.full_url, url))
    if new != 'https' and new != old:
      raise urllib.error.HTTPError(
        request.full_url, code, f'it redirects to {url}', headers, answer
      )
    return super().redirect_request(
      request, answer, code, message, headers, url
    )


_OPENER = urllib.request.build_opener(_Redirects)
