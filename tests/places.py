"""Where files lie: importing this changes nothing, unlike tests.conftest."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ROOT.parent / 'shared'
