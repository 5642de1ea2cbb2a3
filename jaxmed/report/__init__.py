"""The HTML report of a run: one file that opens anywhere, offline.

`write_report` reads a run's folder and nothing else. load.py reads the
files, summary.py finds the words, sections.py, facts.py and gallery.py prepare
what report.html shows, and figures.py, training.py and plot.py draw.
"""

import base64
import hashlib
import os
import pathlib
import tempfile

import jinja2
from markupsafe import Markup

from jaxmed.report import sections, words
from jaxmed.report.load import Run, load
from jaxmed.report.summary import cautions, data_name, summary, unit, warnings

HERE = pathlib.Path(__file__).parent


def write_report(
  workdir: pathlib.Path, examples: int | None = None
) -> pathlib.Path:
  """Writes report.html into a run's folder and returns its path.

  Args:
    workdir: the run's folder; config.json and results.json must be there.
    examples: at most so many examples of each kind are shown; None: all.
  """
  workdir = pathlib.Path(workdir)
  page = render(load(workdir), examples)
  path = workdir / 'report.html'
  handle, temporary = tempfile.mkstemp(dir=workdir, prefix='.report-')
  try:
    with open(handle, 'w', encoding='utf-8') as file:
      file.write(page)
    os.chmod(temporary, 0o644)  # Made private by mkstemp; others may read.
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise
  return path


def render(run: Run, examples: int | None = None) -> str:
  """The whole page as text."""
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
    'text': words.text,
  }
  script = (HERE / 'report.js').read_text('utf-8')
  return environment.get_template('report.html').render(
    style=Markup((HERE / 'report.css').read_text('utf-8')),
    script=Markup(script),
    script_hash=_hash(script),
    method=words.method(run.config.get('method', 'Run')),
    data=data_name(run),
    unit=unit(run),
    summary=summary(run),
    warnings=warnings(run),
    cautions=cautions(run),
    **sections.everything(run, examples),
  )


def _hash(script: str) -> str:
  """What the page's policy lets run: this script, and no other."""
  digest = hashlib.sha256(script.encode('utf-8')).digest()
  return 'sha256-' + base64.b64encode(digest).decode('ascii')
