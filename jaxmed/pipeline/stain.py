"""Stain normalisation in front of a method, wherever it sees images.

`wrap` puts it into every step, search and score, on the device, so that
training, records, files and slides are treated alike. Each image is
normalised for itself; one that cannot be is seen as it came, and that is said:
by the scalar `stain/normalised` in training, by the flag `normalised` beside
the scores.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from jaxmed import errors
from jaxmed.method import (
  Batch,
  Images,
  Method,
  Phase,
  Scalars,
  Score,
  Search,
  valid_mean,
)
from jaxmed.ops import colour
from jaxmed.pipeline.frame import read_image

Fitted = colour.Stain | colour.Statistics
Normalise = Callable[[Images], tuple[Images, Bool[jax.Array, ' b']]]


@dataclasses.dataclass(frozen=True)
class Kind:
  """A way to normalise."""

  fit: Callable[[Any], Fitted]
  normalise: Callable[..., tuple[Images, Bool[jax.Array, ' b']]]
  standard: Fitted


KINDS = {
  'macenko': Kind(
    jax.jit(colour.fit_macenko), colour.normalise_macenko, colour.MACENKO
  ),
  'reinhard': Kind(
    jax.jit(colour.fit_reinhard), colour.normalise_reinhard, colour.REINHARD
  ),
}


def find_target(name: str, path: str | os.PathLike = '') -> dict | None:
  """What images are to look like, as plain numbers that JSON can hold.

  Args:
    name: of a kind, or '' for none.
    path: of an image to look like; '' is the kind's standard.
  """
  if not name:
    if path:
      raise errors.UserError(
        f'data.stain_target is {path}, but data.stain is empty; set it to one '
        f'of {", ".join(KINDS)}.'
      )
    return None
  if name not in KINDS:
    raise errors.unknown('stain normalisation', name, KINDS)
  fitted = KINDS[name].standard
  if path:
    pixels = read_image(path)
    fitted = KINDS[name].fit(pixels) if pixels.shape[-1] == 3 else None
    if fitted is None or not fitted.ok:
      raise errors.UserError(
        f'The stain target {path} is no image of H&E to take colours from: it '
        'is gray, has too little tissue or a single stain. Give another, or '
        f'none, which is the standard of {name}.'
      )
  numbers = dataclasses.asdict(jax.tree.map(np.asarray, fitted))
  del numbers['ok']
  return {'kind': name, **{k: v.tolist() for k, v in numbers.items()}}


def target_of(data_config: ConfigDict) -> dict | None:
  """The target that a config asks for."""
  name = data_config.get('stain', '')
  if name and data_config.channels != 3:
    raise errors.UserError(
      f'data.stain is {name!r}, but data.channels is {data_config.channels}: '
      'only colour images have a stain. Set data.channels to 3, or leave '
      'data.stain empty.'
    )
  return find_target(name, data_config.get('stain_target', ''))


def fitted_of(target: dict) -> Fitted:
  """From plain numbers."""
  numbers = {k: np.float32(v) for k, v in target.items() if k != 'kind'}
  return dataclasses.replace(KINDS[target['kind']].standard, **numbers)


def normaliser(target: dict | None) -> Normalise | None:
  """What makes images in [0, 1] look like the target."""
  if target is None:
    return None
  kind, fitted = KINDS[target['kind']], fitted_of(target)
  return lambda images: kind.normalise(images, fitted)


def wrap(method: Method, target: dict | None) -> Method:
  """The method, which sees normalised images only."""
  normalise = normaliser(target)
  if normalise is None:
    return method
  return dataclasses.replace(
    method,
    phases=tuple(_wrap_phase(phase, normalise) for phase in method.phases),
    score=_wrap_score(method, normalise),
    search=method.search and _wrap_search(method.search, normalise),
  )


def _wrap_phase(phase: Phase, normalise: Normalise) -> Phase:
  def one(batch: Batch) -> tuple[Batch, Scalars]:
    image, ok = normalise(batch.unit)
    return batch.replace(image=image), valid_mean(ok, batch.valid)

  each = jax.vmap(one) if phase.batches > 1 else one

  def wrapped(step):
    def normalised_step(state, batches, key):
      seen = {cohort: each(batch) for cohort, batch in batches.items()}
      batches = {cohort: batch for cohort, (batch, _) in seen.items()}
      state, scalars = step(state, batches, key)
      share = jnp.stack([share.mean() for _, share in seen.values()]).mean()
      return state, {**scalars, 'stain/normalised': share}

    return normalised_step

  return dataclasses.replace(
    phase,
    step=wrapped(phase.step),
    every=tuple((apart, wrapped(step)) for apart, step in phase.every),
  )


def _wrap_score(method: Method, normalise: Normalise):
  def score(state, batch, key, *found) -> Score:
    if found:  # The search has normalised already.
      ((inner, image, ok),) = found
      found = (inner,)
    else:
      image, ok = normalise(batch.unit)
    score = method.score(state, batch.replace(image=image), key, *found)
    panels = {'normalised': image} | score.panels
    return score.replace(panels=panels, flags={'normalised': ok, **score.flags})

  return score


def _wrap_search(search: Search, normalise: Normalise) -> Search:
  """What is found carries the image, so that it is normalised once."""

  def init(key, state, batch):
    image, ok = normalise(batch.unit)
    return search.init(key, state, batch.replace(image=image)), image, ok

  def step(key, state, batch, found, number):
    inner, image, ok = found
    batch = batch.replace(image=image)
    return search.step(key, state, batch, inner, number), image, ok

  return Search(init, step, search.steps)
