"""The page of several runs: methods by metrics, differences, examples.

`write_comparison` takes what was measured, as plain dicts and lists, and the
runs as load.py reads them; it computes nothing but words and drawings.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

from jaxmed.report import figures, page, summary, words
from jaxmed.report.gallery import place
from jaxmed.report.images import Pictures
from jaxmed.report.load import LABELS
from jaxmed.report.plot import element, join
from jaxmed.report.sections import cell

NAME = 'comparison.html'
PANEL = 160  # px, of the longer side.
FEW_GROUPS = 10  # A bootstrap over fewer groups says little.
SIGNIFICANT = 0.05
IMAGES = (  # Metrics of images, and of what they are parts of.
  'auroc',
  'ap',
  'f1',
  'sensitivity',
  'specificity',
  'sensitivity_at_specificity',
)
OTHERS = 'slide_auroc', 'froc', 'pixel_auroc', 'pixel_aupro_8'
DIFFERENCES = {  # Titles of the metrics that are tested.
  'auroc': 'AUROC of images',
  'ap': 'Average precision of images',
  'slide_auroc': 'AUROC of slides',
}


def write_comparison(
  folder: pathlib.Path, comparison: dict, examples: Sequence[dict]
) -> pathlib.Path:
  """Writes comparison.html into a folder and returns its path.

  Args:
    folder: where to write.
    comparison: of `jaxmed.comparing.comparison.measured`.
    examples: of `jaxmed.comparing.comparison_examples.examples`.
  """
  return page.write(folder / NAME, render(folder, comparison, examples))


def render(
  folder: pathlib.Path, comparison: dict, examples: Sequence[dict]
) -> str:
  """The whole page as text."""
  methods = comparison['methods']
  run = methods[0]['runs'][0]['run']
  pictures = Pictures()
  return page.render(
    'comparison.html',
    data=summary.data_name(run),
    unit=summary.unit(run),
    test=comparison['test'],
    methods=methods,
    reference=methods[comparison['reference']],
    against=comparison['against'],
    summary=_summary(comparison, run),
    warnings=_warnings(methods),
    cautions=_cautions(comparison, run),
    scores=_table(methods, IMAGES),
    others=_table(methods, OTHERS),
    baseline=_baseline(run),
    roc=_roc(comparison),
    differences=_differences(comparison),
    examples=[_example(one, methods, pictures) for one in examples],
    left_out=pictures.left_out,
    runs=_runs(folder, methods),
    costs=[m | {'shown': _costs(m)} for m in methods],
    several=any(len(m['runs']) > 1 for m in methods),
  )


def _summary(comparison: dict, run) -> dict:
  """{sentence, verdict, tone}, as the report of a run has it."""
  methods = comparison['methods']
  reference = methods[comparison['reference']]
  known = [m for m in methods if _auroc(m) is not None]
  opening = f'Of {len(methods)} methods on {summary.data_name(run)}'
  if not known:
    return {
      'sentence': f'{opening} none has an AUROC.',
      'verdict': 'Nothing can be said about which is better.',
      'tone': 'bad',
    }
  best = max(known, key=_auroc)
  span = words.interval(best['metrics']['auroc'], 2, ' to ')
  inside = f' (95 % interval {span})' if span else ''
  sentence = (
    f'{opening}, {best["name"]} has the highest AUROC, {_auroc(best):.2f}'
    f'{inside}. {summary.compared(run)}'
  )
  baseline = summary.best_baseline(run)
  if baseline and baseline[1]['value'] >= _auroc(best):
    return {
      'sentence': sentence,
      'verdict': 'No method does better than that: nothing here shows that '
      'any of them adds anything to it.',
      'tone': 'bad',
    }
  return {'sentence': sentence, **_verdict(methods, reference)}


def _verdict(methods: Sequence[dict], reference: dict) -> dict:
  """Which differences are more than chance."""
  others = [m for m in methods if m is not reference]
  worse, better = (
    [m['name'] for m in others if _established(m, sign)] for sign in (-1, 1)
  )
  if not worse and not better:
    verdict = f'No difference to {reference["name"]} is established.'
  else:
    said = [
      f'{kind} than {reference["name"]}: {", ".join(names)}'
      for kind, names in (('better', better), ('worse', worse))
      if names
    ]
    verdict = f'Established after Holm’s correction: {"; ".join(said)}.'
  return {
    'verdict': verdict,
    'tone': 'good' if worse or better else 'unclear',
  }


def _auroc(method: dict) -> float | None:
  return words.finite(method['metrics']['auroc'].get('value'))


def _established(method: dict, sign: int) -> bool:
  found = method['differences'].get('auroc') or {}
  p = words.finite(found.get('p_holm'))
  return p is not None and p < SIGNIFICANT and found['value'] * sign > 0


def _warnings(methods: Sequence[dict]) -> list[str]:
  return [
    f'{method["name"]}: {text}'
    for method in methods
    for text in summary.warnings(method['runs'][0]['run'])
  ]


def _cautions(comparison: dict, run) -> list[str]:
  said = list(comparison['cautions'])
  groups = comparison['test']['groups']
  if groups < FEW_GROUPS:
    said.append(
      f'The test set has {words.several(groups, summary.unit(run))}; intervals '
      'and p-values from so few are rough. No p-value can be below '
      f'{words.number(2.0 ** (1 - groups), 2)}.'
    )
  if comparison['against'] == 'best':
    said.append(
      'The best method was chosen on the same images that it is tested on, '
      'which flatters it.'
    )
  return said


def _table(methods: Sequence[dict], names: Sequence[str]) -> dict:
  """{columns, rows} of those of the metrics that any method has."""
  columns = [
    name for name in names if any(name in m['metrics'] for m in methods)
  ]
  rows = [
    {
      'name': method['name'],
      'score': method['score'],
      'seeds': len(method['runs']),
      'cells': [_cell(method['metrics'].get(name)) for name in columns],
      'interval': figures.interval(method['metrics']['auroc'], 'method'),
    }
    for method in methods
  ]
  return {'columns': columns, 'rows': rows}


def _cell(number: dict | None) -> dict | None:
  if number is None:
    return None
  found = cell(number)
  spread = words.finite(number.get('spread'))
  if spread is not None and not found['reason']:
    found['spread'] = words.share(spread)
  return found


def _baseline(run) -> dict:
  """The best trivial baseline on the same images, for the table's foot."""
  best = summary.best_baseline(run)
  if best is None:
    return {}
  name, number, turned = best
  return {
    'name': words.baseline(name),
    'turned': turned,
    'cell': cell(number),
    'interval': figures.interval(number, 'trivial'),
  }


