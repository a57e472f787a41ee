"""Media keep their time: files with odd clocks beside the same content in its plainest encoding."""

import numpy as np
import pytest

from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.media.timeline import make_timeline
from qwen3_omni_jax.media.video import load_video, sample_indices, sample_times, video_audio
from tests.media.made import SIZE, numbers, picture, tone, video

BURSTS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 3.0, 3.1, 3.2, 9.0, 9.1, 9.2]  # seconds; a screen that changes now and then


def held(times: list[float], pictures: list[np.ndarray], end: float, fps: int = 10) -> list[np.ndarray]:
  """The same film at a constant rate: each picture as often as it is shown."""
  return [pictures[np.searchsorted(times, i / fps + 1e-6, 'right') - 1] for i in range(round(end * fps))]


def asked(processor: Processor, data: bytes, hear: bool = True):
  return processor([{'role': 'user', 'content': [{'type': 'video', 'video': data}]}], audio_in_video=hear)


@pytest.mark.parametrize('kind', ['matroska', 'mp4', 'mpegts', 'nut'])
def test_frames_are_sampled_by_their_time(kind):
  pictures = [picture(i) for i in range(len(BURSTS))]
  odd = video(pictures, times_s=BURSTS, kind=kind, last_s=0.1)
  plain = video(held(BURSTS, pictures, 9.3))
  for fps in (0.2, 0.7, 1, 2, 3.3, 5, 9.9):
    ours, same = load_video(odd, fps=fps), load_video(plain, fps=fps)
    np.testing.assert_array_equal(ours.frames, same.frames)
    assert (ours.sampled_fps, ours.fps) == pytest.approx((same.sampled_fps, same.fps))
    assert ours.duration_s == pytest.approx(same.duration_s) == pytest.approx(9.3)
  assert numbers(load_video(odd, fps=2).frames) == [0, 5, 5, 5, 5, 5, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]
  evenly = video(pictures)  # counterfactual: the same pictures at a constant rate are another film
  assert numbers(load_video(evenly, fps=5).frames) == [0, 2, 4, 6, 8, 10]


def test_the_frame_shown_at_a_time_is_the_last_that_came():
  rng = np.random.default_rng(0)
  for _ in range(200):
    times = np.r_[0, np.cumsum(rng.choice([0.02, 0.1, 0.35, 2.0], rng.integers(1, 40)))]
    line = make_timeline(times, times[-1] + 0.5, 25.0)
    when = rng.uniform(0, line.end, 50)
    want = [max(i for i, t in enumerate(times) if t <= w + line.rounding_s) for w in when]
    assert line.shown_at(when).tolist() == want
    chosen = sample_times(line, 2.0)
    spread = np.arange(len(chosen)) * line.end / len(chosen)
    assert not line.steady or len(set(np.diff(times).round(6))) <= 1
    assert line.steady or chosen.tolist() == line.shown_at(spread).tolist()


def test_constant_rates_are_sampled_by_number_however_times_are_rounded():
  rng = np.random.default_rng(0)
  for _ in range(300):
    rate = float(rng.choice([8, 10, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60, 120]))
    total, tick = int(rng.integers(2, 900)), float(rng.choice([1 / 1000, 1 / 600, 1 / 15360, 1 / 90_000, 1 / rate]))
    times = np.round(np.arange(total) / rate / tick) * tick
    said = float(rng.choice([rate, 1000.0]))  # some headers are wrong: the spacing of the frames decides
    line = make_timeline(times, np.round(total / rate / tick) * tick, said, tick)
    assert line.steady and line.rate == pytest.approx(rate, rel=2e-3 if said != rate else 1e-9)
    fps = float(rng.choice([0.5, 1, 2, 4, 30]))
    if said == rate:
      assert sample_times(line, fps).tolist() == sample_indices(total, rate, fps).tolist()


