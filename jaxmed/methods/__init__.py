"""One file a method: its equations, networks, losses, phases and score."""

import importlib
import pkgutil

from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.method import Info, Method


def names() -> list[str]:
  """Every method there is."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def build(config: ConfigDict, info: Info) -> Method:
  """The method that a config names, for data of this kind."""
  if config.method not in names():
    raise errors.unknown('method', config.method, names())
  module = importlib.import_module(f'jaxmed.methods.{config.method}')
  return module.build(config, info)
