"""Video: frames sampled at an explicit rate, frames to patch rows, and the sound track.

The rate is always given by the caller: frames and the model's clock must use the same number, and a silent default for one of
them puts every frame at the wrong time. When a frame is shown: media.timeline.
"""

import dataclasses
import fractions
import pathlib
from typing import Any

import numpy as np

from .audio import decode_track, track_samples
from .frames import Kept, read_frames
from .image import ImageSettings, patch_rows, smart_resize
from .resample import resize
from .source import Limits, name_of, read_bytes
from .timeline import Timeline, make_timeline

MIN_FRAMES = 4
MAX_FRAMES = 768


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


def sample_count(wanted: float, total: int, *, min_frames: int = MIN_FRAMES, max_frames: int = MAX_FRAMES) -> int:
  """How many of `total` frames to keep where `wanted` were asked for: an even number within the limits; 1 of a single frame.

  Source: the reference's Qwen2VLVideoProcessor.sample_frames. Departure: for about 2 % of lengths its rounding asks for one
  frame past the end, and fails; that one is left out here.
  """
  wanted = min(max(wanted, min_frames), min(max_frames, total) // 2 * 2, total)
  return max(int(wanted // 2 * 2), 1)


def sample_indices(total: int, source_fps: float, fps: float, **bounds: int) -> np.ndarray:
  """Indices of the frames to keep of `total` equally spaced ones, evenly spread. As the reference: multiples of the step, rounded
  to float32, truncated. bounds: min_frames, max_frames."""
  count = sample_count(total / source_fps * fps, total, **bounds)
  return (np.arange(count) * (total / count)).astype(np.float32).astype(np.int32)


def sample_times(line: Timeline, fps: float, **bounds: int) -> np.ndarray:
  """Indices of the frames to keep: evenly spread in time, each the one that is shown then. Where frames are not equally spaced
  one may come several times, and only the frame limits bound their number."""
  if line.steady:
    return sample_indices(line.total, line.rate, fps, **bounds)
  count = sample_count(round(line.end * fps, 6), 2**31, **bounds)
  return line.shown_at(np.arange(count) * (line.end / count))


def load_video(
  source: Any,
  *,
  fps: float,
  limits: Limits | None = None,
  root: pathlib.Path | None = None,
  min_frames: int = MIN_FRAMES,
  max_frames: int = MAX_FRAMES,
  fit: ImageSettings | None = None,
) -> VideoClip:
  """Frames of a path, data: URL or bytes FFmpeg reads, or of a (frames uint8 'T H W 3', source fps) pair.

  Only the sampled frames are kept in memory; with `fit`, each already at the size `video_patches` will give it (the same
  patches, at most 2.4 MB a frame).
  """
  limits = limits or Limits()
  name = name_of(source)
  if not _number(fps) or not 0 < fps <= 1000:
    raise ValueError(f'{name}: fps {fps!r}; expected a number above 0')
  if not 1 <= min_frames <= max_frames:
    raise ValueError(f'{name}: {min_frames} to {max_frames} frames; expected 1 <= min_frames <= max_frames')
  if isinstance(source, np.ndarray):
    raise ValueError(f'{name}: frames without their rate; give (frames, source_fps)')
  bounds = {'min_frames': min_frames, 'max_frames': max_frames}
  size = None if fit is None else (lambda h, w: _fitting(h, w, fit))
  if isinstance(source, (tuple, list)):
    frames, source_fps = _array(source)
    line = make_timeline(np.arange(len(frames)) / source_fps, len(frames) / source_fps, source_fps)
    kept = Kept(name_of(frames), limits, size, sample_times(line, fps, **bounds))
    while kept.next is not None:
      kept.add(frames[kept.next])
    return _clip(kept.stacked(), line, fps, **bounds)
  data = read_bytes(source, limits, root)
  frames, line = read_frames(data, name, limits, lambda line: sample_times(line, fps, **bounds), size)
  return _clip(frames, line, fps, **bounds)


def _number(value: Any) -> bool:
  return isinstance(value, (int, float, np.integer, np.floating, fractions.Fraction)) and not isinstance(value, bool)


def _array(source) -> tuple[np.ndarray, float]:
  if len(source) != 2 or not isinstance(source[0], np.ndarray):
    raise ValueError('video: expected a path, bytes, or (frames uint8 of shape (T, H, W, 3), source_fps)')
  frames, source_fps = source
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
    raise ValueError(f'{name_of(frames)}: video array of dtype {frames.dtype}; expected uint8 of shape (T, H, W, 3)')
  if not _number(source_fps) or not 0 < source_fps <= 10_000:
    raise ValueError(f'{name_of(frames)}: source fps {source_fps!r}; expected a number above 0')
  return frames, float(source_fps)


def _clip(frames: np.ndarray, line: Timeline, fps: float, min_frames: int, max_frames: int) -> VideoClip:
  wanted = line.duration_s * fps
  bound = wanted > max_frames or wanted < min_frames or (line.steady and fps > line.rate)
  sampled = len(frames) / line.duration_s if bound else float(fps)
  return VideoClip(frames, float(fps), sampled, line.duration_s, line.has_audio, line.late_s)


def _fitting(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
  """(height, width) of a frame's patches; a size that fits already stays as it is."""
  low, high, factor = settings.video_min_pixels, settings.video_max_pixels, settings.factor
  if height % factor == width % factor == 0 and low <= height * width <= high:
    return height, width
  return smart_resize(height, width, factor, low, high)


def video_patches(frames: np.ndarray, settings: ImageSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
  """(patch rows float32 'P 1536', grid (t, rows, columns)). An incomplete last temporal patch repeats its last frame."""
  size = _fitting(*frames.shape[1:3], settings)
  if size != frames.shape[1:3]:
    frames = np.stack([resize(frame, *size) for frame in frames])
  if missing := -len(frames) % settings.temporal_patch:
    frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
  return patch_rows(frames, settings)


def video_audio(source: Any, limits: Limits | None = None, root: pathlib.Path | None = None) -> np.ndarray | None:
  """The sound track as 16 kHz mono samples, from the zero of its container on; None if the video is silent (or an array)."""
  limits = limits or Limits()
  if isinstance(source, (tuple, list, np.ndarray)):
    return None
  name = name_of(source)
  track = decode_track(read_bytes(source, limits, root), name, limits)
  return None if track is None else track_samples(track, name, limits)
