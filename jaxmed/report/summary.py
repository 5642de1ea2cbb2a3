"""The first screen of the report: one honest sentence, and what to beware of.

The comparison with the trivial baselines is made against the best of them,
each in its better direction: hindsight is granted to the baseline, never to
the method.
"""

import math
import pathlib

from jaxmed.report import watched, words
from jaxmed.report.load import Run

FEW_GROUPS = 10  # A bootstrap over fewer groups says little.
OF_SLIDES = 'phantom', 'slides', 'camelyon16'  # Data whose groups are slides.


def unit(run: Run) -> str:
  """What a group of the bootstrap is: slide, patient or image.

  Slides that were scored later say nothing of the run's own images.
  """
  number = image_metrics(run).get('auroc', {})
  data = run.config.get('data', {}).get('name', '')
  own = not run.slides_folder and (run.slides or run.results.get('slide'))
  if own or data in OF_SLIDES:
    return 'slide'
  return 'image' if number.get('groups') == number.get('n') else 'patient'


def image_metrics(run: Run) -> dict:
  """The metrics of the primary score."""
  return run.results.get('image', {}).get(run.primary, {})


def data_name(run: Run) -> str:
  data = run.config.get('data', {})
  name = data.get('name', 'unknown data')
  if name == 'folder' and data.get('path'):
    return pathlib.PurePath(data['path']).name or name
  return {'phantom': 'phantom H&E slides', 'camelyon16': 'Camelyon16'}.get(
    name, name
  )


def best_baseline(run: Run) -> tuple[str, dict, bool] | None:
  """The strongest baseline: name, AUROC, and if its direction was turned."""
  known = _baselines(run)
  if not known:
    return None
  name, number = max(known.items(), key=lambda one: one[1]['value'])
  usual = words.finite(
    run.results['trivial'][name].get('auroc', {}).get('value')
  )
  turned = usual is not None and abs(usual - number['value']) > 1e-9
  return name, number, turned


def _baselines(run: Run) -> dict[str, dict]:
  """The AUROC of each that has one, in its better direction."""
  numbers = {
    name: metrics.get('auroc_best_direction') or metrics.get('auroc', {})
    for name, metrics in run.results.get('trivial', {}).items()
  }
  return {
    name: number
    for name, number in numbers.items()
    if words.finite(number.get('value')) is not None
  }


def summary(run: Run) -> dict:
  """{sentence, verdict, tone}: what was found, in words for a radiologist."""
  auroc = image_metrics(run).get('auroc', {})
  value = words.finite(auroc.get('value'))
  method = words.method(run.config.get('method', 'The method'))
  opening = f'{method} on {data_name(run)}'
  if value is None:
    reason = auroc.get('reason') or 'the run has no AUROC'
    return {
      'sentence': f'{opening}: the AUROC is not defined: {reason}.',
      'verdict': 'Nothing can be said about how well anomalies are found.',
      'tone': 'bad',
    }
  return {
    'sentence': f'{_found(run, opening, auroc, value)} {compared(run)}',
    **verdict(run),
  }


def _found(run: Run, opening: str, auroc: dict, value: float) -> str:
  span = words.interval(auroc, 2, ' to ')
  groups = auroc.get('groups')
  over = f' over {words.several(groups, unit(run))}' if groups else ''
  inside = f'95 % interval {span}{over}' if span else f'no interval{over}'
  positives, n = auroc.get('positives'), auroc.get('n')
  tested = ''
  if positives is not None and n is not None:
    tested = (
      f' for {words.count(positives)} anomalous among {words.count(n)} '
      'test images'
    )
  return (
    f'{opening} reaches an AUROC of {value:.2f} ({inside}){tested}, by its '
    f'score “{run.primary}”: of an anomalous and a normal image drawn at '
    f'random, the anomalous one scores higher {_times(value)} times in 100.'
  )


def _times(value: float) -> str:
  """Of 100, as the AUROC beside it is rounded; never always, if it is not."""
  times = f'{100 * float(f"{value:.2f}"):.0f}'
  if times == '100' and value < 1:
    return 'more than 99'
  return 'less than 1' if times == '0' and value > 0 else times


def compared(run: Run) -> str:
  """What the best trivial baseline reaches."""
  best = best_baseline(run)
  if best is None:
    return 'No trivial baseline was evaluated beside it.'
  name, number, turned = best
  span = words.interval(number, 2, ' to ')
  return (
    f'The best trivial baseline, {words.baseline(name)}, reaches '
    f'{number["value"]:.2f}'
    + (f' ({span})' if span else '')
    + (', with its direction chosen in hindsight.' if turned else '.')
  )


