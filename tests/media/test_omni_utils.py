"""`media='utils'` beside the published utilities themselves: their frames, sizes and pixels, from the same messages."""

import base64
import fractions
import io
import math
import sys
import types

import numpy as np
import pytest
from PIL import Image
from qwen3_omni_jax.tools.sample_media import shapes

from qwen3_omni_jax.media import omni_utils
from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.media.image import ImageSettings, image_patches, load_image
from qwen3_omni_jax.media.keys import MediaKeys
from qwen3_omni_jax.media.messages import parse_messages
from qwen3_omni_jax.media.source import Limits
from qwen3_omni_jax.media.video import load_video, sample_count, video_audio, video_patches

SETTINGS = ImageSettings(min_pixels=3136, max_pixels=12_845_056, patch=16, mean=(0.5,) * 3, std=(0.5,) * 3)
LEVEL = 1 / 127.5  # of 8 bits, once normalised


class _VideoReader:
  """What the utilities call of decord, by PyAV: torchvision has given up reading videos."""

  def __init__(self, path: str):
    import av

    with av.open(path) as container:
      self.rate = float(container.streams.video[0].average_rate)
      self.frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]

  def __len__(self) -> int:
    return len(self.frames)

  def get_avg_fps(self) -> float:
    return self.rate

  def get_batch(self, indices):
    frames = np.stack([self.frames[i] for i in indices])
    return types.SimpleNamespace(asnumpy=lambda: frames)


@pytest.fixture(scope='module')
def theirs():
  """The package's modules, reading videos and their sound through PyAV; and the reference's processors for what it gives."""
  from tests.reference import prepare_torchvision

  prepare_torchvision()
  import audioread.rawread
  import av
  import transformers
  from qwen_omni_utils import process_mm_info
  from qwen_omni_utils.v2_5 import audio_process, vision_process

  class Sound(audioread.rawread.RawAudioFile):  # librosa takes only audioread's own classes
    def __init__(self, path: str):
      with av.open(path) as container:
        resampler = av.AudioResampler(format='s16')
        parts = [p.to_ndarray() for f in container.decode(audio=0) for p in resampler.resample(f)]
        self.rate, self.number = container.streams.audio[0].rate, container.streams.audio[0].channels
      self.data = np.concatenate(parts, axis=1).astype('<i2').tobytes()

    samplerate = property(lambda self: self.rate)
    channels = property(lambda self: self.number)
    close = lambda self: None

    def __iter__(self):
      return iter([self.data])

  patch = pytest.MonkeyPatch()
  patch.setitem(sys.modules, 'decord', types.SimpleNamespace(VideoReader=_VideoReader))
  patch.setattr(vision_process, 'get_video_reader_backend', lambda: 'decord')
  patch.setattr(audio_process.audioread.ffdec, 'FFmpegAudioFile', Sound)
  common = {'patch_size': 16, 'merge_size': 2, 'temporal_patch_size': 2, 'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
  size = lambda low, high: {'shortest_edge': low, 'longest_edge': high}
  yield types.SimpleNamespace(
    process=process_mm_info,
    vision=vision_process,
    images=transformers.Qwen2VLImageProcessor(size=size(SETTINGS.min_pixels, SETTINGS.max_pixels), **common),
    videos=transformers.Qwen2VLVideoProcessor(size=size(SETTINGS.video_min_pixels, SETTINGS.video_max_pixels), **common),
  )
  patch.undo()


def write_video(path, frames: np.ndarray, fps: fractions.Fraction, sound: np.ndarray | None = None) -> str:
  import av

  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=fps, options={'qscale': '4'})
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], 'yuv420p'
    track = None if sound is None else container.add_stream('pcm_s16le', rate=16_000, layout='mono')
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
    container.mux(stream.encode())
    if track is not None:
      frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format='s16', layout='mono')
      frame.rate = 16_000
      container.mux(track.encode(frame))
      container.mux(track.encode())
  return str(path)


def noisy(rng: np.random.Generator, number: int, height: int, width: int) -> np.ndarray:
  """Frames of moving shapes with texture on them, so that every resize matters everywhere."""
  grain = rng.integers(-25, 25, (height, width, 3))
  return np.stack([np.clip(shapes(height, width, i / max(number, 2)) + grain, 0, 255).astype(np.uint8) for i in range(number)])