def test_the_last_frame_is_shown_as_long_as_the_file_says():
  pictures = [picture(i) for i in range(10)]
  times = [i / 10 for i in range(10)]
  for kind in ('matroska', 'mp4'):
    held_on = load_video(video(pictures, kind=kind, last_s=4.1), fps=2)
    assert held_on.duration_s == pytest.approx(5.0)
    assert numbers(held_on.frames) == [0, 5, 9, 9, 9, 9, 9, 9, 9, 9]
  plain = load_video(video(held(times, pictures, 5.0)), fps=2)
  np.testing.assert_array_equal(held_on.frames, plain.frames)
  assert load_video(video(pictures), fps=2).duration_s == pytest.approx(1.0)


@pytest.mark.parametrize('kind, zero', [('matroska', 0.0), ('matroska', 5.0), ('mov', 0.0), ('nut', 5.0), ('nut', -2.0)])
def test_late_sound_has_silence_before_it(small_processor, kind, zero):
  """As the same film whose sound is silent at first: same tokens, positions and mel. A second is 13 tokens."""
  pictures, beep = [picture(i) for i in range(30)], tone(2.0)
  late = asked(small_processor, video(pictures, sound=beep, sound_start_s=zero + 1.0, start_s=zero, kind=kind))
  plain = asked(small_processor, video(pictures, sound=np.r_[np.zeros(16_000, np.float32), beep]))
  np.testing.assert_array_equal(late.ids, plain.ids)
  np.testing.assert_array_equal(late.positions, plain.positions)
  np.testing.assert_allclose(late.audios[0].mel, plain.audios[0].mel, atol=1e-5)
  np.testing.assert_array_equal(late.visuals[0].patches, plain.visuals[0].patches)
  prompt = asked(small_processor, video(pictures, sound=beep))
  audio = small_processor.cfg.thinker.audio_token_id
  assert np.sum(late.ids == audio) == np.sum(prompt.ids == audio) + 13


@pytest.mark.parametrize('kind', ['matroska', 'mov', 'nut'])
def test_late_pictures_have_later_positions(small_processor, kind):
  pictures, beep = [picture(i) for i in range(20)], tone(3.0)
  late = asked(small_processor, video(pictures, sound=beep, start_s=1.0, kind=kind))
  plain = asked(small_processor, video(pictures, sound=beep))
  video_token, audio_token = small_processor.cfg.thinker.video_token_id, small_processor.cfg.thinker.audio_token_id
  begin = lambda row: int(np.flatnonzero(np.isin(row.ids, (video_token, audio_token)))[0])
  time = lambda row, token: row.positions[0, row.ids == token] - row.positions[0, begin(row)]
  np.testing.assert_allclose(time(late, video_token), time(plain, video_token) + 13)
  np.testing.assert_array_equal(time(late, audio_token), time(plain, audio_token))
  first = begin(late)
  assert late.ids[first : first + 13].tolist() == [audio_token] * 13 and late.ids[first + 13] == video_token
  assert plain.ids[first] == video_token
  np.testing.assert_array_equal(late.visuals[0].patches, plain.visuals[0].patches)
  # Alone, a track begins at its own zero.
  for alone in (False, True):
    got, want = (
      asked(small_processor, video(pictures, sound=beep if alone is False else None, start_s=s, kind=kind), hear=alone)
      for s in (1.0, 0.0)
    )
    np.testing.assert_array_equal(got.positions, want.positions)


def test_tracks_that_begin_a_moment_apart_begin_together(small_processor):
  pictures, beep = [picture(i) for i in range(20)], tone(2.0)
  plain = asked(small_processor, video(pictures, sound=beep))
  for apart in ({'start_s': 0.03}, {'sound_start_s': 0.03}):
    row = asked(small_processor, video(pictures, sound=beep, **apart))
    np.testing.assert_array_equal(row.positions, plain.positions)
    np.testing.assert_array_equal(row.audios[0].mel, plain.audios[0].mel)


