"""Opening sound and video containers through FFmpeg, safely.

Some formats FFmpeg knows are lists of other files or addresses (concat scripts, playlists, manifests), or are only guessed
from a few bytes. Only formats that carry their own data are allowed, and opening anything else from within is forbidden: a
medium can never make the reader open a file or an address its sender names.
"""

import io
from typing import Any

# Names of FFmpeg demuxers. A container outside this list is an error that says so.
FORMATS = (
  'mov', 'mp4', 'm4a', '3gp', '3g2', 'mj2', 'matroska', 'webm', 'avi', 'flv', 'mpeg', 'mpegts', 'asf', 'ogg', 'gif', 'apng',
  'ivf', 'm4v', 'mxf', 'nut', 'dv', 'rm', 'mp3', 'aac', 'flac', 'wav', 'w64', 'aiff', 'au', 'caf', 'amr', 'ac3', 'eac3', 'dts',
  'ape', 'wv', 'tta', 'voc', 'dsf', 'shn',
)  # fmt: skip


def open_container(data: bytes, name: str, kind: str) -> Any:
  """The open PyAV container of `data`. kind: what was expected of it, for the error ('a video', 'audio')."""
  import av

  av.logging.set_level(av.logging.PANIC)  # errors come as exceptions; the log would go to the terminal
  options = {'format_whitelist': ','.join(FORMATS), 'protocol_whitelist': 'none'}
  try:
    return av.open(io.BytesIO(data), options=options)
  except (av.FFmpegError, ValueError, OSError, MemoryError) as e:
    raise unreadable(name, kind, e) from e


def unreadable(name: str, kind: str, error: BaseException) -> ValueError:
  """What to raise when FFmpeg gives up. (PyAV puts a nameless '<none>' and its last log line in the message.)"""
  reason = str(error).split(': \'<none>\'')[0].split('; last error log')[0]
  return ValueError(f'{name}: not readable as {kind} ({reason[:200]})')
