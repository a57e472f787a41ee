"""Video: frames sampled at an explicit rate, frames to patch rows, and the sound track.

The rate is always given by the caller: frames and the model's clock must use the same number, and a silent default for one of
them puts every frame at the wrong time.
"""

import dataclasses
import fractions
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .audio import _to_16k, decode_track
from .container import first_stream, open_container, unreadable
from .image import ImageSettings, patch_rows, smart_resize
from .resample import resize
from .source import Limits, name_of, read_bytes

MIN_FRAMES = 4
MAX_FRAMES = 768
ALL_FRAMES = 2**31  # every sampled frame was found; the rest was not looked at
SizeRule = Callable[[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class VideoClip:
  """Sampled frames, uint8 'T H W 3', upright. fps: what was asked for. sampled_fps: frames per second really kept; it differs
  when a frame limit binds. duration_s: of the source. has_audio: it has a sound track."""

  frames: np.ndarray
  fps: float
  sampled_fps: float
  duration_s: float
  has_audio: bool = False


def sample_indices(total: int, source_fps: float, fps: float, *, min_frames=MIN_FRAMES, max_frames=MAX_FRAMES) -> np.ndarray:
  """Indices of the frames to keep: an even number of them, evenly spread, at `fps` within the frame limits.

  Source: the reference's Qwen2VLVideoProcessor.sample_frames: multiples of the step, rounded to float32, truncated. Departure:
  for about 2 % of lengths its rounding asks for one frame past the end, and fails; that one is left out here.
  """
  wanted = total / source_fps * fps
  wanted = min(max(wanted, min_frames), min(max_frames, total) // 2 * 2, total)
  wanted = int(wanted // 2 * 2)
  if wanted < 1:
    return np.zeros(1, np.int32)  # a single frame: repeated to fill its patch
  return (np.arange(wanted) * (total / wanted)).astype(np.float32).astype(np.int32)


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
    kept = _Kept(name_of(frames), limits, size, sample_indices(len(frames), source_fps, fps, **bounds))
    for index in kept.indices:
      kept.add(frames[index])
    return _clip(kept.stacked(), len(frames), source_fps, fps, False, **bounds)
  data = read_bytes(source, limits, root)
  total, source_fps, has_audio = _probe(data, name, limits)
  frames, seen = _decode(data, _Kept(name, limits, size, sample_indices(total, source_fps, fps, **bounds)))
  if seen < total:  # packets that carry no frame of their own; more than a few means missing data
    if total - seen > max(2, total // 50):
      raise ValueError(f'{name}: truncated: {seen} of {total} frames could be decoded')
    total = seen
    frames, _ = _decode(data, _Kept(name, limits, size, sample_indices(total, source_fps, fps, **bounds)))
  return _clip(frames, total, source_fps, fps, has_audio, **bounds)


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


class _Kept:
  """The sampled frames as they come by, resized if there is a rule for it; within the limits."""

  def __init__(self, name: str, limits: Limits, size: SizeRule | None, indices: np.ndarray):
    self.name, self.limits, self.size, self.indices = name, limits, size, indices
    self.frames: list[np.ndarray] = []

  @property
  def next(self) -> int | None:
    """Index of the next frame to add; None after the last."""
    return int(self.indices[len(self.frames)]) if len(self.frames) < len(self.indices) else None

  def add(self, frame: np.ndarray) -> None:
    check_frame(*frame.shape[:2], self.name, self.limits)
    if self.size is not None:
      frame = resize(frame, *self.size(*frame.shape[:2]))
    if self.frames and frame.shape != self.frames[0].shape:
      raise ValueError(f'{self.name}: frames of different sizes')
    if not self.frames and frame.nbytes * len(self.indices) > self.limits.video_kept_bytes:
      raise ValueError(
        f'{self.name}: {len(self.indices)} frames of {frame.shape[1]}×{frame.shape[0]} need {frame.nbytes * len(self.indices)} '
        f'bytes; the limit is {self.limits.video_kept_bytes}. Lower fps, or make the video smaller'
      )
    self.frames.append(frame)

  def stacked(self) -> np.ndarray:
    return np.stack(self.frames)


def check_frame(height: int, width: int, name: str, limits: Limits) -> None:
  if width * height > limits.video_pixels:
    raise ValueError(f'{name}: {width}×{height} pixels a frame; the limit is {limits.video_pixels} in all')


def _clip(frames, total: int, source_fps: float, fps: float, has_audio: bool, min_frames: int, max_frames: int) -> VideoClip:
  duration = total / source_fps
  wanted = duration * fps
  bound = wanted > max_frames or wanted < min_frames or fps > source_fps
  return VideoClip(frames, float(fps), len(frames) / duration if bound else float(fps), duration, has_audio)


def _stream(container: Any, name: str) -> Any:
  stream = first_stream(container, 'video', name)
  if stream is None:
    raise ValueError(f'{name}: no video in it')
  return stream


def _probe(data: bytes, name: str, limits: Limits) -> tuple[int, float, bool]:
  """(number of frames, frames per second, is there sound). Frames are counted by decoding nothing: by demuxing every packet."""
  import av

  with open_container(data, name, 'a video') as container:
    stream = _stream(container, name)
    check_frame(stream.codec_context.height, stream.codec_context.width, name, limits)
    rate = stream.average_rate or stream.guessed_rate
    has_audio = bool(container.streams.audio)
    total = 0
    try:
      for packet in container.demux(stream):
        total += packet.size > 0
        if total > limits.video_source_frames:
          raise ValueError(f'{name}: more than {limits.video_source_frames} frames')
    except av.FFmpegError as e:
      if not total:
        raise unreadable(name, 'a video', e) from e
  if not rate or not 0 < float(rate) <= 10_000:
    raise ValueError(f'{name}: no usable frame rate ({rate})')
  if not total:
    raise ValueError(f'{name}: no frames')
  if total / float(rate) > limits.video_s:
    raise ValueError(f'{name}: {total / float(rate):.0f} s of video; the limit is {limits.video_s:.0f} s')
  return total, float(rate), has_audio


def _decode(data: bytes, kept: _Kept) -> tuple[np.ndarray, int]:
  """(the frames to be kept, decoded in order; how many frames were seen on the way)."""
  import av

  seen = 0
  with open_container(data, kept.name, 'a video') as container:
    stream = _stream(container, kept.name)
    stream.thread_type = 'AUTO'
    try:
      for frame in container.decode(stream):
        check_frame(frame.height, frame.width, kept.name, kept.limits)
        while kept.next == seen:
          kept.add(_upright(frame))
        seen += 1
        if kept.next is None:
          return kept.stacked(), ALL_FRAMES
    except (av.FFmpegError, ValueError, OSError, MemoryError) as e:
      if isinstance(e, ValueError) and str(e).startswith(kept.name):
        raise
      raise unreadable(kept.name, f'a video: broken after {seen} frames', e) from e
  if not kept.frames:
    raise ValueError(f'{kept.name}: no frame could be decoded')
  return kept.stacked(), seen


def _upright(frame: Any) -> np.ndarray:
  """uint8 'H W 3' of a PyAV frame, turned as players show it: phones film sideways and say so in the file."""
  turns = round((frame.rotation or 0) / 90) % 4  # counter-clockwise
  return np.ascontiguousarray(np.rot90(frame.to_ndarray(format='rgb24'), turns))


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
  """The sound track as 16 kHz mono samples; None if the video is silent (or an array)."""
  limits = limits or Limits()
  if isinstance(source, (tuple, list, np.ndarray)):
    return None
  name = name_of(source)
  track = decode_track(read_bytes(source, limits, root), name, limits)
  return None if track is None else _to_16k(track[0], track[1], name, limits)
