"""Every method on the real images at hand: AUROC, time and speed in one table.

  python benchmarks/real_data.py --data ../shared/data --out real
      [--only munit,rd-resnet50v2] [--sets oral,camelyon16]

One launch a method and set, in a folder of its own under --out; called again,
it goes on where it stopped. Ends in real_data.csv and a table in Markdown.

Splits are by this rule and no other. Oral histology and chest X-rays: of the
normal images in the order of their names the first 60 % are for training, the
next 10 % for thresholds, the rest for testing; of the anomalous ones the first
10 % are for methods that learn from some, the next 5 % for their calibration,
the rest for testing. Camelyon16's patches are divided by slide, as its four
slides allow: tumor_064 for training, tumor_004 (healthy only) for thresholds,
tumor_001 and tumor_073 for testing. So nothing there can be calibrated with
labels: `densenet` gives its probability as it is, which orders images in the
same way. Two slides give no interval, so intervals are over images everywhere.

The X-rays come from two hospitals, one a class: the mean gradient alone tells
them apart. What is measured there is no detection of disease.
"""

import argparse
import csv
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping

SETS = {
  'oral': ('histology/oral', 'normal', 'oscc'),
  'camelyon16': ('histology/camelyon16_patches', 'normal', 'tumor'),
  'cxr': ('cxr', 'normal', 'covid'),
}
WARNINGS = {'cxr': 'two sources, one a class: no detection of disease'}
SLIDES = {
  'tumor_064': 'train',
  'tumor_004': 'validation',
  'tumor_001': 'test',
  'tumor_073': 'test',
}
TRAIN, VALIDATION = 0.6, 0.1  # Of normal images.
FEW, CALIBRATION = 0.1, 0.05  # Of anomalous ones.


@dataclasses.dataclass(frozen=True)
class Entry:
  """One row of the table: a preset, and what differs from it."""

  config: str
  weights: str = ''  # A file of the data, of the network named by the preset,
  fields: tuple[str, ...] = ('model.weights',)  # which goes into these.
  options: tuple[str, ...] = ()
  there: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict
  )  # Options of one set.


