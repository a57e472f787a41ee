"""Keys of media in messages: taken with their meaning, in one range, and never against each other."""

import math

import numpy as np
import pytest
from PIL import Image
from qwen3_omni_jax.tools.sample_media import shapes

from qwen3_omni_jax.media import omni_utils
from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.media.image import ImageSettings
from qwen3_omni_jax.media.keys import KEYS, MediaKeys, is_picture_list
from qwen3_omni_jax.media.messages import parse_messages
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.media.sizes import frame_size, image_size
from qwen3_omni_jax.media.source import Limits
from qwen3_omni_jax.media.video import load_video

SETTINGS = ImageSettings(min_pixels=3136, max_pixels=12_845_056, patch=16, mean=(0.5,) * 3, std=(0.5,) * 3)
ARRAY = (np.stack([np.full((64, 64, 3), i, np.uint8) for i in range(100)]), 10.0)  # 10 s; a frame's value is its number


def keys_of(kind: str, source='a', **keys) -> MediaKeys:
  return parse_messages([{'role': 'user', 'content': [{'type': kind, kind: source, **keys}]}])[1][0].keys


def test_every_key_is_taken_and_none_is_shared_by_accident():
  values = {'audio_in_video': True, 'video_start': 1, 'audio_start': 1}
  for kind, names in KEYS.items():
    for name in names:
      part = {name: values.get(name, 8)}
      if name.startswith('resized'):
        part = {'resized_height': 8, 'resized_width': 8}
      source = ['a', 'b'] if name == 'sample_fps' else 'a'
      got = keys_of(kind, source, **part)
      assert got != MediaKeys(), name
      with pytest.raises(ValueError, match=f"content.0.: unknown key '{name}'"):
        keys_of('audio' if kind != 'audio' else 'image', **part)
  assert keys_of('video', video_start=1.5, video_end=2, nframes=8.0) == MediaKeys(start_s=1.5, end_s=2, nframes=8)
  assert keys_of('image', max_pixels=None) == MediaKeys()  # a table's empty column


def test_openai_parts_carry_keys_too():
  part = {'type': 'image_url', 'image_url': {'url': 'data:,x', 'detail': 'auto'}, 'max_pixels': 50_176}
  sound = {'type': 'input_audio', 'input_audio': {'data': 'AAAA', 'format': 'wav'}, 'audio_end': 3}
  _, media = parse_messages([{'role': 'user', 'content': [part, sound]}])
  assert [item.keys for item in media] == [MediaKeys(max_pixels=50_176), MediaKeys(end_s=3)]


@pytest.mark.parametrize(
  'kind, keys, message',
  [
    ('video', {'fps': 2, 'nframes': 8}, 'fps and nframes: give one'),
    ('video', {'nframes': 8, 'max_frames': 6}, 'nframes 8 is outside'),
    ('video', {'min_frames': 8, 'max_frames': 6}, 'min_frames 8 is above max_frames 6'),
    ('video', {'min_frames': 800}, r'min_frames 800 is above max_frames 768 \(the default\)'),
    ('video', {'video_start': 3, 'video_end': 3}, 'video_start 3 is not before video_end 3'),
    ('video', {'sample_fps': 2}, 'sample_fps is the rate of a list'),
    ('video', {'total_pixels': 10**7, 'resized_height': 64, 'resized_width': 64}, 'give one of the two'),
    ('audio', {'audio_start': 2, 'audio_end': 1}, 'audio_start 2 is not before audio_end 1'),
    ('image', {'resized_height': 64}, 'go together'),
    ('image', {'min_pixels': 10_000, 'max_pixels': 5000}, 'min_pixels 10000 is above max_pixels 5000'),
    ('image', {'resized_height': 64, 'resized_width': 64, 'max_pixels': 4000}, 'is 4096 pixels, outside'),
    ('audio', {'audio_start': -1}, 'audio_start: expected seconds from 0'),
    ('audio', {'audio_end': float('nan')}, 'audio_end: expected seconds'),
    ('video', {'fps': 0}, 'fps: expected a number above 0'),
    ('video', {'fps': True}, 'fps: expected a number'),
    ('video', {'nframes': 2.5}, 'nframes: expected a whole number from 1'),
    ('video', {'nframes': 10**9}, 'nframes: expected a whole number from 1'),
    ('video', {'total_pixels': 0}, 'total_pixels: expected a number above 0'),
    ('image', {'max_pixels': '1000'}, 'max_pixels: expected a number'),
    ('image', {'min_pixels': 10**12}, 'min_pixels: expected a number above 0, up to'),
    ('image', {'resized_height': 10**6, 'resized_width': 28}, 'resized_height: expected a whole number'),
    ('video', {'audio_in_video': 1}, 'audio_in_video: expected true or false'),
  ],
)
def test_what_contradicts_or_is_out_of_range_is_refused(kind, keys, message):
  with pytest.raises(ValueError, match=rf'messages\[0\]\.content\[0\].*{message}'):
    keys_of(kind, **keys)