def image_case(rng: np.random.Generator, folder) -> dict:
  height, width = np.exp(rng.uniform(np.log(12), np.log(900), 2)).astype(int).tolist()
  part = {'type': 'image', 'image': str(folder / 'a.png')}
  Image.fromarray(noisy(rng, 1, height, width)[0]).save(part['image'])
  kind = rng.integers(4)
  if kind == 1:
    part |= {'resized_height': int(rng.integers(20, 800)), 'resized_width': int(rng.integers(20, 800))}
  if kind in (2, 3):
    low = int(rng.integers(1, 300)) * 784
    part |= {'min_pixels': low, 'max_pixels': low * int(rng.integers(2, 9))}
  return part


def video_case(rng: np.random.Generator, folder) -> dict:
  """A video of 2 to 39 frames with keys of every kind; now and then with a stretch of it."""
  total, rate = int(rng.integers(2, 40)), fractions.Fraction(str(rng.choice(['2', '5', '7.3', '23.976', '25', '30', '60'])))
  height, width = (2 * np.exp(rng.uniform(np.log(16), np.log(160), 2)).astype(int)).tolist()
  part = {'type': 'video', 'video': write_video(folder / 'a.mkv', noisy(rng, total, height, width), rate.limit_denominator(1001))}
  frames = total
  if rng.random() < 0.3:
    seconds = total / float(rate)
    a, b = np.sort(rng.uniform(0, seconds, 2)).round(3).tolist()
    part |= (
      {'video_start': a, 'video_end': b} if rng.random() < 0.6 else {'video_start': a} if rng.random() < 0.5 else {'video_end': b}
    )
    frames = sum(part.get('video_start', 0) <= i / float(rate) <= part.get('video_end', math.inf) for i in range(total))
  sampling = rng.integers(4)
  if sampling == 1 and frames >= 4:
    part['nframes'] = int(rng.integers(2, frames))
  elif sampling >= 2:
    part['fps'] = float(rng.choice([0.5, 1, 2, 3, 4.5, 24, 100]))
    if sampling == 3:
      low = int(rng.integers(2, 12))
      part |= {'min_frames': low, 'max_frames': low + int(rng.integers(0, 20))}
  sizing = rng.integers(5)
  if sizing == 1:
    part |= {'resized_height': int(rng.integers(28, 600)), 'resized_width': int(rng.integers(28, 600))}
  elif sizing >= 2:
    part['min_pixels'] = int(rng.integers(4, 200)) * 784
    if sizing == 3:
      part['max_pixels'] = part['min_pixels'] + int(rng.integers(1, 500)) * 784
    if sizing == 4:
      part['total_pixels'] = int(rng.integers(1, 40)) * 100_000
  return part


def pictures_case(rng: np.random.Generator, folder) -> dict:
  number = int(rng.integers(1, 7))
  height, width = np.exp(rng.uniform(np.log(20), np.log(500), 2)).astype(int).tolist()
  part = {'type': 'video', 'video': [str(folder / f'{i}.png') for i in range(number)]}
  for path, pixels in zip(part['video'], noisy(rng, number, height, width), strict=True):
    Image.fromarray(pixels).save(path)
  if rng.random() < 0.5:
    part['sample_fps'] = float(rng.choice([0.5, 1, 4]))
  sizing = rng.integers(4)
  if sizing == 1:
    part |= {'resized_height': int(rng.integers(28, 500)), 'resized_width': int(rng.integers(28, 500))}
  if sizing == 3:  # few enough that an odd picture counts
    part['total_pixels'] = int(rng.integers(1, 4)) * 60_000 * number
  if sizing == 2:
    part |= {'min_pixels': 50_000, 'max_pixels': int(rng.integers(60_000, 300_000))}
  return part


