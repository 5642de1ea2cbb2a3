"""A small plot as inline SVG.

Colours and text come from the page's style sheet, so that one drawing is
legible in light, in dark and on paper; a plot is a few kB and needs no
drawing library.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 46


def element(tag: str, content: str = '', **attributes) -> Markup:
  """An SVG element; a trailing underscore of a name falls, others are '-'."""
  names = {
    key.rstrip('_').replace('_', '-'): value
    for key, value in attributes.items()
    if value is not None
  }
  inner = ''.join(f' {name}="{escape(v)}"' for name, v in names.items())
  return Markup(f'<{tag}{inner}>{escape(content)}</{tag}>')


def join(parts: Sequence[Markup]) -> Markup:
  return Markup('').join(parts)


class Scale:
  """Data onto pixels, linear or logarithmic."""

  def __init__(
    self, low: float, high: float, start: float, stop: float, log: bool = False
  ):
    if high <= low:
      spread = abs(low) * 0.1 or 1.0
      low, high = (low / 2, low * 2) if log else (low - spread, low + spread)
    self.low, self.high, self.log = low, high, log
    self._start, self._stop = start, stop

  def __call__(self, values) -> Float[np.ndarray, '...']:
    values = np.asarray(values, np.float64)
    low, high = self.low, self.high
    if self.log:
      values = np.log(np.maximum(values, np.finfo(np.float64).tiny))
      low, high = math.log(low), math.log(high)
    place = (values - low) / (high - low)
    return self._start + place * (self._stop - self._start)

  def ticks(self, count: int = 5) -> list[float]:
    return self._decades(count) if self.log else self._even(count)

  def _even(self, count: int) -> list[float]:
    rough = (self.high - self.low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(self.low / step - 1e-9)
    last = math.floor(self.high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]

  def _decades(self, count: int) -> list[float]:
    low, high = math.log10(self.low), math.log10(self.high)
    for factors in ((1,), (1, 3), (1, 2, 5)):
      found = [
        factor * 10.0**power
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in factors
        if self.low <= factor * 10.0**power <= self.high
      ]
      if len(found) >= 3:
        return found[:: math.ceil(len(found) / (count + 1))]
    return self._even(count)


class Plot:
  """Axes, and what is drawn over them, in order."""

  def __init__(
    self,
    x: tuple[float, float],
    y: tuple[float, float],
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    log: bool = False,
    octaves: Sequence[float] = (),
  ):
    """`log` is of y; x is logarithmic with `octaves`, which are its ticks."""
    self.width, self.height = size
    self.x = Scale(*x, LEFT, self.width - RIGHT, bool(octaves))
    self._x_ticks = list(octaves) or self.x.ticks(6)
    self.y = Scale(*y, self.height - BOTTOM, TOP, log)
    self._labels = x_label, y_label
    self._parts = []

  def line(self, x, y, style: str, name: str = '') -> None:
    path = self._path(x, y)
    if path:
      self._parts.append(
        element('path', _tooltip(name), d=path, class_=f'line {style}')
      )

  def band(self, x, low, high, style: str) -> None:
    x, low, high = _finite(x, low, high)
    if len(x) > 1:
      edge = self._path(
        np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])
      )
      self._parts.append(element('path', d=edge + 'Z', class_=f'band {style}'))

  def steps(self, edges, heights, style: str) -> None:
    """A histogram's outline, filled."""
    x = np.repeat(edges, 2)
    y = np.concatenate([[0], np.repeat(heights, 2), [0]])
    self._parts.append(
      element('path', d=self._path(x, y), class_=f'area {style}')
    )

  def point(self, x: float, y: float, style: str, name: str) -> None:
    place = {'cx': _px(self.x(x)), 'cy': _px(self.y(y)), 'r': 5}
    self._parts.append(
      element('circle', _tooltip(name), class_=f'point {style}', **place)
    )

  def rule(self, start, stop, style: str = 'guide') -> None:
    """A straight line between two points of the data."""
    (x1, y1), (x2, y2) = start, stop
    self._parts.append(
      element(
        'line',
        x1=_px(self.x(x1)),
        y1=_px(self.y(y1)),
        x2=_px(self.x(x2)),
        y2=_px(self.y(y2)),
        class_=style,
      )
    )

  def note(self, x: float, y: float, words: str, anchor: str = 'start') -> None:
    shift = {'start': 6, 'end': -6}.get(anchor, 0)
    self._parts.append(
      element(
        'text',
        words,
        x=_px(self.x(x) + shift),
        y=_px(self.y(y)),
        class_='note',
        text_anchor=anchor,
      )
    )

  def svg(self, description: str) -> Markup:
    """The drawing; `description` is read to those who cannot see it."""
    return element(
      'svg',
      join([*self._axes(), *self._parts]),
      viewBox=f'0 0 {self.width} {self.height}',
      role='img',
      class_='plot',
      aria_label=description,
    )

  def _path(self, x, y) -> str:
    x, y = _finite(x, y)
    pairs = zip(self.x(x), self.y(y), strict=True)
    return (
      'M' + 'L'.join(f'{_px(a)} {_px(b)}' for a, b in pairs) if len(x) else ''
    )

  def _axes(self) -> list[Markup]:
    left, right = LEFT, self.width - RIGHT
    bottom = self.height - BOTTOM
    parts = []
    for tick in self.y.ticks():
      y = _px(self.y(tick))
      parts += [
        element('line', x1=left, y1=y, x2=right, y2=y, class_='grid'),
        element(
          'text', _tick(tick), x=left - 8, y=y, dy='0.35em', class_='tick y'
        ),
      ]
    for tick in self._x_ticks:
      x = _px(self.x(tick))
      parts += [
        element('line', x1=x, y1=bottom, x2=x, y2=bottom + 4, class_='axis'),
        element('text', _tick(tick), x=x, y=bottom + 18, class_='tick x'),
      ]
    parts.append(
      element('line', x1=left, y1=bottom, x2=right, y2=bottom, class_='axis')
    )
    middle = (left + right) / 2, (TOP + bottom) / 2
    x_label, y_label = self._labels
    return parts + [
      element('text', x_label, x=middle[0], y=self.height - 8, class_='label'),
      element(
        'text',
        y_label,
        x=13,
        y=middle[1],
        class_='label',
        transform=f'rotate(-90 13 {middle[1]})',
      ),
    ]


def _tooltip(name: str) -> Markup:
  return element('title', name) if name else Markup('')


def _tick(value: float) -> str:
  return f'{value + 0.0:.4g}'.replace('-', '−').replace('e+0', 'e')


def _px(value) -> str:
  return f'{float(value):.1f}'.removesuffix('.0')


def _finite(*arrays) -> list[Float[np.ndarray, ' n']]:
  """The places where every array has a number; a null is no number."""
  arrays = [np.array(a, dtype=np.float64) for a in arrays]
  keep = np.logical_and.reduce([np.isfinite(a) for a in arrays])
  return [a[keep] for a in arrays]
