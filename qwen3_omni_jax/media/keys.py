"""What a part of a message may ask of its medium beside naming it: sizes, frames, a stretch of time.

The keys are those of the published utilities (qwen-omni-utils 0.0.9), with their meaning. What those pass over in silence is an
error here: keys that contradict each other, a key that does nothing for this kind of medium, a number out of its range.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

Kind = Literal['audio', 'image', 'video']
_SIZE = ('resized_height', 'resized_width', 'min_pixels', 'max_pixels')
_SAMPLED = ('fps', 'nframes', 'min_frames', 'max_frames', 'video_start', 'video_end')  # mean nothing for a list of pictures
KEYS: dict[Kind, tuple[str, ...]] = {
  'audio': ('audio_start', 'audio_end'),
  'image': _SIZE,
  'video': (*_SIZE, *_SAMPLED, 'total_pixels', 'sample_fps', 'audio_in_video'),
}
_WHOLE = ('resized_height', 'resized_width', 'nframes', 'min_frames', 'max_frames')
_RATES = ('fps', 'sample_fps')
_LARGEST = {  # what no medium needs; what a medium may cost is limited where it is read
  **dict.fromkeys(_RATES, 1000),
  **dict.fromkeys(('resized_height', 'resized_width'), 2**16),
  **dict.fromkeys(('nframes', 'min_frames', 'max_frames'), 2**22),
  **dict.fromkeys(('min_pixels', 'max_pixels'), 2**32),
  'total_pixels': 2**48,
  **dict.fromkeys(('audio_start', 'audio_end', 'video_start', 'video_end'), 10**7),
}
_FIELD = {'audio_start': 'start_s', 'audio_end': 'end_s', 'video_start': 'start_s', 'video_end': 'end_s'}
MIN_FRAMES = 4
MAX_FRAMES = 768


@dataclasses.dataclass(frozen=True)
class MediaKeys:
  """None: not asked for. start_s, end_s: the stretch of a sound or video that counts, both ends included.

  fps, nframes, min_frames, max_frames: how many frames of a video file; sample_fps: rate of a list of pictures. resized_height
  and resized_width: the size itself, before it is rounded to whole patches; min_pixels, max_pixels: bounds of a picture or of
  each frame; total_pixels: of all pairs of frames together. audio_in_video: is this video's sound heard.
  """

  fps: float | None = None
  nframes: int | None = None
  min_frames: int | None = None
  max_frames: int | None = None
  sample_fps: float | None = None
  start_s: float | None = None
  end_s: float | None = None
  resized_height: int | None = None
  resized_width: int | None = None
  min_pixels: float | None = None
  max_pixels: float | None = None
  total_pixels: float | None = None
  audio_in_video: bool | None = None

  @property
  def size(self) -> tuple[int, int] | None:
    """(height, width) that was asked for."""
    return None if self.resized_height is None or self.resized_width is None else (self.resized_height, self.resized_width)

  @property
  def frame_bounds(self) -> tuple[int, int]:
    """(fewest, most) frames, where a video is sampled by a rate."""
    most = MAX_FRAMES if self.max_frames is None else self.max_frames
    return min(MIN_FRAMES, most) if self.min_frames is None else self.min_frames, most


NO_KEYS = MediaKeys()


def is_picture_list(source: Any) -> bool:
  """Whether a video is given as a list of its pictures; a pair (frames, source fps) is not."""
  if not isinstance(source, (list, tuple)):
    return False
  return not (len(source) == 2 and isinstance(source[0], np.ndarray) and not isinstance(source[1], np.ndarray))


def read_keys(part: dict[str, Any], kind: Kind, where: str, errors: list[str]) -> MediaKeys:
  """The keys of a part of a message. What is wrong with them is added to `errors`."""
  values: dict[str, Any] = {}
  before = len(errors)
  for key in KEYS[kind]:
    value = part.get(key)
    if value is None:
      continue
    if key == 'audio_in_video':
      if not isinstance(value, bool):
        errors.append(f'{where}.{key}: expected true or false, found {str(value)[:40]}')
    elif problem := _problem(key, value):
      errors.append(f'{where}.{key}: expected {problem}, found {str(value)[:40]}')
    elif key in _WHOLE:
      value = int(value)
    values[_FIELD.get(key, key)] = value
  if len(errors) > before:
    return NO_KEYS
  keys = MediaKeys(**values)
  errors += [f'{where}: {problem}' for problem in _conflicts(keys, part, kind)]
  return keys


def _problem(key: str, value: Any) -> str | None:
  """What a number should have been; None if it is that."""
  low, high = int(key in _WHOLE), _LARGEST[key]
  above = key in _RATES or key.endswith('_pixels')
  number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and math.isfinite(value)
  if key in _WHOLE:
    return None if number and value == int(value) and low <= value <= high else f'a whole number from {low} to {high}'
  if number and (low < value if above else low <= value) and value <= high:
    return None
  return f'a number above 0, up to {high}' if above else f'seconds from 0 to {high}'


def _conflicts(keys: MediaKeys, part: dict[str, Any], kind: Kind) -> list[str]:
  out = []
  if keys.start_s is not None and keys.end_s is not None and keys.start_s >= keys.end_s:
    out.append(f'{kind}_start {keys.start_s:g} is not before {kind}_end {keys.end_s:g}')
  if (keys.resized_height is None) != (keys.resized_width is None):
    out.append('resized_height and resized_width go together; give both or none')
  if keys.min_pixels is not None and keys.max_pixels is not None and keys.min_pixels > keys.max_pixels:
    out.append(f'min_pixels {keys.min_pixels:g} is above max_pixels {keys.max_pixels:g}')
  elif keys.size is not None:
    pixels = keys.size[0] * keys.size[1]
    if pixels < (keys.min_pixels or 0) or pixels > (keys.max_pixels or math.inf):
      out.append(f'resized_height × resized_width is {pixels} pixels, outside min_pixels and max_pixels')
    if keys.total_pixels is not None:
      out.append('resized_height and resized_width say the size of a frame, and total_pixels bounds it; give one of the two')
  if kind == 'video':
    out += _frame_conflicts(keys, part)
  return out


def _frame_conflicts(keys: MediaKeys, part: dict[str, Any]) -> list[str]:
  if is_picture_list(part.get('video')):
    given = [key for key in _SAMPLED if part.get(key) is not None]
    return [f'{", ".join(given)}: a list of pictures is not sampled; sample_fps says how fast they follow'] if given else []
  out = []
  if keys.sample_fps is not None:
    out.append('sample_fps is the rate of a list of pictures; a video is sampled by fps or nframes')
  if keys.fps is not None and keys.nframes is not None:
    out.append('fps and nframes: give one of the two')
  low, high = keys.frame_bounds
  if low > high:
    default = ' (the default)' if keys.max_frames is None else ''
    out.append(f'min_frames {low} is above max_frames {high}{default}')
  elif keys.nframes is not None and not (keys.min_frames or 0) <= keys.nframes <= (keys.max_frames or math.inf):
    out.append(f'nframes {keys.nframes} is outside min_frames and max_frames')
  return out
