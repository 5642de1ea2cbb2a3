"""Downloads from a server on this machine, and all that goes wrong."""

import fcntl
import hashlib

import numpy as np
import pytest

from jaxmed.errors import UserError
from jaxmed.weights import fetch, store
from jaxmed.weights.fetch import FetchError
from tests.weights import publisher


@pytest.fixture
def server():
  with publisher.serving() as server:
    yield server


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXMED_WEIGHTS', str(tmp_path / 'store'))
  monkeypatch.setattr(fetch, 'PAUSE', 0.0)
  return tmp_path / 'store'


@pytest.fixture
def content(tmp_path) -> bytes:
  publisher.toy(tmp_path / 'toy.npz')
  return (tmp_path / 'toy.npz').read_bytes()


def _partial(folder, entry):
  return folder / f'{entry.file}.part'


def test_weights_are_fetched_verified_and_stored(server, folder, tmp_path):
  arrays = publisher.toy(tmp_path / 'toy.npz')
  content = (tmp_path / 'toy.npz').read_bytes()
  entry = server.publish(content)
  facts = fetch.fetch(entry)
  assert facts.sha256 == hashlib.sha256(content).hexdigest()
  assert facts.source == entry.url
  assert sorted(p.name for p in folder.iterdir()) == ['toy.safetensors']
  stored, known = store.load('toy')
  assert known == facts
  assert stored['conv.weight'].dtype == np.float32  # It was float16.
  for name, array in arrays.items():
    np.testing.assert_array_equal(stored[name], array)


def test_a_prefix_of_the_hash_is_enough_and_is_said(server, content):
  whole = server.publish(content)
  entry = server.publish(content, sha256=whole.sha256[:8])
  facts = fetch.fetch(entry)
  assert facts.sha256 == whole.sha256
  assert 'first 8 digits' in entry.check


def test_what_broke_off_is_taken_up_where_it_stopped(server, folder, content):
  entry = server.publish(content)
  server.cut = [100_000, 1]
  assert fetch.download(entry).read_bytes() == content
  assert [part for _, part in server.asked] == [
    None,
    'bytes=100000-',
    'bytes=100001-',
  ]


def test_a_later_call_goes_on(server, folder, content):
  entry = server.publish(content)
  server.cut = [50_000, 0, 0, 0]
  with pytest.raises(FetchError, match='first 50000 bytes are kept') as caught:
    fetch.download(entry)
  assert 'the same command goes on' in str(caught.value)
  assert _partial(folder, entry).read_bytes() == content[:50_000]
  assert fetch.download(entry).read_bytes() == content
  assert server.asked[-1][1] == 'bytes=50000-'


@pytest.mark.parametrize('lengths', [True, False])
def test_a_server_without_ranges_sends_all_again(
  server, folder, content, lengths
):
  entry = server.publish(content)
  server.ranges, server.lengths = False, lengths
  folder.mkdir()
  _partial(folder, entry).write_bytes(content[:70_000])
  assert fetch.download(entry).read_bytes() == content
  assert len(server.asked) == 1


def test_a_file_that_was_whole_is_not_asked_for_again(server, folder, content):
  entry = server.publish(content)
  folder.mkdir()
  _partial(folder, entry).write_bytes(content)
  server.cut = [0] * 9  # Nothing of it would come.
  assert fetch.download(entry).read_bytes() == content


@pytest.mark.parametrize('left', [b'x' * 1000, b'x' * 10**6])
def test_leftovers_of_another_file_are_thrown_away(
  server, folder, content, left
):
  entry = server.publish(content)
  folder.mkdir()
  _partial(folder, entry).write_bytes(left)
  assert fetch.download(entry).read_bytes() == content
  assert server.asked[-1][1] is None


def test_a_part_that_was_not_asked_for_is_not_appended(server, folder, content):
  entry = server.publish(content)
  server.cut, server.shift = [70_000], 3
  assert fetch.download(entry).read_bytes() == content


