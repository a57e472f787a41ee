"""Opening sound and video containers through FFmpeg, safely.

Some formats FFmpeg knows are lists of other files or addresses (concat scripts, playlists, manifests), or are only guessed
from a few bytes. Only formats that carry their own data are allowed, and opening anything else from within is forbidden: a
medium can never make the reader open a file or an address its sender names.
"""

import io
from typing import Any

# Names of FFmpeg demuxers. A container outside this list is an error that says so.
FORMATS = (
  'mov',
  'mp4',
  'm4a',
  '3gp',
  '3g2',
  'mj2',
  'matroska',
  'webm',
  'avi',
  'flv',
  'mpeg',
  'mpegts',
  'asf',
  'ogg',
  'gif',
  'apng',
  'ivf',
  'm4v',
  'mxf',
  'nut',
  'dv',
  'rm',
  'mp3',
  'aac',
  'flac',
  'wav',
  'w64',
  'aiff',
  'au',
  'caf',
  'amr',
  'ac3',
  'eac3',
  'dts',
  'ape',
  'wv',
  'tta',
  'voc',
  'dsf',
  'shn',
)


def open_container(data: bytes, name: str, kind: str) -> Any:
  """The open PyAV container of `data`. kind: what was expected of it, for the error ('a video', 'audio')."""
  import av

  # Errors come as exceptions, so the log is off, and off means None: with any other level PyAV hands errors of the decoder's
  # threads to Python, and closing a damaged H.264 file then waits for ever (a thread waits for Python, Python for the thread).
  av.logging.set_level(None)
  options = {'format_whitelist': ','.join(FORMATS), 'protocol_whitelist': 'none'}
  try:
    return av.open(io.BytesIO(data), options=options)
  except (av.FFmpegError, ValueError, OSError, MemoryError) as e:
    raise unreadable(name, kind, e) from e


def first_stream(container: Any, kind: str, name: str) -> Any | None:
  """The first stream of a kind ('audio', 'video'), None if there is none. One that cannot be decoded is an error."""
  streams = getattr(container.streams, kind)
  if not streams:
    return None
  if streams[0].codec_context is None:
    raise ValueError(f'{name}: its {kind} is in an encoding that FFmpeg here cannot decode; convert it')
  return streams[0]


def unreadable(name: str, kind: str, error: BaseException) -> ValueError:
  """What to raise when FFmpeg gives up. (PyAV adds a nameless '<none>' to its messages.)"""
  reason = str(error).split(": '<none>'")[0]
  return ValueError(f'{name}: not readable as {kind} ({reason[:200]})')
