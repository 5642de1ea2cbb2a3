"""What this machine has that jaxmed needs, and what it lacks."""

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import textwrap

from jaxmed import __version__

CODECS = ('jpeg8', 'png', 'tiff', 'jpeg2k', 'lzw', 'deflate')
WIDTH = 11  # Of the names of what is told.
# Whether Linux gives large pages to all, to those who ask, or to none.
PAGES = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
ASKING = 'GLIBC_TUNABLES=glibc.malloc.hugetlb=1'


def examine() -> tuple[list[str], list[str]]:
  """Lines to print, and what is missing."""
  missing: list[str] = []
  lines = [
    _line('jaxmed', f'{__version__}, Python {platform.python_version()}')
  ]
  for tell in (_packages, _devices, _codecs, _slides, _weights):
    try:
      lines += tell(missing)
    except Exception as error:  # It is for machines where things fail.
      name = tell.__name__.removeprefix('_')
      missing.append(name)
      lines.append(_line(name, f'fail: {type(error).__name__}: {error}'))
  lines += [_memory(), _disk(), _line('missing', ', '.join(missing) or 'none')]
  return lines, missing


def _line(name: str, text: str) -> str:
  """`text` beside its name, in lines of 80."""
  return textwrap.fill(
    text,
    80,
    initial_indent=name.ljust(WIDTH),
    subsequent_indent=' ' * WIDTH,
    break_long_words=False,
    break_on_hyphens=False,
  )


def _packages(missing: list[str]) -> list[str]:
  found, lacking = [], []
  for requirement in importlib.metadata.requires('jaxmed') or ():
    if 'extra ==' in requirement:
      continue
    name = re.match(r'[\w.-]+', requirement)[0]
    try:
      found.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      lacking.append(name)
  missing += lacking
  # A no-break space keeps each name beside its version.
  packages = ', '.join(text.replace(' ', '\xa0') for text in found)
  lines = [_line('packages', packages).replace('\xa0', ' ')]
  if lacking:
    lines.append(_line('', f'lacking: pip install {" ".join(lacking)}'))
  return lines


def _devices(missing: list[str]) -> list[str]:
  del missing
  import jax
  import jax.numpy as jnp

  from jaxmed.training.writer import matrix_peak

  devices = jax.devices()
  kinds = sorted({f'{d.device_kind} ({d.platform})' for d in devices})
  peak = matrix_peak(jnp.float32) / 1e9
  lines = [
    _line(
      'devices',
      f'{len(devices)} x {", ".join(kinds)}: {peak:.0f} GFLOP/s of float32 '
      'matrix products',
    )
  ]
  for device in devices:
    stats = device.memory_stats() or {}
    if limit := stats.get('bytes_limit'):
      lines.append(_line('', f'{device}: {limit / 2**30:.1f} GiB of memory'))
  if jax.default_backend() == 'cpu':
    lines.append(
      _line('', "no accelerator; for one: pip install -e '.[cuda]' or '.[tpu]'")
    )
    if _could_ask_for_pages():
      lines.append(_line('', f'training is quicker here with {ASKING}'))
  return lines


def _could_ask_for_pages() -> bool:
  """Whether large pages are to be had, and malloc does not ask for them.

  What steps allocate is else mapped in pages of 4 KiB at every step anew
  (benchmarks/huge_pages.py).
  """
  asks = 'glibc.malloc.hugetlb' in os.environ.get('GLIBC_TUNABLES', '')
  return not asks and PAGES.exists() and '[madvise]' in PAGES.read_text()


def _codecs(missing: list[str]) -> list[str]:
  import imagecodecs

  found = [c for c in CODECS if getattr(imagecodecs, c.upper()).available]
  missing += [f'codec {c}' for c in CODECS if c not in found]
  return [_line('codecs', ', '.join(found))]


def _slides(missing: list[str]) -> list[str]:
  del missing
  import openslide

  return [_line('slides', f'OpenSlide {openslide.__library_version__}')]


def _weights(missing: list[str]) -> list[str]:
  del missing
  from jaxmed.weights import store

  stored = ', '.join(store.names()) or 'none stored'
  return [_line('weights', f'{stored} in {store.folder()}')]


def _memory() -> str:
  from jaxmed.slides.guard import cores

  pages = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return _line('memory', f'{pages / 2**30:.1f} GiB, {cores()} cores')


def _disk() -> str:
  cache = pathlib.Path(
    os.environ.get('JAXMED_DATA') or '~/.cache/jaxmed'
  ).expanduser()
  there = next(p for p in (cache, *cache.parents) if p.exists())
  free = shutil.disk_usage(there).free / 2**30
  return _line('disk', f'{free:.0f} GiB free for prepared data in {cache}')
