"""The report's curves and histograms; training.py has those of training.

Each function returns a Figure, or None where the run has nothing to draw.
Normal images are blue and anomalous ones orange throughout; a second
difference (dashes, an outline) serves readers who see no colour.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from jaxmed.report import words
from jaxmed.report.plot import Plot, element, join

RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)  # Ticks of the FROC.
SERIES = 8  # The style sheet has so many colours with their dashes.
BINS = 40


@dataclasses.dataclass(frozen=True)
class Figure:
  """A drawing with its title, its caption, and its legend's lines."""

  svg: Markup
  title: str
  caption: str = ''
  legend: tuple[tuple[str, str], ...] = ()  # (style, name).


def roc(results: dict, primary: str) -> Figure | None:
  """Sensitivity against false alarms; the primary score with its band."""
  plot = Plot((0, 1), (0, 1), '1 − specificity', 'Sensitivity')
  plot.rule((0, 0), (1, 1))
  legend = _curves(plot, results, primary, 'roc', ('fpr', 'tpr'), 'auroc')
  if not legend:
    return None
  caption = 'Dashed diagonal: chance.'
  at = results.get('image', {}).get(primary, {})
  sensitivity = words.finite(at.get('sensitivity', {}).get('value'))
  specificity = words.finite(at.get('specificity', {}).get('value'))
  if sensitivity is not None and specificity is not None:
    named = f'sensitivity {sensitivity:.2f}, specificity {specificity:.2f}'
    plot.point(1 - specificity, sensitivity, 's0', named)
    caption = f'Dot: at the validation threshold ({named}). {caption}'
  described = f'ROC curves of {_listed(legend)}'
  caption = _band_words(results, primary, 'roc') + caption
  return Figure(plot.svg(described), 'ROC', caption, tuple(legend))


def precision_recall(results: dict, primary: str) -> Figure | None:
  """Precision against recall, with the share of anomalous images as chance."""
  plot = Plot((0, 1), (0, 1), 'Recall (sensitivity)', 'Precision')
  number = results.get('image', {}).get(primary, {}).get('ap', {})
  total, positives = number.get('n'), number.get('positives')
  caption = ''
  if total and positives:
    chance = positives / total
    plot.rule((0, chance), (1, chance))
    caption = f'Dashed: chance, the share of anomalous images ({chance:.2f}).'
  axes = 'recall', 'precision'
  legend = _curves(plot, results, primary, 'pr', axes, 'ap')
  if not legend:
    return None
  described = f'Precision-recall curves of {_listed(legend)}'
  return Figure(
    plot.svg(described),
    'Precision and recall',
    (_band_words(results, primary, 'pr') + caption).strip(),
    tuple(legend),
  )


def froc(found: dict) -> Figure | None:
  """Lesions found against false positives per slide, with its band."""
  curve = found.get('curve')
  if not curve:
    return None
  x, y = curve['false_positives'], curve['sensitivity']
  top = max(1.0, *(words.finite(v) or 0 for v in y))
  label = 'Mean false positives per slide'
  plot = Plot((min(x), max(x)), (0, top), label, 'Sensitivity', octaves=RATES)
  if banded := has_band(curve):
    plot.band(x, curve['low'], curve['high'], 's0')
  plot.line(x, y, 's0', 'FROC')
  for rate, number in found.get('sensitivity_at', {}).items():
    value = words.finite(number.get('value'))
    if value is not None:
      plot.point(float(rate), value, 's0', f'{value:.3f} at {rate}')
  score = words.share(found.get('score', {}).get('value'))
  return Figure(
    plot.svg(f'FROC curve, score {score}'),
    'FROC',
    f'Dots: the six rates, whose mean sensitivity is the score, {score}.'
    + ' Band: 95 % interval, resampled by slide.' * banded,
  )


def _curves(plot, results, primary, kind, axes, metric) -> list:
  """Draws the scores' curves, the primary last, on top; its legend."""
  curves = results.get('curves', {})
  names = [name for name in curves if curves[name].get(kind)]
  names = sorted(names, key=lambda name: name != primary)[:SERIES]
  legend = []
  for i, name in reversed(list(enumerate(names))):
    curve, style = curves[name][kind], f's{i}'
    if name == primary and has_band(curve):
      plot.band(curve[axes[0]], curve['low'], curve['high'], style)
    thin = style if name == primary else f'{style} thin'
    plot.line(curve[axes[0]], curve[axes[1]], thin, name)
    number = results.get('image', {}).get(name, {}).get(metric, {})
    value = words.share(number.get('value'))
    legend.insert(0, (thin, f'{name} ({value})'))
  return legend


