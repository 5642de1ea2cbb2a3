"""What every method promises, each property once for all of them."""

import json

import jax
import numpy as np
import pytest

from jaxmed.method import Batch
from jaxmed.scoring.score import Run
from tests.contract.conftest import config_of, train


def _final(folder):
  return Run(folder).state


def _images(run, count, seed=0):
  shape = (count, *run.info.image)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _lines(folder):
  text = (folder / 'train.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_steps_are_finite_and_logged_with_their_norms(name, learned):
  lines = _lines(learned(name))
  assert lines
  for line in lines:
    numbers = [v for v in line.values() if isinstance(v, float)]
    assert np.isfinite(numbers).all()
    parts = {k.split('/')[0] for k in line if k.endswith('/loss')}
    for part in parts:
      assert line[f'{part}/gradient_norm'] >= 0
      assert line[f'{part}/parameter_norm'] > 0


def test_stopped_and_resumed_it_ends_in_the_same_bits(name, learned, tmp_path):
  whole = learned(name)
  middle = max(line['event'] for line in _lines(whole)) // 2
  train(config_of(name), tmp_path, stop=lambda at: at.event == middle)
  assert not (tmp_path / 'final').exists()
  train(config_of(name), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, _final(whole), _final(tmp_path))


def test_one_device_gives_the_scalars_and_scores_of_eight(name, learned):
  eight, one = learned(name), learned(name, 1)
  for a, b in zip(_lines(eight)[:3], _lines(one)[:3], strict=True):
    for key in a:
      if '/' in key:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-2, err_msg=key)
  images = _images(Run(eight), 8)
  # One state on both: training drifts by rounding, scoring must not.
  on_eight = _scores(Run(eight), images)
  on_one = _scores(Run(eight, jax.devices()[:1]), images)
  for key in on_eight:
    np.testing.assert_allclose(
      on_eight[key], on_one[key], rtol=1e-3, atol=1e-5, err_msg=key
    )


def _scores(run, images, rows=None, label=0):
  """The named scores of a batch whose rows are given; -1 only pads."""
  rows = np.arange(len(images)) if rows is None else rows
  batch = run.place(images, rows)
  labels = np.full(run.batch, label, np.int32)
  batch = batch.replace(label=jax.device_put(labels, run.rows_sharding))
  assert isinstance(batch, Batch)
  (part,) = run.parts([batch])
  assert len(part.batch.row) == (rows >= 0).sum()
  return part.image


def test_a_score_depends_on_no_neighbour_no_padding_and_no_label(name, learned):
  run = Run(learned(name))
  images = _images(run, 8)
  together = _scores(run, images)
  others = np.concatenate([images[:3], _images(run, 5, seed=1)])
  neighbours = _scores(run, others, label=1)
  padded = np.concatenate([images[:3], np.zeros_like(images[:5])])
  alone = _scores(run, padded, np.where(np.arange(8) < 3, np.arange(8), -1))
  assert together
  for key, value in together.items():
    assert np.isfinite(value).all() and np.ptp(value) > 0
    for other in (neighbours[key][:3], alone[key]):
      np.testing.assert_allclose(
        other, value[:3], rtol=1e-4, atol=1e-6, err_msg=key
      )


def test_maps_and_panels_fit_their_images(name, learned):
  run = Run(learned(name))
  batch = run.place(_images(run, 2), np.arange(2))
  (part,) = run.parts([batch], run.map_names, panels=True)
  height, width, _ = run.info.image
  for key, value in part.pixel.items():
    assert value.shape == (2, height, width), key
  for key, value in part.panels.items():
    assert value.shape[:3] == (2, height, width), key
    assert value.min() >= 0 and value.max() <= 1, key


def test_only_known_maps_are_made(name, learned):
  run = Run(learned(name))
  batch = run.place(_images(run, 2), np.arange(2))
  with pytest.raises(Exception, match='No map'):
    list(run.parts([batch], ('nothing',)))
