"""Examples in a report: cards of facts beside players, pictures and video stills, all inside the page.

    shown = Shown(root=folder)
    section = examples([({'id': 'a', 'answer': 'yes'}, [shown.medium('audio', 'question.wav')])])

Everything is escaped. Media go through the same bounded readers as the model's own, are made small, and stop where the page has
enough of them.
"""

import base64
import dataclasses
import html
import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .media.audio import RATE_HZ, load_audio
from .media.container import check_decodable, chosen_stream, open_container
from .media.image import load_image
from .media.source import Limits, name_of, read_bytes
from .report import text

PICTURE_PIXELS = 320  # of the longer side
SOUND_S = 60.0  # of a sound that can be played; the rest is left out, and said to be
PAGE_BYTES = 12 * 2**20  # of all media in a page
TEXT_CHARACTERS = 800  # of one fact
LIMITS = Limits(bytes=256 * 2**20, audio_s=3600.0, audio_samples=3600 * 48_000)  # what a report takes the time to read

_STYLE = (
  '<style>.example { display: flex; gap: 1rem; flex-wrap: wrap; border-top: 1px solid var(--line); padding: .8rem 0; } '
  '.example > div { flex: 1 1 22rem; min-width: 0; overflow-wrap: anywhere; } .example .media { flex: 0 1 20rem; } '
  '.example img { max-width: 100%; } .example audio { width: 100%; } .example p { margin: 0 0 .4rem; } '
  '.example dl { margin: 0; } dt { color: var(--quiet); } dd { margin: 0 0 .4rem; white-space: pre-wrap; }</style>'
)


def examples(cards: Iterable[tuple[Mapping[str, Any], Iterable[str]]]) -> str:
  """Cards: (facts by name, media as `Shown` makes them). Facts that are None or empty are left out, long ones are cut."""
  made = []
  for facts, media in cards:
    present = {name: str(value) for name, value in facts.items() if value is not None and value != ''}
    cells = ''.join(f'<dt>{html.escape(name)}</dt><dd>{html.escape(shortened(value))}</dd>' for name, value in present.items())
    beside = ''.join(media)
    beside = f'<div class="media">{beside}</div>' if beside else ''
    made.append(f'<div class="example">{beside}<div><dl>{cells}</dl></div></div>\n')
  return _STYLE + ''.join(made)


def shortened(words: str, most: int = TEXT_CHARACTERS) -> str:
  return words if len(words) <= most else words[: most - 1] + '…'


@dataclasses.dataclass
class Shown:
  """Media of one page. root: if given, files must lie inside it."""

  root: pathlib.Path | None = None
  left_bytes: int = PAGE_BYTES

  def medium(self, kind: str, source: Any, label: str = '') -> str:
    """A player ('audio'), a picture ('image') or a still ('video'); in its place, the reason why it is not shown."""
    try:
      if kind == 'audio':
        samples = load_audio(source, LIMITS, self.root)
        return self._player(samples, RATE_HZ, label)
      picture = load_image(source, LIMITS, self.root) if kind == 'image' else _still(source, self.root)
      return self._picture(picture, label or ('still of the video' if kind == 'video' else 'picture'))
    except Exception as e:  # a broken file must not cost the report
      reason = str(e) if isinstance(e, ValueError) else type(e).__name__
      return text(f'{kind} not shown: {reason}')

  def own_sound(self, data: bytes, label: str) -> str:
    """A player for a sound that the job has made, at its own rate."""
    import soundfile

    try:
      samples, rate_hz = soundfile.read(io.BytesIO(data), dtype='float32')
    except soundfile.SoundFileError as e:
      return text(f'{label} not shown: {e}')
    return self._player(samples, rate_hz, label)

  def _player(self, samples: np.ndarray, rate_hz: int, label: str) -> str:
    import soundfile

    out, most = io.BytesIO(), int(SOUND_S * rate_hz)
    soundfile.write(out, samples[:most], rate_hz, 'PCM_16', format='FLAC')
    player = self._embedded('audio/flac', out.getvalue(), '<audio controls src="{}"></audio>')
    cut = f', the first {SOUND_S:.0f} s of {len(samples) / rate_hz:.0f}' if len(samples) > most else ''
    return (text(label + cut) if label or cut else '') + player

  def _picture(self, pixels: np.ndarray, label: str) -> str:
    from PIL import Image

    out, picture = io.BytesIO(), Image.fromarray(pixels)
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    picture.save(out, 'JPEG', quality=80)
    return self._embedded('image/jpeg', out.getvalue(), f'<img alt="{html.escape(label)}" src="{{}}">')

  def _embedded(self, kind: str, data: bytes, tag: str) -> str:
    if len(data) > self.left_bytes:
      return text('not shown: the page holds as many media as it may')
    self.left_bytes -= len(data)
    return tag.replace('{}', f'data:{kind};base64,{base64.b64encode(data).decode()}')


def _still(source: Any, root: pathlib.Path | None) -> np.ndarray:
  """A frame from the middle of a video, or its first."""
  if isinstance(source, tuple):
    return np.asarray(source[0][len(source[0]) // 2])
  name = name_of(source)
  with open_container(read_bytes(source, LIMITS, root), name, 'a video') as container:
    stream = chosen_stream(container, 'video')
    if stream is None:
      raise ValueError(f'{name}: no picture in it')
    check_decodable(stream, name)
    if stream.width * stream.height > LIMITS.video_pixels:
      raise ValueError(f'{name}: {stream.width} × {stream.height} pixels a frame')
    if container.duration:
      container.seek(container.duration // 2)
    for frame in container.decode(stream):
      return frame.to_ndarray(format='rgb24')
  raise ValueError(f'{name}: no frame in it')
