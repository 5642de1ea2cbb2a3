"""The report as Chromium shows and prints it."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jaxmed.report import write_report

pytestmark = pytest.mark.slow

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
FLAGS = (
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--hide-scrollbars',
)
WIDTH, HEIGHT = 1200, 2400
PAPER = {'light': (246, 247, 249), 'dark': (16, 21, 29)}


@pytest.fixture
def browse(tmp_path):
  """Runs the browser on a page and returns what it prints."""
  found = [name for name in NAMES if shutil.which(name)]
  if not found:
    pytest.skip('needs Chromium, which is not installed')

  def run(page, *flags) -> str:
    command = [found[0], *FLAGS, f'--user-data-dir={tmp_path}/profile', *flags]
    done = subprocess.run(
      [*command, page.resolve().as_uri()],
      capture_output=True,
      text=True,
      timeout=120,
      check=True,
    )
    return done.stdout

  return run


@pytest.fixture
def page(finished, tmp_path):
  """A function that writes the page in a theme, with a script at its end."""
  source = write_report(finished).read_text('utf-8')

  def write(theme: str = 'light', script: str = ''):
    path = tmp_path / f'{theme}.html'
    changed = source.replace('lang="en"', f'lang="en" data-theme="{theme}"')
    if script:  # The page's own policy would forbid it.
      changed = changed.replace('Content-Security-Policy', 'none')
      changed = changed.replace(
        '</body>', f'<script>{{{script}}}</script></body>'
      )
    path.write_text(changed, 'utf-8')
    return path

  return write


@pytest.mark.parametrize('theme', PAPER)
def test_it_is_seen_in_both_themes(browse, page, tmp_path, theme):
  target = tmp_path / 'seen.png'
  size = f'--window-size={WIDTH},{HEIGHT}'
  browse(page(theme), f'--screenshot={target}', size)
  picture = np.asarray(Image.open(target).convert('RGB')).astype(int)
  assert picture.shape == (HEIGHT, WIDTH, 3)
  np.testing.assert_array_equal(picture[2, 2], PAPER[theme])
  ink = np.abs(picture - PAPER[theme]).sum(-1) > 200
  for part in np.array_split(ink, 6):  # There is something in every sixth.
    assert 0.005 < part.mean() < 0.7


MEASURE = """
const wide = document.documentElement.scrollWidth;
document.title = [
  document.documentElement.scrollHeight, wide,
  [...document.images].filter((image) => !image.naturalWidth).length,
].join(' ');
"""


@pytest.mark.parametrize(
  ('width', 'least', 'most'), [(1200, 5_000, 14_000), (500, 9_000, 40_000)]
)
def test_its_size_is_plausible(browse, page, width, least, most):
  found = browse(
    page(script=MEASURE), '--dump-dom', f'--window-size={width},900'
  )
  title = found.split('<title>')[1].split('</title>')[0]
  height, wide, broken = map(int, title.split())
  assert least < height < most
  assert wide <= width  # Nothing makes the page scroll sideways.
  assert broken == 0


CLICK = """
const table = document.querySelector('#slides table.sortable');
const rows = () => [...table.tBodies[0].rows].map(
  (row) => row.cells[2].textContent.trim());
const button = table.tHead.rows[0].cells[2].querySelector('button');
button.click();
const first = rows();
button.click();
const slider = document.getElementById('opacity');
slider.value = 30;
slider.dispatchEvent(new Event('input'));
const heat = document.querySelector('.heat');
const seen = (kind) => [...document.querySelectorAll('.lines .' + kind)].some(
  (layer) => getComputedStyle(layer).display !== 'none');
const kinds = ['annotations', 'above', 'tissue', 'detections'];
const before = kinds.map(seen);
for (const box of document.querySelectorAll('.switch')) box.click();
document.title = JSON.stringify([
  first, rows(), getComputedStyle(heat).opacity, before, kinds.map(seen)]);
"""


def test_tables_sort_maps_fade_and_layers_hide(browse, page):
  found = browse(page(script=CLICK), '--dump-dom')
  title = found.split('<title>')[1].split('</title>')[0]
  down, up, opacity, before, after = json.loads(title)
  values = [float(v) for v in down[:-1]]
  assert values == sorted(values, reverse=True)
  assert [float(v) for v in up[:-1]] == sorted(values)
  assert down[-1] == up[-1] == '–'  # No score: last either way.
  assert opacity == '0.3'
  assert before == [True] * 4 and after == [False] * 4


def test_the_policy_lets_its_own_script_run(browse, finished):
  """Buttons are made by the script: were it blocked, there would be none."""
  found = browse(write_report(finished), '--dump-dom')
  assert found.count('<button type="button">') > 10


def test_it_prints(browse, page, tmp_path):
  target = tmp_path / 'report.pdf'
  browse(page('dark'), f'--print-to-pdf={target}', '--no-pdf-header-footer')
  printed = target.read_bytes()
  assert printed.startswith(b'%PDF') and len(printed) > 100_000
  assert 5 <= printed.count(b'/Type /Page\n') <= 14
