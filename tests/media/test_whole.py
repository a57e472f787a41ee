"""What a header promises and the data do not hold is refused; so is a second recording that nobody would hear."""

import io
import struct

import numpy as np
import pytest
import soundfile

from qwen3_omni_jax.media.audio import decode_track, load_audio
from qwen3_omni_jax.media.source import Limits
from qwen3_omni_jax.media.video import load_video, video_audio
from qwen3_omni_jax.media.whole import mp3_tag, second_recording, stated_sound
from tests.media.made import picture, tone, video

PCM = [('WAV', 'PCM_16'), ('WAVEX', 'PCM_24'), ('RF64', 'PCM_16'), ('W64', 'FLOAT'), ('AIFF', 'PCM_16'), ('AU', 'PCM_16')]
PCM += [('CAF', 'PCM_16'), ('WAV', 'IMA_ADPCM')]
CODED = [('FLAC', None), ('OGG', 'VORBIS'), ('OGG', 'OPUS'), ('MP3', None)]
ANY = Limits(missing_s=float('inf'))
BEEPS = np.concatenate([tone(1.0, hz) for hz in (300, 500, 700, 900)])


def encoded(samples: np.ndarray, kind: str, subtype: str | None, rate_hz: int = 16_000) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
  return file.getvalue()


@pytest.fixture(scope='module')
def film() -> dict[str, bytes]:
  pictures = [picture(i) for i in range(40)]
  kinds = {'matroska': 'pcm_s16le', 'mov': 'pcm_s16le', 'mp4': 'aac', 'flv': 'aac', 'avi': 'pcm_s16le'}
  return {
    kind: video(pictures, kind=kind, sound=BEEPS, sound_codec=codec, tick=10 if kind == 'avi' else 1000)
    for kind, codec in kinds.items()
  }


