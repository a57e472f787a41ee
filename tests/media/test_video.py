"""Videos in: the reference's choice of frames, its patches, true rates, and memory that follows the kept frames only."""

import dataclasses
import pathlib
import tracemalloc

import numpy as np
import pytest
from qwen3_omni_jax.tools.sample_media import melody, shapes, write_samples, write_video

from qwen3_omni_jax.media.image import ImageSettings
from qwen3_omni_jax.media.keys import MediaKeys
from qwen3_omni_jax.media.resample import resize
from qwen3_omni_jax.media.sizes import frame_size
from qwen3_omni_jax.media.source import Limits
from qwen3_omni_jax.media.video import load_video, sample_indices, video_audio, video_patches

SETTINGS = ImageSettings(patch=16, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope='module')
def theirs():
  from tests.reference import prepare_torchvision

  prepare_torchvision()
  import transformers

  return transformers.Qwen2VLVideoProcessor(
    patch_size=16,
    merge_size=2,
    temporal_patch_size=2,
    image_mean=[0.5] * 3,
    image_std=[0.5] * 3,
    size={'shortest_edge': SETTINGS.video_min_pixels, 'longest_edge': SETTINGS.video_max_pixels},
  )


def test_frames_of_the_checked_examples():
  # (frames, source fps) sampled at the processor's 2.0, 2.0 and 12.0: what the reference was seen to choose
  assert sample_indices(40, 8, 2).tolist() == list(range(0, 40, 4))
  assert sample_indices(37, 7.3, 2).tolist() == [0, 3, 7, 11, 14, 18, 22, 25, 29, 33]
  assert sample_indices(10, 30, 2).tolist() == [0, 2, 5, 7]


def test_frames_equal_the_references_choice(theirs):
  from transformers.video_utils import VideoMetadata

  rng = np.random.default_rng(0)
  beyond = 0
  for _ in range(4000):
    total = int(rng.choice([rng.integers(2, 60), rng.integers(60, 5000)]))
    source_fps = float(rng.choice([8, 10, 23.976, 24, 25, 29.97, 30, 60, 7.3]))
    fps = float(rng.choice([0.5, 1, 2, 3, 4, 8, 30, 1.7]))
    want = theirs.sample_frames(VideoMetadata(total_num_frames=total, fps=source_fps), fps=fps).numpy()
    got = sample_indices(total, source_fps, fps)
    if want[-1] == total:  # one past the end: the reference then fails on the missing frame
      want, beyond = want[:-1], beyond + 1
    np.testing.assert_array_equal(got, want)
    assert len(got) % 2 == 0 and got[-1] < total
  assert 0 < beyond < 200


def test_one_frame_is_enough():
  assert sample_indices(1, 25, 2).tolist() == [0]
  clip = load_video((np.zeros((1, 64, 64, 3), np.uint8), 25.0), fps=2, fit=SETTINGS)
  patches, grid = video_patches(clip.frames, SETTINGS)
  assert grid[0] == 1 and len(patches) == np.prod(grid)


@pytest.mark.parametrize('frames, size', [(4, (90, 120)), (5, (120, 160)), (2, (720, 1280)), (3, (320, 448))])
def test_patches_equal_the_reference(theirs, frames, size):
  clip = np.stack([shapes(*size, i / frames) for i in range(frames)])
  patches, grid = video_patches(load_video(list(clip), fps=2, fit=SETTINGS).frames, SETTINGS)
  want = theirs(videos=[clip], do_sample_frames=False, return_tensors='np')
  assert list(grid) == want['video_grid_thw'][0].tolist() and grid[0] == (frames + 1) // 2
  np.testing.assert_allclose(patches, want['pixel_values_videos'], atol=1e-6)  # the 8-bit values are equal


def test_a_file_gives_its_frames_in_time(samples):
  every = load_video(samples['video'], fps=8)  # the source's own rate: all 24 frames
  assert every.frames.shape == (24, 120, 160, 3) and every.frames.dtype == np.uint8
  assert (every.fps, every.sampled_fps, every.duration_s, every.has_audio) == (8.0, 8.0, 3.0, True)
  drawn = np.stack([shapes(120, 160, i / 24) for i in range(24)])
  assert np.abs(every.frames.astype(int) - drawn).mean() < 4  # lossy coding
  some = load_video(str(samples['video']), fps=2)
  np.testing.assert_array_equal(some.frames, every.frames[sample_indices(24, 8, 2)])
  assert not load_video(samples['silent_video'].read_bytes(), fps=2).has_audio


def test_the_true_rate_is_told_when_a_limit_binds(samples):
  array = (np.zeros((300, 32, 32, 3), np.uint8), 30.0)  # 10 s
  assert load_video(array, fps=2).sampled_fps == 2.0
  few = load_video(array, fps=0.1)
  assert (len(few.frames), few.fps, few.sampled_fps) == (4, 0.1, 0.4)
  most = load_video(array, fps=10, keys=MediaKeys(max_frames=20))
  assert (len(most.frames), most.sampled_fps) == (20, 2.0)
  assert load_video(array, fps=60).sampled_fps == 30.0  # no more than there are
  long = load_video((np.zeros((1000, 8, 8, 3), np.uint8), 1.0), fps=1)
  assert (len(long.frames), long.sampled_fps) == (768, 0.768)


