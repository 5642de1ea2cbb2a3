"""Reading a large checkpoint, next to torch.load.

Both sides read the same file of 300 MB, from the page cache, and touch every
number (the sum of its bytes), as a mapped file is otherwise not read at all.
The reader here also verifies the checksums of the zip file, which torch.load
does not.

  python benchmarks/weights.py
"""

import pathlib
import tempfile
import time

import numpy as np
import torch

from jaxmed.weights.read import read

MEGABYTES = 300
ROUNDS = 5


def ours(path: pathlib.Path) -> float:
  return sum(float(array.sum()) for array in read(path).values())


def theirs(path: pathlib.Path, mapped: bool) -> float:
  loaded = torch.load(path, mmap=mapped)
  return sum(float(tensor.numpy().sum()) for tensor in loaded.values())


def seconds(work) -> tuple[float, float]:
  """The fastest round, and what it gives."""
  times = []
  for _ in range(ROUNDS):
    began = time.perf_counter()
    found = work()
    times.append(time.perf_counter() - began)
  return min(times), found


def main() -> None:
  draw = np.random.default_rng(0)
  tensors = {
    f'layer{i}.weight': torch.from_numpy(
      draw.standard_normal((512, 512, 3, 3), np.float32)
    )
    for i in range(round(MEGABYTES * 1e6 / (512 * 512 * 9 * 4)))
  }
  size = sum(t.numel() * t.element_size() for t in tensors.values()) / 1e6
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'weights.pth')
    for format, new in (('zip', True), ('before 1.6', False)):
      torch.save(tensors, path, _use_new_zipfile_serialization=new)
      mine, found = seconds(lambda: ours(path))
      print(f'{format}: {size:.0f} MB, jaxmed {mine:.3f} s')
      for mapped in (False, True) if new else (False,):
        other, expected = seconds(lambda m=mapped: theirs(path, m))
        assert np.isclose(found, expected), (found, expected)
        print(
          f'  torch.load(mmap={mapped}) {other:.3f} s: {other / mine:.2f} times'
        )


if __name__ == '__main__':
  main()
