"""Finished runs side by side: one page and one table.

Every run is evaluated anew and alike: the same test images, the same resamples
of whole groups, thresholds by the same quantile of each run's own validation
normals. Runs of one config with several seeds are one method, with the mean
over its seeds and their spread.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxmed import errors, workdir
from jaxmed.comparing import (
  comparison_examples,
  comparison_runs,
  comparison_table,
)
from jaxmed.comparing.comparison_runs import Entry, Method
from jaxmed.errors import UserError
from jaxmed.metrics import images, paired, roc
from jaxmed.metrics.paired import Measured
from jaxmed.report import write_comparison
from jaxmed.report.gallery import RULES

AGAINST = 'first', 'best'
COMPARED = 'auroc', 'ap', 'slide_auroc'  # With p-values.
PRIMARY = 'auroc'


@dataclasses.dataclass(frozen=True)
class Test:
  """What all runs are tested on, and how."""

  sample: images.Sample  # Of the images that are kept.
  kept: np.ndarray  # Of the images, those with finite scores in every run.
  slides: images.Sample | None  # None: not the same slides in every run.
  groups: tuple[str, ...]  # Names of the slides in `slides`.
  settings: dict  # The group `eval` of the first run's config.


def compare(
  folders: Sequence[pathlib.Path | str],
  out: pathlib.Path | str,
  against: str = 'first',
  resamples: int = 0,
) -> str:
  """Writes comparison.html and comparison.csv; returns the table as text.

  Args:
    folders: of two or more finished runs of one test set.
    out: where to write; made if need be.
    against: what every method is held against: the first named, or the best.
    resamples: of the bootstrap; 0: as the first run's config has it.
  """
  if against not in AGAINST:
    raise errors.unknown('method to compare against', against, AGAINST)
  if resamples < 0:
    raise UserError(f'{resamples} resamples are asked for; give at least 1.')
  out = pathlib.Path(out)
  entries = comparison_runs.read([pathlib.Path(folder) for folder in folders])
  methods = comparison_runs.grouped(entries)
  test = _test(entries, resamples)
  found = measured(methods, test, against)
  try:
    out.mkdir(parents=True, exist_ok=True)
    workdir.write_text(out / 'comparison.csv', comparison_table.csv(found))
    examples = comparison_examples.examples(methods, test.kept)
    write_comparison(out, found, examples)
  except OSError as error:
    raise UserError(
      f'{out} cannot be written into ({error.strerror}); give another --out.'
    ) from error
  return comparison_table.text(found)


def measured(methods: Sequence[Method], test: Test, against: str) -> dict:
  """All numbers of a comparison, as plain dicts and lists."""
  seed = test.settings['seed']
  single = [[_measures(e, test) for e in m.entries] for m in methods]
  together = [
    {
      name: paired.over_seeds([run[name] for run in runs], seed + 1 + i)
      for name in runs[0]
    }
    for i, runs in enumerate(single)
  ]
  reference = 0
  if against == 'best':
    values = [whole[PRIMARY].value for whole in together]
    reference = int(np.argmax(np.nan_to_num(values, nan=-1.0)))
  differences = _differences(together, reference, test)
  return {
    'methods': [
      _row(method, runs, whole, differences[i], test)
      for i, (method, runs, whole) in enumerate(
        zip(methods, single, together, strict=True)
      )
    ],
    'reference': reference,
    'against': against,
    'test': _facts(test),
    'cautions': _cautions(methods, test),
  }


def _test(entries: Sequence[Entry], resamples: int) -> Test:
  first = entries[0]
  settings = dict(first.run.config['eval'])
  settings['resamples'] = resamples or settings['resamples']
  draw = settings['resamples'], settings['seed']
  labels = first.test['label'] == 1
  kept = np.logical_and.reduce(
    [np.isfinite(entry.test[entry.column]) for entry in entries]
  )
  slides = _same_slides(entries)
  return Test(
    images.sample(labels, first.test['group'].astype(str), *draw).where(kept),
    kept,
    images.sample([*slides.values()], [*slides], *draw) if slides else None,
    tuple(slides),
    settings,
  )


def _same_slides(entries: Sequence[Entry]) -> dict[str, int]:
  """Labels of the slides that every run has scored; none if slides differ."""
  labels = _slide_labels(entries) or {}
  scored = set.intersection(*(set(_slide_scores(e)) for e in entries))
  return {g: label for g, label in sorted(labels.items()) if g in scored}


def _slide_labels(entries: Sequence[Entry]) -> dict[str, int] | None:
  """Of the slides that have one; None if they are others in some run."""
  found = [
    {
      row['group']: row['label']
      for row in e.run.slides
      if row['label'] in (0, 1)
    }
    for e in entries
  ]
  return found[0] if all(one == found[0] for one in found) else None


def _slide_scores(entry: Entry) -> dict[str, float]:
  """Of the slides that have one, by the rule that was named first."""
  rule = entry.run.results.get('slide_rule') or 'max'
  column = f'{RULES[rule][0]}{entry.primary}'
  scores = {row['group']: row.get(column) for row in entry.run.slides}
  return {
    group: float(score)
    for group, score in scores.items()
    if score is not None and np.isfinite(score)
  }


def _measures(entry: Entry, test: Test) -> dict[str, Measured]:
  """Every metric of a run with its resamples."""
  sample = test.sample
  scores = entry.test[entry.column][test.kept].astype(np.float64)
  found = _areas(sample, scores)
  cut = _threshold(entry, test, 'quantile')
  at = _threshold(entry, test, 'specificity')
  decided = images.decided(sample, scores, cut)
  decided['sensitivity_at_specificity'] = images.decided(sample, scores, at)[
    'sensitivity'
  ]
  found |= {
    name: _measured(value, many, lacking, sample)
    for name, (value, many, lacking) in decided.items()
  }
  if test.slides is not None:
    by_group = _slide_scores(entry)
    scores = np.array([by_group[group] for group in test.groups])
    found['slide_auroc'] = _areas(test.slides, scores)['auroc']
  return found


def _threshold(entry: Entry, test: Test, name: str) -> float:
  """At the same quantile of each run's own normals."""
  normals = entry.normals[entry.column].astype(np.float64)
  return images.threshold(normals, test.settings[name])


