"""What a run was made from and how it went: data, config, provenance.

Like sections.py, plain dicts and lists for the page's template.
"""

import collections

import numpy as np

from jaxmed.report import words
from jaxmed.report.load import LABELS, Run

FAILURES = 100  # Rows shown; all are in failures.jsonl.
GROUPS = 500  # Likewise; all are in results.json.
SPLITS = ('train', 'validation', 'test')


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
    'First weights': _first_weights(record.get('init_from') or {}),
    'Precision': train.get('precision'),
    'Seed': run.config.get('seed'),
    'Started': words.moment(record.get('started')),
    'Finished': words.moment(record.get('finished')),
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


def _first_weights(origin: dict) -> str:
  """'generator, critic of runs/one (munit)', of a run that began so."""
  if not origin:
    return ''
  parts = ', '.join(map(str, origin.get('parts') or []))
  kind = origin.get('method') or f'SHA-256 {origin.get("sha256")}'
  return f'{parts} of {origin.get("run") or origin.get("file")} ({kind})'


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
  memory = run.provenance.get('memory') or {}
  train = run.provenance.get('train') or {}
  rates = [
    ('Images a second, training', words.number(train.get('images_per_s'))),
    (
      'Images a second, scoring',
      words.number((run.provenance.get('score') or {}).get('images_per_s')),
    ),
    ('Steps', words.count(train.get('steps'))),
    (
      'Of the measured matrix peak',
      words.per_cent(train.get('matrix_peak_percent')),
    ),
    ('Waiting for data', words.per_cent(train.get('data_wait_percent'))),
    ('Most memory, process', words.size(memory.get('host_bytes'))),
    ('Most memory, a device', words.size(memory.get('device_bytes'))),
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