@pytest.mark.parametrize('keys', [{'fps': 2}, {'nframes': 4}, {'max_frames': 4}, {'video_start': 1}])
def test_a_list_of_pictures_is_not_sampled(keys):
  with pytest.raises(ValueError, match=f'{next(iter(keys))}: a list of pictures is not sampled; sample_fps'):
    keys_of('video', ['a', 'b'], **keys)
  assert not is_picture_list((ARRAY[0], 2.0)) and is_picture_list([ARRAY[0][0], ARRAY[0][1]])


def test_sizes_follow_the_message_within_the_checkpoints_limits():
  rng = np.random.default_rng(0)
  for height, width in np.exp(rng.uniform(np.log(100), np.log(3000), (300, 2))).astype(int).tolist():
    low = int(rng.integers(10, 600)) * 784
    h, w = image_size(height, width, SETTINGS, MediaKeys(min_pixels=low, max_pixels=4 * low))
    assert h % 32 == w % 32 == 0 and low <= h * w <= 4 * low
    low, high = SETTINGS.video_min_pixels, SETTINGS.video_max_pixels
    h, w = frame_size(height, width, 20, SETTINGS, MediaKeys(min_pixels=1000, max_pixels=2000))
    assert low <= h * w < 2 * low  # the processor would enlarge it again
    assert abs(math.log(h / w * width / height)) < 0.4  # and keeps its form
    h, w = frame_size(height, width, 20, SETTINGS, MediaKeys(max_pixels=10**9))
    assert h * w <= high
  assert image_size(500, 300, SETTINGS, MediaKeys(resized_height=200, resized_width=330)) == (192, 320)
  assert frame_size(500, 300, 9, SETTINGS, MediaKeys(resized_height=410, resized_width=500)) == (416, 512)
  many, few = (frame_size(720, 1280, n, SETTINGS, MediaKeys(total_pixels=4_000_000)) for n in (40, 10))
  assert np.prod(many) <= 4_000_000 / 40 * 2 < np.prod(few) <= 786_432


@pytest.mark.parametrize('utils', [False, True])
def test_frames_follow_the_message(utils):
  frames = lambda **keys: load_video(ARRAY, fps=2, keys=keys_of('video', **keys), utils=utils)
  assert len(frames().frames) == 20
  assert len(frames(nframes=7).frames) == 8 and frames(nframes=8).sampled_fps == pytest.approx(0.8)
  assert len(frames(fps=1, min_frames=13).frames) == 14 and frames(fps=1, min_frames=13).sampled_fps == pytest.approx(1.4)
  assert len(frames(max_frames=7).frames) == 6 and frames(max_frames=7).sampled_fps == pytest.approx(0.6)
  clip = load_video(ARRAY, fps=2, keys=keys_of('video', video_start=2, video_end=4.05))
  numbers = clip.frames[:, 0, 0, 0]
  assert numbers.tolist() == [20, 25, 30, 35] and clip.sampled_fps == 2.0
  assert len(frames(video_start=9.9).frames) == 1
  for start in (10.0, 11.0):
    with pytest.raises(ValueError, match='no frame from .* s to the end; the video has 100 frames from 0.00 s to 10.00 s'):
      frames(video_start=start)
  with pytest.raises(ValueError, match='nframes 102: .*expected 2 to 100'):
    frames(nframes=102)


