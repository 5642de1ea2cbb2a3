"""Where a run's numbers come from: code, versions, devices, data, time."""

import datetime
import importlib.metadata
import pathlib
import platform
import resource
import subprocess
import sys

import jax

from jaxmed import __version__, workdir

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'scikit-learn',
  'tensorflow-datasets',
)


class Provenance:
  """`provenance.json`, added to as a run goes on.

  Code and devices are those that have trained and scored last: a launch that
  only evaluates or reports again made none of it.
  """

  def __init__(self, folder: pathlib.Path):
    self._path = folder / 'provenance.json'
    self._facts = {'started': _now(), 'stages': {}}
    if self._path.exists():
      self._facts = workdir.read_json(self._path)
    self._code = {
      'jaxmed': __version__,
      'commit': _commit(),
      'python': platform.python_version(),
      'platform': platform.platform(),
      'versions': {p: importlib.metadata.version(p) for p in PACKAGES},
    }

  def get(self, name: str, otherwise=None):
    """A fact, if an earlier launch has added it."""
    return self._facts.get(name, otherwise)

  def add(self, **facts) -> None:
    """Adds facts and writes the file; one host does."""
    devices = [f'{d.device_kind} ({d.platform})' for d in jax.devices()]
    self._facts |= self._code | {'devices': devices} | facts
    self._write()

  def stage(self, name: str, seconds: float) -> None:
    """A stage that took several launches counts them all."""
    stages = self._facts['stages']
    stages[name] = round(stages.get(name, 0.0) + seconds, 2)
    self._facts['memory'] = _highest(self._facts.get('memory', {}), _memory())
    self._facts['finished'] = _now()
    self._write()

  def _write(self):
    if jax.process_index() == 0:
      workdir.write_json(self._path, self._facts)


def _memory() -> dict[str, int | None]:
  """The most that this process has held so far, and any of its devices.

  A CPU's arrays lie in the process's own memory, of which alone it can tell.
  """
  held = [device.memory_stats() or {} for device in jax.local_devices()]
  device = max(found.get('peak_bytes_in_use', 0) for found in held)
  return {'host_bytes': _host_bytes(), 'device_bytes': device or None}


def _host_bytes() -> int:
  status = pathlib.Path('/proc/self/status')
  if status.exists():  # Of Linux; it does not count what a parent has held.
    for line in status.read_text().splitlines():
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 1024
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return most if sys.platform == 'darwin' else most * 1024


def _highest(before: dict, now: dict) -> dict:
  """Of a run that took several launches."""
  return {k: max(before.get(k) or 0, v or 0) or None for k, v in now.items()}


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _commit() -> str:
  """Of the checkout that runs, if it is one."""
  here = pathlib.Path(__file__).parent
  if not (here.parent / '.git').exists():
    return ''  # Installed, maybe inside somebody else's checkout.
  git = ['git', '-C', str(here), 'describe', '--always', '--dirty']
  try:
    done = subprocess.run(git, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return done.stdout.strip() if done.returncode == 0 else ''
