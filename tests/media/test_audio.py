"""Sound in: the right samples from any container, and the reference's log-mel frames and token counts."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile

from qwen3_omni_jax.media.audio import audio_tokens, load_audio, log_mel
from qwen3_omni_jax.media.source import Limits


def tone(seconds: float, rate_hz: int, hz: float = 440.0) -> np.ndarray:
  return (0.4 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def encoded(samples: np.ndarray, rate_hz: int, kind: str, subtype: str | None = None) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
  return file.getvalue()


def aac(samples: np.ndarray, rate_hz: int, layout: str) -> bytes:
  """An m4a of float samples 'W C'."""
  import av

  file = io.BytesIO()
  with av.open(file, 'w', format='mp4') as container:
    stream = container.add_stream('aac', rate=rate_hz, layout=layout)
    for start in range(0, len(samples), 1024):
      frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[start : start + 1024].T), format='fltp', layout=layout)
      frame.sample_rate, frame.pts = rate_hz, start
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return file.getvalue()


@pytest.mark.parametrize(
  'kind, subtype',
  [
    ('WAV', 'PCM_16'),
    ('WAV', 'FLOAT'),
    ('WAV', 'PCM_U8'),
    ('FLAC', 'PCM_24'),
    ('OGG', 'VORBIS'),
    ('AIFF', 'PCM_16'),
    ('MP3', None),
  ],
)
def test_formats_give_the_same_sound(kind, subtype):
  wave = tone(1.0, 16_000)
  got = load_audio(encoded(wave, 16_000, kind, subtype))
  assert got.dtype == np.float32 and got.ndim == 1
  # 8 bits: half a step of 1/128; lossy codecs: a few per cent.
  assert np.abs(got[2000:14000] - wave[2000:14000]).max() < {'PCM_U8': 0.01, 'VORBIS': 0.03, None: 0.03}.get(subtype, 1e-4)


@pytest.mark.parametrize('rate_hz', [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_any_rate_becomes_16_khz(rate_hz):
  got = load_audio(encoded(tone(1.0, rate_hz), rate_hz, 'WAV', 'FLOAT'))
  assert len(got) == 16_000
  assert np.abs(got[1000:-1000] - tone(1.0, 16_000)[1000:-1000]).max() < 1e-3  # of soxr's high-quality filter


def test_resampling_is_librosas():
  import librosa

  noise = np.random.default_rng(0).standard_normal(22_050).astype(np.float32) * 0.1
  np.testing.assert_array_equal(load_audio((noise, 22_050)), librosa.resample(noise, orig_sr=22_050, target_sr=16_000))


@pytest.mark.parametrize('channels, layout', [(2, 'stereo'), (6, '5.1')])
def test_channels_are_averaged_alike_by_both_readers(channels, layout):
  """Two equal channels stay as loud as one: FFmpeg's own downmix would make them 1.41 times louder."""
  samples = np.stack([tone(1.0, 16_000)] + [np.zeros(16_000, np.float32)] * (channels - 1), axis=1)
  wave = samples.mean(axis=1)
  assert np.abs(load_audio(encoded(samples, 16_000, 'WAV', 'FLOAT')) - wave).max() < 1e-6
  lossy = load_audio(aac(samples, 16_000, layout))
  assert np.abs(lossy[2000:14000]).max() == pytest.approx(0.4 / channels, rel=0.03)
  equal = load_audio(aac(np.stack([tone(1.0, 16_000)] * 2, axis=1), 16_000, 'stereo'))
  assert np.abs(equal[2000:14000]).max() == pytest.approx(0.4, rel=0.03)


def test_the_track_of_a_video_is_heard(samples):
  got, wav = load_audio(samples['video']), load_audio(samples['audio'])
  assert abs(len(got) - len(wav)) <= 1024  # AAC fills its last block
  assert np.corrcoef(got[: len(wav)], wav[: len(got)])[0, 1] > 0.99
  with pytest.raises(ValueError, match=r'silent\.mp4: no audio in it'):
    load_audio(samples['silent_video'])