def test_sounds_are_cut_by_their_seconds():
  wave = np.linspace(-0.5, 0.5, 32_000, dtype=np.float32)
  np.testing.assert_array_equal(load_audio(wave, start_s=0.5, end_s=1.25), wave[8000:20_000])
  np.testing.assert_array_equal(load_audio(wave, end_s=9), wave)
  with pytest.raises(ValueError, match=r'no sound from 2 s to 3 s; it has 2\.00 s'):
    load_audio(wave, start_s=2, end_s=3)
  limits = Limits(audio_s=1.0)  # what is cut away behind is not read, what is before it is
  assert len(load_audio(wave_file(wave), limits, end_s=1.0)) == 16_000
  with pytest.raises(ValueError, match='the limit is 1 s'):
    load_audio(wave_file(wave), limits, start_s=1.0)


def wave_file(wave: np.ndarray) -> bytes:
  import io

  import soundfile

  file = io.BytesIO()
  soundfile.write(file, wave, 16_000, 'FLOAT', format='WAV')
  return file.getvalue()


def test_too_large_a_size_is_refused_before_it_is_made():
  pixels, keys = shapes(64, 64, 0.3), MediaKeys(min_pixels=2**31)
  with pytest.raises(ValueError, match='pixels; the limit is'):
    omni_utils.resized_image(pixels, MediaKeys(min_pixels=2**31, max_pixels=2**32), Limits())
  with pytest.raises(ValueError, match='a frame; the limit is'):
    load_video((pixels[None], 1.0), fps=1, keys=keys, utils=True)


def test_pictures_are_a_video(tiny_folder, tmp_path):
  """The same tokens, positions and pixels as the frames in one array at that rate, whichever way they are given."""
  processor = Processor.from_folder(tiny_folder, media_root=tmp_path)
  frames = np.stack([shapes(96, 160, i / 5) for i in range(5)])
  for i, frame in enumerate(frames):
    Image.fromarray(frame).save(tmp_path / f'{i}.png')
  ask = lambda video, **keys: processor([{'role': 'user', 'content': [{'type': 'video', 'video': video, **keys}]}])
  names = [f'{i}.png' for i in range(5)]
  got, same = ask(names, sample_fps=4), ask(list(frames), sample_fps=4.0)
  assert got.visuals[0].grid[0] == 3
  for want in (same, ask((np.concatenate([frames, frames[-1:]]), 4.0), fps=4)):
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_array_equal(got.positions, want.positions)
    np.testing.assert_array_equal(got.visuals[0].patches, want.visuals[0].patches)
  slow = ask(names)  # 2 a second
  assert slow.positions[0].max() > got.positions[0].max()
  keys = MediaKeys(total_pixels=800_000)  # which an odd picture shares with its double
  for utils in (False, True):
    sizes = [load_video([shapes(576, 960, 0.2)] * n, fps=2, keys=keys, fit=SETTINGS, utils=utils).frames[0].shape for n in (5, 6)]
    assert sizes[0] == sizes[1]
  with pytest.raises(ValueError, match='picture 1 of the list: .*outside the media folder'):
    ask(['0.png', '/etc/hostname'])
  with pytest.raises(ValueError, match='picture 1 of the list: .*different sizes'):
    ask([frames[0], frames[1][:, :64]])
  with pytest.raises(ValueError, match='video: missing or empty'):
    ask([])


def test_the_published_example_of_tokens(tiny_folder):
  """5 s of 1080p at 2 frames a second: 2,893 tokens by the published way, 3,613 by the processor alone."""
  processor = Processor.from_folder(tiny_folder)
  frames = np.broadcast_to(np.uint8(90), (10, 1080, 1920, 3))
  ask = [{'role': 'user', 'content': [{'type': 'video', 'video': (frames, 2.0)}, {'type': 'text', 'text': 'x'}]}]
  text = len(processor([{'role': 'user', 'content': 'x'}]).ids) + 2  # and the two marks around the video
  tokens = {media: len(processor(ask, media=media).ids) - text for media in ('utils', 'processor')}
  assert tokens == {'utils': 2880, 'processor': 3600}
  with pytest.raises(ValueError, match="media 'both': expected processor or utils"):
    processor(ask, media='both')