def test_frames_are_resized_on_the_way(samples):
  for source in (samples['video'], (np.stack([shapes(100, 1700, i / 6) for i in range(6)]), 3.0)):
    plain = load_video(source, fps=3)
    fitted = load_video(source, fps=3, fit=SETTINGS)
    size = frame_size(*plain.frames.shape[1:3], len(plain.frames), SETTINGS)
    np.testing.assert_array_equal(fitted.frames, np.stack([resize(frame, *size) for frame in plain.frames]))


def test_only_sampled_frames_are_in_memory(tmp_path):
  write_video(tmp_path / 'long.mp4', seconds=20, fps=30, sound=None, size=(240, 320))
  tracemalloc.start()
  clip = load_video(tmp_path / 'long.mp4', fps=0.5)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(clip.frames) == 10
  assert peak < 3 * clip.frames.nbytes + 2e6  # kept, stacked, one on its way; all 600 would be 138 MB


def test_limits_name_the_video(samples):
  for limits, message in (
    (Limits(video_s=2.0), '3 s of video; the limit is 2 s'),
    (Limits(video_pixels=1000), '160×120 pixels a frame; the limit is 1000'),
    (Limits(video_source_frames=10), 'more than 10 frames'),
    (Limits(video_kept_bytes=100_000), '6 frames of 160×120 need 345600 bytes'),
    (Limits(bytes=1000), 'the limit is 1000'),
  ):
    with pytest.raises(ValueError, match=rf'moving\.mp4: .*{message}'):
      load_video(samples['video'], fps=2, limits=limits)


def test_phone_videos_are_turned_upright(samples, tmp_path):
  """The display matrix of the track header is overwritten with a quarter turn, as phones write it."""
  data = bytearray(samples['silent_video'].read_bytes())
  matrix = data.index(b'tkhd') + 4 + 40  # version 0: matrix of nine 32-bit numbers after 40 bytes
  one = 1 << 16
  assert int.from_bytes(data[matrix : matrix + 4], 'big') == one
  quarter = [0, one, 0, -one, 0, 0, 0, 0, 1 << 30]  # clockwise
  data[matrix : matrix + 36] = b''.join(v.to_bytes(4, 'big', signed=True) for v in quarter)
  plain, turned = (load_video(bytes(d), fps=2).frames for d in (samples['silent_video'].read_bytes(), data))
  np.testing.assert_array_equal(turned, np.rot90(plain, -1, axes=(1, 2)))


def test_sound_of_a_video(samples):
  wave = video_audio(samples['video'])
  assert wave is not None and abs(len(wave) - 48_000) < 1024
  assert video_audio(samples['silent_video']) is None
  assert video_audio((np.zeros((4, 8, 8, 3), np.uint8), 2.0)) is None


def test_a_playlist_cannot_open_other_files(samples, tmp_path, monkeypatch):
  """Through FFmpeg a script of file names would be followed, out of any media folder."""
  (tmp_path / 'secret.mp4').write_bytes(samples['video'].read_bytes())
  monkeypatch.chdir(tmp_path)
  for script in (
    b'ffconcat version 1.0\nfile secret.mp4\n',
    b'#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsecret.mp4\n#EXT-X-ENDLIST\n',
  ):
    with pytest.raises(ValueError, match=f'{len(script)} bytes: not readable as a video'):
      load_video(script, fps=2)
    with pytest.raises(ValueError, match=f'{len(script)} bytes: not readable as audio'):
      video_audio(script)


@pytest.mark.parametrize(
  'source, message',
  [
    (np.zeros((4, 8, 8, 3), np.uint8), 'without their rate'),
    ((np.zeros((4, 8, 8, 3)), 2.0), 'expected uint8'),
    ((np.zeros((4, 8, 8), np.uint8), 2.0), 'expected uint8'),
    ((np.zeros((0, 8, 8, 3), np.uint8), 2.0), 'expected uint8'),
    ((np.zeros((4, 8, 8, 3), np.uint8), 0.0), 'source fps'),
    ((np.zeros((4, 8, 8, 3), np.uint8), float('nan')), 'source fps'),
    (['a', 'b'], 'picture 0 of the list: a: no such file'),
    (5, 'expected a path'),
  ],
)
def test_impossible_sources_are_errors(source, message):
  with pytest.raises(ValueError, match=message):
    load_video(source, fps=2)


@pytest.mark.parametrize('fps', [0, -1, float('nan'), float('inf'), '2', None, True])
def test_fps_is_always_a_rate(samples, fps):
  with pytest.raises(ValueError, match=r'moving\.mp4: fps'):
    load_video(samples['video'], fps=fps)


def test_sound_alone_is_no_video(samples):
  with pytest.raises(ValueError, match=r'melody\.wav: no video in it'):
    load_video(samples['audio'], fps=2)


def test_clips_and_samples_are_the_same_every_time(samples, tmp_path):
  again = write_samples(tmp_path)
  assert {k: p.read_bytes() for k, p in again.items()} == {k: p.read_bytes() for k, p in samples.items()}
  assert melody(1.0).shape == (22_050, 2)


def test_a_clip_is_a_plain_record(samples):
  clip = load_video(pathlib.Path(samples['video']), fps=2)
  assert [f.name for f in dataclasses.fields(clip)] == ['frames', 'fps', 'sampled_fps', 'duration_s', 'has_audio', 'late_s']