def _areas(sample: images.Sample, scores: np.ndarray) -> dict[str, Measured]:
  many = images.resampled(sample, scores)
  auroc = roc.auroc(sample.labels, scores)
  ap = roc.average_precision(sample.labels, scores)
  return {
    'auroc': _measured(auroc, many.auroc, sample.lacking, sample),
    'ap': _measured(ap, many.ap, sample.lacking, sample),
  }


def _measured(
  value, many: np.ndarray, lacking: str, sample: images.Sample
) -> Measured:
  """One group resampled is always itself: that says nothing of chance."""
  value = np.nan if lacking else float(value)
  if sample.sizes[2] < 2:
    many = np.full(len(sample.counts), np.nan)
    lacking = lacking or 'all examples are of one group'
  return Measured(value, many, lacking)


def _differences(
  together: Sequence[dict], reference: int, test: Test
) -> list[dict]:
  """Of each method to the reference, corrected over all by Holm."""
  found = [{} for _ in together]
  others = [i for i in range(len(together)) if i != reference]
  for name in COMPARED:
    if name not in together[0]:
      continue
    sample = test.slides if name == 'slide_auroc' else test.sample
    groups = sample.sizes[2]
    rows = [
      paired.difference(together[i][name], together[reference][name], groups)
      for i in others
    ]
    corrected = paired.holm([row.p for row in rows])
    for i, row, p in zip(others, rows, corrected, strict=True):
      found[i][name] = _plain(dataclasses.asdict(row) | {'p_holm': float(p)})
  return found


def _row(
  method: Method,
  runs: Sequence[dict[str, Measured]],
  whole: dict[str, Measured],
  differences: dict,
  test: Test,
) -> dict:
  """A method with its numbers, and its runs with theirs."""
  members = [
    _numbers(entry, one, test)
    for entry, one in zip(method.entries, runs, strict=True)
  ]
  metrics = {name: _number(one) for name, one in whole.items()}
  if len(members) > 1:
    names = dict.fromkeys(n for one in members for n in one['metrics'])
    for name in names:
      values = [one['metrics'].get(name, {}).get('value') for one in members]
      metrics[name] = _spread(metrics.get(name, {}), values)
  else:
    metrics = members[0]['metrics']
  return {
    'name': method.name,
    'score': method.first.primary,
    'method': method.first.run.config.get('method', ''),
    'preset': method.first.run.config.get('preset', ''),
    'metrics': metrics,
    'differences': differences,
    'runs': members,
    'costs': comparison_table.together([one['costs'] for one in members]),
  }


