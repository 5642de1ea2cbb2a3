"""A server of files on this machine, with the faults that real ones have."""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator

import numpy as np

from jaxmed.weights import npz
from jaxmed.weights.registry import Entry


class Publisher(http.server.ThreadingHTTPServer):
  """Serves `files`; tests set its faults.

  Attributes:
    files: bytes by path.
    ranges: whether it knows them.
    cut: so many bytes of an answer come before the connection breaks, of
      each answer in turn; None for all.
    failures: status codes of the first answers.
    redirects: from path to URL.
    lengths: whether it says how long an answer is.
    shift: how far off the parts are that it sends.
    asked: (path, Range) of every request.
  """

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.files, self.redirects = {}, {}
    self.ranges = self.lengths = True
    self.cut, self.failures, self.asked = [], [], []
    self.shift = 0

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_port}'

  def publish(self, content: bytes, name: str = 'toy', **more) -> Entry:
    """Serves a file and gives its entry, as the registry would have it."""
    path = f'/{name}-{hashlib.sha256(content).hexdigest()[:8]}.npz'
    self.files[path] = content
    facts = {
      'name': name,
      'network': '',
      'sha256': hashlib.sha256(content).hexdigest(),
      'size': len(content),
      'licence': 'MIT',
      'citation': 'Nobody, Nothing, 1999',
    } | more
    entry = Entry(url=f'https://x{path}', **facts)
    # The registry knows https alone, which a test has no certificate for.
    object.__setattr__(entry, 'url', self.url + path)
    return entry


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    server, part = self.server, self.headers.get('Range')
    server.asked.append((self.path, part))
    if server.failures:
      self.send_error(server.failures.pop(0))
      return
    if self.path in server.redirects:
      self._head(302, {'Location': server.redirects[self.path]}, 0)
      return
    if self.path not in server.files:
      self.send_error(404)
      return
    self._give(server.files[self.path], part)

  def _give(self, content: bytes, part: str | None):
    server, start = self.server, 0
    if part and server.ranges:
      start = int(part.removeprefix('bytes=').rstrip('-')) - server.shift
      size = len(content)
      if start >= size:
        self._head(416, {'Content-Range': f'bytes */{size}'}, 0)
        return
      where = {'Content-Range': f'bytes {start}-{size - 1}/{size}'}
      self._head(206, where, size - start)
    else:
      self._head(200, {}, len(content))
    cut = server.cut.pop(0) if server.cut else None
    with contextlib.suppress(ConnectionError):
      self.wfile.write(content[start:][:cut])
    if cut is not None or not server.lengths:
      self.close_connection = True

  def _head(self, status: int, headers: dict[str, str], length: int):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    if self.server.lengths:
      self.send_header('Content-Length', str(length))
    self.end_headers()

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def serving() -> Iterator[Publisher]:
  with Publisher() as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()


def toy(path, size: int = 40_000) -> dict[str, np.ndarray]:
  """Arrays of some hundred kilobytes, and their file."""
  rng = np.random.default_rng(0)
  arrays = {
    'conv.weight': rng.standard_normal((size // 10, 10)).astype(np.float16),
    'conv.bias': rng.standard_normal(size).astype(np.float32),
  }
  npz.write(path, arrays)
  return arrays