def has_band(curve: dict) -> bool:
  """With one group it is there, and empty."""
  return all(
    any(words.finite(v) is not None for v in curve.get(end) or [])
    for end in ('low', 'high')
  )


def _band_words(results: dict, primary: str, kind: str) -> str:
  curve = results.get('curves', {}).get(primary, {}).get(kind) or {}
  return 'Band: 95 % interval of the primary score. ' * has_band(curve)


def _listed(legend) -> str:
  return ', '.join(name for _, name in legend)


def histogram(
  values: dict[str, Float[np.ndarray, ' n']],
  name: str,
  threshold: dict,
  size: tuple[int, int] = (380, 270),
) -> Figure | None:
  """A score's distribution in each class, with the validation threshold.

  `values` has 'normal', 'anomalous' and 'validation'; each is drawn as a
  share of its own class, since the classes differ in size.
  """
  values = {key: v[np.isfinite(v)] for key, v in values.items()}
  everything = np.concatenate([*values.values()])
  if not everything.size:
    return None
  low, high = _range(everything)
  cut = words.finite(threshold.get('value'))
  if cut is not None and abs(cut) < np.inf:
    low, high = min(low, cut), max(high, cut)
  edges = np.linspace(low, high, BINS + 1)
  shares = {
    key: np.histogram(v.clip(low, high), edges)[0] / max(len(v), 1) * 100
    for key, v in values.items()
  }
  top = max(share.max() for share in shares.values()) * 1.12 or 1.0
  label = 'Images of the class, %'
  plot = Plot((low, high), (0, top), 'Score', label, size)
  legend = []
  for key in ('validation', 'normal', 'anomalous'):
    if key in values and len(values[key]):
      plot.steps(edges, shares[key], key)
      named = 'normal, validation' if key == 'validation' else f'{key}, test'
      legend.append(
        (f'box {key}', f'{named} ({words.count(len(values[key]))})')
      )
  if cut is not None:
    plot.rule((cut, 0), (cut, top), 'threshold')
    right = cut < (low + high) / 2
    plot.note(
      cut, top * 0.95, f'threshold {cut:.4g}', 'start' if right else 'end'
    )
  outside = int(((everything < low) | (everything > high)).sum())
  caption = (
    f'{words.several(outside, "image")} beyond the axis are counted in the '
    'outermost bars.'
    if outside
    else ''
  )
  described = f'Histogram of {name}: ' + _listed(legend)
  return Figure(plot.svg(described), name, caption, tuple(legend))


def _range(values) -> tuple[float, float]:
  """All of the data, unless a few far values would squeeze the rest."""
  low, high = float(values.min()), float(values.max())
  inner = np.quantile(values, [0.002, 0.998])
  margin = 0.75 * (inner[1] - inner[0])
  if margin > 0:
    low, high = max(low, inner[0] - margin), min(high, inner[1] + margin)
  if high <= low:
    low, high = low - 0.5, high + 0.5
  return low, high


def interval(number: dict, style: str) -> Markup:
  """A dot with its whiskers on a line from 0 to 1, for a table's cell."""
  value = words.finite(number.get('value'))
  low, high = (words.finite(number.get(key)) for key in ('low', 'high'))
  place = lambda v: round(4 + 132 * min(max(v, 0.0), 1.0), 1)
  parts = [
    element('line', x1=4, x2=136, y1=9, y2=9, class_='grid'),
    element('line', x1=70, x2=70, y1=1, y2=17, class_='guide'),
  ]
  if low is not None and high is not None:
    parts.append(
      element(
        'line',
        x1=place(low),
        x2=place(high),
        y1=9,
        y2=9,
        class_=f'whisker {style}',
      )
    )
  if value is not None:
    parts.append(
      element('circle', cx=place(value), cy=9, r=4, class_=f'dot {style}')
    )
  return element(
    'svg',
    join(parts),
    viewBox='0 0 140 18',
    class_='interval',
    aria_hidden='true',
  )