SQUEEZENET, RESNET = 'squeezenet1_1.npz', 'resnet50v2_stages123.npz'
METHODS: Mapping[str, Entry] = {
  'munit': Entry('munit:folder', options=('--config.train.steps=800',)),
  'fanogan': Entry('fanogan:folder'),
  'patchcore-squeezenet': Entry('patchcore:squeezenet1_1', SQUEEZENET),
  'patchcore-resnet50v2': Entry('patchcore:resnet50v2', RESNET),
  'padim-squeezenet': Entry('padim:squeezenet1_1', SQUEEZENET),
  'padim-resnet50v2': Entry('padim:resnet50v2', RESNET),
  'rd-resnet50v2': Entry(
    'rd:resnet50v2', RESNET, options=('--config.train.steps=200',)
  ),
  'fwrd-resnet50v2': Entry(
    'fwrd:folder',
    RESNET,
    options=('--config.model.teacher=resnet50v2', '--config.train.steps=200'),
  ),
  'densenet': Entry(
    'densenet:folder',
    options=(
      '--config.data.size=64',
      '--config.data.resize=64',
      '--config.train.batch=16',
      '--config.train.steps=300',
    ),
    there={'camelyon16': ('--config.model.calibration=none',)},
  ),
  'cyclegan': Entry('cyclegan:folder', options=('--config.train.steps=800',)),
  'steganomaly': Entry(
    'steganomaly:folder', options=('--config.train.steps=800',)
  ),
  'healthygan': Entry(
    'healthygan:folder', options=('--config.train.steps=1000',)
  ),
  'ganomaly': Entry('ganomaly:folder', options=('--config.train.steps=1500',)),
  'alad': Entry('alad:folder', options=('--config.train.steps=1000',)),
  'alocc': Entry('alocc:folder', options=('--config.train.steps=400',)),
  'anogan': Entry('anogan:folder'),
  'stylegan2': Entry(
    'stylegan2:folder',
    SQUEEZENET,
    ('model.lpips_weights', 'train.watch.trunk'),
    (
      '--config.train.steps=600',
      '--config.train.watch.every=300',
      '--config.train.watch.images=200',
      '--config.score.steps=50',
    ),
  ),
}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--only', default=','.join(METHODS))
  parser.add_argument('--sets', default=','.join(SETS))
  given = parser.parse_args()
  out = given.out.absolute()
  failed = []
  for name in given.sets.split(','):
    lay_out(given.data.absolute(), name, out / 'images' / name)
    for method in given.only.split(','):
      entry = METHODS[method]
      if launch(entry, given.data.absolute(), name, out, method):
        failed.append(f'{name}/{method}')
  rows = list(collect(out))
  with (out / 'real_data.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  print(table(rows))
  if failed:
    print(f'Failed: {", ".join(failed)}', file=sys.stderr)
  return bool(failed)


def lay_out(data: pathlib.Path, name: str, folder: pathlib.Path) -> None:
  """A folder with links to a set's images, and the table of their splits."""
  folder.mkdir(parents=True, exist_ok=True)
  root, *kinds = SETS[name]
  with (folder / 'labels.csv').open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(('path', 'label', 'group', 'split'))
    for label, kind in enumerate(kinds):
      link = folder / kind
      if not link.exists():
        link.symlink_to(data / root / kind)
      files = sorted(path.name for path in link.iterdir())
      for file_name, split in zip(files, splits(files, label), strict=True):
        path = f'{kind}/{file_name}'
        writer.writerow((path, label, path, split))


def splits(names: list[str], label: int) -> Iterator[str]:
  """Of each file of a class, in order."""
  for number, name in enumerate(names):
    slide = '_'.join(name.split('_')[:2])
    share = number / len(names)
    if slide in SLIDES:
      yield SLIDES[slide]
    else:
      first, second = (FEW, CALIBRATION) if label else (TRAIN, VALIDATION)
      if share < first:
        yield 'train'
      else:
        yield 'validation' if share < first + second else 'test'


def launch(
  entry: Entry, data: pathlib.Path, name: str, out: pathlib.Path, method: str
) -> int:
  """The whole way of one method on one set, in a process of its own."""
  folder = out / name / method
  if (folder / 'report.html').exists():
    return 0
  folder.parent.mkdir(parents=True, exist_ok=True)
  print(f'{name}: {method}', file=sys.stderr, flush=True)
  command = [
    *(sys.executable, '-m', 'jaxmed.launch', f'--config={entry.config}'),
    f'--workdir={folder}',
    f'--config.data.path={out / "images" / name}',
    f'--config.data.dir={out / "records"}',
    '--config.data.options.labels=labels.csv',
    *entry.options,
    *entry.there.get(name, ()),
  ]
  if entry.weights:
    file = data / 'weights' / entry.weights
    command += [f'--config.{field}={file}' for field in entry.fields]
  return subprocess.run(command, stdout=subprocess.DEVNULL).returncode


def collect(out: pathlib.Path) -> Iterator[dict[str, str]]:
  """A row of each run, and one of the best trivial baseline beside it."""
  for name in SETS:
    for method in METHODS:
      folder = out / name / method
      if not (folder / 'report.html').exists():
        continue
      results = json.loads((folder / 'results.json').read_text())
      facts = json.loads((folder / 'provenance.json').read_text())
      auroc = results['image'][results['primary']]['auroc']
      trivial = max(
        results['trivial'],
        key=lambda one: results['trivial'][one]['auroc_best_direction'][
          'value'
        ],
      )
      yield {
        'set': name,
        'method': method,
        'score': results['primary'],
        'auroc': interval(auroc),
        'n': auroc['n'],
        'anomalous': auroc['positives'],
        'best_trivial': trivial,
        'trivial_auroc': interval(
          results['trivial'][trivial]['auroc_best_direction']
        ),
        'train_s': round(facts['stages']['train']),
        'images_per_s': f'{facts["train"]["images_per_s"]:.1f}',
        'warning': WARNINGS.get(name, ''),
      }


def interval(number: Mapping) -> str:
  return '{value:.2f} [{low:.2f}, {high:.2f}]'.format(**number)


def table(rows: list[dict[str, str]]) -> str:
  """A line a method and a column a set; the times are of the first set."""
  cells = {(row['method'], row['set']): row for row in rows}
  names = list(dict.fromkeys(row['set'] for row in rows))
  lines = [
    f'| method | score | {" | ".join(names)} | training, s | images/s |',
    '|---' * (len(names) + 4) + '|',
  ]
  for method in dict.fromkeys(row['method'] for row in rows):
    found = [cells.get((method, name), {}) for name in names]
    first = next(one for one in found if one)
    line = [method, first['score'], *(one.get('auroc', '') for one in found)]
    line += [str(first['train_s']), first['images_per_s']]
    lines.append(f'| {" | ".join(line)} |')
  best = [
    max(
      (row for row in rows if row['set'] == name),
      key=lambda row: row['trivial_auroc'],
    )
    for name in names
  ]
  line = [f'{row["trivial_auroc"]}, {row["best_trivial"]}' for row in best]
  lines.append(f'| best trivial, at any size | | {" | ".join(line)} | | |')
  notes = {
    f'{row["set"]}: {row["n"]} images, {row["anomalous"]} of them anomalous'
    f'{"; " + row["warning"] if row["warning"] else ""}'
    for row in rows
  }
  return '\n'.join([*lines, '', *sorted(notes)])


if __name__ == '__main__':
  sys.exit(main())
