"""Audio: any file to 16 kHz mono samples, samples to log-mel frames, frames to a number of tokens."""

import functools
import io
import pathlib
from typing import Any

import numpy as np

from .container import first_stream, open_container, unreadable
from .source import Limits, name_of, read_bytes

RATE_HZ = 16_000
N_FFT = 400  # 25 ms
HOP = 160  # 10 ms per frame
MELS = 128
CHUNK_FRAMES = 100  # 1 s: what one convolution chunk of the encoder sees
CHUNK_TOKENS = 13
_STFT_BLOCK = 4096  # frames whose spectrum exists at once


def audio_tokens(frames: int) -> int:
  """Tokens the encoder makes of a clip: 13 for each whole second, and the rest halved three times, rounding up."""
  rest = frames % CHUNK_FRAMES
  for _ in range(3):
    rest = (rest + 1) // 2
  return rest + CHUNK_TOKENS * (frames // CHUNK_FRAMES)


def load_audio(source: Any, limits: Limits | None = None, root: pathlib.Path | None = None) -> np.ndarray:
  """float32 mono samples at 16 kHz, about -1 to 1.

  source: a path, data: URL or bytes in any format soundfile or FFmpeg reads (also the sound track of a video); or samples: a
  (samples, rate_hz) pair, or a bare array taken to be at 16 kHz. Arrays are 'W' or 'W C' floats in [-1, 1] or integers.
  Raises ValueError naming the source if it is empty, too long, not finite, or not audio.
  """
  limits = limits or Limits()
  if isinstance(source, np.ndarray) or hasattr(source, '__array__'):
    source = (source, RATE_HZ)
  if isinstance(source, (tuple, list)) and len(source) == 2 and not isinstance(source[0], (int, float)):
    samples, rate_hz = source
    name = name_of(samples)
  elif isinstance(source, (list, tuple)):
    raise ValueError('audio: a list of numbers; give a numpy array, or (samples, rate_hz)')
  else:
    name = name_of(source)
    samples, rate_hz = _decode(read_bytes(source, limits, root), name, limits)
  return _to_16k(_mono(samples, name), rate_hz, name, limits)


def _mono(samples: Any, name: str) -> np.ndarray:
  try:
    samples = np.asarray(samples)
  except ValueError as e:
    raise ValueError(f'{name}: not an array of samples ({e})') from e
  if samples.dtype.kind not in 'fiu':
    raise ValueError(f'{name}: audio of dtype {samples.dtype}; expected floats in [-1, 1] or integers')
  if samples.ndim not in (1, 2) or samples.size == 0:
    raise ValueError(f'{name}: audio of shape {samples.shape}; expected samples, or samples × channels, at least one')
  if samples.ndim == 2 and samples.shape[1] > 64:
    raise ValueError(f'{name}: {samples.shape[1]} channels; expected samples × channels')
  if samples.dtype.kind in 'iu':
    scale = float(2 ** (8 * samples.dtype.itemsize - 1))
    offset = scale if samples.dtype.kind == 'u' else 0.0
    samples = (samples.astype(np.float32) - np.float32(offset)) / np.float32(scale)
  with np.errstate(over='ignore', invalid='ignore'):  # what float32 cannot hold becomes infinite, and is refused below
    samples = samples.astype(np.float32, copy=False)
    samples = samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float32)
  if not (finite := np.isfinite(samples)).all():
    raise ValueError(f'{name}: {np.count_nonzero(~finite)} samples are NaN or infinite')
  return samples


def _to_16k(samples: np.ndarray, rate_hz: float, name: str, limits: Limits) -> np.ndarray:
  if not isinstance(rate_hz, (int, float, np.integer, np.floating)) or not 100 <= rate_hz <= 1_000_000:
    raise ValueError(f'{name}: sample rate {rate_hz!r}; expected 100 to 1,000,000 Hz')
  if len(samples) / rate_hz > limits.audio_s:
    raise ValueError(f'{name}: {len(samples) / rate_hz:.0f} s of audio; the limit is {limits.audio_s:.0f} s')
  if rate_hz != RATE_HZ:
    import librosa

    samples = librosa.resample(samples, orig_sr=rate_hz, target_sr=RATE_HZ)
  if len(samples) < HOP:
    raise ValueError(f'{name}: {len(samples)} samples at 16 kHz; at least {HOP} (10 ms) are needed')
  return np.ascontiguousarray(samples, np.float32)


class _Bytes(io.BytesIO):
  """Bytes as a file. A damaged header can make libsndfile seek before the start: it stays put, as a file on disk would."""

  def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
    try:
      return super().seek(offset, whence)
    except (ValueError, OverflowError):
      return self.tell()


class _Blocks:
  """Mono samples as they are decoded. What does not fit the limits stops the decoding, whatever the header promised."""

  def __init__(self, name: str, rate_hz: float, limits: Limits):
    self.name, self.rate_hz, self.limits = name, rate_hz, limits
    self.blocks: list[np.ndarray] = []
    self.samples = 0

  def check(self, samples: int, channels: int) -> None:
    seconds = samples / max(self.rate_hz, 1)
    if seconds > self.limits.audio_s:
      raise ValueError(f'{self.name}: {seconds:.0f} s of audio; the limit is {self.limits.audio_s:.0f} s')
    if samples > self.limits.audio_samples:
      raise ValueError(
        f'{self.name}: {samples} samples at {self.rate_hz} Hz; the limit is {self.limits.audio_samples}. '
        'Resample it to 16 kHz first'
      )
    if channels > self.limits.audio_channels:
      raise ValueError(f'{self.name}: {channels} channels; the limit is {self.limits.audio_channels}')

  def add(self, block: np.ndarray) -> None:
    """block: float32 'W C'. The plain mean of the channels is kept, as librosa and the reference take it."""
    self.check(self.samples + len(block), block.shape[1])
    with np.errstate(over='ignore', invalid='ignore'):  # not finite: refused later, with a count
      self.blocks.append(block.mean(axis=1, dtype=np.float32))
    self.samples += len(block)

  def joined(self) -> tuple[np.ndarray, float]:
    if not self.samples:
      raise ValueError(f'{self.name}: no audio samples')
    return np.concatenate(self.blocks), self.rate_hz


