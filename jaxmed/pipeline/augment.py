"""Random changes of training images, on the device, inside the jitted step.

`wrap` puts them in front of every step of a phase. Each example has a key of
its own, from its place in the global batch, so that the result depends on no
neighbour and no number of devices; dm-pix draws once per call and is therefore
mapped over the batch. A mask moves with its image.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence

import dm_pix
import jax
import jax.numpy as jnp

from jaxmed import errors
from jaxmed.method import Batch, Phase, RandomKey, Step, row_keys
from jaxmed.ops import colour

# The ranges of Liu et al. 2017, Detecting Cancer Metastases on Gigapixel
# Pathology Images, section 3.
BRIGHTNESS = 64 / 255
CONTRAST = (0.25, 1.75)
SATURATION = (0.75, 1.25)
HUE = 0.04
# Tellez et al. 2019, Quantifying the effects of data augmentation and stain
# color normalization: HED-light and HED-strong.
HED, HED_STRONG = 0.05, 0.2

One = jax.Array  # [h, w, c]
Change = Callable[[RandomKey, One], One]


def wrap(phase: Phase, names: Sequence[str]) -> Phase:
  """The phase with every step's batches augmented in the order of `names`."""
  for name in names:
    if name not in AUGMENTATIONS:
      raise errors.unknown('augmentation', name, AUGMENTATIONS)
  if not names or not phase.augment:
    return phase

  def wrapped(step: Step) -> Step:
    def augmented_step(state, batches, key):
      step_key, key = jax.random.split(key)
      batches = {
        cohort: _all(batch, _named(key, cohort), names, phase.batches > 1)
        for cohort, batch in batches.items()
      }
      return step(state, batches, step_key)

    return augmented_step

  return dataclasses.replace(
    phase,
    step=wrapped(phase.step),
    every=tuple((apart, wrapped(step)) for apart, step in phase.every),
  )


def augment(batch: Batch, key: RandomKey, names: Sequence[str]) -> Batch:
  """One batch, augmented. Its image becomes float if a colour is changed."""
  keys = row_keys(key, jnp.arange(len(batch.row)))
  image, mask = batch.image, batch.mask
  if any(name in COLOURS for name in names):
    image = batch.unit
  for number, name in enumerate(names):
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    change = jax.vmap(AUGMENTATIONS[name])
    image = change(own, image)
    if mask is not None and name in MOVES:
      mask = change(own, mask[..., None])[..., 0]
  return batch.replace(image=image, mask=mask)


def _all(batch: Batch, key: RandomKey, names, stacked: bool) -> Batch:
  """A cohort's batch, or its stack of the batches of one step."""
  if not stacked:
    return augment(batch, key, names)
  keys = jax.random.split(key, len(batch.row))
  return jax.vmap(functools.partial(augment, names=names))(batch, keys)


def _named(key: RandomKey, cohort: str) -> RandomKey:
  return jax.random.fold_in(key, zlib.crc32(cohort.encode()))


def _rot90(key: RandomKey, image: One) -> One:
  """By 0, 90, 180 or 270 degrees; images are square."""
  turns = [functools.partial(dm_pix.rot90, k=k) for k in range(4)]
  return jax.lax.switch(jax.random.randint(key, (), 0, 4), turns, image)


def _brightness(key: RandomKey, image: One) -> One:
  return _clip(dm_pix.random_brightness(key, image, BRIGHTNESS))


def _contrast(key: RandomKey, image: One) -> One:
  return _clip(dm_pix.random_contrast(key, image, *CONTRAST))


def _saturation(key: RandomKey, image: One) -> One:
  return _clip(dm_pix.random_saturation(key, _colour(image), *SATURATION))


def _hue(key: RandomKey, image: One) -> One:
  return _clip(dm_pix.random_hue(key, _colour(image), HUE))


def _hed(key: RandomKey, image: One, strength: float = HED) -> One:
  return colour.jitter_hed(key, _colour(image), strength)


def _all_colours(key: RandomKey, image: One) -> One:
  changes = (_brightness, _saturation, _hue, _contrast)
  for change, own in zip(changes, jax.random.split(key, 4), strict=True):
    image = change(own, image)
  return image


def _clip(image: One) -> One:
  return jnp.clip(image, 0, 1)


def _colour(image: One) -> One:
  if image.shape[-1] != 3:
    raise errors.UserError(
      'train.augment asks for saturation, hue or HED, and the images are gray '
      '(data.channels = 1). Leave these out, or use brightness and contrast.'
    )
  return image


MOVES: dict[str, Change] = {
  'flip': dm_pix.random_flip_left_right,
  'flip_vertical': dm_pix.random_flip_up_down,
  'rot90': _rot90,
}
COLOURS: dict[str, Change] = {
  'brightness': _brightness,
  'contrast': _contrast,
  'saturation': _saturation,
  'hue': _hue,
  'colour': _all_colours,  # The four together.
  'hed': _hed,
  'hed_strong': functools.partial(_hed, strength=HED_STRONG),
}
AUGMENTATIONS = MOVES | COLOURS
