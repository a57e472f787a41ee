"""Frames of a video file: when they are shown, and the chosen ones decoded, upright and as small as they are wanted."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .container import check_decodable, chosen_stream, open_container, unreadable
from .image import on_white
from .source import Limits
from .timeline import SLACK_S, Timeline, Track, check_whole, decoded_timeline, make_timeline, see, stated_end

Fit = Callable[[np.ndarray, int], np.ndarray]  # a frame and the number of frames -> the frame resized


class SampledFrames:
  """The sampled frames as they come by, resized if there is a rule for it; within the limits."""

  def __init__(self, name: str, limits: Limits, fit: Fit | None, indices: np.ndarray):
    self.name, self.limits, self.fit, self.indices = name, limits, fit, indices
    self.frames: list[np.ndarray] = []

  @property
  def next(self) -> int | None:
    """Index of the next frame to add; None after the last."""
    return int(self.indices[len(self.frames)]) if len(self.frames) < len(self.indices) else None

  def add(self, frame: np.ndarray) -> None:
    """The frame `next`, as often as it was chosen."""
    height, width, _ = frame.shape
    check_frame(height, width, self.name, self.limits)
    if self.fit is not None:
      frame = self.fit(frame, len(self.indices))
    if self.frames and frame.shape != self.frames[0].shape:
      raise ValueError(f'{self.name}: frames of different sizes')
    if not self.frames and frame.nbytes * len(self.indices) > self.limits.video_kept_bytes:
      raise ValueError(
        f'{self.name}: {len(self.indices)} frames of {frame.shape[1]}×{frame.shape[0]} need {frame.nbytes * len(self.indices)} '
        f'bytes; the limit is {self.limits.video_kept_bytes}. Lower fps, or make the video smaller'
      )
    index = self.next
    while self.next == index:
      self.frames.append(frame)

  def stacked(self) -> np.ndarray:
    return np.stack(self.frames)


def check_frame(height: int, width: int, name: str, limits: Limits) -> None:
  if width * height > limits.video_pixels:
    raise ValueError(f'{name}: {width}×{height} pixels a frame; the limit is {limits.video_pixels} in all')


def read_frames(
  data: bytes, name: str, limits: Limits, choose: Callable[[Timeline], np.ndarray], fit: Fit | None = None
) -> tuple[np.ndarray, Timeline]:
  """(frames uint8 'T H W 3', the video's timeline) of the frames that `choose` names by their indices, ascending.

  fit: resizes a frame on its way. Only the chosen frames are kept in memory.
  """
  line, first = read_timeline(data, name, limits)
  for _ in range(2):
    sampled = SampledFrames(name, limits, fit, choose(line))
    came = _decode(data, sampled, line, first)
    if sampled.next is None:
      return sampled.stacked(), line
    if not len(came):
      break
    # Some packets carry no frame of their own, or two: the frames that came decide.
    line = decoded_timeline(line, came, limits, name)
    first = None if first is None or np.isnan(came[0]) else first + came[0]
  raise ValueError(f'{name}: no frame could be decoded')


def read_timeline(data: bytes, name: str, limits: Limits) -> tuple[Timeline, float | None]:
  """(the timeline, when its first frame is shown by the container's clock: None if packets have no times). Nothing is decoded:
  every packet is looked at. Raises ValueError if the video ends before its header says."""
  import av
  import av.error

  with open_container(data, name, 'a video') as container:
    stream, sound = (chosen_stream(container, kind) for kind in ('video', 'audio'))
    if stream is None:
      raise ValueError(f'{name}: no video in it')
    check_decodable(stream, name)
    check_frame(stream.codec_context.height, stream.codec_context.width, name, limits)
    tracks = {s.index: Track(s, name) for s in container.streams}
    picture = tracks[stream.index]
    try:
      for packet in container.demux():
        see(tracks, packet)
        if picture.packets > limits.video_source_frames:
          raise ValueError(f'{name}: more than {limits.video_source_frames} frames')
    except av.error.FFmpegError as e:
      if not picture.packets:
        raise unreadable(name, 'a video', e) from e
    if not picture.packets:
      raise ValueError(f'{name}: no frames')
    stated, own = stated_end(container, stream, data)
    check_whole(stated, picture.end_s if own else max(t.end_s for t in tracks.values()), name, limits)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    heard = None if sound is None or not tracks[sound.index].packets else tracks[sound.index].start_s
  first = picture.start_s if picture.timed else None
  if first is None:  # frames are then only counted
    times, end = np.arange(picture.packets) / max(rate, 1e-9), picture.packets / max(rate, 1e-9)
  else:
    times, end = picture.times(stated if own else None)
  if not 0 < rate <= 10_000 and (first is None or not end > 0):
    raise ValueError(f'{name}: no usable frame rate ({rate:g})')
  late = 0.0 if first is None or heard is None or first - heard < SLACK_S else first - heard
  rate = rate if 0 < rate <= 10_000 else len(times) / end
  line = make_timeline(times, end, rate, picture.tick_s, late_s=late, has_audio=heard is not None)
  if line.duration_s > limits.video_s:
    raise ValueError(f'{name}: {line.duration_s:.0f} s of video; the limit is {limits.video_s:.0f} s')
  return line, None if picture.counted else first


def _decode(data: bytes, sampled: SampledFrames, line: Timeline, first_s: float | None) -> np.ndarray:
  """Adds the chosen frames, decoded in order, as long as they come as the timeline says.

  Returns when frames came: seconds from first_s on, not a number where that is unknown.
  """
  import av
  import av.error

  came: list[float] = []
  as_said = True
  with open_container(data, sampled.name, 'a video') as container:
    stream = chosen_stream(container, 'video')
    assert stream is not None  # the timeline was read from it
    stream.thread_type = 'AUTO'
    try:
      for frame in container.decode(stream):
        check_frame(frame.height, frame.width, sampled.name, sampled.limits)
        came.append(np.nan if first_s is None or frame.time is None else frame.time - first_s)
        seen = len(came) - 1
        # Not a number is never farther away.
        as_said &= seen < len(line.times) and not abs(came[seen] - line.times[seen]) > line.rounding_s
        if as_said and sampled.next == seen:
          sampled.add(_upright(frame))
        if sampled.next is None:
          break
    except (av.error.FFmpegError, ValueError, OSError, MemoryError) as e:
      if isinstance(e, ValueError) and str(e).startswith(sampled.name):
        raise
      raise unreadable(sampled.name, f'a video: broken after {len(came)} frames', e) from e
  return np.array(came)


def _upright(frame: Any) -> np.ndarray:
  """uint8 'H W 3' of a PyAV frame, turned as players show it: phones film sideways and say so in the file."""
  turns = round((frame.rotation or 0) / 90) % 4  # counter-clockwise
  if any(component.is_alpha for component in frame.format.components):
    pixels = on_white(frame.to_ndarray(format='rgba'))
  else:
    pixels = frame.to_ndarray(format='rgb24')
  return np.ascontiguousarray(np.rot90(pixels, turns))