def check(part: dict, theirs) -> str:
  """Compares what comes of one part; returns 'same', or 'refused' where both refuse it (they also a single frame)."""
  messages = [{'role': 'user', 'content': [part]}]
  try:
    _, images, videos, more = theirs.process(messages, False, return_video_kwargs=True)
  except Exception:
    try:
      assert len(_ours(messages)[0]) == 1  # they refuse a stretch of a single frame
    except ValueError:
      pass
    return 'refused'
  pixels, (patches, grid), fps = _ours(messages)
  if images:
    np.testing.assert_array_equal(pixels, np.asarray(images[0]))
    want = theirs.images(images=images, return_tensors='np')
    assert list(grid) == want['image_grid_thw'][0].tolist()
    np.testing.assert_allclose(patches, want['pixel_values'], atol=1e-6)
    return 'same'
  frames = videos[0].permute(0, 2, 3, 1).numpy()
  assert fps == pytest.approx(more['fps'][0], rel=1e-12)
  if len(frames) > len(pixels):  # they repeat the last picture of an odd list; here the last patch does
    np.testing.assert_array_equal(frames[-1], frames[-2])
    frames = frames[:-1]
  assert pixels.shape == frames.shape
  off = np.abs(pixels - frames)
  assert off.max() <= 1 and (off > 0).mean() < 0.01  # halves that fall the other way
  want = theirs.videos(videos=videos, do_sample_frames=False, return_tensors='np')
  assert list(grid) == want['video_grid_thw'][0].tolist()
  np.testing.assert_allclose(patches, want['pixel_values_videos'], atol=1.5 * LEVEL)
  assert np.abs(patches - want['pixel_values_videos']).mean() < 0.01 * LEVEL
  return 'same'


def _ours(messages: list):
  """(pixels before the processor's resize, (patches, grid) after it, frames a second)."""
  _, (item,) = parse_messages(messages)
  if item.kind == 'image':
    pixels = omni_utils.resized_image(load_image(item.source), item.keys, Limits())
    return pixels, image_patches(pixels, SETTINGS), None
  clip = load_video(item.source, fps=2.0, keys=item.keys, utils=True)
  return clip.frames, video_patches(clip.frames, SETTINGS, utils=True), clip.sampled_fps


CASES = {'image': image_case, 'video': video_case, 'pictures': pictures_case}


def run_cases(kind: str, seeds, theirs, folder) -> list[str]:
  results = []
  for seed in seeds:
    part = CASES[kind](np.random.default_rng([seed, len(kind)]), folder)
    try:
      results.append(check(part, theirs))
    except Exception as e:
      raise AssertionError(f'case {seed}: {part}') from e
  return results


@pytest.mark.parametrize('kind, number', [('image', 12), ('video', 16), ('pictures', 6)])
def test_frames_sizes_and_pixels_are_the_utilities(kind, number, theirs, tmp_path):
  assert run_cases(kind, range(number), theirs, tmp_path).count('same') > 0.6 * number


@pytest.mark.slow
@pytest.mark.parametrize('kind, number', [('image', 60), ('video', 110), ('pictures', 30)])
def test_two_hundred_media_are_the_utilities(kind, number, theirs, tmp_path):
  results = run_cases(kind, range(1000, 1000 + number), theirs, tmp_path)
  assert len(results) == number and results.count('same') > 0.7 * number


def test_sizes_and_counts_are_the_utilities(theirs):
  """Thousands of sizes, without pixels."""
  rng = np.random.default_rng(0)
  sides = np.exp(rng.uniform(np.log(2), np.log(9000), (3000, 2))).astype(int).tolist()
  refused = 0
  for height, width in sides:
    part = {'min_pixels': int(rng.integers(1, 400)) * 784, 'max_pixels': int(rng.integers(1, 20_000)) * 784}
    part = {key: value for key, value in part.items() if rng.random() < 0.5}
    try:
      want = theirs.vision.smart_resize(height, width, 28, part.get('min_pixels'), part.get('max_pixels'))
      refused += 0 in want
    except (ValueError, AssertionError):
      want, refused = (0, 0), refused + 1
    if 0 in want:
      with pytest.raises(ValueError, match='pixels'):
        omni_utils.image_size(height, width, MediaKeys(**part))
    else:
      assert omni_utils.image_size(height, width, MediaKeys(**part)) == want
  assert 100 < refused < 1500
  for _ in range(5000):
    total, rate = int(rng.integers(2, 4000)), float(rng.choice([2, 7.3, 24_000 / 1001, 25, 30_000 / 1001, 60]))
    asked = {'fps': float(rng.choice([0.2, 1, 2, 5, 30]))} if rng.random() < 0.7 else {'nframes': int(rng.integers(2, 900))}
    if 'fps' in asked and rng.random() < 0.5:
      low = int(rng.integers(1, 40))
      asked |= {'min_frames': low, 'max_frames': low + int(rng.integers(1, 900))}
    try:
      want = theirs.vision.smart_nframes(asked, total, rate)
    except ValueError:
      with pytest.raises(ValueError, match='nframes'):
        sample_count(total / rate * 2.0, total, MediaKeys(**asked))
      continue
    keys = MediaKeys(**asked)
    assert sample_count(total / rate * (keys.fps or 2.0), total, keys) == want
    if total % 5 == 0:
      import torch

      np.testing.assert_array_equal(
        omni_utils.frame_indices(0, total - 1, want), torch.linspace(0, total - 1, want).round().long()
      )


