"""Video: frames sampled at an explicit rate, frames to patch rows, and the sound track.

The rate is always given by the caller: frames and the model's clock must use the same number, and a silent default for one of
them puts every frame at the wrong time. When a frame is shown: media.timeline.
"""

import dataclasses
import fractions
import math
import pathlib
from typing import Any

import numpy as np

from . import omni_utils
from .audio import cut_track, decode_track, track_samples
from .frames import Fit, SampledFrames, check_frame, read_frames
from .image import ImageSettings, load_image, patch_rows, raw_rows
from .keys import NO_KEYS, MediaKeys, is_picture_list
from .resample import resize
from .sizes import frame_size
from .source import Limits, name_of, read_bytes
from .timeline import Timeline, make_timeline

LISTED_FPS = 2.0  # of a list of pictures


@dataclasses.dataclass(frozen=True)
class VideoClip:
  """Sampled frames, uint8 'T H W 3', upright. fps: what was asked for. sampled_fps: frames per second really kept; it differs
  when a frame limit binds. duration_s: of the source. has_audio: it has a sound track. late_s: how long after its sound the
  picture begins."""

  frames: np.ndarray
  fps: float
  sampled_fps: float
  duration_s: float
  has_audio: bool = False
  late_s: float = 0.0


def sample_count(wanted: float, total: int, keys: MediaKeys = NO_KEYS) -> int:
  """How many of `total` frames to keep where `wanted` were asked for: an even number within the limits; 1 of a single frame.

  Source: the reference's Qwen2VLVideoProcessor.sample_frames, and smart_nframes of the published utilities, which agree.
  Departure: for about 2 % of lengths the reference's rounding asks for one frame past the end, and fails; that one is left out
  here.
  """
  if keys.nframes is not None:
    count = round(keys.nframes / 2) * 2
    if not 2 <= count <= total:
      raise ValueError(f'nframes {keys.nframes}: the video has {total} frames there; expected 2 to {total}')
    return count
  low, high = keys.frame_bounds
  wanted = min(max(wanted, math.ceil(low / 2) * 2), min(high, total) // 2 * 2, total)
  return max(int(wanted // 2 * 2), 1)


def sample_indices(total: int, source_fps: float, fps: float, keys: MediaKeys = NO_KEYS) -> np.ndarray:
  """Indices of the frames to keep of `total` equally spaced ones, evenly spread. As the reference: multiples of the step, rounded
  to float32, truncated."""
  count = sample_count(total / source_fps * fps, total, keys)
  return (np.arange(count) * (total / count)).astype(np.float32).astype(np.int32)


def sample_times(line: Timeline, fps: float, keys: MediaKeys = NO_KEYS) -> np.ndarray:
  """Indices of the frames to keep: evenly spread in time, each the one that is shown then. Where frames are not equally spaced
  one may come several times, and only the frame limits bound their number."""
  if line.steady:
    return sample_indices(line.total, line.rate, fps, keys)
  count = sample_count(round(line.end * fps, 6), 2**31, keys)
  return line.shown_at(np.arange(count) * (line.end / count))


@dataclasses.dataclass(frozen=True)
class _Sampling:
  """Which frames to keep, once the timeline is known."""

  name: str
  fps: float
  keys: MediaKeys
  utils: bool

  def stretch(self, line: Timeline) -> tuple[Timeline, int]:
    return (line.counted() if self.utils else line).stretch(self.keys.start_s, self.keys.end_s)

  def indices(self, line: Timeline) -> np.ndarray:
    try:
      part, first = self.stretch(line)
      if not self.utils:
        return first + sample_times(part, self.fps, self.keys)
      count = sample_count(part.total / part.rate * self.fps, part.total, self.keys)
      return omni_utils.frame_indices(first, first + part.total - 1, count)
    except ValueError as e:
      raise ValueError(f'{self.name}: {e}') from e

  def clip(self, frames: np.ndarray, line: Timeline) -> VideoClip:
    part, _ = self.stretch(line)
    low, high = self.keys.frame_bounds
    wanted = part.duration_s * self.fps
    bound = wanted > high or wanted < math.ceil(low / 2) * 2 or (part.steady and self.fps > part.rate)
    exact = bound or self.utils or self.keys.nframes is not None
    sampled = len(frames) / part.duration_s if exact else float(self.fps)
    asked = float(self.fps if self.keys.nframes is None else sampled)
    return VideoClip(frames, asked, sampled, part.duration_s, part.has_audio, part.late_s)


def load_video(
  source: Any,
  *,
  fps: float,
  keys: MediaKeys = NO_KEYS,
  limits: Limits | None = None,
  root: pathlib.Path | None = None,
  fit: ImageSettings | None = None,
  utils: bool = False,
) -> VideoClip:
  """Frames of a path, data: URL or bytes FFmpeg reads, of a (frames uint8 'T H W 3', source fps) pair, or a list of pictures.

  fps: for videos whose `keys` say nothing else. With `fit` only the sampled frames are kept in memory, each already at the size
  of its patches. utils: frames and sizes as the published utilities choose them (omni_utils), with or without `fit`.
  """
  limits = limits or Limits()
  fps = fps if keys.fps is None else keys.fps
  if is_picture_list(source):
    return _pictures(source, keys, limits, root, fit, utils)
  name = name_of(source[0] if isinstance(source, (tuple, list)) else source)
  if not _number(fps) or not 0 < fps <= 1000:
    raise ValueError(f'{name}: fps {fps!r}; expected a number above 0')
  low, high = keys.frame_bounds
  if not 1 <= low <= high:
    raise ValueError(f'{name}: {low} to {high} frames; expected 1 <= min_frames <= max_frames')
  if isinstance(source, np.ndarray):
    raise ValueError(f'{name}: frames without their rate; give (frames, source_fps)')
  sampling = _Sampling(name, fps, keys, utils)
  resized = _fit(name, limits, keys, fit, utils)
  if isinstance(source, (tuple, list)):
    frames, source_fps = _array(source)
    line = make_timeline(np.arange(len(frames)) / source_fps, len(frames) / source_fps, source_fps)
    sampled = SampledFrames(name, limits, resized, sampling.indices(line))
    while sampled.next is not None:
      sampled.add(frames[sampled.next])
    return sampling.clip(sampled.stacked(), line)
  data = read_bytes(source, limits, root)
  frames, line = read_frames(data, name, limits, sampling.indices, resized)
  return sampling.clip(frames, line)


def _fit(name: str, limits: Limits, keys: MediaKeys, fit: ImageSettings | None, utils: bool) -> Fit | None:
  """How a frame is resized; None: it is not."""
  if not utils and fit is None:
    return None

  def resized(frame: np.ndarray, frames: int) -> np.ndarray:
    H, W, frames = *frame.shape[:2], frames + frames % 2
    size = omni_utils.frame_size(H, W, frames, keys) if utils else frame_size(H, W, frames, fit, keys)
    check_frame(*size, name, limits)
    return omni_utils.resized_frame(frame, *size) if utils else resize(frame, *size)

  return resized


def _pictures(
  source: Any, keys: MediaKeys, limits: Limits, root: pathlib.Path | None, fit: ImageSettings | None, utils: bool
) -> VideoClip:
  """A list of pictures as a video of `sample_fps` pictures a second (2 if it is not said)."""
  name = f'list of {len(source)} pictures'
  sampled = SampledFrames(name, limits, _fit(name, limits, keys, fit, utils), np.arange(len(source)))
  for i, item in enumerate(source):
    try:
      pixels = load_image(item, limits, root)
      if utils:
        pixels = omni_utils.resized_image(pixels, keys, limits, omni_utils.LISTED_FACTOR)
      sampled.add(pixels)
    except ValueError as e:
      raise ValueError(f'picture {i} of the list: {e}') from e
  rate = float(LISTED_FPS if keys.sample_fps is None else keys.sample_fps)
  return VideoClip(sampled.stacked(), rate, rate, len(source) / rate)


def _number(value: Any) -> bool:
  return isinstance(value, (int, float, np.integer, np.floating, fractions.Fraction)) and not isinstance(value, bool)


def _array(source) -> tuple[np.ndarray, float]:
  if len(source) != 2 or not isinstance(source[0], np.ndarray):
    raise ValueError('video: expected a path, bytes, a list of pictures, or (frames uint8 of shape (T, H, W, 3), source_fps)')
  frames, source_fps = source
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
    raise ValueError(f'{name_of(frames)}: video array of dtype {frames.dtype}; expected uint8 of shape (T, H, W, 3)')
  if not _number(source_fps) or not 0 < source_fps <= 10_000:
    raise ValueError(f'{name_of(frames)}: source fps {source_fps!r}; expected a number above 0')
  return frames, float(source_fps)


def video_patches(
  frames: np.ndarray, settings: ImageSettings, utils: bool = False, raw: bool = False
) -> tuple[np.ndarray, tuple[int, int, int]]:
  """(patch rows float32 'P 1536', grid (t, rows, columns)) of frames of a fitting size. An incomplete last temporal patch repeats
  its last frame. utils: of frames that are still to be resized by the processor, which leaves no bytes. raw: as raw_rows,
  but for those."""
  if missing := -len(frames) % settings.temporal_patch:
    frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
  if utils:
    return omni_utils.video_patches(frames, settings)
  return raw_rows(frames, settings) if raw else patch_rows(frames, settings)


def video_audio(
  source: Any,
  limits: Limits | None = None,
  root: pathlib.Path | None = None,
  *,
  start_s: float | None = None,
  end_s: float | None = None,
) -> np.ndarray | None:
  """The sound track from start_s to end_s as 16 kHz mono samples; None if the video is silent there (or no file).

  Times are by the container's clock, and so is what begins late: there is silence before it.
  """
  limits = limits or Limits()
  if isinstance(source, (tuple, list, np.ndarray)):
    return None
  name = name_of(source)
  track = decode_track(read_bytes(source, limits, root), name, limits)
  if track is None:
    return None
  track = cut_track(track, start_s or 0.0, end_s)
  return track_samples(track, name, limits) if len(track.samples) else None
