"""Small media made in memory for the tests: lossless pictures and sound, at any times, in any container."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition

SIZE = (32, 48)


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
  """uint8 'H W 3' that shows which frame it is: its red level, beside a white bar at the top and a green one on the left."""
  out = np.zeros((*size, 3), np.uint8)
  out[..., 0] = number * 5 % 250
  out[: size[0] // 4] = 255
  out[:, : size[1] // 8] = (0, 200, 0)
  return out


def numbers(frames: np.ndarray) -> list[int]:
  """Which pictures these frames are."""
  return [round(int(frame[frame.shape[0] // 2, frame.shape[1] // 2, 0]) / 5) for frame in frames]


def tone(seconds: float, hz: float = 440.0, rate_hz: int = 16_000) -> np.ndarray:
  return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def video(
  pictures: Sequence[np.ndarray],
  fps: float = 10,
  *,
  kind: str = 'matroska',
  codec: str = 'libx264rgb',
  times_s: Sequence[float] | None = None,
  start_s: float = 0.0,
  last_s: float | None = None,
  sound: np.ndarray | None = None,
  sound_start_s: float = 0.0,
  sound_times: Sequence[tuple[float, float, float]] = (),
  sound_codec: str = 'pcm_s16le',
  rate_hz: int = 16_000,
  extra_sound: np.ndarray | None = None,
  default_sound: int | None = None,
  tick: int = 1000,
  b_frames: int = 0,
) -> bytes:
  """A file of pictures shown at times_s (or evenly at fps), and of sound 'W' that begins at sound_start_s.

  last_s: how long the last picture is shown, where the container can say so. sound_times: (from, to, begin): stretches of the
  sound, and when each is heard; else all of it is heard at once. extra_sound: a second sound track; default_sound: which of the
  two is marked. tick: units of time a second. b_frames: how many pictures in a row may be coded after a later one.
  """
  out = io.BytesIO()
  rate = Fraction(fps).limit_denominator(1001)
  with av.open(out, 'w', format=kind) as container:
    stream = container.add_stream(
      codec, rate=rate, options={'crf': '0', 'bf': str(b_frames)} if codec.startswith('libx264') else {}
    )
    stream.height, stream.width = pictures[0].shape[:2]
    stream.pix_fmt = {'libx264rgb': 'rgb24', 'ffv1': 'bgr0'}.get(codec, 'yuv420p')
    stream.codec_context.time_base = Fraction(1, tick)
    stream.codec_context.thread_count = 1
    sounds = [container.add_stream(sound_codec, rate=rate_hz, layout='mono') for s in (sound, extra_sound) if s is not None]
    if default_sound is not None:
      sounds[default_sound].disposition = Disposition.default
    packets = []
    for i, pixels in enumerate(pictures):
      frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
      frame.time_base = Fraction(1, tick)
      frame.pts = round(tick * (start_s + (i / fps if times_s is None else times_s[i])))
      packets += stream.encode(frame)
    packets += stream.encode()
    shown = [packet.pts for packet in packets]
    for packet, next_shown in zip(packets, [*shown[1:], None], strict=True):
      if next_shown is not None and not b_frames:
        packet.duration = next_shown - packet.pts
      elif next_shown is None and last_s is not None:
        packet.duration = round(last_s * tick)
      container.mux(packet)
    for track, samples in zip(sounds, [s for s in (sound, extra_sound) if s is not None], strict=True):
      for a, b, begin in sound_times or [(0, len(samples) / rate_hz, sound_start_s)]:
        first = round(a * rate_hz)
        for at in range(first, round(b * rate_hz), 1024):
          block = samples[at : min(at + 1024, round(b * rate_hz))]
          whole = np.round(block * 32767).astype(np.int16)[None] if sound_codec.startswith('pcm') else block[None]
          form = 's16' if whole.dtype == np.int16 else 'fltp'
          frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(whole), format=form, layout='mono')
          frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
          frame.pts = at - first + round(begin * rate_hz)
          container.mux(track.encode(frame))
      container.mux(track.encode(None))
  return out.getvalue()
