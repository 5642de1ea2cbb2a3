"""What the page's template shows, section by section.

Every function takes the run and gives plain dicts and lists; an empty one
means that the section is left out, or says what is missing.
"""

import numpy as np

from jaxmed.report import facts, figures, training, watched, words
from jaxmed.report.gallery import example_ranks, slide_rows
from jaxmed.report.images import Pictures
from jaxmed.report.load import Run

ORDER = (
  'auroc',
  'ap',
  'f1',
  'accuracy',
  'sensitivity',
  'specificity',
  'sensitivity_at_specificity',
)
HISTOGRAMS = 6  # The primary score's, and those of five others.
FILES = {
  'results.json': 'every metric with its interval',
  'scores.parquet': 'a row an image: scores, labels, places',
  'slides.parquet': 'a row a slide',
  'calibration.json': 'quantiles of the validation normals',
  'config.json': 'the whole configuration',
  'provenance.json': 'versions, devices, data and weights',
  'train.jsonl': 'everything training logged',
  'watch.json': 'what was seen of training meanwhile',
  'failures.jsonl': 'what could not be read',
}


def everything(run: Run, examples: int | None) -> dict:
  """All variables of report.html."""
  pictures = Pictures()
  ranks = example_ranks(run, pictures, examples)
  slides = slide_rows(run, pictures)
  sheets = watched.sheets(run, pictures)
  return {
    'header': header(run),
    'tiles': tiles(run),
    'primary': run.primary,
    'beforehand': run.beforehand,
    'orientation': run.results.get('orientation', ''),
    'specificity': run.config.get('eval', {}).get('specificity'),
    'scores': score_table(run),
    'oracle': oracle_table(run),
    'thresholds': run.results.get('thresholds', {}),
    'curves': curves(run),
    'histograms': histograms(run),
    'pixel': plain_table(run.results.get('pixel', {})),
    'lesions': lesions(run),
    'slide_metrics': plain_table(run.results.get('slide', {})),
    'slides': slides,
    'ranks': ranks,
    'left_out': pictures.left_out,
    'phases': training.phases(
      run.log, watched.chosen(run), watched.fid_words(run)
    ),
    'selection': watched.selection(run),
    'sheets': sheets,
    'counts': facts.counts(run),
    'selections': facts.selections(run),
    'config': facts.config(run),
    'provenance': facts.provenance(run),
    'speed': facts.speed(run),
    'failures': facts.failures(run),
    'files': files(run),
  }


def files(run: Run) -> dict[str, str]:
  """What lies beside the page, by its link from there, and what it is."""
  found = {run.file(name): says for name, says in FILES.items()}
  if run.slides_folder:
    found.pop(run.file('slides.parquet'), None)
    found |= {
      run.slide_file(name): f'{FILES[name]}, of the slides scored later'
      for name in ('slides.parquet', 'failures.jsonl')
    }
  return {run.link(path): says for path, says in found.items() if path}


def header(run: Run) -> dict:
  finished = run.provenance.get('finished') or run.provenance.get('started')
  return {
    'preset': run.config.get('preset', ''),
    'folder': run.workdir.resolve().name,
    'date': words.moment(finished),
    'version': run.provenance.get('jaxmed', ''),
  }


def tiles(run: Run) -> list[dict]:
  """The few numbers that a reader looks for first."""
  metrics = run.results.get('image', {}).get(run.primary, {})
  named = {
    'auroc': 'AUROC',
    'ap': 'Average precision',
    'sensitivity': 'Sensitivity at the threshold',
    'specificity': 'Specificity at the threshold',
  }
  shown = [
    {'name': title, **cell(metrics[name])}
    for name, title in named.items()
    if name in metrics
  ]
  if found := run.results.get('froc'):
    shown.append({'name': 'FROC score of lesions', **cell(found.get('score'))})
  return shown


def cell(number: dict | float | None) -> dict:
  """A metric as the page writes it: value, span, sort key, reason, hint."""
  if not isinstance(number, dict):
    number = {'value': number}
  value = words.finite(number.get('value'))
  if value is None:
    reason = number.get('reason') or 'no value was computed'
    return {
      'value': 'not defined',
      'span': '',
      'key': '',
      'reason': reason,
      'hint': f'not defined: {reason}',
    }
  hints = [
    f'{key}: {words.count(number[key])}'
    for key in ('n', 'positives', 'groups')
    if words.finite(number.get(key)) is not None
  ]
  if number.get('dropped'):
    hints.append(f'resamples dropped: {words.count(number["dropped"])}')
  return {
    'value': words.share(value),
    'span': words.interval(number),
    'key': value,
    'reason': '',
    'hint': ', '.join(hints),
  }