def _decode(data: bytes, name: str, limits: Limits) -> tuple[np.ndarray, float]:
  """(mono samples, rate) through soundfile, or through FFmpeg for what soundfile does not read."""
  import soundfile

  try:
    with soundfile.SoundFile(_Bytes(data)) as file:
      blocks = _Blocks(name, file.samplerate, limits)
      # libsndfile says 2^63 - 1 where a header leaves the length open; then only the data can tell.
      blocks.check(file.frames if file.frames < 2**62 else 0, file.channels)
      while len(block := file.read(2**20 // file.channels, dtype='float32', always_2d=True)):
        blocks.add(block)
      return blocks.joined()
  except (soundfile.SoundFileError, RuntimeError, TypeError, OverflowError, MemoryError):
    pass  # not a format of soundfile, or damaged: FFmpeg reads it or says what is wrong
  track = decode_track(data, name, limits)
  if track is None:
    raise ValueError(f'{name}: no audio in it')
  return track


def decode_track(data: bytes, name: str, limits: Limits) -> tuple[np.ndarray, float] | None:
  """(mono samples, rate) of the first audio track, through FFmpeg; None if there is no track."""
  import av

  with open_container(data, name, 'audio') as container:
    stream = first_stream(container, 'audio', name)
    if stream is None:
      return None
    # Only the sample format is converted: FFmpeg's own way to mono weights channels (two equal ones get 1.41 times louder).
    resampler = av.AudioResampler(format='fltp')
    blocks = _Blocks(name, stream.codec_context.sample_rate or RATE_HZ, limits)
    try:
      for frame in container.decode(stream):
        if not blocks.samples:
          blocks.rate_hz = frame.sample_rate
        for part in resampler.resample(frame):
          blocks.add(part.to_ndarray().T)
      for part in resampler.resample(None) if blocks.samples else ():
        blocks.add(part.to_ndarray().T)
    except (av.FFmpegError, ValueError, OSError, MemoryError) as e:
      if str(e).startswith(name):
        raise
      raise unreadable(name, 'audio', e) from e
  return blocks.joined()


@functools.cache
def _mel_filters():
  """'M 201', Slaney scale and normalisation, 0 to 8000 Hz; made in float64 like the reference's.

  Sparse: a filter covers few of the bins, and a dense matmul would start BLAS threads for a millisecond's work, which on a busy
  machine takes ten times as long as all the rest.
  """
  import librosa
  import scipy.sparse

  dense = librosa.filters.mel(
    sr=RATE_HZ, n_fft=N_FFT, n_mels=MELS, fmin=0.0, fmax=8000.0, norm='slaney', htk=False, dtype=np.float64
  )
  return scipy.sparse.csr_array(dense)


@functools.cache
def _window() -> np.ndarray:
  return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float64)  # periodic Hann


def log_mel(wave: np.ndarray, pad_to: int | None = None) -> np.ndarray:
  """Log-mel frames 'T M', float32, 10 ms each, about -1 to 1.

  wave: 16 kHz mono. T = len(wave) // 160. The floor is 8 decades below the clip's own maximum. pad_to: zero-pad to this many
  samples first, as the reference does to the shorter clips of a call; then T = ceil(len(wave) / 160), at most pad_to // 160.
  Raises ValueError below 160 samples. From 160 to 200 the mirrored edge is longer than the clip: it is mirrored again, where
  the reference fails.
  Source: the reference's WhisperFeatureExtractor with feature_size 128; the STFT is taken in blocks, so memory is linear.
  """
  samples = len(wave)
  if pad_to is not None and pad_to > samples:
    wave = np.pad(wave, (0, pad_to - samples))
  frames = len(wave) // HOP
  if not samples or not frames:
    raise ValueError(f'audio of {samples} samples at 16 kHz; at least {HOP} (10 ms, one frame) are needed')
  padded = np.pad(wave.astype(np.float32, copy=False), N_FFT // 2, mode='reflect')
  out = log_power(padded, frames)
  return clip_and_scale(out, out.max())[: frames if pad_to is None else min(frames, -(-samples // HOP))]


def log_power(padded: np.ndarray, frames: int) -> np.ndarray:
  """log10 of the mel power of `frames` frames, 'T M' float32; frame t reads the 400 samples from 160 t on."""
  out = np.empty((frames, MELS), np.float32)
  filters, window = _mel_filters(), _window()
  for start in range(0, frames, _STFT_BLOCK):
    count = min(_STFT_BLOCK, frames - start)
    piece = padded[start * HOP : (start + count - 1) * HOP + N_FFT]
    windows = np.lib.stride_tricks.sliding_window_view(piece, N_FFT)[::HOP]
    power = np.abs(np.fft.rfft(windows * window, axis=-1)) ** 2
    out[start : start + count] = np.log10(np.maximum((filters @ power.T).T, 1e-10))
  return out


FLOOR = 8.0  # decades below the loudest value of a clip


def clip_and_scale(log_mel: np.ndarray, loudest: float) -> np.ndarray:
  """What the encoder takes: nothing more than 8 decades below the loudest value, and scaled to about -1 to 1."""
  return (np.maximum(log_mel, np.float32(loudest - FLOOR)) + np.float32(4)) / np.float32(4)