@pytest.mark.parametrize('kind, subtype', PCM)
def test_a_sound_file_that_ends_too_early_is_refused(kind, subtype):
  data = encoded(BEEPS, kind, subtype)
  whole = load_audio(data)
  for share in (0.3, 0.5, 0.9):
    with pytest.raises(ValueError, match=r'truncated: its header says 4\.\d\d s, '):
      load_audio(data[: int(len(data) * share)])
  little = load_audio(data[: -(len(data) // 50)])  # 80 ms: within what is let pass
  np.testing.assert_array_equal(little[:60_000], whole[:60_000])
  assert len(load_audio(data[: len(data) // 2], ANY)) == pytest.approx(32_000, rel=0.15)  # who wants what there is says so


@pytest.mark.parametrize('kind, subtype', CODED)
def test_a_coded_sound_that_lost_a_part_is_refused(kind, subtype):
  noisy = BEEPS + np.random.default_rng(0).normal(0, 0.05, len(BEEPS)).astype(np.float32)
  data = encoded(np.tile(noisy, 4), kind, subtype)
  assert len(load_audio(data)) == 16 * 16_000
  damaged = bytearray(data)
  middle = len(data) // 2
  damaged[middle : middle + 4000] = bytes(4000)
  with pytest.raises(ValueError, match='damaged or truncated: its header says 16'):
    load_audio(bytes(damaged))
  if kind != 'OGG':  # the header of an Ogg states no length
    with pytest.raises(ValueError, match='truncated: its header says 16'):
      load_audio(data[:middle])


@pytest.mark.parametrize('kind, subtype', PCM + CODED)
def test_a_second_recording_in_a_file_is_refused(kind, subtype):
  one = encoded(BEEPS, kind, subtype)
  assert second_recording(one) is None
  for two in (one + one, one + encoded(tone(0.3), kind, subtype)):
    assert second_recording(two) == len(one)
    with pytest.raises(ValueError, match=f'a second recording begins at byte {len(one)}; split the file'):
      load_audio(two)
  assert second_recording(one + bytes(3000)) is None
  np.testing.assert_array_equal(load_audio(one + bytes(3000))[:64_000], load_audio(one)[:64_000])  # padding is none


def test_frames_behind_the_stated_end_of_an_mp3_are_a_second_recording():
  """soundfile would stop before them."""
  one, two = encoded(BEEPS, 'MP3', None), encoded(tone(2.0), 'MP3', None)
  tag = mp3_tag(two)
  untagged = two[tag.start + 400 :]
  untagged = untagged[untagged.index(two[:2]) :]  # from its first frame of sound on
  assert mp3_tag(untagged) is None
  for follows in (untagged, b'ID3\x03\0\0\0\0\0\x0a' + bytes(10) + two, b'TAG' + bytes(125) + two):
    with pytest.raises(ValueError, match='a second recording begins at byte'):
      load_audio(one + follows)
  assert len(load_audio(one + b'TAG' + bytes(125))) == 64_000


def test_sizes_that_stand_for_unknown_ones_promise_nothing():
  """What streams write before they know: 0, or as much as fits."""
  data = bytearray(encoded(BEEPS, 'WAV', 'PCM_16'))
  for size in (0, 2**32 - 1, 2**31 - 1, 2**31 - 36, 0x7FFFF000):
    data[40:44] = struct.pack('<I', size)
    assert stated_sound(bytes(data)) is None
    np.testing.assert_array_equal(load_audio(bytes(data)), load_audio(encoded(BEEPS, 'WAV', 'PCM_16')))


def test_an_mp3_without_a_stated_length_is_read_to_its_end():
  """soundfile stops such a file where the first frame's bit rate would end it: after a third of this one."""
  import av

  noise = np.random.default_rng(0).normal(0, 0.3, 80_000).astype(np.float32)
  wave = np.r_[noise, np.tile(BEEPS, 3)[:160_000]]
  file = io.BytesIO()
  with av.open(file, 'w', format='mp3', options={'write_xing': '0', 'id3v2_version': '0'}) as container:
    stream = container.add_stream('libmp3lame', rate=16_000, layout='mono', options={'global_quality': '472'})
    stream.codec_context.flags |= 2  # by quality: a variable bit rate
    for at in range(0, len(wave), 1152):
      frame = av.AudioFrame.from_ndarray(wave[None, at : at + 1152], format='fltp', layout='mono')
      frame.sample_rate, frame.pts = 16_000, at
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  data = file.getvalue()
  assert mp3_tag(data) is None and mp3_tag(encoded(BEEPS, 'MP3', None)).frames
  assert soundfile.info(io.BytesIO(data)).frames < 120_000
  assert abs(len(load_audio(data)) - len(wave)) < 3000


@pytest.mark.parametrize('kind', ['matroska', 'flv', 'avi'])
def test_a_video_that_ends_before_its_header_says_is_refused(film, kind):
  data = film[kind]
  assert load_video(data, fps=2).duration_s == pytest.approx(4.0)
  for read in (lambda d, *limits: load_video(d, fps=2, limits=limits[0] if limits else None), video_audio):
    read(data)
    with pytest.raises(ValueError, match=r'truncated: its header says (4|3\.9|4\.1)|broken after [12]\.\d\d s'):
      read(data[: len(data) // 2])
  partly = load_video(data[: len(data) // 2], fps=2, limits=ANY)
  assert 0.5 < partly.duration_s < 3.5


@pytest.mark.parametrize('kind', ['matroska', 'mov', 'avi', 'nut'])
def test_tracks_of_unlike_length_are_whole(kind):
  """FFmpeg gives the container's duration to streams that have none of their own."""
  for count, seconds in ((2, 3.0), (40, 0.5)):
    data = video([picture(i) for i in range(count)], kind=kind, sound=tone(seconds), tick=10 if kind == 'avi' else 1000)
    assert load_video(data, fps=10).duration_s == pytest.approx(count / 10)
    assert len(video_audio(data)) == pytest.approx(16_000 * seconds, abs=20)


def test_an_mp4_with_its_header_in_front_and_half_its_data_is_refused(film, tmp_path):
  import av

  for kind in ('mp4', 'mov'):
    out = str(tmp_path / kind)
    with av.open(io.BytesIO(film[kind])) as source, av.open(out, 'w', format=kind, options={'movflags': 'faststart'}) as target:
      streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
      for packet in source.demux():
        if packet.dts is not None:
          packet.stream = streams[packet.stream.index]
          target.mux(packet)
    data = (tmp_path / kind).read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')
    for read in (lambda d: load_video(d, fps=2), video_audio):
      read(data)
      with pytest.raises(ValueError, match='truncated: its header says|not readable as'):
        read(data[: len(data) * 2 // 3])


@pytest.mark.parametrize('kind', ['matroska', 'mov', 'avi'])
def test_a_second_film_in_a_file_is_refused(film, kind):
  one = film[kind]
  assert second_recording(one) is None
  for read in (lambda d: load_video(d, fps=2), video_audio, load_audio):
    with pytest.raises(ValueError, match='a second recording begins at byte'):
      read(one + one)


def test_a_live_recording_promises_nothing(tmp_path):
  """A Matroska without a duration, as browsers record it, is read as far as it goes."""
  data = bytearray(video([picture(i) for i in range(40)], sound=BEEPS))
  at = data.index(b'\x44\x89\x88')
  data[at : at + 3] = b'\xec\x80\xec'[:2] + b'\xec'  # an empty element (Void), and a Void of eight bytes
  data[at + 2 : at + 11] = b'\xec\x87' + bytes(7)
  clip = load_video(bytes(data), fps=2)
  assert clip.duration_s == pytest.approx(4.0)
  assert 0.5 < load_video(bytes(data[: len(data) // 2]), fps=2).duration_s < 3.5


def test_a_track_that_fails_in_the_middle_is_refused(film):
  data = bytearray(film['mp4'])
  middle = data.index(b'mdat') + len(data) // 3
  data[middle : middle + 3000] = bytes(range(256)) * 11 + bytes(184)
  with pytest.raises(ValueError, match=r'not readable as audio: broken after \d\.\d\d s|truncated'):
    decode_track(bytes(data), 'x', Limits())
