"""Checkpoints by hub id and by URL: the same parameters as from a local folder, and clear words where that is not done."""

import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest

from qwen3_omni_jax import Omni
from qwen3_omni_jax.cli import main
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.to_jax import convert_to_jax
from qwen3_omni_jax.weights.verify import verify

from .folders import assert_same, odd_config, odd_dict, random_tensors, write


@pytest.fixture(scope='module')
def plain(tmp_path_factory) -> pathlib.Path:
  return write(tmp_path_factory.mktemp('remote') / 'hf', random_tensors(odd_config('thinking')), odd_dict('thinking'))


@pytest.fixture(scope='module')
def converted(plain) -> pathlib.Path:
  convert_to_jax(plain, plain.parent / 'jax')
  return plain.parent / 'jax'


def test_a_url_gives_the_same_parameters(converted):
  assert_same(load_params(f'file://{converted}'), load_params(converted))
  assert_same(load_params(f'file://{converted}/', dtype='bfloat16'), load_params(converted, dtype='bfloat16'))


def test_omni_loads_from_a_url(tiny_folder, tmp_path):
  convert_to_jax(tiny_folder, tmp_path / 'jax')
  here, there = Omni.load(tmp_path / 'jax'), Omni.load(f'file://{tmp_path}/jax')
  assert_same(there.params, here.params)
  assert there.cfg == here.cfg and there.defaults == here.defaults and there.voice == here.voice


def test_errors_name_the_url(converted, plain, tmp_path):
  copy = shutil.copytree(converted, tmp_path / 'jax')
  config = odd_dict('thinking')
  config['thinker_config']['text_config']['num_experts'] = 4
  (copy / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f'^file://{copy}: the weights do not match'):
    load_params(f'file://{copy}')
  shutil.copy(converted / 'config.json', copy)
  shutil.rmtree(copy / 'params')
  with pytest.raises(ValueError, match=f'^file://{copy}/params: nothing there can be read'):
    load_params(f'file://{copy}')
  for url in (f'file://{plain}', f'file://{tmp_path}/nothing'):
    with pytest.raises(ValueError, match=f'^{url}: no manifest.json; only converted folders are read from there'):
      load_params(url)
  with pytest.raises(ValueError, match='^https://host/x: expected a local folder, a hub id'):
    load_params('https://host/x')
  with pytest.raises(ValueError, match='^gs://x/y: cannot be read .*Invalid GCS bucket name'):
    load_params('gs://x/y')


class Bucket(http.server.BaseHTTPRequestHandler):
  """As much of Google Cloud Storage's JSON interface as reading takes. `root` holds a folder for each bucket."""

  root: pathlib.Path
  protocol_version = 'HTTP/1.1'
  wbufsize = 2**16  # an answer is one packet, or each would wait for an acknowledgement

  def do_GET(self):
    url = urllib.parse.urlparse(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    _, _, _, _, bucket, _, *name = url.path.split('/')
    if name:
      self._object(self.root / bucket / urllib.parse.unquote(name[0]))
    else:
      files = [p for p in (self.root / bucket).rglob('*') if p.is_file()]
      names = sorted(str(p.relative_to(self.root / bucket)) for p in files)
      after, before = query.get('startOffset', ''), query.get('endOffset', '\x7f')
      items = [{'name': n, 'size': '1'} for n in names if n.startswith(query.get('prefix', '')) and after <= n < before]
      self._answer(200, json.dumps({'kind': 'storage#objects', 'items': items}).encode())

  def _object(self, path: pathlib.Path):
    if not path.is_file():
      return self._answer(404, b'{}')
    data, size = path.read_bytes(), path.stat().st_size
    status, headers = 200, {'x-goog-generation': '1', 'x-goog-stored-content-length': str(size)}
    if (asked := self.headers.get('range')) is not None:
      first, last = asked.removeprefix('bytes=').split('-')
      start, stop = (int(first), int(last or size - 1) + 1) if first else (size - int(last), size)
      status, data = 206, data[start:stop]
      headers['content-range'] = f'bytes {start}-{start + len(data) - 1}/{size}'
    self._answer(status, data, headers)

  def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None):
    self.send_response(status)
    for name, value in {**(headers or {}), 'content-length': str(len(data))}.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *args):
    pass


