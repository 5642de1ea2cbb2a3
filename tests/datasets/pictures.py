"""Small pictures for tests, and a builder whose examples may go wrong."""

import functools
import os
import pathlib
import signal

import imagecodecs
import numpy as np

from jaxmed.datasets.write import Failure, Shard

NAME = 'pictures'
VERSION = '1.2.0'
DESCRIPTION = 'Pictures for tests.'
CITATION = 'None.'
LICENCE = 'CC0'


def picture(number: int, size: int = 16, channels: int = 3) -> np.ndarray:
  shape = (size, size, channels)
  return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def jpeg(number: int, size: int = 16) -> bytes:
  return imagecodecs.jpeg8_encode(picture(number, size), level=95)


def mask(number: int, size: int = 16) -> bytes:
  where = np.zeros((size, size), np.uint8)
  where[: number % size + 1, :3] = 255
  return imagecodecs.png_encode(where)


def fingerprint(data_config):
  return {'shards': data_config.get('shards', 3)}


def shards(data_config, directory):
  del directory
  count = data_config.get('shards', 3)
  splits = ['train', 'test', 'train', 'validation', *['train'] * count][:count]
  return [
    Shard(
      f'slide{number}', split, functools.partial(examples, number, data_config)
    )
    for number, split in enumerate(splits)
  ]


def slides(data_config, directory):
  return [
    {
      'group': shard.name,
      'path': str(directory / 'slides' / f'{shard.name}.tif'),
      'annotation': '',
      'split': shard.split,
      'label': 0,
      'domain': 'A',
      'mpp': 0.5,
      'width': 100,
      'height': 200,
    }
    for shard in shards(data_config, directory)
  ]


def examples(shard: int, data_config, count: int = 5):
  """With config.trouble, a file, it goes wrong until there is no file.

  Shard 2 does, or any if there is also a file of its name with .any.
  """
  for i in range(count):
    trouble = pathlib.Path(data_config.get('trouble', ''))
    if i == 3 and trouble.is_file():
      word, any_shard = trouble.read_text(), trouble.with_suffix('.any')
      if shard == 2 or any_shard.exists():
        pathlib.Path(f'{trouble}.met').touch()
        if word == 'kill':
          os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(word)
    number = 10 * shard + i
    yield {
      'image': jpeg(number),
      'mask': mask(number) if shard == 1 else b'',
      'key': data_config.get('key', f'{shard}/{i}'),
      'group': data_config.get('group', f'slide{shard}'),
      'x': 16 * i,
      'mpp': 0.5,
      'label': int(shard == 1),
      'tissue': i / count,
    }
  if shard == 1:
    yield Failure('slide1', 'a tile that is broken', level=0, x=5, y=6)
