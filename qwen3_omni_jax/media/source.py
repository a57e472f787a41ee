"""Where media come from: a path, a file:// or data: URL, or bytes; within limits, and inside one folder where one is set."""

import base64
import binascii
import dataclasses
import pathlib
import re
import urllib.parse
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one medium may cost. Larger ones are refused with an error, never cut."""

  bytes: int = 2 * 2**30
  image_pixels: int = 178_956_970  # Pillow's own threshold of a decompression bomb
  audio_s: float = 4 * 3600
  audio_channels: int = 64
  audio_samples: int = 4 * 3600 * 48_000  # of one channel at the file's own rate: what is in memory at once
  video_s: float = 4 * 3600
  video_pixels: int = 8192 * 8192  # of one frame
  video_source_frames: int = 4_000_000  # looked at while sampling
  video_kept_bytes: int = 8 * 2**30  # of all sampled frames together
  missing_s: float = 0.25  # what a header may promise beyond what is there; inf takes a cut recording as it is


def name_of(source: Any) -> str:
  """A short printable name for errors: never the contents."""
  if isinstance(source, (str, pathlib.Path)):
    text = str(source).encode('utf-8', 'backslashreplace').decode()  # printable even if the file system's bytes are not
    if text[:5].lower() == 'data:':
      return f'data URL of {len(text)} characters'
    return text if len(text) <= 200 else text[:80] + '…' + text[-80:]
  if isinstance(source, (bytes, bytearray, memoryview)):
    return f'{len(source)} bytes'
  if hasattr(source, 'shape'):
    return f'array of shape {tuple(source.shape)}'
  return type(source).__name__


def read_bytes(source: Any, limits: Limits, root: pathlib.Path | None = None) -> bytes:
  """The contents of a path, file:// URL, data: URL or bytes.

  root: if given, files must lie inside it, symbolic links resolved. Nothing is ever downloaded.
  """
  if isinstance(source, (bytes, bytearray, memoryview)):
    data = bytes(source)
  elif isinstance(source, str) and source[:5].lower() == 'data:':
    data = _data_url(source, limits)
  elif isinstance(source, (str, pathlib.Path)):
    data = _file(source, limits, root)
  else:
    raise ValueError(f'{name_of(source)}: expected a path, a data: URL, bytes or an array')
  if not data:
    raise ValueError(f'{name_of(source)}: empty')
  if len(data) > limits.bytes:
    raise ValueError(f'{name_of(source)}: {len(data)} bytes; the limit is {limits.bytes}')
  return data


def _data_url(url: str, limits: Limits) -> bytes:
  head, comma, body = url.partition(',')
  if not comma:
    raise ValueError(f'{name_of(url)}: no comma; expected data:<type>;base64,<data>')
  if len(body) > limits.bytes * 4 // 3 + 4:
    raise ValueError(f'{name_of(url)}: the limit is {limits.bytes} bytes')
  if not head.lower().endswith(';base64'):
    return urllib.parse.unquote_to_bytes(body)
  try:
    # Inside an address, + / and = may have been escaped.
    return base64.b64decode(''.join(urllib.parse.unquote(body).split()), validate=True)
  except (binascii.Error, ValueError) as e:
    raise ValueError(f'{name_of(url)}: broken base64 ({e})') from e


def _file(source: str | pathlib.Path, limits: Limits, root: pathlib.Path | None) -> bytes:
  text = str(source)
  if found := re.match(r'([A-Za-z][A-Za-z0-9+.-]*)://', text):
    if found[1].lower() != 'file':
      raise ValueError(f'{name_of(source)}: {found[1]} addresses are not fetched; download the file and give its path')
    address = urllib.parse.urlsplit(text)
    if address.netloc not in ('', 'localhost'):
      raise ValueError(f'{name_of(source)}: a file on {address.netloc}; expected file:///path on this machine')
    text = urllib.parse.unquote(address.path)
  if not text or '\0' in text:
    raise ValueError(f'{name_of(source)!r}: not a path')
  path = pathlib.Path(text)
  try:
    if root is not None:
      path = (path if path.is_absolute() else root / path).resolve()
      if not path.is_relative_to(root.resolve()):
        raise ValueError(f'{name_of(source)}: outside the media folder {root}; media must lie inside it')
    if not path.exists():
      raise ValueError(f'{name_of(source)}: no such file')
    if not path.is_file():
      raise ValueError(f'{name_of(source)}: not a regular file')
    size = path.stat().st_size
    if size > limits.bytes:
      raise ValueError(f'{name_of(source)}: {size} bytes; the limit is {limits.bytes}')
    with path.open('rb') as file:
      return file.read(size + 1)  # bounded even if the file has no end; a reader given the limit itself would allocate it
  except OSError as e:
    raise ValueError(f'{name_of(source)}: cannot be read ({e.strerror or e})') from e
  except (RuntimeError, UnicodeError) as e:  # a loop of links; a name the file system cannot spell
    raise ValueError(f'{name_of(source)}: cannot be read ({str(e)[:200]})') from e