def _roc(comparison: dict) -> figures.Figure | None:
  """Every method's curve, with the band of the reference."""
  methods = comparison['methods']
  reference = methods[comparison['reference']]['name']
  curves = {m['name']: curve for m in methods if (curve := _curve(m))}
  results = {
    'curves': {name: {'roc': curve} for name, curve in curves.items()},
    'image': {m['name']: {'auroc': m['metrics']['auroc']} for m in methods},
  }
  drawn = figures.roc(results, reference)
  if drawn is None:
    return None
  caption = 'Dashed diagonal: chance. Curves of several seeds are their mean.'
  if figures.has_band(curves.get(reference, {})):
    caption = f'Band: 95 % interval of {reference}. {caption}'
  if len(curves) > figures.SERIES:
    caption += f' The first {figures.SERIES} of {len(curves)} are drawn.'
  return dataclasses.replace(drawn, caption=caption)


def _curve(method: dict) -> dict:
  runs = [one['run'] for one in method['runs']]
  found = [
    ((run.results.get('curves') or {}).get(method['score']) or {}).get('roc')
    for run in runs
  ]
  if not all(found):
    return {}
  if len(found) == 1:
    return found[0]
  mean = np.mean([one['tpr'] for one in found], axis=0)
  return {'fpr': found[0]['fpr'], 'tpr': mean.tolist()}


def _differences(comparison: dict) -> list[dict]:
  """A table for every metric that was tested."""
  tables = []
  for name, title in DIFFERENCES.items():
    found = [
      (method['name'], method['differences'][name])
      for method in comparison['methods']
      if name in method['differences']
    ]
    limit = max((_reach(number) for _, number in found), default=0.0) or 1.0
    rows = [
      number
      | {
        'name': method,
        'shown': _signed(number['value']),
        'span': _signed_span(number),
        'drawn': _shift(number, limit),
        'established': (number['p_holm'] or 1.0) < SIGNIFICANT,
      }
      for method, number in found
    ]
    if rows:
      tables.append({'title': title, 'rows': rows})
  return tables


