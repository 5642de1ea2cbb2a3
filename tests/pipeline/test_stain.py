"""Normalisation in front of a method, and a run that has it all the way."""

import dataclasses

import imagecodecs
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxmed import beforehand, evaluate, learn, workdir
from jaxmed.configs import patchcore
from jaxmed.datasets import write
from jaxmed.datasets.records import open_records
from jaxmed.errors import UserError
from jaxmed.method import Batch, Method, Phase, Score, Search
from jaxmed.ops import colour
from jaxmed.pipeline import augment, stain
from jaxmed.provenance import Provenance
from jaxmed.scoring import score_records
from jaxmed.scoring.score import Run
from tests.ops.test_colour import (
  H_AND_E,
  IMAGES,
  OTHER,
  normalised,
  numpy_macenko,
  picture,
)

KEY = jax.random.key(0)
TARGET = stain.find_target('reinhard')
# An image's, by how the compiler has joined the operations of it; a level of
# eight bits is forty times as much.
ROUNDING = 1e-4


def _batch(rows=(0, 1, -1)) -> Batch:
  white = np.full_like(IMAGES[:1], 255)
  row = np.array(rows, np.int32)
  return Batch(np.concatenate([IMAGES[:1], white, white]), row, row)


def _method(batches=1, search=None) -> Method:
  """Gives back what it sees."""

  def step(state, drawn, key):
    del key
    return drawn, {'loss': jnp.zeros(())}

  def score(state, batch, key, *found):
    del state, key
    panels = {'seen': batch.unit}
    if found:
      panels['found'] = found[0]
    return Score({'mean': batch.unit.mean(axis=(1, 2, 3))}, panels=panels)

  phase = Phase(
    'p', lambda k, s: s, step, ('a', 'b'), 5, batches, every=((4, step),)
  )
  return Method((phase,), score, search)


def _expected(batch):
  return jax.jit(colour.normalise_reinhard)(batch.image)[0]


def test_every_step_sees_normalised_images_and_counts_them():
  batch = _batch()
  (phase,) = stain.wrap(_method(), TARGET).phases
  for _, step in phase.due(4):
    seen, scalars = jax.jit(step)(
      None, {'a': batch, 'b': batch.replace(row=np.int32([0, -1, -1]))}, KEY
    )
    np.testing.assert_allclose(seen['a'].unit, _expected(batch), atol=ROUNDING)
    # Of two in a and one in b; padding does not count.
    np.testing.assert_allclose(scalars['stain/normalised'], 0.75)
    assert 'loss' in scalars


def test_stacked_batches_are_normalised():
  batch = _batch()
  (phase,) = stain.wrap(_method(batches=2), TARGET).phases
  stack = jax.tree.map(lambda x: np.stack([x, x[::-1]]), batch)
  seen, scalars = jax.jit(phase.step)(None, {'a': stack, 'b': stack}, KEY)
  expected = _expected(batch)
  np.testing.assert_allclose(seen['a'].unit[0], expected, atol=ROUNDING)
  np.testing.assert_allclose(seen['b'].unit[1], expected[::-1], atol=ROUNDING)
  np.testing.assert_allclose(scalars['stain/normalised'], 0.5)


def test_a_score_says_what_was_seen_and_what_could_not_be_normalised():
  method, batch = stain.wrap(_method(), TARGET), _batch()
  score = jax.jit(method.score)(None, batch, KEY)
  assert list(score.panels) == ['normalised', 'seen']
  np.testing.assert_allclose(
    score.panels['seen'], _expected(batch), atol=ROUNDING
  )
  np.testing.assert_array_equal(score.flags['normalised'], [True, False, False])


def test_a_search_sees_the_same_and_its_steps_too():
  search = Search(
    lambda key, state, batch: batch.unit,
    lambda key, state, batch, found, number: found + batch.unit,
    steps=2,
  )
  method, batch = stain.wrap(_method(search=search), TARGET), _batch()
  found = jax.jit(method.search.init)(KEY, None, batch)
  for number in range(method.search.steps):
    step = jax.jit(method.search.step)
    found = step(KEY, None, batch, found, jnp.int32(number))
  score = jax.jit(method.score)(None, batch, KEY, found)
  expected = _expected(batch)
  np.testing.assert_allclose(score.panels['seen'], expected, atol=ROUNDING)
  np.testing.assert_allclose(score.panels['found'], 3 * expected, atol=1e-4)
  np.testing.assert_array_equal(score.flags['normalised'], [True, False, False])


def test_colours_are_changed_after_they_were_made_alike():
  """Else the one would undo the other."""
  method, batch = _method(), _batch()
  phases = tuple(augment.wrap(p, ('hed_strong',)) for p in method.phases)
  method = stain.wrap(dataclasses.replace(method, phases=phases), TARGET)
  seen, _ = jax.jit(method.phases[0].step)(None, {'a': batch, 'b': batch}, KEY)
  apart = np.abs(seen['a'].unit - _expected(batch)).mean(axis=(1, 2, 3))
  assert apart[0] > 0.01


def test_eight_devices_normalise_as_one_does():
  mesh = jax.make_mesh((8, 1), ('data', 'model'), (AxisType.Auto,) * 2)
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  image = np.concatenate([IMAGES] * 3)[:8]
  run = jax.jit(colour.normalise_macenko)
  made, ok = run(jax.device_put(image, sharding))
  assert made.sharding.is_equivalent_to(sharding, made.ndim) and ok.all()
  one, _ = normalised('macenko', IMAGES)
  np.testing.assert_allclose(made[:3], one, atol=1e-5)
  np.testing.assert_allclose(made[-2:], one[:2], atol=1e-5)


