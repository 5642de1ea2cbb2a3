"""What every page has: the templates' environment, its style, its script."""

import base64
import hashlib
import os
import pathlib
import tempfile

import jinja2
from markupsafe import Markup

from jaxmed.report import words

HERE = pathlib.Path(__file__).parent


def render(template: str, **values) -> str:
  """A whole page as text."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    'metric': words.metric,
    'plain': words.plain,
    'baseline': words.baseline,
    'share': words.share,
    'interval': words.interval,
    'count': words.count,
    'number': words.number,
    'per_cent': words.per_cent,
    'seconds': words.seconds,
    'size': words.size,
    'p_value': words.p_value,
    'text': words.text,
  }
  script = (HERE / 'report.js').read_text('utf-8')
  return environment.get_template(template).render(
    style=Markup((HERE / 'report.css').read_text('utf-8')),
    script=Markup(script),
    script_hash=_hash(script),
    **values,
  )


def _hash(script: str) -> str:
  """What the page's policy lets run: this script, and no other."""
  digest = hashlib.sha256(script.encode('utf-8')).digest()
  return 'sha256-' + base64.b64encode(digest).decode('ascii')


def write(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes the whole page or nothing."""
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.stem}-')
  try:
    with open(handle, 'w', encoding='utf-8') as file:
      file.write(text)
    os.chmod(temporary, 0o644)  # Made private by mkstemp; others may read.
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise
  return path