def score_table(run: Run) -> dict:
  """The method's scores, the primary first, above the trivial baselines."""
  image = run.results.get('image', {})
  trivial = run.results.get('trivial', {})
  names = sorted(image, key=lambda name: name != run.primary)
  kinds = [(name, 'method', image[name]) for name in names]
  best = lambda name: -(_auroc(trivial[name]) or 0)
  kinds += [
    (name, 'trivial', trivial[name]) for name in sorted(trivial, key=best)
  ]
  present = {metric for _, _, row in kinds for metric in row}
  columns = [metric for metric in ORDER if metric in present]
  rows = [
    {
      'name': name,
      'kind': kind,
      'primary': kind == 'method' and name == run.primary,
      'cells': [cell(row[m]) if m in row else None for m in columns],
      'interval': figures.interval(row.get('auroc', {}), kind),
      'turned': _turned(row),
    }
    for name, kind, row in kinds
  ]
  return {'columns': columns, 'rows': rows} if rows else {}


def _turned(metrics: dict) -> str:
  """The AUROC in the better direction, where it is another."""
  usual = words.finite(metrics.get('auroc', {}).get('value'))
  best = words.finite(metrics.get('auroc_best_direction', {}).get('value'))
  if usual is None or best is None or abs(best - usual) < 1e-9:
    return ''
  return words.share(best)


def _auroc(metrics: dict) -> float | None:
  best = metrics.get('auroc_best_direction') or metrics.get('auroc') or {}
  return words.finite(best.get('value'))


def oracle_table(run: Run) -> dict:
  """Metrics whose threshold saw the test labels, kept apart."""
  image = run.results.get('image', {})
  names = sorted(image, key=lambda name: name != run.primary)
  return plain_table(
    {
      name: {k: v for k, v in image[name].items() if k.startswith('oracle_')}
      for name in names
    }
  )


def plain_table(rows: dict[str, dict]) -> dict:
  """{columns, rows} of {name: {metric: number}}; empty if there is none."""
  columns = list(
    dict.fromkeys(metric for row in rows.values() for metric in row)
  )
  if not columns:
    return {}
  return {
    'columns': columns,
    'rows': [
      {
        'name': name,
        'cells': [cell(row[m]) if m in row else None for m in columns],
      }
      for name, row in rows.items()
    ],
  }


def lesions(run: Run) -> dict:
  """The FROC with its numbers, and the slides in it and left out."""
  found = run.results.get('froc')
  if not found:
    return {}
  at = found.get('sensitivity_at', {})
  by_slide = found.get('by_slide', [])
  return {
    'figure': figures.froc(found),
    'score': cell(found.get('score')),
    'auroc': cell(found.get('auroc')),
    'rates': [(rate, cell(number)) for rate, number in at.items()],
    'strict': bool(found.get('strict')),
    'excluded': found.get('excluded', []),
    'by_slide': sorted(by_slide, key=_missed_first),
    'counted': _counted(found),
  }


def _counted(found: dict) -> str:
  several = lambda key, noun: words.several(found.get(key), noun)
  return (
    f'To be found: {several("lesions", "lesion")} on '
    f'{several("tumour_slides", "tumour slide")} among '
    f'{several("slides", "slide")}, by {several("detections", "detection")}. '
    'Neither right nor wrong to find: '
    f'{several("itc", "region")} of isolated tumour cells (ITC, shorter than '
    '275 µm).'
  )


def _missed_first(slide: dict) -> tuple:
  missed = (slide.get('lesions') or 0) - (slide.get('found') or 0)
  return -missed, -(slide.get('false') or 0), str(slide.get('group'))


def curves(run: Run) -> list[figures.Figure]:
  drawn = (
    figures.roc(run.results, run.primary),
    figures.precision_recall(run.results, run.primary),
  )
  return [figure for figure in drawn if figure]


def histograms(run: Run) -> list[figures.Figure]:
  """Every score's distribution by class, the primary's first."""
  names = [c[6:] for c in run.columns if c.startswith('score.')]
  names = sorted(names, key=lambda name: name != run.primary)[:HISTOGRAMS]
  drawn = []
  for name in names:
    column = f'score.{name}'
    table = run.scores('split', 'label', column)
    if not table:
      continue
    split, label = table['split'].astype(str), table['label']
    value = table[column].astype(np.float64)
    classes = {
      'validation': value[(split == 'validation') & (label == 0)],
      'normal': value[(split == 'test') & (label == 0)],
      'anomalous': value[(split == 'test') & (label == 1)],
    }
    threshold = run.results.get('thresholds', {}).get(name, {})
    drawn.append(figures.histogram(classes, name, threshold))
  return [figure for figure in drawn if figure]