def test_nothing_asked_is_nothing_changed():
  method = _method()
  assert stain.find_target('') is None
  assert stain.wrap(method, None) is method


def _config(**data):
  config = patchcore.get_config('tiny')
  config.data.update(data)
  return config


@pytest.mark.parametrize(
  ('data', 'said'),
  [
    ({'stain': 'macenco'}, "Did you mean 'macenko'"),
    ({'stain': 'macenko', 'channels': 1}, 'only colour images'),
    ({'stain_target': 'a.png'}, 'data.stain is empty'),
    ({'stain': 'macenko', 'stain_target': 'none.png'}, 'There is no image'),
    ({'stain': 'reinhard', 'stain_target': 'white.png'}, 'no image of H&E'),
    ({'stain': 'macenko', 'stain_target': 'gray.png'}, 'no image of H&E'),
    ({'stain': 'macenko', 'stain_target': 'text.png'}, 'is unreadable'),
  ],
)
def test_mistakes_are_said_before_anything_begins(
  data, said, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  white = np.full((64, 64, 3), 255, np.uint8)
  (tmp_path / 'white.png').write_bytes(imagecodecs.png_encode(white))
  (tmp_path / 'gray.png').write_bytes(
    imagecodecs.png_encode(white[..., 0].copy())
  )
  (tmp_path / 'text.png').write_text('text')
  with pytest.raises(UserError, match=said):
    beforehand.check_config(_config(**data))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A PatchCore that has learned from and scored normalised images."""
  folder = tmp_path_factory.mktemp('stain')
  for number in range(24):
    path = folder / 'images' / ('tumour' if number % 6 == 5 else 'normal')
    path.mkdir(parents=True, exist_ok=True)
    pixels = picture(OTHER if number % 2 else H_AND_E, seed=number, side=32)
    if number in (3, 5):
      pixels[:] = 255
    (path / f'{number}.png').write_bytes(imagecodecs.png_encode(pixels))
  target = folder / 'target.png'
  target.write_bytes(imagecodecs.png_encode(IMAGES[1]))
  config = _config(stain='macenko', stain_target=str(target))
  for name in ('name', 'options', 'cohorts', 'validation', 'test'):
    config.data[name] = patchcore.get_config('folder').data[name]
  config.data.path = str(folder / 'images')
  config.data.dir = str(folder / 'prepared')
  config.model.coreset_size = 8
  config.score.batch = 8
  beforehand.check_config(config)
  (folder / 'run').mkdir()
  workdir.settle(folder / 'run', config, fresh=False)
  data = write.prepare(config.data, progress=False)
  learn.train(config, folder / 'run', data, Provenance(folder / 'run'))
  target.unlink()  # What a run knows, it does not ask for again.
  run = Run(folder / 'run')
  score_records.score_records(run, open_records(data))
  return run


def test_a_run_remembers_its_target(run):
  facts = workdir.read_json(run.folder / 'info.json')['stain']
  expected = stain.KINDS['macenko'].fit(IMAGES[1])
  np.testing.assert_allclose(facts['matrix'], expected.matrix, rtol=1e-5)
  np.testing.assert_allclose(facts['maxima'], expected.maxima, rtol=1e-5)


def _score(run, images):
  """In the one way that is compiled."""
  return run.score(images, maps=(), panels=True)


def test_a_run_scores_what_its_method_saw_in_training(run):
  images = np.concatenate([IMAGES[:, :32, :32], IMAGES[:, -32:, -32:]])
  found = _score(run, images)
  ok = found.flags['normalised']
  assert ok[:3].all()
  target = stain.KINDS['macenko'].fit(IMAGES[1])
  for before, after, fine in zip(
    images, found.panels['normalised'], ok, strict=True
  ):
    expected = numpy_macenko(before, target) if fine else before / 255
    # Of 64 cells, in float32: the plane is known less well.
    np.testing.assert_allclose(after, expected, atol=1e-3)
  np.testing.assert_array_equal(found.images, images)


def test_a_score_depends_on_no_neighbour(run):
  images = list(IMAGES[:, :32, :32])
  together = _score(run, images).scores['nearest']
  assert np.ptp(together) > 0
  white = np.full((32, 32, 3), 255, np.uint8)
  for neighbours in ([], [white] * 7):
    alone = _score(run, [images[0], *neighbours]).scores['nearest']
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-5)


def test_what_could_not_be_normalised_is_in_the_table_and_a_warning(run):
  path = run.folder / 'scores.parquet'
  table = pq.read_table(path)
  known = table['normalised'].to_pylist()
  assert any(known)
  results = evaluate.evaluate(run.folder, run.config)
  warned = [w for w in results['warnings'] if 'could not be normalised' in w]
  assert bool(warned) == (not all(known))
  place = table.schema.get_field_index('normalised')
  none = np.zeros(len(known), bool)
  pq.write_table(table.set_column(place, 'normalised', [none]), path)
  results = evaluate.evaluate(run.folder, run.config)
  said = f'The stain of {len(known)} of {len(known)} images could not be'
  assert any(said in warning for warning in results['warnings'])


def test_training_says_how_many_it_could_normalise(run):
  lines = (run.folder / 'train.jsonl').read_text()
  assert '"stain/normalised": ' in lines
