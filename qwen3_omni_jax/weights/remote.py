"""Checkpoints that are not a folder of this machine.

A hub id (`org/name`) is fetched whole, into the hub's own cache. A converted folder in a bucket (gs://, s3://) is read
where it is, so that each host of a pod reads its own shards; only its small files are copied. Conversions work on
local disk.
"""

import contextlib
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Iterator

import tensorstore as ts
from etils import epath

from .store import DAMAGED, MANIFEST, PARAMS, first_line

_HUB_ID = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
_NOT_FETCHED = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.gguf', '*.h5', '*.msgpack', '*.onnx', '.*')  # other kinds of weights
_COPY = {'gs': 'gcloud storage cp -r', 's3': 'aws s3 cp --recursive', 'file': 'cp -r'}  # file:// is for tests
_FEW = {'max_retries': 3}  # to notice soon that there is no such bucket; reading weights is more patient


@dataclasses.dataclass(frozen=True)
class Place:
  """folder: config.json, tokenizer, manifest. params: the Orbax checkpoint of a converted folder, or its URL."""

  folder: pathlib.Path
  params: pathlib.Path | str

  @property
  def converted(self) -> bool:
    return isinstance(self.params, str) or self.params.is_dir()


@contextlib.contextmanager
def located(source: str | pathlib.Path) -> Iterator[Place]:
  """A checkpoint to be loaded: a local folder of either kind, a hub id, or the URL of a converted folder."""
  scheme = _scheme(source)
  if scheme is None:
    folder = local_folder(source)
    yield Place(folder, folder / PARAMS)
    return
  url = str(source).rstrip('/')
  if scheme not in _COPY:
    raise ValueError(f'{url}: expected a local folder, a hub id (org/name), gs:// or s3://')
  with tempfile.TemporaryDirectory(prefix='qwen3-omni-') as temporary:
    folder = pathlib.Path(temporary)
    _copy_small_files(url, folder)
    try:
      yield Place(folder, f'{url}/{PARAMS}')
    except ValueError as error:
      raise ValueError(str(error).replace(str(folder), url)) from error


def local_folder(source: str | pathlib.Path) -> pathlib.Path:
  """The folder of a source that has to be on this machine; a hub id is fetched if no folder has that name."""
  if (scheme := _scheme(source)) is not None:
    command = _COPY.get(scheme, 'copy')
    raise ValueError(f'{source}: this needs a folder on local disk; first: {command} {source} DIR')
  folder = pathlib.Path(source)
  if not folder.exists() and isinstance(source, str) and _HUB_ID.fullmatch(source):
    return _fetch(source)
  return folder


def source_folder(source: str | pathlib.Path) -> pathlib.Path:
  """`local_folder`, or the place in a gs:// bucket of a checkpoint that training wrote, whose arrays are read where they are."""
  if _scheme(str(source)) == 'gs':
    return epath.Path(str(source))  # type: ignore[return-value]  # has what is used of a pathlib.Path
  return local_folder(source)


def is_url(folder: pathlib.Path | str) -> bool:
  return '://' in str(folder)


def local_target(target: str | pathlib.Path) -> pathlib.Path:
  """The new folder of a conversion."""
  if (scheme := _scheme(target)) is not None:
    command = _COPY.get(scheme, 'copy')
    raise ValueError(f'{target}: conversions write to local disk; give a local DIR, then: {command} DIR {target}')
  return pathlib.Path(target)


def _scheme(source: str | pathlib.Path) -> str | None:
  found = re.match(r'([a-z0-9]+)://', source) if isinstance(source, str) else None
  return found[1] if found else None


def _fetch(hub_id: str) -> pathlib.Path:
  try:
    import huggingface_hub
  except ImportError as error:
    raise ValueError(f'{hub_id}: no such folder; to fetch it from the hub, install huggingface_hub') from error
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(hub_id, ignore_patterns=list(_NOT_FETCHED)))
  except Exception as error:  # of many kinds: offline, unknown, gated, disk full
    raise ValueError(f'{hub_id}: no such folder, and not to be had from the hub ({first_line(error)})') from error


def _copy_small_files(url: str, folder: pathlib.Path) -> None:
  """What lies beside the weights of a converted folder."""
  context = ts.Context({'gcs_request_retries': _FEW, 's3_request_retries': _FEW})
  try:
    store = ts.KvStore.open(f'{url}/', context=context).result()
    names = [
      key.decode()
      for outside in (ts.KvStore.KeyRange('', f'{PARAMS}/'), ts.KvStore.KeyRange(f'{PARAMS}0', ''))
      for key in store.list(outside).result()
    ]
    if MANIFEST not in names:
      raise ValueError(f'{url}: no {MANIFEST}; only converted folders are read from there (convert to-jax, then copy)')
    for name in names:
      if '/' not in name and not name.startswith('.'):
        (folder / name).write_bytes(store.read(name).result().value)
  except DAMAGED as error:
    message = str(error) if str(error).startswith(url) else f'{url}: cannot be read ({first_line(error)})'
    raise ValueError(message) from error
