"""A plausible run's folder, made from random numbers in a second.

The numbers are consistent where a reader would notice: metrics, curves and
histograms come from the same scores.
"""

import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from sklearn import metrics

from jaxmed.metrics import froc, lesions

SCORES = {'cycle_ssim': 1.6, 'cycle_l1': 1.1, 'latent': 0.4}
TRIVIAL = {
  'mean_intensity': -0.4,
  'contrast': 0.5,
  'laplacian_energy': 0.7,
  'compressed_size': 0.3,
  'blurred_ssim': 0.6,
}
OPTIONAL = (
  'provenance.json',
  'train.jsonl',
  'calibration.json',
  'scores.parquet',
  'slides.parquet',
  'failures.jsonl',
  'examples.json',
)


def fabricate(
  folder: pathlib.Path, patches: int = 400, slides: int = 7, side: int = 480
) -> pathlib.Path:
  """Writes every file of a run's folder but the report."""
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True, exist_ok=True)
  table = _scores(rng, patches, slides)
  pq.write_table(pa.table(table), folder / 'scores.parquet')
  calibration = _calibration(table)
  _json(folder / 'calibration.json', calibration)
  _json(folder / 'config.json', config())
  results = _results(table, calibration) | {'froc': _froc(rng, slides)}
  scored = {'n': slides - 1, 'positives': slides - slides // 2 - 1}
  results['slide'] = {'cycle_ssim': {'auroc': number(0.83, 0.5, 1, **scored)}}
  _json(folder / 'results.json', results)
  _json(folder / 'provenance.json', _provenance())
  _lines(folder / 'train.jsonl', _log(rng))
  _lines(folder / 'failures.jsonl', _failures(slides))
  _slides(rng, folder, slides, side)
  _examples(rng, folder, table)
  return folder


def change(folder: pathlib.Path, name: str, edit) -> None:
  """Reads a JSON file, lets `edit` change the value, and writes it."""
  value = json.loads((folder / name).read_text())
  edit(value)
  _json(folder / name, value)


def number(value, low=None, high=None, **more) -> dict:
  counts = {'n': 800, 'positives': 400, 'groups': 7, 'dropped': 0}
  return {'value': value, 'low': low, 'high': high} | counts | more


def config() -> dict:
  healthy = "label == 0 and tissue >= 0.9 and split == 'train'"
  return {
    'method': 'munit',
    'preset': 'phantom',
    'seed': 0,
    'data': {
      'name': 'phantom',
      'path': '',
      'size': 64,
      'cohorts': {'a': healthy + " and domain == 'A'", 'normal': ''},
      'validation': "label == 0 and split == 'validation'",
      'test': "split == 'test' and tissue >= 0.9",
      'options': {},
    },
    'model': {'dim': 16, 'style': 8},
    'train': {'batch': 4, 'steps': 900, 'augment': [], 'fsdp': False},
    'eval': {'primary': 'cycle_ssim', 'quantile': 0.95, 'specificity': 0.9},
    'changed': {'train.steps': [600, 900], 'model.style': [4, 8]},
  }


def _json(path: pathlib.Path, value) -> None:
  path.write_text(json.dumps(value, allow_nan=False))


def _lines(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _scores(rng, patches: int, slides: int) -> dict:
  n = 3 * patches
  split = np.array(['validation'] * patches + ['test'] * 2 * patches)
  label = np.array([0] * 2 * patches + [1] * patches)
  sick = rng.integers(slides // 2, slides, n)
  healthy = rng.integers(0, slides, n)
  group = np.where(label == 1, sick, healthy)
  shift = rng.normal(0, 0.25, slides)[group]
  table = {
    'row': np.arange(n, dtype=np.int32),
    'key': [f'test_{g:03d}/{i:05d}' for i, g in enumerate(group)],
    'group': np.where(
      split == 'validation',
      'validation_000',
      [f'test_{g:03d}' for g in group],
    ).tolist(),
    'split': split.tolist(),
    'label': label.astype(np.int8),
    'x': rng.integers(0, 2560, n).astype(np.int32),
    'y': rng.integers(0, 2560, n).astype(np.int32),
    'level': np.zeros(n, np.int32),
    'mpp': np.full(n, 0.5, np.float32),
    'tissue': rng.uniform(0.9, 1, n).astype(np.float32),
    'lesion': np.where(label == 1, 0.9, 0).astype(np.float32),
    'domain': rng.choice(['A', 'B'], n).tolist(),
    'kind': np.where(label == 1, 'dense', '').tolist(),
  }
  draw = lambda gap: rng.gamma(4, 0.25, n) + gap * 0.6 * label + shift
  table |= {f'score.{k}': 0.1 * draw(gap) for k, gap in SCORES.items()}
  return table | {f'trivial.{k}': draw(gap) for k, gap in TRIVIAL.items()}


def _calibration(table: dict) -> dict:
  grid = np.linspace(0, 1, 101)
  validation = np.array(table['split']) == 'validation'
  found = {}
  for name in SCORES:
    values = table[f'score.{name}'][validation]
    found[name] = {
      'quantile': grid.tolist(),
      'value': np.quantile(values, grid).tolist(),
      'threshold': float(np.quantile(values, 0.95)),
      'threshold_quantile': 0.95,
      'n': len(values),
      'groups': 1,
    }
  return found


def _results(table: dict, calibration: dict) -> dict:
  test = np.array(table['split']) == 'test'
  label = table['label'][test]
  image = {
    name: _metrics(label, table[f'score.{name}'][test]) for name in SCORES
  }
  trivial = {
    name: _metrics(label, table[f'trivial.{name}'][test]) for name in TRIVIAL
  }
  for row in trivial.values():
    value = row['auroc']['value']
    best = max(value, 1 - value)
    row['auroc_best_direction'] = number(best, best - 0.06, best + 0.05)
    for name in [n for n in row if n.startswith('oracle_')]:
      del row[name]
  pixel = {k: number(v, v - 0.05, v + 0.04) for k, v in _PIXEL.items()}
  return {
    'primary': 'cycle_ssim',
    'orientation': 'higher is more anomalous',
    'image': image,
    'trivial': trivial,
    'pixel': {'cycle_l1': pixel},
    'thresholds': {
      k: {'value': v['threshold'], 'quantile': 0.95, 'n': v['n']}
      for k, v in calibration.items()
    },
    'curves': {k: _curves(label, table[f'score.{k}'][test]) for k in SCORES},
    'counts': _counts(table),
    'warnings': ['The validation normals come from one slide.'],
  }


def _froc(rng, slides: int) -> dict:
  """Every slide but the last, which has no score."""
  hits, rows = [], []
  for i in range(slides - 1):
    count = int(rng.integers(1, 5)) if i >= slides // 2 else 0
    best = np.where(rng.random(count) < 0.8, rng.uniform(0.3, 1, count), 0)
    kept = np.where(best > 0, 0, -1)
    false = rng.beta(2, 4, 3 * i + 4)
    hits.append(lesions.Hits(false, best.astype(np.float32), kept, count))
    rows.append(
      {
        'group': f'test_{i:03d}',
        'label': int(count > 0),
        'mpp': 0.5,
        'lesions': count,
        'itc': int(i == slides - 2),
        'found': int((kept >= 0).sum()),
        'detections': len(false) + count,
        'false': len(false),
      }
    )
  found = froc.froc(hits, 200, strict=True)
  at = {k: v.as_dict() for k, v in found['sensitivity_at'].items()}
  total = lambda key: sum(row[key] for row in rows)
  return found | {
    'protocol': 'camelyon16',
    'strict': True,
    'score': found['score'].as_dict(),
    'sensitivity_at': at,
    'auroc': number(0.83, 0.5, 1.0, n=7, positives=4),
    'slides': len(rows),
    'tumour_slides': total('label'),
    'lesions': total('lesions'),
    'itc': total('itc'),
    'detections': total('detections'),
    'excluded': [
      {
        'group': f'test_{slides - 1:03d}',
        'reason': '31 of 1210 tiles could not be read',
      }
    ],
    'by_slide': rows,
  }


_PIXEL = {'auroc': 0.81, 'ap': 0.34, 'aupro_4': 0.52, 'aupro_8': 0.53}


def _metrics(label, score) -> dict:
  near = lambda v: number(v, max(v - 0.06, 0), min(v + 0.05, 1))
  above = score > np.quantile(score[label == 0], 0.95)
  sensitivity = float(above[label == 1].mean())
  return {
    'auroc': near(float(metrics.roc_auc_score(label, score))),
    'ap': near(float(metrics.average_precision_score(label, score))),
    'f1': near(float(metrics.f1_score(label, above))),
    'accuracy': near(float((above == label).mean())),
    'sensitivity': near(sensitivity),
    'specificity': near(0.95),
    'sensitivity_at_specificity': near(min(sensitivity + 0.1, 1)),
    'oracle_youden_accuracy': near(0.79),
    'oracle_youden_f1': near(0.78),
    'oracle_best_f1': near(0.8),
    'oracle_best_f1_accuracy': near(0.78),
  }


def _curves(label, score) -> dict:
  grid = np.linspace(0, 1, 101)
  fpr, tpr, _ = metrics.roc_curve(label, score)
  precision, recall, _ = metrics.precision_recall_curve(label, score)
  tpr = np.interp(grid, fpr, tpr)
  precision = np.interp(grid, recall[::-1], precision[::-1])
  spread = 0.06 * np.sqrt(4 * grid * (1 - grid) + 0.1)
  band = lambda y: {
    'low': (y - spread).clip(0, 1).tolist(),
    'high': (y + spread).clip(0, 1).tolist(),
  }
  return {
    'roc': {'fpr': grid.tolist(), 'tpr': tpr.tolist()} | band(tpr),
    'pr': {'recall': grid.tolist(), 'precision': precision.tolist()}
    | band(precision),
  }


def _counts(table: dict) -> list[dict]:
  found = {('train', f'train_{i:03d}', 0): 612 + 37 * i for i in range(3)}
  rows = zip(
    table['split'], table['group'], table['label'].tolist(), strict=True
  )
  for key in rows:
    found[key] = found.get(key, 0) + 1
  return [
    {'split': split, 'group': group, 'label': label, 'n': n}
    for (split, group, label), n in sorted(found.items(), reverse=True)
  ]


def _provenance() -> dict:
  return {
    'jaxmed': '0.1.0',
    'commit': '5e38352',
    'python': '3.11.9',
    'versions': {'jax': '0.10.0', 'flax': '0.12.1', 'numpy': '2.3.4'},
    'devices': ['cpu (cpu)'] * 8,
    'data': {
      'name': 'phantom',
      'dir': 'data/phantom/1.0.0-3fa9c1',
      'fingerprint': '3fa9c1',
      'counts': {'normal': 1947, 'a': 1947, 'b': 1880},
    },
    'weights': [],
    'started': '2026-03-14T09:26:53+00:00',
    'finished': '2026-03-14T09:30:28+00:00',
    'stages': {
      'prepare': 21.4,
      'train': 142.0,
      'score': 24.8,
      'evaluate': 3.1,
      'report': None,
    },
    'train': {
      'parameters': {'generator_a': 612_331, 'discriminator_a': 204_113},
      'steps': 900,
      'images_per_s': 51.3,
      'matrix_peak_percent': 38.2,
      'data_wait_percent': 1.3,
      'precision': 'float32',
    },
  }


def _log(rng) -> list[dict]:
  rows = []
  for step in range(10, 910, 10):
    decay = np.exp(-step / 300)
    row = {
      'phase': 'munit',
      'step': step,
      'event': step,
      'seconds': step * 0.15,
      'images_per_s': 50 + rng.normal(0, 2),
      'matrix_peak_percent': None,
      'data_wait_percent': abs(rng.normal(1, 0.5)),
    }
    for i, part in enumerate(
      ('generator_a', 'generator_b', 'discriminator_a', 'discriminator_b')
    ):
      noise = 1 + rng.normal(0, 0.08)
      row[f'{part}/loss'] = (1 + 8 * decay * (i < 2)) * noise
      row[f'{part}/gradient_norm'] = (0.3 + 30 * decay) * noise
      row[f'{part}/parameter_norm'] = 40 + step / 90 + i
    rows.append(row)
  return rows


def _failures(slides: int) -> list[dict]:
  return [
    {
      'stage': 'score slides',
      'item': f'slides/test_{slides - 1:03d}.tif',
      'level': 0,
      'x': 512 * i,
      'y': 1024,
      'error': 'JPEG tile is corrupt: premature end of data',
    }
    for i in range(3)
  ]


def _slides(rng, folder: pathlib.Path, slides: int, side: int) -> None:
  maps = folder / 'maps'
  maps.mkdir(exist_ok=True)
  rows = []
  for i in range(slides):
    sick, failed = i >= slides // 2, i == slides - 1
    group = f'test_{i:03d}'
    thumbnail, overlay = _slide(rng, sick, side)
    thumbnail.save(maps / f'{group}_thumbnail.png')
    overlay.save(maps / f'{group}_overlay.png')
    _layers(rng, folder, group, sick, failed)
    top = None if failed else 0.18 + 0.12 * sick + rng.normal(0, 0.02)
    rows.append(
      {
        'group': group,
        'path': f'slides/{group}.tif',
        'label': int(sick),
        'tiles': 1204 + i,
        'tiles_failed': 31 if failed else 0,
        'reason': '31 of 1210 tiles could not be read' if failed else '',
        'score.cycle_ssim': top,
        'score.cycle_l1': None if failed else top / 2,
        'mean.cycle_ssim': float('nan') if failed else top / 3,
      }
    )
  pq.write_table(pa.Table.from_pylist(rows), folder / 'slides.parquet')


def _layers(rng, folder, group: str, sick: bool, failed: bool) -> None:
  """A map of 12 x 12 squares of 256 px, on a slide a bit smaller."""
  pixels = rng.integers(0, 256, (12, 12, 4)).astype(np.uint8)
  Image.fromarray(pixels).save(folder / f'maps/{group}_heat.png')
  about = {
    'size': [3000, 3000],
    'map': [3072, 3072],
    'label': 'cycle_ssim',
    'limits': [0.1, 0.4],
    'threshold': 0.25,
    'tissue': ['256,256 2560,256 2560,2816 256,2816'],
    'above': ['1536,768 2048,768 2048,1280 1536,1280'] * sick,
    'annotations': ['1500,700 2100,720 2000,1300'] * sick,
    'failed': ['512,1024 768,1024 768,1536 512,1536'] * failed,
  }
  (folder / f'maps/{group}_layers.json').write_text(json.dumps(about))
  (folder / 'detections').mkdir(exist_ok=True)
  found = '0.375,1800,1000\n0.25,400,500\n' if sick else ''
  (folder / f'detections/{group}.csv').write_text(found)


def _slide(rng, sick: bool, side: int) -> tuple:
  """A pink blob on glass, and the same with its heat map."""
  y, x = np.mgrid[:side, :side] / side - 0.5
  angle = np.arctan2(y, x)
  edge = 0.36 + 0.05 * np.sin(3 * angle + rng.uniform(0, 6))
  tissue = np.hypot(x, y) < edge
  grain = rng.normal(0, 9, (side, side, 1)) + 14 * np.sin(19 * x * y)[..., None]
  pixels = np.where(
    tissue[..., None], np.array([214, 158, 196]) + grain, [244, 243, 245]
  )
  heat = rng.uniform(0, 0.25, (side, side)) * tissue
  if sick:
    heat += np.exp(-((x - 0.1) ** 2 + (y + 0.08) ** 2) / 0.004)
  heat = heat.clip(0, 1)[..., None]
  hot = np.concatenate([255 * heat, 120 * heat, 80 * (1 - heat)], -1)
  mixed = np.where(tissue[..., None], 0.45 * pixels + 0.55 * hot, pixels)
  bar = np.full((side, side // 6, 3), 255.0)
  shade = np.linspace(1, 0, side // 2)[:, None, None] * [255, 120, -80]
  bar[side // 4 : side // 4 + side // 2, 8 : side // 16] = shade + [0, 0, 80]
  return _image(pixels), _image(np.concatenate([mixed, bar], 1))


def _examples(rng, folder: pathlib.Path, table: dict) -> None:
  (folder / 'examples').mkdir(exist_ok=True)
  test = np.flatnonzero(np.array(table['split']) == 'test')
  score, label = table['score.cycle_ssim'], table['label']
  order = test[np.argsort(score[test])]
  found = []
  for rank, of, ends in (
    ('highest anomalous', 1, slice(None, -5, -1)),
    ('highest normal', 0, slice(None, -5, -1)),
    ('lowest anomalous', 1, slice(4)),
    ('lowest normal', 0, slice(4)),
  ):
    for i in order[label[order] == of][ends].tolist():
      found.append(
        {
          'row': i,
          'key': table['key'][i],
          'group': table['group'][i],
          'label': of,
          'rank': rank,
          'scores': {k: float(table[f'score.{k}'][i]) for k in SCORES},
          'panels': _panels(rng, folder, i, bool(of)),
        }
      )
  _json(folder / 'examples.json', found)


def _panels(rng, folder: pathlib.Path, row: int, sick: bool) -> dict:
  image = Image.new('RGB', (64, 64), (222, 170, 204))
  mask = Image.new('L', (64, 64))
  draw, spot = ImageDraw.Draw(image), ImageDraw.Draw(mask)
  for _ in range(34):
    x, y = rng.uniform(0, 64, 2)
    r = rng.uniform(1.5, 3.5)
    draw.ellipse((x - r, y - r, x + r, y + r), (96, 62, 132))
  clean = image.copy()
  if sick:
    draw.ellipse((28, 20, 52, 44), (70, 40, 110))
    spot.ellipse((28, 20, 52, 44), 255)
  error = np.abs(np.asarray(image, float) - np.asarray(clean, float)).mean(-1)
  heat = (error * 2 + rng.uniform(0, 30, (64, 64)))[..., None] * [1, 0.6, 0.3]
  pictures = {
    'input': image,
    'reconstruction': clean,
    'cycle_l1 map': _image(heat),
    'mask': mask,
  }
  paths = {}
  for name, picture in pictures.items():
    paths[name] = f'examples/{row}_{name.replace(" ", "_")}.png'
    picture.save(folder / paths[name])
  return paths


def _image(pixels) -> Image.Image:
  return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
