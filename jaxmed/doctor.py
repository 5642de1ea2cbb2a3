"""What this machine has that jaxmed needs, and what it lacks."""

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import time

from jaxmed import __version__

CODECS = ('jpeg8', 'png', 'tiff', 'jpeg2k', 'lzw', 'deflate')


def examine() -> tuple[list[str], list[str]]:
  """Lines to print, and what is missing."""
  missing: list[str] = []
  lines = [f'jaxmed     {__version__}, Python {platform.python_version()}']
  lines += _packages(missing)
  lines += _devices()
  lines += _codecs(missing)
  lines += _room()
  lines.append(f'missing    {", ".join(missing) or "nothing"}')
  return lines, missing


def _packages(missing: list[str]) -> list[str]:
  lines = []
  for requirement in importlib.metadata.requires('jaxmed') or ():
    if 'extra ==' in requirement:
      continue
    name = re.match(r'[\w.-]+', requirement)[0]
    try:
      lines.append(f'  {name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      missing.append(name)
      lines.append(f'  {name} is not installed: pip install {name}')
  return ['packages', *lines]


def _devices() -> list[str]:
  import jax
  import jax.numpy as jnp

  from jaxmed.training.writer import matrix_peak

  began = time.monotonic()
  devices = jax.devices()
  kinds = sorted({f'{d.device_kind} ({d.platform})' for d in devices})
  peak = matrix_peak(jnp.float32) / 1e9
  lines = [
    f'devices    {len(devices)} x {", ".join(kinds)}, '
    f'{peak:.0f} GFLOP/s of float32 matrix products, '
    f'found in {time.monotonic() - began:.1f} s'
  ]
  for device in devices:
    stats = device.memory_stats() or {}
    if limit := stats.get('bytes_limit'):
      lines.append(f'  {device}: {limit / 2**30:.1f} GiB of memory')
  if jax.default_backend() == 'cpu':
    lines.append('  no accelerator: install jaxmed[cuda] or jaxmed[tpu]')
  return lines


def _codecs(missing: list[str]) -> list[str]:
  import imagecodecs
  import openslide

  found = [c for c in CODECS if getattr(imagecodecs, c.upper()).available]
  lacking = [c for c in CODECS if c not in found]
  missing += [f'codec {c}' for c in lacking]
  return [
    f'codecs     {", ".join(found)}',
    f'openslide  {openslide.__library_version__}',
  ]


def _room() -> list[str]:
  cache = pathlib.Path(
    os.environ.get('JAXMED_DATA', '~/.cache/jaxmed')
  ).expanduser()
  there = next(p for p in (cache, *cache.parents) if p.exists())
  pages = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  cores = len(os.sched_getaffinity(0))
  free = shutil.disk_usage(there).free / 2**30
  return [
    f'memory     {pages / 2**30:.1f} GiB, {cores} cores',
    f'disk       {free:.0f} GiB free for prepared data in {cache}',
  ]