def test_sizes_of_frames_are_the_utilities(theirs, monkeypatch):
  """Without pixels: their reader gives frames that are not there, and their resize says the size."""
  import torch

  shape = []
  read = lambda ele: (torch.empty(*shape, device='meta'), {}, 2.0)
  monkeypatch.setitem(theirs.vision.VIDEO_READER_BACKENDS, 'decord', read)
  monkeypatch.setitem(theirs.vision.VIDEO_READER_BACKENDS, 'torchvision', read)
  monkeypatch.setattr(
    theirs.vision.transforms.functional, 'resize', lambda video, size, **_: torch.empty(1, 3, *size, device='meta')
  )
  rng = np.random.default_rng(0)
  for _ in range(2000):
    height, width = np.exp(rng.uniform(np.log(20), np.log(3000), 2)).astype(int).tolist()
    shape[:] = 2 * int(rng.integers(1, 380)), 3, height, width
    low = int(rng.integers(1, 900)) * 784
    part = {
      'min_pixels': low,
      'max_pixels': low + int(rng.integers(0, 900)) * 784,
      'total_pixels': int(rng.integers(1, 400)) * 10**6,
    }
    part = {key: value for key, value in part.items() if rng.random() < 0.5}
    try:
      want = tuple(theirs.vision.fetch_video({'video': 'a', **part}).shape[2:])
    except (ValueError, AssertionError):
      want = (0, 0)
    if 0 in want:
      with pytest.raises(ValueError, match='pixels'):
        omni_utils.frame_size(height, width, shape[0], MediaKeys(**part))
    else:
      assert omni_utils.frame_size(height, width, shape[0], MediaKeys(**part)) == want, (shape, part)


def test_sounds_are_cut_as_the_utilities_cut_them(theirs, tmp_path):
  import soundfile

  rng = np.random.default_rng(0)
  for i in range(30):
    rate, seconds = int(rng.choice([8000, 11_025, 16_000, 44_100])), float(rng.uniform(0.5, 3))
    wave = rng.uniform(-0.5, 0.5, (int(rate * seconds), int(rng.integers(1, 3)))).astype(np.float32)
    a, b = np.sort(rng.uniform(0, seconds, 2)).round(3).tolist()
    cut = [{}, {'audio_start': a}, {'audio_end': b}, {'audio_start': a, 'audio_end': b + 0.05}][i % 4]
    file = io.BytesIO()
    soundfile.write(file, wave, rate, 'FLOAT', format='WAV')
    url = 'data:audio/wav;base64,' + base64.b64encode(file.getvalue()).decode()
    for source in (url, wave[:, 0]) if rate == 16_000 else (url,):
      part = {'type': 'audio', 'audio': source, **cut}
      messages = [{'role': 'user', 'content': [part]}]
      (want,), *_ = theirs.process(messages, False)
      item = parse_messages(messages)[1][0]
      got = load_audio(item.source, start_s=item.keys.start_s, end_s=item.keys.end_s)
      np.testing.assert_allclose(got, want, atol=1e-6, err_msg=f'{part}')


def test_the_sound_of_a_video_is_cut_with_it(theirs, tmp_path):
  rng = np.random.default_rng(0)
  wave = rng.uniform(-0.5, 0.5, 16_000 * 4).astype(np.float32)
  path = write_video(tmp_path / 'a.mkv', noisy(rng, 40, 32, 48), fractions.Fraction(10), wave)
  for cut in ({}, {'video_start': 1.25}, {'video_end': 2.5}, {'video_start': 0.3, 'video_end': 3.1}):
    messages = [{'role': 'user', 'content': [{'type': 'video', 'video': path, **cut}]}]
    (want,), _, videos, more = theirs.process(messages, True, return_video_kwargs=True)
    keys = parse_messages(messages)[1][0].keys
    np.testing.assert_allclose(video_audio(path, start_s=keys.start_s, end_s=keys.end_s), want, atol=1e-4)
    for utils in (True, False):  # the stretch means the same
      clip = load_video(path, fps=2.0, keys=keys, utils=utils)
      assert len(clip.frames) == len(videos[0])
  assert video_audio(path, start_s=4.0) is None  # silent there
