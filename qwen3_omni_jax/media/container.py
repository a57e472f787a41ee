"""Opening sound and video containers through FFmpeg, safely.

Some formats FFmpeg knows are lists of other files or addresses (concat scripts, playlists, manifests), or are only guessed
from a few bytes. Only formats that carry their own data are allowed, and opening anything else from within is forbidden: a
medium can never make the reader open a file or an address its sender names.
"""

import io
from typing import Any

from .content import content_of
from .whole import second_recording

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
  import av.error
  import av.logging

  check_one_recording(data, name)
  # Errors come as exceptions, so the log is off, and off means None: with any other level PyAV hands errors of the decoder's
  # threads to Python, and closing a damaged H.264 file then waits for ever (a thread waits for Python, Python for the thread).
  av.logging.set_level(None)
  options = {'format_whitelist': ','.join(FORMATS), 'protocol_whitelist': 'none'}
  try:
    return av.open(io.BytesIO(data), options=options)
  except (av.error.FFmpegError, ValueError, OSError, MemoryError) as e:
    raise unreadable(name, kind, e, data) from e


def check_one_recording(data: bytes, name: str) -> None:
  """Raises ValueError if a file goes on with a second recording, which no decoder would read."""
  if at := second_recording(data):
    raise ValueError(f'{name}: a second recording begins at byte {at}; split the file, or encode both as one')


def chosen_stream(container: Any, kind: str) -> Any | None:
  """The stream of a kind ('audio', 'video') that counts: the first that is marked as default, else the first; None without any.

  Cover pictures, which FFmpeg takes for videos of one frame, are not video.
  """
  streams = [s for s in getattr(container.streams, kind) if not s.disposition & s.disposition.attached_pic]
  return next((s for s in streams if s.disposition & s.disposition.default), streams[0] if streams else None)


def check_decodable(stream: Any, name: str) -> None:
  if stream.codec_context is None:
    raise ValueError(f'{name}: its {stream.type} is in an encoding that FFmpeg here cannot decode; convert it')


def unreadable(name: str, kind: str, error: BaseException, data: bytes = b'') -> ValueError:
  """What to raise when FFmpeg gives up. data: of a file that was not even opened."""
  # PyAV adds a nameless '<none>' to its messages.
  reason = str(error).split(": '<none>'")[0]
  content = content_of(data) if data else ''
  found = f'; its content is {content}' if content else ''
  return ValueError(f'{name}: not readable as {kind} ({reason[:200]}){found}')
