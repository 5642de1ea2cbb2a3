"""Numbers, times and names as a reader wants them.

A value that is missing, infinite or not a number becomes a dash or its
reason; 'nan' and 'None' never reach the page.
"""

import datetime
import math
from typing import Any

DASH = '–'

METHODS = {
  'munit': 'MUNIT',
  'fanogan': 'f-AnoGAN',
  'patchcore': 'PatchCore',
  'anogan': 'AnoGAN',
  'stylegan2': 'StyleGAN2',
  'healthygan': 'HealthyGAN',
  'ganomaly': 'GANomaly',
  'alad': 'ALAD',
  'alocc': 'ALOCC',
  'cyclegan': 'CycleGAN',
  'steganomaly': 'SteGANomaly',
  'padim': 'PaDiM',
  'rd': 'Reverse distillation',
  'fwrd': 'FW-RD',
  'densenet': 'DenseNet-121, supervised',
  'vae': 'VAE',
  'ascnet': 'ASC-Net',
}

METRICS = {
  'auroc': 'AUROC',
  'ap': 'Average precision',
  'f1': 'F1',
  'accuracy': 'Accuracy',
  'sensitivity': 'Sensitivity',
  'specificity': 'Specificity',
  'sensitivity_at_specificity': 'Sensitivity at fixed specificity',
  'auroc_best_direction': 'AUROC, better direction',
  'slide_auroc': 'AUROC of slides',
  'pixel_auroc': 'AUROC of pixels',
  'pixel_aupro_8': 'AUPRO of pixels',
  'froc': 'FROC score of lesions',
  'aupro_4': 'AUPRO, 4-connected',
  'aupro_8': 'AUPRO, 8-connected',
  'oracle_youden_accuracy': 'Accuracy at Youden’s threshold',
  'oracle_youden_f1': 'F1 at Youden’s threshold',
  'oracle_best_f1': 'Best F1',
  'oracle_best_f1_accuracy': 'Accuracy at the best F1',
}


BASELINES = {  # Others only lose their underscores.
  'laplacian': 'Laplacian energy',
  'laplacian_energy': 'Laplacian energy',
  'blurred_ssim': '1 − SSIM to a blurred copy',
}


def method(name: str) -> str:
  return METHODS.get(name, name)


def metric(name: str) -> str:
  """A metric's name in words; an unknown one loses its underscores."""
  return METRICS.get(name) or plain(name.removeprefix('oracle_'))


def baseline(name: str) -> str:
  return BASELINES.get(name) or plain(name)


def plain(name: str) -> str:
  return str(name).replace('_', ' ')


def finite(value: Any) -> float | None:
  """The number, or None where it is missing, infinite or not a number."""
  if isinstance(value, bool) or value is None:
    return None
  try:
    value = float(value)
  except (TypeError, ValueError):
    return None
  return value if math.isfinite(value) else None


def share(value: Any, digits: int = 3) -> str:
  """A metric between 0 and 1."""
  value = finite(value)
  return DASH if value is None else f'{value:.{digits}f}'


def interval(number: dict, digits: int = 3, between: str = '–') -> str:
  """'0.781–0.884', or nothing where there is no interval."""
  low, high = finite(number.get('low')), finite(number.get('high'))
  if low is None or high is None:
    return ''
  return f'{low:.{digits}f}{between}{high:.{digits}f}'


def count(value: Any) -> str:
  """A whole number with thin spaces, as in 12 345."""
  value = finite(value)
  return DASH if value is None else f'{round(value):,}'.replace(',', '\u202f')


def several(value: int, noun: str) -> str:
  """'1 slide', '2 slides', '3 patches'."""
  end = '' if value == 1 else 'es' if noun.endswith(('ch', 's')) else 's'
  return f'{count(value)} {noun}{end}'


def number(value: Any, digits: int = 3) -> str:
  """Any quantity, to so many significant digits."""
  value = finite(value)
  if value is None:
    return DASH
  if value == 0:
    return '0'
  if 1e-3 <= abs(value) < 1e6:
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f'{value:,.{places}f}'.replace(',', '\u202f')
    return text.replace('-', '−')
  return f'{value:.{digits - 1}e}'.replace('-', '−')


def per_cent(value: Any) -> str:
  value = finite(value)
  return DASH if value is None else f'{value:.{1 if value < 10 else 0}f} %'


def p_value(value: Any) -> str:
  """To three digits, or that it is smaller."""
  value = finite(value)
  if value is None:
    return DASH
  return '< 0.001' if value < 0.001 else f'{value:.3f}'


def size(value: Any) -> str:
  """Bytes as '1.3 GB' or '840 MB'."""
  value = finite(value)
  if value is None:
    return DASH
  return f'{value / 1e9:.1f} GB' if value >= 1e9 else f'{value / 1e6:.0f} MB'


def seconds(value: Any) -> str:
  """'8.2 s', '3 min 20 s', '2 h 05 min'."""
  value = finite(value)
  if value is None:
    return DASH
  if value < 10:
    return f'{value:.1f} s'
  if value < 60:
    return f'{value:.0f} s'
  minutes, rest = divmod(round(value), 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes:02d} min'


def moment(value) -> str:
  """A time stamp, ISO text or seconds since 1970, to the minute."""
  seconds = finite(value)
  try:
    if seconds is not None:
      time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    else:
      time = datetime.datetime.fromisoformat(value)
  except (TypeError, ValueError, OverflowError, OSError):
    return str(value or '')
  zone = ' UTC' if time.utcoffset() == datetime.timedelta(0) else ''
  return time.strftime('%Y-%m-%d %H:%M') + zone


def text(value: Any) -> str:
  """Any JSON value as a reader would write it."""
  if value is None or value == '':
    return DASH
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, float):
    return DASH if finite(value) is None else f'{value:g}'
  if isinstance(value, (list, tuple)):
    return ', '.join(text(item) for item in value) or DASH
  if isinstance(value, dict):
    pairs = (f'{key}: {text(item)}' for key, item in value.items())
    return ', '.join(pairs) or DASH
  return str(value)