def test_arrays_are_taken_with_their_rate():
  wave = tone(1.0, 8_000)
  np.testing.assert_array_equal(load_audio((wave, 8_000)), load_audio(encoded(wave, 8_000, 'WAV', 'FLOAT')))
  np.testing.assert_array_equal(load_audio(wave), wave)  # a bare array is at 16 kHz
  scaled = np.round(wave * 32768).astype(np.int16)
  assert np.abs(load_audio(scaled) - wave).max() <= 0.51 / 32768
  assert np.abs(load_audio(np.round(wave * 128 + 128).astype(np.uint8)) - wave).max() <= 0.51 / 128
  np.testing.assert_allclose(load_audio(np.stack([wave, np.zeros_like(wave)], 1)), wave / 2, atol=1e-7)


def test_samples_on_another_scale_are_refused():
  """Floats are in [-1, 1]: beyond what any mix reaches they were something else, and the mel floor would hide it."""
  wave = tone(1.0, 16_000)
  for scale in (128, 32_768, 2.0**31):
    for cast in (np.float16, np.float32, np.float64) if scale < 1e4 else (np.float32, np.float64):
      with pytest.raises(ValueError, match=r'floats are expected in \[-1, 1\].*divide by their scale'):
        load_audio((wave * scale).astype(cast))
    for kind, subtype in (('WAV', 'FLOAT'), ('WAV', 'DOUBLE'), ('AIFF', 'FLOAT'), ('CAF', 'FLOAT')):
      with pytest.raises(ValueError, match='floats are expected in'):
        load_audio(encoded(wave * scale, 16_000, kind, subtype))
  for peak in (1.0, 1.5, 4.0):  # a hot mix is none of this
    loud = wave / 0.4 * peak
    np.testing.assert_array_equal(load_audio(loud), loud)
    np.testing.assert_array_equal(load_audio(encoded(loud, 16_000, 'WAV', 'FLOAT')), loud)


def test_integers_in_a_wider_type_are_refused():
  """numpy makes int64 of a list of 16-bit samples: on that type's scale they are silence."""
  wave = np.round(tone(1.0, 16_000) * 32_767)
  for wide in (np.int32, np.int64):
    with pytest.raises(ValueError, match=rf'{np.dtype(wide)} samples, none larger than 13107: .* nearly silence.*int16'):
      load_audio(wave.astype(wide))
    assert not load_audio(np.zeros(1600, wide)).any()  # real silence is fine
  scaled = wave.astype(np.int32) << 16
  np.testing.assert_allclose(load_audio(scaled), load_audio(wave.astype(np.int16)), atol=1e-7)
  np.testing.assert_allclose(load_audio(scaled.astype(np.int64) << 32), load_audio(scaled), atol=1e-7)


@pytest.mark.parametrize(
  'source, message',
  [
    (np.zeros(0, np.float32), r'array of shape \(0,\)'),
    (np.zeros(159, np.float32), '159 samples'),
    (np.full(400, np.nan), '400 samples are NaN'),
    (np.r_[np.zeros(400), np.inf], '1 samples are NaN or infinite'),
    (np.full(400, 1e300), 'infinite'),
    (np.zeros((2, 3, 4)), 'shape'),
    (np.zeros((2, 16_000)), '16000 channels'),
    (np.zeros(400, complex), 'complex'),
    (np.array(['a']), 'dtype'),
    ((np.zeros(400), 0), 'sample rate 0'),
    ((np.zeros(400), -16_000), 'sample rate'),
    ((np.zeros(400), float('nan')), 'sample rate'),
    ((np.zeros(400), 10**9), 'sample rate'),
    ((np.zeros(400), '16000'), 'sample rate'),
    (([[1.0], [1.0, 2.0]], 16_000), 'not an array of samples'),
    ([0.1, 0.2, 0.3], 'numpy array'),
  ],
)
def test_impossible_samples_are_errors(source, message):
  with pytest.raises(ValueError, match=message):
    load_audio(source)


def test_limits_hold_before_the_samples_are_made():
  limits = Limits(audio_s=2.0, audio_channels=2, audio_samples=50_000)
  with pytest.raises(ValueError, match='3 s of audio; the limit is 2 s'):
    load_audio((np.zeros(48_000, np.float32), 16_000), limits)
  with pytest.raises(ValueError, match='3 channels; the limit is 2'):
    load_audio(encoded(np.zeros((16_000, 3)), 16_000, 'WAV'), limits)
  with pytest.raises(ValueError, match='60000 samples at 48000 Hz'):
    load_audio(encoded(np.zeros(60_000), 48_000, 'WAV'), limits)
  bomb = encoded(np.zeros((48_000 * 100, 2), np.int16), 48_000, 'FLAC')
  assert len(bomb) < 200_000  # stands for 38 MB of samples
  tracemalloc.start()
  with pytest.raises(ValueError, match='100 s of audio'):
    load_audio(bomb, limits)
  assert tracemalloc.get_traced_memory()[1] < 8e6
  tracemalloc.stop()


