"""A stretch of a sound or video is what a file with nothing else in it would be."""

import io

import numpy as np
import pytest
import soundfile

from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.media.keys import MediaKeys
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.media.video import load_video, video_audio
from tests.media.made import numbers, picture, tone, video

FILM = [picture(i) for i in range(30)]  # 3 s at 10 a second


def chirp(seconds: float) -> np.ndarray:
  """A tone that rises, so that a wrong place sounds wrong."""
  t = np.arange(round(seconds * 16_000)) / 16_000
  return (0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t)).astype(np.float32)


@pytest.mark.parametrize('media', ['processor', 'utils'])
def test_a_stretch_of_a_video_is_a_shorter_video(tiny_folder, media):
  processor = Processor.from_folder(tiny_folder, media=media)
  sound = chirp(3.0)
  whole, cut = video(FILM, sound=sound), video(FILM[5:25], sound=sound[8000:38_400])
  ask = lambda data, **keys: processor(
    [{'role': 'user', 'content': [{'type': 'video', 'video': data, 'audio_in_video': True, **keys}]}], fps=4
  )
  got, want, all_of_it = ask(whole, video_start=0.5, video_end=2.4), ask(cut), ask(whole)
  np.testing.assert_array_equal(got.ids, want.ids)
  np.testing.assert_array_equal(got.positions, want.positions)
  np.testing.assert_array_equal(got.visuals[0].patches, want.visuals[0].patches)
  np.testing.assert_allclose(got.audios[0].mel, want.audios[0].mel, atol=1e-5)
  assert len(all_of_it.ids) > len(want.ids)


def test_tracks_keep_their_place_inside_a_stretch():
  late_sound = video(FILM, sound=chirp(2.0), sound_start_s=1.0)
  wave = video_audio(late_sound, start_s=0.5, end_s=2.5)
  assert len(wave) == 32_000 and not wave[:8000].any()
  np.testing.assert_allclose(wave[8000:], chirp(2.0)[:24_000], atol=1e-4)
  assert video_audio(late_sound, end_s=0.9) is None  # silent until then
  late_pictures = video(FILM, sound=chirp(4.0), start_s=1.0)
  clip = lambda **keys: load_video(late_pictures, fps=10, keys=MediaKeys(**keys))
  assert (numbers(clip().frames)[0], clip().late_s) == (0, pytest.approx(1.0))
  early, later = clip(start_s=0.5, end_s=2.45), clip(start_s=1.5, end_s=2.45)
  assert (numbers(early.frames)[0], early.late_s, len(early.frames)) == (0, pytest.approx(0.5), 14)
  assert (numbers(later.frames), later.late_s) == (list(range(5, 15)), 0.0)
  with pytest.raises(ValueError, match='no frame from 0 s to 0.9 s; the video has 30 frames from 1.00 s to 4.00 s'):
    clip(end_s=0.9)


def test_frames_at_a_variable_rate_are_sampled_inside_the_stretch():
  times = [0, 0.1, 0.2, 0.3, 3.0, 3.1, 3.2, 9.0]
  odd = video([picture(i) for i in range(8)], times_s=times, last_s=1.0)
  shown = lambda fps, **keys: numbers(load_video(odd, fps=fps, keys=MediaKeys(min_frames=2, **keys)).frames)
  assert shown(2, start_s=2.0, end_s=4.0) == [3, 3, 4, 6]
  assert shown(2, start_s=8.5) == [6, 7]
  assert shown(1, end_s=2.0) == [0, 3]
  assert shown(1, start_s=4.0, end_s=6.0, nframes=4) == [6, 6, 6, 6]


@pytest.mark.parametrize('kind, subtype', [('WAV', 'PCM_16'), ('FLAC', 'PCM_16'), ('OGG', 'VORBIS'), ('MP3', 'MPEG_LAYER_III')])
def test_a_stretch_of_a_sound_is_found_in_every_format(kind, subtype):
  file = io.BytesIO()
  soundfile.write(file, np.tile(chirp(3.0), 12), 16_000, subtype, format=kind)
  whole = load_audio(file.getvalue())
  for start, end in ((0.25, 1.0), (4.1, 9.7), (31.0, None), (None, 0.5)):
    got = load_audio(file.getvalue(), start_s=start, end_s=end)
    first = int((start or 0) * 16_000)
    stop = None if end is None else first + int((end - (start or 0)) * 16_000)
    np.testing.assert_array_equal(got, whole[first:stop])
  with pytest.raises(ValueError, match=r'no sound from 40 s; it has 3\d\.\d\d s'):
    load_audio(file.getvalue(), start_s=40)


def test_nothing_behind_a_stretch_is_read_and_all_before_its_end_is():
  file = io.BytesIO()
  soundfile.write(file, chirp(3.0), 16_000, 'PCM_16', format='FLAC')
  data = file.getvalue()
  half = data[: len(data) // 2]
  assert len(load_audio(half, start_s=0.25, end_s=0.75)) == 8000
  with pytest.raises(ValueError, match='damaged or truncated'):
    load_audio(half, start_s=0.2, end_s=2.9)
  np.testing.assert_array_equal(
    load_audio(video(FILM, sound=tone(3.0)), start_s=1, end_s=2), load_audio(video(FILM, sound=tone(3.0)))[16_000:32_000]
  )
