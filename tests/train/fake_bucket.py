"""A bucket on this machine, with as much of Google's JSON interface as tensorstore uses.

`serve(root)` keeps objects as files under root/BUCKET. tensorstore reaches it by TENSORSTORE_GCS_HTTP_URL; etils.epath reaches
the same files through FakeGcs, in place of gcsfs. Nothing here can append to an object or rename one.
"""

import contextlib
import http.server
import json
import pathlib
import threading
import urllib.parse
from collections.abc import Iterator

from fsspec.implementations.dirfs import DirFileSystem


class FakeGcs(DirFileSystem):
  """What epath sees. A folder is there if an object below it is; `root` is set by the test."""

  protocol = ('gcs', 'gs')
  root = ''

  def __init__(self, **_):
    super().__init__(self.root, target_protocol='file')
    self.fs.auto_mkdir = True

  @classmethod
  def _strip_protocol(cls, path):
    return [cls._strip_protocol(p) for p in path] if isinstance(path, list) else str(path).removeprefix('gs://').rstrip('/')

  def _join(self, path):
    return super()._join(self._strip_protocol(path))

  def open(self, path, mode='rb', *args, **options):
    if 'a' in mode:
      raise NotImplementedError(f'{path}: objects cannot be appended to')
    return super().open(path, mode, *args, **options)

  def rename(self, path, *_, **__):
    raise NotImplementedError(f'{path}: a bucket has no rename')

  def mkdir(self, *_, **__) -> None:
    pass

  def makedirs(self, *_, **__) -> None:
    pass


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  root: pathlib.Path
  lock = threading.Lock()

  def log_message(self, *_) -> None:
    pass

  def _request(self) -> tuple[list[str], dict[str, str]]:
    url = urllib.parse.urlsplit(self.path)
    return [urllib.parse.unquote(part) for part in url.path.split('/')], dict(urllib.parse.parse_qsl(url.query))

  def _send(self, code: int, body: bytes = b'', **headers: str) -> None:
    self.send_response(code)
    for name, value in {'Content-Length': str(len(body)), **headers}.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    self.wfile.write(body)

  def _generation(self, file: pathlib.Path) -> str:
    return str(file.stat().st_mtime_ns) if file.is_file() else '0'

  def _meta(self, file: pathlib.Path, name: str) -> dict[str, str]:
    return {'name': name, 'generation': self._generation(file), 'size': str(file.stat().st_size)}

  def do_GET(self) -> None:
    parts, query = self._request()  # '', storage, v1, b, BUCKET, o[, OBJECT]
    bucket = self.root / parts[4]
    if len(parts) == 6:
      return self._list(bucket, query)
    file = bucket / parts[6]
    if not file.is_file():
      return self._send(404)
    generation, data = self._generation(file), file.read_bytes()
    if query.get('ifGenerationNotMatch') == generation:
      return self._send(304)
    if query.get('ifGenerationMatch', generation) != generation:
      return self._send(412)
    if query.get('alt') != 'media':
      return self._send(200, json.dumps(self._meta(file, parts[6])).encode())
    asked = self.headers.get('Range', '').removeprefix('bytes=')
    if not asked:
      return self._send(200, data, x_goog_generation=generation)
    start, end = asked.split('-')
    first, last = (len(data) - int(end), len(data)) if not start else (int(start), int(end) + 1 if end else len(data))
    piece = {'Content_Range': f'bytes {first}-{min(last, len(data)) - 1}/{len(data)}'}
    return self._send(206, data[first:last], x_goog_generation=generation, **piece)

  def _list(self, bucket: pathlib.Path, query: dict[str, str]) -> None:
    names = sorted(str(file.relative_to(bucket)) for file in bucket.rglob('*') if file.is_file())
    start, end, prefix = query.get('startOffset', ''), query.get('endOffset'), query.get('prefix', '')
    found = [name for name in names if name >= start and (end is None or name < end) and name.startswith(prefix)]
    self._send(200, json.dumps({'items': [self._meta(bucket / name, name) for name in found]}).encode())

  def do_POST(self) -> None:
    parts, query = self._request()  # '', upload, storage, v1, b, BUCKET, o
    file = self.root / parts[5] / query['name']
    data = self.rfile.read(int(self.headers['Content-Length']))
    with self.lock:
      if query.get('ifGenerationMatch', self._generation(file)) != self._generation(file):
        return self._send(412)
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(data)
    return self._send(200, json.dumps(self._meta(file, query['name'])).encode())

  def do_DELETE(self) -> None:
    parts, _ = self._request()
    file = self.root / parts[4] / parts[6]
    if not file.is_file():
      return self._send(404)
    file.unlink()
    return self._send(204)


@contextlib.contextmanager
def serve(root: pathlib.Path) -> Iterator[str]:
  """Its URL, while it is served."""
  handler = type('Handler', (_Handler,), {'root': root})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f'http://127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    server.server_close()
