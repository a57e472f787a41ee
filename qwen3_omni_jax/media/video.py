"""Video: frames sampled at an explicit rate, frames to patch rows, and the sound track.

The rate is always given by the caller: frames and the model's clock must use the same number, and a silent default for one of
them puts every frame at the wrong time.
"""

import dataclasses
import io
import pathlib
from typing import Any

import numpy as np

from .audio import _to_16k, decode_track
from .image import ImageSettings, patch_rows, resize, smart_resize
from .source import Limits, name_of, read_bytes

MIN_FRAMES = 4
MAX_FRAMES = 768
ALL_FRAMES = 2**31  # every sampled frame was found; the rest was not looked at


@dataclasses.dataclass(frozen=True)
class VideoClip:
  """Sampled frames, uint8 'T H W 3'. fps: what was asked for. sampled_fps: frames per second really kept; it differs when a
  frame limit binds. duration_s: of the source."""

  frames: np.ndarray
  fps: float
  sampled_fps: float
  duration_s: float


def sample_indices(total: int, source_fps: float, fps: float, *, min_frames=MIN_FRAMES, max_frames=MAX_FRAMES) -> np.ndarray:
  """Indices of the frames to keep: an even number of them, evenly spread, at `fps` within the frame limits.

  Source: the reference's Qwen2VLVideoProcessor.sample_frames, truncations included.
  """
  wanted = total / source_fps * fps
  wanted = min(max(wanted, min_frames), min(max_frames, total) // 2 * 2, total)
  wanted = int(wanted // 2 * 2)
  if wanted < 1:
    return np.zeros(1, np.int32)  # a single frame: repeated to fill its patch
  return np.arange(0, total, total / wanted)[:wanted].astype(np.int32)


def load_video(
  source: Any,
  *,
  fps: float,
  limits: Limits | None = None,
  root: pathlib.Path | None = None,
  max_frames: int = MAX_FRAMES,
) -> VideoClip:
  """Frames of a path, data: URL or bytes FFmpeg reads, or of a (frames uint8 'T H W 3', source fps) pair.

  Only the sampled frames are kept in memory.
  """
  limits = limits or Limits()
  name = name_of(source)
  if not isinstance(fps, (int, float)) or not 0 < fps <= 1000:
    raise ValueError(f'{name}: fps {fps!r}; expected a number above 0')
  if isinstance(source, np.ndarray):
    raise ValueError(f'{name}: frames without their rate; give (frames, source_fps)')
  if isinstance(source, (tuple, list)):
    frames, source_fps = _array(source)
    indices = sample_indices(len(frames), source_fps, fps, max_frames=max_frames)
    return _clip(frames[indices], len(frames), source_fps, fps, max_frames)
  data = read_bytes(source, limits, root)
  total, source_fps = _probe(data, name, limits)
  frames, seen = _decode(data, sample_indices(total, source_fps, fps, max_frames=max_frames), name)
  if seen < total:  # packets that carry no frame of their own; more than a few means missing data
    if total - seen > max(2, total // 50):
      raise ValueError(f'{name}: truncated: {seen} of {total} frames could be decoded')
    total = seen
    frames, _ = _decode(data, sample_indices(total, source_fps, fps, max_frames=max_frames), name)
  return _clip(frames, total, source_fps, fps, max_frames)


def _array(source) -> tuple[np.ndarray, float]:
  if len(source) != 2 or not isinstance(source[0], np.ndarray):
    raise ValueError('video: expected a path, bytes, or (frames uint8 of shape (T, H, W, 3), source_fps)')
  frames, source_fps = source
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
    raise ValueError(f'{name_of(frames)}: video array of dtype {frames.dtype}; expected uint8 of shape (T, H, W, 3)')
  if not isinstance(source_fps, (int, float)) or not 0 < source_fps <= 10_000:
    raise ValueError(f'{name_of(frames)}: source fps {source_fps!r}; expected a number above 0')
  return frames, float(source_fps)


def _clip(frames: np.ndarray, total: int, source_fps: float, fps: float, max_frames: int) -> VideoClip:
  duration = total / source_fps
  wanted = duration * fps
  bound = wanted > max_frames or wanted < MIN_FRAMES or fps > source_fps
  return VideoClip(frames, float(fps), len(frames) / duration if bound else float(fps), duration)


def _open(data: bytes, name: str):
  import av

  av.logging.set_level(av.logging.PANIC)
  try:
    container = av.open(io.BytesIO(data))
  except (av.FFmpegError, ValueError, OSError) as e:
    raise ValueError(f'{name}: not readable as a video ({str(e)[:200]})') from e
  if not container.streams.video:
    container.close()
    raise ValueError(f'{name}: no video in it')
  return container


def _probe(data: bytes, name: str, limits: Limits) -> tuple[int, float]:
  """(number of frames, frames per second). Frames are counted by decoding nothing: by demuxing every packet."""
  import av

  with _open(data, name) as container:
    stream = container.streams.video[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.video_pixels:
      raise ValueError(f'{name}: {width}×{height} pixels a frame; the limit is {limits.video_pixels} in all')
    rate = stream.average_rate or stream.guessed_rate
    total = 0
    try:
      for packet in container.demux(stream):
        total += packet.size > 0
        if total > limits.video_source_frames:
          raise ValueError(f'{name}: more than {limits.video_source_frames} frames')
    except av.FFmpegError as e:
      if not total:
        raise ValueError(f'{name}: not readable as a video ({str(e)[:200]})') from e
  if not rate or not 0 < float(rate) <= 10_000:
    raise ValueError(f'{name}: no usable frame rate ({rate})')
  if not total:
    raise ValueError(f'{name}: no frames')
  if total / float(rate) > limits.video_s:
    raise ValueError(f'{name}: {total / float(rate):.0f} s of video; the limit is {limits.video_s:.0f} s')
  return total, float(rate)


def _decode(data: bytes, indices: np.ndarray, name: str) -> tuple[np.ndarray, int]:
  """(the frames at `indices`, increasing, decoded in order; how many frames were seen on the way)."""
  import av

  wanted, kept, seen = list(indices), [], 0
  with _open(data, name) as container:
    stream = container.streams.video[0]
    stream.thread_type = 'AUTO'
    try:
      for frame in container.decode(stream):
        while wanted and wanted[0] == seen:
          kept.append(frame.to_ndarray(format='rgb24'))
          wanted.pop(0)
        seen += 1
        if not wanted:
          return _stacked(kept, name), ALL_FRAMES
    except (av.FFmpegError, ValueError, MemoryError) as e:
      raise ValueError(f'{name}: broken after {seen} frames ({str(e)[:200]})') from e
  if not kept:
    raise ValueError(f'{name}: no frame could be decoded')
  return _stacked(kept, name), seen


def _stacked(frames: list[np.ndarray], name: str) -> np.ndarray:
  if len({frame.shape for frame in frames}) != 1:
    raise ValueError(f'{name}: frames of different sizes')
  return np.stack(frames)


def video_patches(frames: np.ndarray, settings: ImageSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
  """(patch rows float32 'P 1536', grid (t, rows, columns)). An incomplete last temporal patch repeats its last frame."""
  size = smart_resize(*frames.shape[1:3], settings.factor, settings.video_min_pixels, settings.video_max_pixels)
  resized = np.stack([resize(frame, *size) for frame in frames])
  missing = -len(frames) % settings.temporal_patch
  return patch_rows(np.concatenate([resized, np.repeat(resized[-1:], missing, axis=0)]), settings)


def video_audio(source: Any, limits: Limits | None = None, root: pathlib.Path | None = None) -> np.ndarray | None:
  """The sound track as 16 kHz mono samples; None if the video is silent (or an array)."""
  limits = limits or Limits()
  if isinstance(source, (tuple, list, np.ndarray)):
    return None
  name = name_of(source)
  track = decode_track(read_bytes(source, limits, root), name, limits)
  return None if track is None else _to_16k(track[0], track[1], name, limits)