def verdict(run: Run) -> dict:
  """{verdict, tone}: the caveat that the numbers call for."""
  auroc = image_metrics(run)['auroc']
  value, low, high = (
    words.finite(auroc.get(key)) for key in ('value', 'low', 'high')
  )
  if high is not None and high < 0.5:
    return _verdict(
      'bad',
      'This is below chance: the score calls normal images more anomalous.',
    )
  chance = low is None or low <= 0.5
  said = []
  if chance:
    said.append(
      'The interval includes 0.5, which is chance: this run does not show '
      'that anomalies are found.'
      if low is not None
      else 'There is no interval, so chance cannot be excluded.'
    )
  best = best_baseline(run)
  if best is None:
    return _verdict('unclear' if chance else 'good', *said)
  if value <= best[1]['value']:
    said.append(
      'A trivial baseline does as well or better: nothing here shows that '
      'the method adds anything to it.'
    )
    return _verdict('bad', *said)
  if low is None or low <= _reached(run):
    said.append(
      'It is above every trivial baseline, but the intervals overlap: this run '
      'alone does not establish a difference.'
    )
    return _verdict('unclear', *said)
  said.append(
    'It is above every trivial baseline, and the intervals do not overlap.'
  )
  return _verdict('unclear' if chance else 'good', *said)


def _reached(run: Run) -> float:
  """The highest end of all baselines' intervals, known or not."""
  ends = [words.finite(one.get('high')) for one in _baselines(run).values()]
  return math.inf if None in ends else max(ends)


def _verdict(tone: str, *sentences: str) -> dict:
  return {'tone': tone, 'verdict': ' '.join(sentences)}


def warnings(run: Run) -> list[str]:
  """What makes the numbers worthless; shown in red, above everything."""
  return [
    f'Random weights: {entry.get("network") or "a network"} (part '
    f'{entry.get("part") or "unknown"}) was not trained on anything. These '
    'numbers say nothing about the method with proper weights.'
    for entry in run.provenance.get('weights') or []
    if entry.get('weights') == 'random'
  ]


def cautions(run: Run) -> list[str]:
  """What a reader should know before believing a number."""
  said = [str(text) for text in run.results.get('warnings') or []]
  said += watched.collapsed(run)
  groups = image_metrics(run).get('auroc', {}).get('groups')
  if groups is not None and groups < FEW_GROUPS:
    said.append(
      f'The test set has {words.several(groups, unit(run))}; intervals from '
      'so few are rough, and often too narrow.'
    )
  if run.failures:
    said.append(
      f'{words.several(len(run.failures), "failure")} on the way, listed '
      'under “Failures”.'
    )
  unscored = [row for row in run.slides if row.get('reason')]
  if unscored:
    said.append(
      f'{words.several(len(unscored), "slide")} without a score, with the '
      'reason under “Slides”.'
    )
  said += _later_slides(run)
  return list(dict.fromkeys(said + run.damaged))


def _later_slides(run: Run) -> list[str]:
  """Where slides are not as they were evaluated, or not cut as images are."""
  said = []
  evaluated = next(iter((run.results.get('slide') or {}).items()), None)
  if run.slides and evaluated:
    name, number = evaluated[0], evaluated[1].get('auroc', {})
    columns = f'score.{name}', name, f'slide.{name}'  # By rule.
    column = next((c for c in columns if c in run.slides[0]), '')
    labels = [
      row.get('label')
      for row in run.slides
      if words.finite(row.get(column)) is not None
      and row.get('label') in (0, 1)
    ]
    if (number.get('n'), number.get('positives')) != (len(labels), sum(labels)):
      said.append(
        'Slides have been scored, or labelled, since they were evaluated: the '
        'metrics of slides and lesions are of before; evaluate them again.'
      )
  quantiles = [
    words.finite((found.get(run.primary) or {}).get(key))
    for found, key in (
      (run.results.get('thresholds') or {}, 'quantile'),
      (run.calibration, 'threshold_quantile'),
    )
  ]
  if run.slides and None not in quantiles and len(set(quantiles)) > 1:
    said.append(
      f'The metrics’ thresholds are the quantile {quantiles[0]:g} of the '
      'validation normals, those in pictures and outlines of slides '
      f'{quantiles[1]:g}, by which they were scored.'
    )
  return said
