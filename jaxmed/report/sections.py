"""What the page's template shows, section by section.

Every function takes the run and gives plain dicts and lists; an empty one
means that the section is left out, or says what is missing.
"""

import collections
import datetime

import numpy as np

from jaxmed.report import figures, training, words
from jaxmed.report.gallery import example_ranks, slide_rows
from jaxmed.report.images import Pictures
from jaxmed.report.load import LABELS, Run

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
FAILURES = 100  # Rows shown; all are in failures.jsonl.
SPLITS = ('train', 'validation', 'test')
GROUPS = 500  # Likewise; all are in results.json.
FILES = {
  'results.json': 'every metric with its interval',
  'scores.parquet': 'a row an image: scores, labels, places',
  'slides.parquet': 'a row a slide',
  'calibration.json': 'quantiles of the validation normals',
  'config.json': 'the whole configuration',
  'provenance.json': 'versions, devices, data and weights',
  'train.jsonl': 'everything training logged',
  'failures.jsonl': 'what could not be read',
}


def everything(run: Run, examples: int | None) -> dict:
  """All variables of report.html."""
  pictures = Pictures()
  ranks = example_ranks(run, pictures, examples)
  slides = slide_rows(run, pictures)
  return {
    'header': header(run),
    'tiles': tiles(run),
    'primary': run.primary,
    'orientation': run.results.get('orientation', ''),
    'specificity': run.config.get('eval', {}).get('specificity'),
    'scores': score_table(run),
    'oracle': oracle_table(run),
    'thresholds': run.results.get('thresholds', {}),
    'curves': curves(run),
    'histograms': histograms(run),
    'pixel': plain_table(run.results.get('pixel', {})),
    'slide_metrics': plain_table(run.results.get('slide', {})),
    'slides': slides,
    'ranks': ranks,
    'left_out': pictures.left_out,
    'phases': training.phases(run.log),
    'counts': counts(run),
    'selections': selections(run),
    'config': config(run),
    'provenance': provenance(run),
    'speed': speed(run),
    'failures': failures(run),
    'files': {k: v for k, v in FILES.items() if run.file(k)},
  }


def header(run: Run) -> dict:
  finished = run.provenance.get('finished') or run.provenance.get('started')
  return {
    'preset': run.config.get('preset', ''),
    'folder': run.workdir.resolve().name,
    'date': moment(finished),
    'version': run.provenance.get('jaxmed', ''),
  }


def moment(value) -> str:
  """A time stamp, ISO text or seconds since 1970, to the minute."""
  seconds = words.finite(value)
  try:
    if seconds is not None:
      time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    else:
      time = datetime.datetime.fromisoformat(value)
  except (TypeError, ValueError, OverflowError, OSError):
    return str(value or '')
  zone = ' UTC' if time.utcoffset() == datetime.timedelta(0) else ''
  return time.strftime('%Y-%m-%d %H:%M') + zone


def tiles(run: Run) -> list[dict]:
  """The few numbers that a reader looks for first."""
  metrics = run.results.get('image', {}).get(run.primary, {})
  names = ('auroc', 'ap', 'sensitivity', 'specificity')
  return [
    {'name': words.metric(name), **cell(metrics[name])}
    for name in names
    if name in metrics
  ]


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


def counts(run: Run) -> dict:
  """Images by split and label, and the same a group."""
  rows = run.results.get('counts') or []
  totals, groups = {}, {}
  for row in rows:
    key = str(row.get('split', '')), LABELS.get(row.get('label'), 'unknown')
    totals[key] = totals.get(key, 0) + int(row.get('n', 0))
    groups.setdefault(key, set()).add(row.get('group'))
  table = [
    {
      'split': split,
      'label': label,
      'n': totals[split, label],
      'groups': len(groups[split, label]),
    }
    for split, label in sorted(totals, key=_usual)
  ]
  detail = [
    {**row, 'label': LABELS.get(row.get('label'), 'unknown')} for row in rows
  ]
  return {
    'table': table,
    'groups': detail[:GROUPS],
    'hidden': max(0, len(detail) - GROUPS),
    'domains': domains(run),
  }


def _usual(row: tuple[str, ...]) -> tuple:
  """Sorts by split as they follow each other, then by what comes next."""
  known = SPLITS.index(row[0]) if row[0] in SPLITS else len(SPLITS)
  return known, row