@pytest.fixture(scope='module')
def extractor():
  import transformers

  return transformers.WhisperFeatureExtractor(feature_size=128)


def reference_mel(extractor, waves: list[np.ndarray]) -> list[np.ndarray]:
  out = extractor(
    waves, sampling_rate=16_000, padding='longest', truncation=False, return_attention_mask=True, return_tensors='np'
  )
  frames = out['attention_mask'].sum(-1)
  return [mel[:, :n].T for mel, n in zip(out['input_features'], frames, strict=True)]


@pytest.mark.parametrize('samples', [201, 320, 16_000, 16_077, 53_920, 54_000, 29 * 16_000, 30 * 16_000, 31 * 16_000 + 1])
def test_log_mel_equals_the_reference(extractor, samples):
  rng = np.random.default_rng(samples)
  noise = (0.05 * rng.standard_normal(samples)).astype(np.float32)
  voiced = noise + tone(samples / 16_000 + 1, 16_000)[:samples]
  voiced[: samples // 3] *= 1e-5  # near-silence: the floor is at work
  # Ours is computed in float64. The reference's float32 spectrum is off by up to 7e-5 in single bins where the sum cancels.
  for wave in (noise, voiced):
    ours, theirs = log_mel(wave), reference_mel(extractor, [wave])[0]
    assert ours.dtype == np.float32 and ours.shape == theirs.shape == (samples // 160, 128)
    apart = np.abs(ours - theirs)
    assert apart.max() < 1e-4 and apart.mean() < 1e-6


def test_log_mel_of_silence_is_flat(extractor):
  silence = np.zeros(3200, np.float32)
  np.testing.assert_allclose(log_mel(silence), reference_mel(extractor, [silence])[0], atol=1e-6)
  assert np.ptp(log_mel(silence)) == 0


def test_padding_beside_a_longer_clip_is_the_references(extractor):
  """The quirk: one more frame for a length that is no multiple of 160, and zeros instead of a mirrored edge."""
  rng = np.random.default_rng(1)
  waves = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (54_000, 53_920, 63_999, 64_100)]
  for wave, theirs in zip(waves, reference_mel(extractor, waves), strict=True):
    ours = log_mel(wave, pad_to=64_100)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4
  assert [len(log_mel(waves[0])), len(log_mel(waves[0], 64_100))] == [337, 338]


def test_the_shortest_clips_have_frames_or_an_error():
  assert log_mel(np.ones(160, np.float32)).shape == (1, 128)  # shorter than the reflected edge, where the reference fails
  for samples in (0, 1, 159):
    with pytest.raises(ValueError, match=f'{samples} samples at 16 kHz'):
      log_mel(np.zeros(samples, np.float32))


def test_token_counts_are_the_published_ones():
  examples = {0: 0, 1: 1, 8: 1, 9: 2, 50: 7, 99: 13, 100: 13, 101: 14, 337: 44, 3310: 431}
  assert {frames: audio_tokens(frames) for frames in examples} == examples
  seconds = {29: 377, 30: 390, 31: 403, 300: 3_900, 40 * 60: 31_200}
  assert {s: audio_tokens(s * 100) for s in seconds} == seconds


def test_token_counts_equal_the_references():
  from tests.reference import prepare_torchvision

  prepare_torchvision()
  import torch
  from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

  frames = torch.arange(1, 4000)
  assert [audio_tokens(int(n)) for n in frames] == _get_feat_extract_output_lengths(frames).tolist()


def test_nothing_is_cut_and_memory_is_linear_in_a_40_minute_clip():
  wave = np.tile(tone(1.0, 16_000), 40 * 60)
  tracemalloc.start()
  mel = log_mel(wave)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert mel.shape == (240_000, 128) and audio_tokens(len(mel)) == 31_200
  assert peak < 3.5 * mel.nbytes + wave.nbytes  # 123 MB of frames; float64 spectra of the whole clip would be 770 MB