LOAD = """
import sys
from qwen3_omni_jax.weights.load import load_params
from tests.weights.folders import assert_same

assert_same(load_params(sys.argv[1]), load_params(sys.argv[2]))
"""


def test_a_converted_folder_in_a_bucket_is_loaded_where_it_is(converted, tmp_path):
  """Against a server on this machine that speaks the storage's protocol, as no test may need a network."""
  shutil.copytree(converted, tmp_path / 'some-bucket' / 'models' / 'omni')
  handler = type('Here', (Bucket,), {'root': tmp_path})
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
      **os.environ,
      'TENSORSTORE_GCS_HTTP_URL': f'http://127.0.0.1:{server.server_port}',
      'NO_GCE_CHECK': 'true',
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
    }
    run = [sys.executable, '-c', LOAD, 'gs://some-bucket/models/omni', str(converted)]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=root, timeout=120)
    server.shutdown()
  assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def hub(plain, tmp_path, monkeypatch) -> str:
  """The id of a model in a hub cache, which is made of links."""
  from huggingface_hub import constants

  model = tmp_path / 'hub' / 'models--someone--omni'
  snapshot, blobs = model / 'snapshots' / '0a1b2c', model / 'blobs'
  for folder in (snapshot, blobs, model / 'refs'):
    folder.mkdir(parents=True)
  (model / 'refs' / 'main').write_text('0a1b2c')
  for i, file in enumerate(plain.iterdir()):
    shutil.copy(file, blobs / f'blob{i}')
    (snapshot / file.name).symlink_to(f'../../blobs/blob{i}')
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.chdir(tmp_path)
  return 'someone/omni'


def test_a_hub_id_is_a_published_folder(hub, plain, converted, tmp_path):
  assert_same(load_params(hub), load_params(plain))
  assert main(['convert', 'to-jax', '--from', hub, '--to', 'jax']) == 0
  assert verify(tmp_path / 'jax', converted).agree and verify(hub, converted).agree
  files = lambda folder: {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != 'manifest.json'}
  assert files(tmp_path / 'jax') == files(converted)


def test_a_local_folder_comes_before_the_hub(hub, converted, tmp_path):
  shutil.copytree(converted, tmp_path / hub)
  assert main(['convert', 'inspect', hub, '--json']) == 0
  with pytest.raises(ValueError, match='someone/omni: already converted'):
    convert_to_jax(hub, tmp_path / 'jax')


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('someone/other', 'someone/other: no such folder, and not to be had from the hub ('),
    ('../omni', '../omni: no such folder; expected a checkpoint'),
    ('/some/where', '/some/where: no such folder; expected a checkpoint'),
    ('gs://bucket/hf', 'gs://bucket/hf: this needs a folder on local disk; first: gcloud storage cp -r gs://bucket/hf DIR'),
    ('s3://bucket/hf', 's3://bucket/hf: this needs a folder on local disk; first: aws s3 cp --recursive s3://bucket/hf DIR'),
  ],
)
def test_what_cannot_be_converted_is_told(hub, source, message, tmp_path, capsys):
  for direction in ('to-jax', 'to-hf'):
    assert main(['convert', direction, '--from', source, '--to', str(tmp_path / 'new')]) == 1
    assert message in capsys.readouterr().err
  assert main(['convert', 'verify', source, source]) == 1
  assert message in capsys.readouterr().err
  assert not list(tmp_path.glob('new*'))


def test_a_url_as_a_target_is_refused_with_the_command_to_use(plain, converted, capsys):
  for direction, source in (('to-jax', plain), ('to-hf', converted)):
    assert main(['convert', direction, '--from', str(source), '--to', 's3://bucket/x']) == 1
    said = 'conversions write to local disk; give a local DIR, then: aws s3 cp --recursive DIR s3://bucket/x'
    assert said in capsys.readouterr().err


def test_any_folder_name_will_do(plain, converted, tmp_path):
  target = tmp_path / 'a %41 #b? ä'
  convert_to_jax(plain, target)
  assert [p.name for p in tmp_path.iterdir()] == [target.name]
  assert_same(load_params(target), load_params(converted))
