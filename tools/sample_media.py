"""Synthetic sample media: a sound, a picture, a video with sound, a silent video. For the demo and the tests."""

import pathlib

import numpy as np

RATE_HZ = 22_050  # not the model's 16 kHz, and stereo: the way in must cope


def write_samples(folder: str | pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes the files and returns their paths by 'audio', 'image', 'video' and 'silent_video'. Always the same contents."""
  import soundfile
  from PIL import Image

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  paths = {
    'audio': folder / 'melody.wav',
    'image': folder / 'shapes.png',
    'video': folder / 'moving.mp4',
    'silent_video': folder / 'silent.mp4',
  }
  soundfile.write(paths['audio'], melody(3.0), RATE_HZ)
  Image.fromarray(shapes(200, 300, 0.3)).save(paths['image'])
  write_video(paths['video'], seconds=3.0, fps=8, sound=melody(3.0))
  write_video(paths['silent_video'], seconds=2.0, fps=10, sound=None)
  return paths


def melody(seconds: float) -> np.ndarray:
  """A few notes with overtones, 'W 2' float32, at RATE_HZ."""
  t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
  note = np.array([220.0, 277.2, 329.6, 440.0])[(t * 3).astype(int) % 4]
  phase = 2 * np.pi * np.cumsum(note) / RATE_HZ
  envelope = 0.2 + 0.8 * (1 - (t * 3) % 1)
  left = envelope * sum(np.sin(k * phase) / k for k in (1, 2, 3))
  right = envelope * sum(np.sin(k * phase) / k for k in (1, 3, 5))
  return (0.25 * np.stack([left, right], axis=1)).astype(np.float32)


def shapes(height: int, width: int, at: float) -> np.ndarray:
  """A red disc and a blue square on a grey gradient; `at` from 0 to 1 moves the disc from left to right. uint8 'H W 3'."""
  y, x = np.mgrid[:height, :width]
  picture = np.stack([120 + 80 * y / height] * 3, axis=-1)
  picture[(y > height * 0.55) & (y < height * 0.9) & (x > width * 0.6) & (x < width * 0.85)] = (40, 60, 200)
  centre = width * (0.2 + 0.6 * at)
  picture[(y - height * 0.4) ** 2 + (x - centre) ** 2 < (height * 0.2) ** 2] = (210, 40, 30)
  return picture.astype(np.uint8)


def write_video(path: pathlib.Path, seconds: float, fps: int, sound: np.ndarray | None, size=(120, 160)) -> None:
  """An mp4 of the moving disc, with an AAC track if `sound` ('W 2' at RATE_HZ) is given.

  H.264, or MPEG-4 where FFmpeg has no x264. Constant quality and one thread: x264's rate control and its threads do not give
  the same bytes every time.
  """
  import av
  import av.logging

  av.logging.set_level(None)  # quiet; see media.container
  with av.open(str(path), 'w') as container:
    x264 = 'libx264' in av.codecs_available
    video = container.add_stream('libx264' if x264 else 'mpeg4', rate=fps, options={'qp': '20'} if x264 else {})
    video.codec_context.thread_count = 1
    height, width = size
    video.height, video.width = height, width
    video.pix_fmt = 'yuv420p'
    audio = container.add_stream('aac', rate=RATE_HZ, layout='stereo') if sound is not None else None
    frames = int(seconds * fps)
    for i in range(frames):
      picture = av.VideoFrame.from_ndarray(shapes(height, width, i / frames), format='rgb24')
      container.mux(video.encode(picture))
    container.mux(video.encode(None))
    if audio is not None and sound is not None:
      for start in range(0, len(sound), 1024):
        block = np.ascontiguousarray(sound[start : start + 1024].T)
        frame = av.AudioFrame.from_ndarray(block, format='fltp', layout='stereo')
        frame.sample_rate, frame.pts = RATE_HZ, start
        container.mux(audio.encode(frame))
      container.mux(audio.encode(None))
