import json
import subprocess
import sys

import pytest

from tests.places import ROOT
from tests.slides import annotation_corpus
from tests.slides.annotation_corpus import CASES, MEGABYTES, SECONDS


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory) -> dict[str, dict]:
  """What came of each case, read in a process of its own with limits."""
  folder = str(tmp_path_factory.mktemp('corpus'))
  done = subprocess.run(
    [sys.executable, '-m', 'tests.slides.annotation_corpus', folder],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert not done.returncode, done.stderr
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  return {row['case']: row for row in rows}


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.file)
def test_each_is_read_or_named_and_explained(case, outcomes):
  said = outcomes[case.file]
  assert annotation_corpus.expected(case, said), said
  assert said['megabytes'] < MEGABYTES
  assert said['seconds'] < SECONDS


def test_cases_have_names_of_their_own():
  assert len({case.file for case in CASES}) == len(CASES)
