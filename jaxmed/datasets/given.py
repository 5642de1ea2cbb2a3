"""What a config gives a builder of data sets, checked."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxmed import errors


def root(data_config: ConfigDict, name: str, what: str) -> pathlib.Path:
  """The folder that data.path names; `what` says what should be in it."""
  if not data_config.path:
    raise errors.UserError(
      f'The data set {name} needs --config.data.path, {what}.'
    )
  found = pathlib.Path(data_config.path).expanduser().absolute()
  if not found.is_dir():
    raise errors.UserError(
      f'There is no folder {found}, where the data set {name} should be.'
    )
  return found


def check_options(
  given: Mapping[str, Any], name: str, known: Collection[str]
) -> None:
  for option in given:
    if option not in known:
      raise errors.unknown(f'option of the data set {name}', option, known)
