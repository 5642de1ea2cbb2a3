"""A shelf of slides whose library is as bad as a native one can be.

It aborts, hangs or ends on regions that begin at certain places.
"""

import os
import time

from jaxmed.slides import formats

ABORTS, HANGS, EXITS, SPINS = 64, 128, 192, 256


class Shelf(formats.Shelf):
  def read(self, key, path, level, x, y, width, height):
    if x == ABORTS:
      os.abort()
    if x == HANGS:
      time.sleep(600)
    while x == SPINS:
      pass
    if x == EXITS:
      os._exit(3)
    return super().read(key, path, level, x, y, width, height)

  def process(self, key):
    return os.getpid()

  def kept(self, key):
    return len(self._open)


class AbortsOnOpening(formats.Shelf):
  def describe(self, key, path):
    if 'abort' in path:
      os.abort()
    return super().describe(key, path)