def test_another_file_is_refused_and_removed(server, folder, content):
  entry = server.publish(content)
  server.files[f'/{entry.file}'] = b'<html>Please log in.</html>'
  with pytest.raises(FetchError, match='is not toy-') as caught:
    fetch.fetch(entry)
  said = str(caught.value)
  page = hashlib.sha256(b'<html>Please log in.</html>').hexdigest()
  assert page in said and entry.sha256 in said and 'removed' in said
  assert not list(folder.iterdir())


def test_more_than_was_published_is_not_downloaded(server, folder, content):
  entry = server.publish(content)
  server.files[f'/{entry.file}'] = content * 3
  with pytest.raises(FetchError, match='so it is not that file'):
    fetch.download(entry)
  assert not list(folder.iterdir())
  server.lengths = False  # Nor is it, if that shows only by and by.
  with pytest.raises(FetchError, match='so it is not that file'):
    fetch.download(entry)


def test_redirects_are_followed(server, content):
  entry = server.publish(content)
  server.files['/elsewhere'] = server.files.pop(f'/{entry.file}')
  server.redirects[f'/{entry.file}'] = f'{server.url}/elsewhere'
  assert fetch.download(entry).read_bytes() == content


@pytest.mark.parametrize('url', ['file:///etc/hosts', 'ftp://127.0.0.1/x'])
def test_redirects_out_of_the_web_are_not(server, content, url):
  entry = server.publish(content)
  server.redirects[f'/{entry.file}'] = url
  with pytest.raises(FetchError, match='edirect.* to .*//'):
    fetch.download(entry)


def test_no_redirect_leaves_https():
  handler = fetch._Redirects()
  request = fetch.urllib.request.Request('https://x/a')
  follow = lambda url: handler.redirect_request(
    request, None, 302, 'Found', {}, url
  )
  assert follow('https://y/a').full_url == 'https://y/a'
  with pytest.raises(fetch.urllib.error.HTTPError, match='http://y/a'):
    follow('http://y/a')


def test_a_missing_file_is_said_at_once(server, folder, content):
  entry = server.publish(content)
  server.files.clear()
  with pytest.raises(FetchError, match='404 Not Found') as caught:
    fetch.download(entry)
  assert f'jaxmed weights import {entry.file} --name toy' in str(caught.value)
  assert len(server.asked) == 1
  assert not list(folder.iterdir())


def test_a_busy_server_is_asked_again(server, content):
  entry = server.publish(content)
  server.failures = [503, 429]
  assert fetch.download(entry).read_bytes() == content
  assert len(server.asked) == 3


def test_offline_both_commands_are_named(server, folder, content):
  entry = server.publish(content)
  object.__setattr__(entry, 'url', f'http://127.0.0.1:1/{entry.file}')
  with pytest.raises(FetchError, match='could not be downloaded') as caught:
    fetch.download(entry)
  said = str(caught.value)
  assert f'curl -fLO {entry.url} ' in said
  assert f'jaxmed weights import {entry.file} --name toy' in said
  assert not list(folder.iterdir())


def test_two_downloads_of_one_file_do_not_mix(server, folder, content):
  entry = server.publish(content)
  folder.mkdir()
  with _partial(folder, entry).open('ab') as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(FetchError, match='Another process'):
      fetch.download(entry)


def test_a_store_that_cannot_be_written_is_named(server, folder, content):
  folder.write_text('no folder')
  with pytest.raises(FetchError, match='JAXMED_WEIGHTS'):
    fetch.download(server.publish(content))


def test_what_does_not_fit_is_not_stored(server, folder, content):
  def fit(arrays):
    raise UserError('of another network')

  entry = server.publish(content)
  with pytest.raises(UserError, match='another network'):
    fetch.fetch(entry, fit)
  assert not store.names()
  assert not (folder / entry.file).exists()


def test_what_nobody_publishes_is_imported():
  with pytest.raises(FetchError, match='import FILE --name resnet50v2'):
    fetch.download(fetch.registry.find('resnet50v2'))
