"""Where media come from: what is read, what is refused, and that errors name the input without printing it."""

import base64
import pathlib

import pytest

from qwen3_omni_jax.media.source import Limits, name_of, read_bytes

LIMITS = Limits(bytes=1000)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """root/a b.txt inside, outside.txt beside the root, and links that point in and out."""
  root = tmp_path / 'root'
  root.mkdir()
  (root / 'a b.txt').write_bytes(b'inside')
  (tmp_path / 'outside.txt').write_bytes(b'outside')
  (root / 'out').symlink_to(tmp_path / 'outside.txt')
  (root / 'in').symlink_to(root / 'a b.txt')
  (root / 'loop').symlink_to(root / 'loop')
  return root


def test_every_spelling_of_a_file_gives_its_bytes(folder):
  path = folder / 'a b.txt'
  for source in (path, str(path), f'file://{folder}/a%20b.txt', f'FILE://localhost{folder}/a%20b.txt'):
    assert read_bytes(source, LIMITS) == b'inside'
    assert read_bytes(source, LIMITS, folder) == b'inside'
  assert read_bytes('a b.txt', LIMITS, folder) == b'inside'  # relative to the media folder, not to where we run
  assert read_bytes('in', LIMITS, folder) == b'inside'


def test_data_urls_and_bytes_give_their_contents():
  raw = bytes(range(256))
  plain = base64.b64encode(raw).decode()
  for body in (plain, plain.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D'), plain[:80] + '\n ' + plain[80:]):
    assert read_bytes(f'data:audio/wav;base64,{body}', LIMITS) == raw
  assert read_bytes('DATA:,a%20b%ff', LIMITS) == b'a b\xff'
  for kind in (bytes, bytearray, memoryview):
    assert read_bytes(kind(raw), LIMITS) == raw


@pytest.mark.parametrize(
  'source', ['../outside.txt', 'out', '../root/../outside.txt', '{above}/outside.txt', 'file://{above}/outside.txt']
)
def test_nothing_outside_the_media_folder_is_read(folder, source):
  source = source.format(above=folder.parent)
  with pytest.raises(ValueError, match='outside the media folder') as error:
    read_bytes(source, LIMITS, folder)
  assert source in str(error.value)


@pytest.mark.parametrize(
  'source, message',
  [
    ('http://host/a.wav', 'download the file'),
    ('HTTPS://host/a.wav', 'download the file'),
    ('s3://bucket/a.wav', 'download the file'),
    ('file://host/a.wav', 'a file on host'),
    ('file:///a%00b', 'not a path'),
    ('', 'not a path'),
    ('no/such.wav', 'no such file'),
    ('\udcff.wav', 'no such file'),
    ('x' * 300, 'cannot be read'),
    ('/dev/zero', 'not a regular file'),
    (pathlib.Path('/'), 'not a regular file'),
    ('data:audio/wav;base64', 'no comma'),
    ('data:audio/wav;base64,a?b', 'broken base64'),
    ('data:audio/wav;base64,abcde', 'broken base64'),
    ('data:audio/wav;base64,ü', 'broken base64'),
    ('data:,', 'empty'),
    ('data:,' + 'x' * 1001, 'limit is 1000'),
    ('data:;base64,' + 'A' * 2000, 'limit is 1000'),
    (b'', 'empty'),
    (bytes(1001), 'limit is 1000'),
    (7, 'expected a path'),
    (None, 'expected a path'),
  ],
)
def test_what_cannot_be_read_is_named(source, message):
  with pytest.raises(ValueError, match=message) as error:
    read_bytes(source, LIMITS)
  assert name_of(source) in str(error.value)
  assert len(str(error.value)) < 400


def test_big_and_looping_files_are_refused(folder):
  with pytest.raises(ValueError, match='loop: cannot be read'):
    read_bytes('loop', LIMITS, folder)
  (folder / 'big').write_bytes(bytes(1001))
  with pytest.raises(ValueError, match='big: 1001 bytes; the limit is 1000'):
    read_bytes('big', LIMITS, folder)


def test_names_are_short_and_never_the_contents():
  secret = 'c2VjcmV0' * 1000
  assert name_of(f'data:audio/wav;base64,{secret}') == f'data URL of {22 + len(secret)} characters'
  assert name_of(secret.encode()) == '8000 bytes'
  assert len(name_of('d/' * 5000)) < 200
  assert name_of(pathlib.Path('a/b.wav')) == 'a/b.wav'