def _reach(number: dict) -> float:
  known = [words.finite(number[key]) for key in ('value', 'low', 'high')]
  return max((abs(v) for v in known if v is not None), default=0.0)


def _signed(value: float | None) -> str:
  value = words.finite(value)
  if value is None:
    return words.DASH
  text = f'{value:+.3f}'.replace('-', '−')
  return text if float(text[1:]) else text[1:]


def _signed_span(number: dict) -> str:
  low, high = words.finite(number['low']), words.finite(number['high'])
  if low is None or high is None:
    return ''
  return f'{_signed(low)} to {_signed(high)}'


def _shift(number: dict, limit: float) -> Markup:
  """A dot with its whiskers about 0, which is dashed."""
  place = lambda v: round(70 + 64 * v / limit, 1)
  value, low, high = (
    words.finite(number[key]) for key in ('value', 'low', 'high')
  )
  parts = [element('line', x1=70, x2=70, y1=1, y2=17, class_='guide')]
  if low is not None and high is not None:
    ends = {'x1': place(low), 'x2': place(high), 'y1': 9, 'y2': 9}
    parts.append(element('line', **ends, class_='whisker method'))
  if value is not None:
    at = {'cx': place(value), 'cy': 9, 'r': 4}
    parts.append(element('circle', **at, class_='dot method'))
  return element(
    'svg',
    join(parts),
    viewBox='0 0 140 18',
    class_='interval',
    aria_hidden='true',
  )


def _example(one: dict, methods: Sequence[dict], pictures: Pictures) -> dict:
  label = LABELS.get(one['label'], 'unknown')
  missing = {'missing': one['missing']}
  return {
    'key': one['key'],
    'group': one['group'],
    'label': label,
    'image': _picture(one['image'], missing, pictures),
    'alt': f'{one["key"]} ({label})',
    'methods': [
      _panel(method, score, pixels, pictures, one['key'])
      for method, score, pixels in zip(
        methods, one['scores'], one['maps'], strict=True
      )
    ],
  }


def _panel(method, score: float, pixels, pictures: Pictures, key: str) -> dict:
  run = method['runs'][0]['run']
  threshold = words.finite(method['runs'][0]['threshold'])
  return {
    'name': method['name'],
    'alt': f'Map of {method["name"]}, {key}',
    'score': score,
    'above': None if threshold is None else score > threshold,
    'place': place(run, method['score'], score),
    'picture': _picture(pixels, {'missing': 'no map was kept'}, pictures),
  }


def _picture(pixels, missing: dict, pictures: Pictures) -> dict:
  if pixels is None:
    return missing
  return pictures.embed_image(Image.fromarray(pixels), PANEL)


def _runs(folder: pathlib.Path, methods: Sequence[dict]) -> list[dict]:
  """Every run, with a link to its report where there is one."""
  return [
    {
      'name': method['name'],
      'folder': one['run'].workdir.resolve().name,
      'link': _link(folder, one['run'].workdir / 'report.html'),
      'seed': one['seed'],
      'auroc': cell(one['metrics']['auroc']),
      'ap': cell(one['metrics']['ap']),
      'changed': [
        (field, words.text(pair[1]))
        for field, pair in (one['run'].config.get('changed') or {}).items()
        if field not in ('seed', 'data.dir')
      ],
      'version': one['run'].provenance.get('commit')
      or one['run'].provenance.get('jaxmed', ''),
      'devices': ', '.join(
        dict.fromkeys(map(str, one['run'].provenance.get('devices') or []))
      ),
    }
    for method in methods
    for one in method['runs']
  ]


def _link(folder: pathlib.Path, path: pathlib.Path) -> str:
  if not path.exists():
    return ''
  link = os.path.relpath(path.resolve(), folder.resolve())
  return pathlib.PurePath(link).as_posix()


def _costs(method: dict) -> list[tuple[str, float | str]]:
  """What each column says, and by what it sorts."""
  costs = method['costs']
  said = (
    ('train_images_per_s', words.number),
    ('score_images_per_s', words.number),
    ('train_seconds', words.seconds),
    ('seconds', words.seconds),
    ('host_bytes', words.size),
    ('device_bytes', words.size),
    ('parameters', words.count),
    ('pretrained', words.count),
    ('bank', words.count),
  )
  return [
    (say(costs[name]), '' if costs[name] is None else costs[name])
    for name, say in said
  ]