def domains(run: Run) -> list[dict]:
  """Scored images by domain (scanner, cohort), where there are several."""
  table = run.scores('split', 'domain', 'label')
  if not table or len(np.unique(table['domain'].astype(str))) < 2:
    return []
  columns = (table[name].tolist() for name in ('split', 'domain', 'label'))
  found = collections.Counter(zip(*columns, strict=True))
  return [
    {
      'split': split,
      'domain': domain or words.DASH,
      'label': LABELS.get(label, 'unknown'),
      'n': found[split, domain, label],
    }
    for split, domain, label in sorted(found, key=_usual)
  ]


def selections(run: Run) -> list[tuple[str, str]]:
  """Which images each purpose used: the config's queries."""
  data = run.config.get('data', {})
  found = [
    (f'cohort {name}', query)
    for name, query in (data.get('cohorts') or {}).items()
  ]
  found += [
    (name, data[name]) for name in ('validation', 'test') if name in data
  ]
  return [(name, query or 'all') for name, query in found]


def config(run: Run) -> dict:
  """What differs from the preset, and every field."""
  changed = run.config.get('changed')
  flat = flatten({k: v for k, v in run.config.items() if k != 'changed'})
  return {
    'known': changed is not None,
    'changed': [
      (field, words.text(pair[0]), words.text(pair[1]))
      for field, pair in (changed or {}).items()
    ],
    'all': [(field, words.text(value)) for field, value in flat.items()],
  }


def flatten(tree: dict, prefix: str = '') -> dict:
  """{'data.size': 64, ...}"""
  found = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      found |= flatten(value, f'{prefix}{key}.')
    else:
      found[f'{prefix}{key}'] = value
  return found


def provenance(run: Run) -> dict:
  record = run.provenance
  if not record:
    return {}
  data = record.get('data') or {}
  train = record.get('train') or {}
  facts = {
    'jaxmed': record.get('jaxmed'),
    'commit': record.get('commit'),
    'Python': record.get('python'),
    'Devices': _devices(record.get('devices') or []),
    'Data set': data.get('name'),
    'Data fingerprint': data.get('fingerprint'),
    'Data folder': data.get('dir'),
    'Counts': data.get('counts'),
    'Precision': train.get('precision'),
    'Seed': run.config.get('seed'),
    'Started': moment(record.get('started')),
    'Finished': moment(record.get('finished')),
  }
  parameters = train.get('parameters') or {}
  return {
    'facts': {
      k: words.text(v) for k, v in facts.items() if v not in (None, '')
    },
    'versions': record.get('versions') or {},
    'weights': record.get('weights') or [],
    'parameters': parameters,
    'total': sum(int(n) for n in parameters.values()),
  }


def _devices(devices: list) -> str:
  """'8 × TFRT_CPU' rather than eight lines."""
  names = [words.text(device) for device in devices]
  return ', '.join(
    name if names.count(name) == 1 else f'{names.count(name)} × {name}'
    for name in dict.fromkeys(names)
  )


def speed(run: Run) -> dict:
  """Each stage's seconds with its share, and the rate of training."""
  stages = {
    name: seconds
    for name, value in (run.provenance.get('stages') or {}).items()
    if (seconds := words.finite(value)) is not None
  }
  longest = max(stages.values(), default=0) or 1.0
  train = run.provenance.get('train') or {}
  rates = [
    ('Images a second, training', words.number(train.get('images_per_s'))),
    ('Steps', words.count(train.get('steps'))),
    (
      'Of the measured matrix peak',
      words.per_cent(train.get('matrix_peak_percent')),
    ),
    ('Waiting for data', words.per_cent(train.get('data_wait_percent'))),
  ]
  rates = [(name, value) for name, value in rates if value != words.DASH]
  if not stages and not rates:
    return {}
  return {
    'stages': [
      (name, seconds, round(100 * seconds / longest, 1))
      for name, seconds in stages.items()
    ],
    'total': sum(stages.values()),
    'rates': rates,
  }


def failures(run: Run) -> dict:
  by_stage = collections.Counter(
    words.text(row.get('stage')) for row in run.failures
  )
  return {
    'total': len(run.failures),
    'stages': by_stage,
    'rows': run.failures[:FAILURES],
    'hidden': max(0, len(run.failures) - FAILURES),
  }