@pytest.mark.parametrize('kind', ['avi', 'mp4', 'matroska', 'mpegts', 'flv'])
def test_frames_coded_out_of_order_come_in_order(kind):
  """Also in AVI, which keeps no presentation times: FFmpeg's guesses there are late, and run back."""
  pictures, moment = [picture(i) for i in range(32)], 10 if kind == 'avi' else 1000
  sound = {'sound': tone(3.0), 'sound_codec': 'pcm_s16le' if kind in ('avi', 'matroska') else 'aac'}
  clip = load_video(video(pictures, kind=kind, tick=moment, b_frames=3, **sound), fps=5)
  assert numbers(clip.frames) == list(range(0, 32, 2)) and clip.duration_s == pytest.approx(3.2)
  assert clip.late_s == pytest.approx(0.064 if kind in ('mpegts', 'flv') else 0.0)  # AAC's first block, which they do not mark


def test_what_an_edit_list_cuts_away_is_not_shown():
  """Pictures before zero of an MP4 are there to be decoded, and not to be seen."""
  clip = load_video(video([picture(i) for i in range(20)], start_s=-0.5, kind='mp4', sound=tone(2.0), sound_codec='aac'), fps=10)
  assert numbers(clip.frames)[:3] == [5, 6, 7] and clip.duration_s == pytest.approx(1.5) and clip.late_s == 0


def test_a_hole_in_the_sound_is_silence():
  whole = tone(3.0)
  data = video([picture(i) for i in range(50)], sound=whole, sound_times=[(0, 1, 0), (1, 3, 2.5)])
  got = video_audio(data)
  want = np.r_[whole[:16_000], np.zeros(24_000, np.float32), whole[16_000:]]
  assert len(got) == len(want) and np.abs(got - want).max() < 1e-4
  jitter = video([picture(0)] * 30, sound=whole, sound_times=[(0, 1, 0), (1, 2, 1.01), (2, 3, 1.99)])  # milliseconds are no hole
  assert len(video_audio(jitter)) == len(whole)


def test_a_clock_that_runs_back_is_refused():
  """Two recordings written one after the other: their times begin again."""
  one = video([picture(i) for i in range(20)], kind='mpegts', sound=tone(2.0), sound_codec='aac')
  for read in (lambda d: load_video(d, fps=2), video_audio):
    with pytest.raises(ValueError, match='clock runs back .* joined end to end'):
      read(one + one)
    read(one)


def test_the_default_track_counts_and_a_cover_is_no_video():
  pitch = lambda wave: np.argmax(np.abs(np.fft.rfft(wave[:16_000])))
  two = {'sound': tone(1.0, 440), 'extra_sound': tone(1.0, 1760)}
  for marked, heard in ((None, 440), (0, 440), (1, 1760)):
    data = video([picture(i) for i in range(10)], default_sound=marked, **two)
    assert pitch(video_audio(data)) == pitch(load_audio(data)) == heard
  cover = with_cover()
  with pytest.raises(ValueError, match='no video in it'):
    load_video(cover, fps=2)
  assert len(video_audio(cover)) == 16_000


def with_cover() -> bytes:
  """A FLAC with a cover picture, which FFmpeg shows as a video of one frame."""
  import io
  import struct

  import soundfile
  from PIL import Image

  file, cover = io.BytesIO(), io.BytesIO()
  soundfile.write(file, tone(1.0), 16_000, format='FLAC')
  Image.fromarray(picture(1)).save(cover, 'PNG')
  data = cover.getvalue()
  block = struct.pack('>II', 3, 9) + b'image/png' + struct.pack('>IIIII', 0, SIZE[1], SIZE[0], 24, 0)
  block += struct.pack('>I', len(data)) + data
  flac = file.getvalue()
  return flac[:42] + bytes([6]) + len(block).to_bytes(3, 'big') + block + flac[42:]
