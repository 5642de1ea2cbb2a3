"""The HTML report of a run: one file that opens anywhere, offline.

`write_report` reads a run's folder and nothing else. load.py reads the
files, summary.py finds the words, sections.py, facts.py and gallery.py prepare
what report.html shows, and figures.py, training.py and plot.py draw.
`write_comparison` writes the page of several runs, comparison.html, which is
prepared in comparison.py; page.py makes either page.
"""

import pathlib

from jaxmed.report import page, sections, words
from jaxmed.report.comparison import write_comparison
from jaxmed.report.load import Run, load
from jaxmed.report.summary import cautions, data_name, summary, unit, warnings

__all__ = ['render', 'write_comparison', 'write_report']


def write_report(
  workdir: pathlib.Path, examples: int | None = None
) -> pathlib.Path:
  """Writes report.html into a run's folder and returns its path.

  Args:
    workdir: the run's folder; config.json and results.json must be there.
    examples: at most so many examples of each kind are shown; None: all.
  """
  workdir = pathlib.Path(workdir)
  return page.write(workdir / 'report.html', render(load(workdir), examples))


def render(run: Run, examples: int | None = None) -> str:
  """The whole page as text."""
  return page.render(
    'report.html',
    method=words.method(run.config.get('method', 'Run')),
    data=data_name(run),
    unit=unit(run),
    summary=summary(run),
    warnings=warnings(run),
    cautions=cautions(run),
    **sections.everything(run, examples),
  )