def _numbers(entry: Entry, measures: dict[str, Measured], test: Test) -> dict:
  """Of one run; those of pixels and lesions as it was evaluated."""
  results = entry.run.results
  pixel = results.get('pixel') or {}
  name = comparison_examples.map_name(entry, tuple(pixel))
  metrics = {key: _number(one) for key, one in measures.items()}
  for key in ('auroc', 'aupro_8'):
    if name and key in pixel[name]:
      metrics[f'pixel_{key}'] = pixel[name][key]
  if score := (results.get('froc') or {}).get('score'):
    metrics['froc'] = score
  return {
    'run': entry.run,
    'seed': entry.seed,
    'metrics': metrics,
    'threshold': _threshold(entry, test, 'quantile'),
    'costs': comparison_table.costs(entry.run),
  }


def _number(one: Measured) -> dict:
  low, high = one.interval
  plain = {'value': one.value, 'low': low, 'high': high}
  return _plain(plain | {'reason': one.reason})


def _spread(number: dict, values: Sequence[float | None]) -> dict:
  """The mean over seeds, and the standard deviation of a seed."""
  if any(value is None for value in values):
    return {
      'value': None,
      'low': None,
      'high': None,
      'reason': number.get('reason') or 'a run has none',
    }
  spread = float(np.std(values, ddof=1))
  nothing = {'value': float(np.mean(values)), 'low': None, 'high': None}
  return nothing | number | {'spread': spread}


def _plain(values: dict) -> dict:
  """NaN becomes None, as everywhere in JSON."""
  return {
    k: None if isinstance(v, float) and not np.isfinite(v) else v
    for k, v in values.items()
  }


def _facts(test: Test) -> dict:
  n, positives, groups = test.sample.sizes
  return {
    'n': n,
    'positives': positives,
    'groups': groups,
    'slides': len(test.groups),
    'quantile': test.settings['quantile'],
    'specificity': test.settings['specificity'],
    'resamples': test.settings['resamples'],
    'seed': test.settings['seed'],
  }


def _slide_cautions(entries: Sequence[Entry], test: Test) -> list[str]:
  if not any(entry.run.slides for entry in entries):
    return []
  labels = _slide_labels(entries)
  if labels is None:
    return ['The runs have scored other slides, so slides are left out.']
  lost = len(labels) - len(test.groups)
  if not lost:
    return []
  return [
    f'{lost} of {len(labels)} slides have no score in some run and are left '
    'out of all.'
  ]


def _other_tests(entries: Sequence[Entry]) -> list[str]:
  """Numbers taken over from evaluations of other images or by other rules."""
  results = [entry.run.results for entry in entries]

  def differ(read) -> bool:
    return len({str(found) for one in results if (found := read(one))}) > 1

  def lesions(one):
    froc = one.get('froc') or {}
    return froc and [
      froc.get(k) for k in ('strict', 'slides', 'tumour_slides', 'excluded')
    ]

  def pixels(one):
    maps = (one.get('pixel') or {}).values()
    return [m['auroc']['n'] for m in maps if 'auroc' in m][:1]

  said = []
  if differ(lesions):
    said.append(
      'FROC is of other slides or by other rules in some runs: these numbers '
      'do not compare.'
    )
  if differ(pixels):
    said.append(
      'Pixel metrics are of other images in some runs: these numbers do not '
      'compare.'
    )
  if differ(lambda one: one.get('slide') and one.get('slide_rule')):
    said.append('Slides are scored by other rules in some runs.')
  return said


def _cautions(methods: Sequence[Method], test: Test) -> list[str]:
  """What a reader should know before believing a difference."""
  entries = [entry for method in methods for entry in method.entries]
  first, said = entries[0], []
  if lost := int((~test.kept).sum()):
    said.append(
      f'{lost} of {len(test.kept)} test images have no finite score in some '
      'run and are left out of all.'
    )
  for entry in entries:
    if entry.primary != entry.run.beforehand:
      said.append(
        f'{entry.folder.resolve().name} is compared by {entry.primary}, which '
        'was put first when it was evaluated again, not by '
        f'{entry.run.beforehand}, which was named before the test.'
      )
  said += _slide_cautions(entries, test)
  said += _other_tests(entries)
  if any(entry.fingerprint != first.fingerprint for entry in entries):
    said.append(
      'The data was prepared with other options for some runs; the test '
      'images are the same, by their files or by what the trivial baselines '
      'say of each.'
    )
  keys = first.normals['key'].tolist()
  if any(entry.normals['key'].tolist() != keys for entry in entries):
    said.append(
      'The validation normals, of which thresholds come, differ between runs.'
    )
  provenance = [entry.run.provenance for entry in entries]
  if len({str(one.get('devices')) for one in provenance}) > 1:
    said.append('Speeds are of different devices and do not compare.')
  if (
    len({str(one.get('commit') or one.get('jaxmed')) for one in provenance}) > 1
  ):
    said.append('The runs were made by different versions of the code.')
  return said
