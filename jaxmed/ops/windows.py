"""Means, variances and the covariance of two images in every window.

Images are rows here, [b, h, w * c], so that a shift by a pixel is a contiguous
slice: sums of eleven slices vectorise on CPU where a one-channel convolution
does not.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Image = Float[Array, 'b h w c']
Rows = Float[Array, 'b h wc']
Window = tuple[float, ...]


class Moments(NamedTuple):
  """Of the windows of two images, where they fit."""

  mean_x: Rows
  mean_y: Rows
  variance_x: Rows
  variance_y: Rows
  covariance: Rows


def gaussian(sigma: float) -> Window:
  """The 1-D Gaussian, cut at 3.5 sigma as scikit-image does."""
  radius = int(3.5 * sigma + 0.5)
  at = np.arange(-radius, radius + 1)
  window = np.exp(-0.5 * (at / sigma) ** 2)
  return tuple(float(weight) for weight in window / window.sum())


def rows(x: Image) -> Rows:
  return x.reshape(*x.shape[:2], -1)


def kept(parts: Iterable[Rows]) -> list[Rows]:
  """Makes XLA compute the parts once, before anything that uses them.

  Else it fuses a first pass into each of the eleven taps of the second. On
  CPU the barrier alone does not hold, nor does the concatenation alone.
  """
  parts = list(parts)
  whole = jax.lax.optimization_barrier(jnp.concatenate(parts))
  return jnp.split(whole, len(parts))


def filtered(parts: Iterable[Rows], window: Window, channels: int):
  """Each of the parts, seen through the window where it fits.

  The concatenation keeps the first pass, as in `kept`.
  """
  parts = list(parts)
  width = parts[0].shape[2] - (len(window) - 1) * channels
  height = parts[0].shape[1] - len(window) + 1
  across = jnp.concatenate(
    [
      _sum(window, lambda k, p=part: _tap(p, k, 2, channels, width))
      for part in parts
    ]
  )
  down = _sum(window, lambda k: _tap(across, k, 1, 1, height))
  return jnp.split(down, len(parts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def moments(x: Rows, y: Rows, window: Window, channels: int) -> Moments:
  """The moments, every one about the middle pixel of its own window.

  E[x^2] - E[x]^2 loses in float32 just what matters where an image is flat
  (an SSIM error of 1e-4). Its gradient does not suffer so and is written out:
  derived through the taps it takes XLA half a minute to compile.
  """
  middle = len(window) // 2
  height = x.shape[1] - len(window) + 1
  width = x.shape[2] - (len(window) - 1) * channels

  def across(image, k):  # Less the middle column.
    column = _tap(image, middle, 2, channels, width)
    return _tap(image, k, 2, channels, width) - column

  def down(image, k):
    return _tap(image, k, 1, 1, height)

  def offset(image, k):  # Of the middle column, less the middle row.
    return down(image, k) - down(image, middle)

  first_x, first_y, second_x, second_y, second_xy = kept(
    _sum(window, term)
    for term in (
      lambda k: across(x, k),
      lambda k: across(y, k),
      lambda k: across(x, k) ** 2,
      lambda k: across(y, k) ** 2,
      lambda k: across(x, k) * across(y, k),
    )
  )
  x, y = (_tap(image, middle, 2, channels, width) for image in (x, y))

  def mean(image, first):
    return _sum(window, lambda k: down(first, k) + offset(image, k))

  def second(image, first, about):
    return _sum(
      window,
      lambda k: (
        down(about, k)
        + offset(image, k) * (2 * down(first, k) + offset(image, k))
      ),
    )

  product = _sum(
    window,
    lambda k: (
      down(second_xy, k)
      + offset(x, k) * (down(first_y, k) + offset(y, k))
      + offset(y, k) * down(first_x, k)
    ),
  )
  shift_x, shift_y, second_x, second_y, product = kept(
    (
      mean(x, first_x),
      mean(y, first_y),
      second(x, first_x, second_x),
      second(y, first_y, second_y),
      product,
    )
  )
  return Moments(
    down(x, middle) + shift_x,
    down(y, middle) + shift_y,
    jnp.maximum(second_x - shift_x**2, 0),
    jnp.maximum(second_y - shift_y**2, 0),
    product - shift_x * shift_y,
  )


def _forward(x: Rows, y: Rows, window: Window, channels: int):
  found = moments(x, y, window, channels)
  return found, (x, y, found.mean_x, found.mean_y)


def _backward(window: Window, channels: int, saved, slopes: Moments):
  """With G the window: mean = G x, variance = G x^2 - mean^2, and so on."""
  x, y, mean_x, mean_y = saved
  border = len(window) - 1
  pad = ((0, 0), (border, border), (border * channels, border * channels))
  dx, dy, dvx, dvy, dxy = slopes
  through_x, through_y, dvx, dvy, dxy = filtered(
    kept(
      jnp.pad(part, pad)
      for part in (
        dx - 2 * dvx * mean_x - dxy * mean_y,
        dy - 2 * dvy * mean_y - dxy * mean_x,
        dvx,
        dvy,
        dxy,
      )
    ),
    window,  # Symmetric, so its own transpose.
    channels,
  )
  return (
    through_x + 2 * x * dvx + y * dxy,
    through_y + 2 * y * dvy + x * dxy,
  )


moments.defvjp(_forward, _backward)


def _tap(x: Rows, k: int, axis: int, step: int, length: int) -> Rows:
  return jax.lax.slice_in_dim(x, k * step, k * step + length, axis=axis)


def _sum(window: Window, term: Callable[[int], Array]) -> Array:
  """Of the window's weights times the terms; Python's sum adds an integer."""
  total = window[0] * term(0)
  for k, weight in enumerate(window[1:], 1):
    total = total + weight * term(k)
  return total
