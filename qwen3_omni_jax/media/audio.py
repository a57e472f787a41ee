"""Audio: any file to 16 kHz mono samples, samples to log-mel frames, frames to a number of tokens."""

import dataclasses
import functools
import io
import math
import pathlib
from typing import Any

import numpy as np

from .container import check_decodable, check_one_recording, chosen_stream, open_container, unreadable
from .source import Limits, name_of, read_bytes
from .timeline import SLACK_S, Track, check_whole, see, stated_end
from .whole import damaged_ogg, mp3_tag, stated_sound

RATE_HZ = 16_000
N_FFT = 400  # 25 ms
HOP = 160  # 10 ms per frame
MELS = 128
CHUNK_FRAMES = 100  # 1 s: what one convolution chunk of the encoder sees
CHUNK_TOKENS = 13
LOUDEST = 8.0  # of float samples: 18 dB above full scale, more than any mix; beyond it the scale is not [-1, 1]
_STFT_BLOCK = 4096  # frames whose spectrum exists at once
# Formats of soundfile in which a sample is found without decoding those before it.
_SEEKABLE = ('WAV', 'WAVEX', 'RF64', 'W64', 'AIFF', 'AU', 'CAF', 'FLAC')
# Containers whose packets have times of their own, so that a hole may be meant. In files of sound alone it is damage.
_TIMED = ('mov', 'matroska', 'avi', 'flv', 'mpeg', 'mpegts', 'asf', 'nut', 'mxf', 'rm')


def audio_tokens(frames: int) -> int:
  """Tokens the encoder makes of a clip: 13 for each whole second, and the rest halved three times, rounding up."""
  rest = frames % CHUNK_FRAMES
  for _ in range(3):
    rest = (rest + 1) // 2
  return rest + CHUNK_TOKENS * (frames // CHUNK_FRAMES)


def load_audio(
  source: Any,
  limits: Limits | None = None,
  root: pathlib.Path | None = None,
  *,
  start_s: float | None = None,
  end_s: float | None = None,
  to_hz: int = RATE_HZ,
) -> np.ndarray:
  """float32 mono samples at to_hz (16 kHz), about -1 to 1, from start_s to end_s: in seconds from the first sample on.

  source: a path, data: URL or bytes in any format soundfile or FFmpeg reads (also the sound track of a video); or samples: a
  (samples, rate_hz) pair, or a bare array taken to be at to_hz. Arrays are 'W' or 'W C' floats in [-1, 1] or integers.
  Raises ValueError naming the source if it is empty, too long, not finite, far beyond [-1, 1], shorter than its header says, or
  not audio. Of a file that soundfile reads nothing behind end_s is looked at.
  """
  limits, start_s = limits or Limits(), start_s or 0.0
  if isinstance(source, np.ndarray) or hasattr(source, '__array__'):
    source = (source, to_hz)
  if isinstance(source, (tuple, list)) and len(source) == 2 and not isinstance(source[0], (int, float)):
    samples, rate_hz = source
    name = name_of(samples)
    whole = _mono(samples, name)
    _check_rate(rate_hz, name)
    stop = None if end_s is None else int(end_s * rate_hz)
    track = SoundTrack(whole[int(start_s * rate_hz) : stop], float(rate_hz), seconds=len(whole) / rate_hz)
  elif isinstance(source, (list, tuple)):
    raise ValueError('audio: a list of numbers; give a numpy array, or (samples, rate_hz)')
  else:
    name = name_of(source)
    track = _decode(read_bytes(source, limits, root), name, limits, start_s, end_s)
  if not len(track.samples):
    until = '' if end_s is None else f' to {end_s:g} s'
    raise ValueError(f'{name}: no sound from {start_s:g} s{until}; it has {track.seconds:.2f} s')
  return _resampled(_mono(track.samples, name), track.rate_hz, name, limits, to_hz)


def _check_rate(rate_hz: Any, name: str) -> None:
  if not isinstance(rate_hz, (int, float, np.integer, np.floating)) or not 100 <= rate_hz <= 1_000_000:
    raise ValueError(f'{name}: sample rate {rate_hz!r}; expected 100 to 1,000,000 Hz')


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
    samples = _from_integers(samples, name)
  with np.errstate(over='ignore', invalid='ignore'):  # what float32 cannot hold becomes infinite, and is refused below
    samples = samples.astype(np.float32, copy=False)
    samples = samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float32)
  if not (finite := np.isfinite(samples)).all():
    raise ValueError(f'{name}: {np.count_nonzero(~finite)} samples are NaN or infinite')
  if (loudest := float(np.abs(samples).max())) > LOUDEST:
    raise ValueError(
      f'{name}: samples as large as {loudest:.6g}; floats are expected in [-1, 1]. Were integers cast to float? Give the '
      'integers, or divide by their scale (32768 for 16 bits)'
    )
  return samples


def _from_integers(samples: np.ndarray, name: str) -> np.ndarray:
  """float32 samples in [-1, 1] of integers, whose type says the scale."""
  scale = 2 ** (8 * samples.dtype.itemsize - 1)
  offset = scale if samples.dtype.kind == 'u' else 0
  loudest = max(int(samples.max()) - offset, offset - int(samples.min()))
  if samples.dtype.itemsize > 2 and 0 < loudest < scale >> 15:
    raise ValueError(
      f'{name}: {samples.dtype} samples, none larger than {loudest}: on the scale of that type nearly silence. Give them in the '
      'type they were recorded in (int16?)'
    )
  return (samples.astype(np.float32) - np.float32(offset)) / np.float32(scale)


def _resampled(samples: np.ndarray, rate_hz: float, name: str, limits: Limits, to_hz: int = RATE_HZ) -> np.ndarray:
  _check_rate(rate_hz, name)
  if len(samples) / rate_hz > limits.audio_s:
    raise ValueError(f'{name}: {len(samples) / rate_hz:.0f} s of audio; the limit is {limits.audio_s:.0f} s')
  if rate_hz != to_hz:
    import librosa

    samples = librosa.resample(samples, orig_sr=rate_hz, target_sr=to_hz)
  if len(samples) < to_hz * HOP // RATE_HZ:
    raise ValueError(
      f'{name}: {len(samples)} samples at {to_hz / 1000:g} kHz; at least {to_hz * HOP // RATE_HZ} (10 ms) are needed'
    )
  return np.ascontiguousarray(samples, np.float32)


class _Bytes(io.BytesIO):
  """Bytes as a file. A damaged header can make libsndfile seek before the start: it stays put, as a file on disk would."""

  def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
    try:
      return super().seek(offset, whence)
    except (ValueError, OverflowError):
      return self.tell()


class _Blocks:
  """Mono samples as they are decoded. What does not fit the limits stops the decoding, whatever the header promised.

  first, end: the samples from one to before the other are kept. samples: how many went by, kept or not.
  """

  def __init__(self, name: str, rate_hz: float, limits: Limits, first: int = 0, end: float = math.inf):
    self.name, self.rate_hz, self.limits, self.first, self.end = name, rate_hz, limits, first, end
    self.blocks: list[np.ndarray] = []
    self.samples = 0

  def check(self, samples: float, channels: int) -> None:
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
    self.check(min(self.samples + len(block), self.end), block.shape[1])
    kept = block[max(self.first - self.samples, 0) : min(self.end - self.samples, len(block))]
    with np.errstate(over='ignore', invalid='ignore'):  # not finite: refused later, with a count
      self.blocks.append(kept.mean(axis=1, dtype=np.float32))
    self.samples += len(block)

  def add_silence(self, samples: int) -> None:
    self.check(self.samples + samples, 1)
    self.blocks.append(np.zeros(samples, np.float32))
    self.samples += samples

  def joined(self) -> np.ndarray:
    if not self.samples:
      raise ValueError(f'{self.name}: no audio samples')
    return np.concatenate([np.zeros(0, np.float32), *self.blocks])


@dataclasses.dataclass(frozen=True)
class SoundTrack:
  """Mono float32 samples of a sound, or of a stretch of it; holes filled with silence. late_s: how long after the pictures of its
  container it begins. seconds: of the whole sound, as far as it was read; ended: that is to its end."""

  samples: np.ndarray
  rate_hz: float
  late_s: float = 0.0
  seconds: float = 0.0
  ended: bool = True


def _decode(data: bytes, name: str, limits: Limits, start_s: float, end_s: float | None) -> SoundTrack:
  """The stretch through soundfile, or through FFmpeg for what soundfile does not read, or not to its end."""
  check_one_recording(data, name)
  track = _through_soundfile(data, name, limits, start_s, end_s)
  if track is None:
    track = decode_track(data, name, limits)
    if track is None:
      raise ValueError(f'{name}: no audio in it')
    track = cut_track(dataclasses.replace(track, late_s=0.0), start_s, end_s)
  if track.ended and (sound := stated_sound(data)):
    stated, there = sound
    check_whole(track.seconds * stated / max(there, 1), track.seconds, name, limits)
  return track


def cut_track(track: SoundTrack, start_s: float, end_s: float | None) -> SoundTrack:
  """The track from start_s to end_s by the container's clock, or nothing of it. Rounded as librosa does where FFmpeg decodes."""
  begin = max(start_s - track.late_s, 0.0)
  first = round(begin * track.rate_hz)
  stop = None if end_s is None else first + max(round((end_s - track.late_s - begin) * track.rate_hz), 0)
  return dataclasses.replace(track, samples=track.samples[first:stop], late_s=max(track.late_s - start_s, 0.0))


def _through_soundfile(data: bytes, name: str, limits: Limits, start_s: float, end_s: float | None) -> SoundTrack | None:
  """The stretch, or None if the file is not for soundfile. Raises ValueError if it breaks off before its stated end: FFmpeg would
  go on with noise, or at the wrong place."""
  import soundfile

  failed = (soundfile.SoundFileError, RuntimeError, TypeError, OverflowError, MemoryError)
  try:
    file = soundfile.SoundFile(_Bytes(data))
  except failed:
    return None
  with file:
    if file.format == 'MP3' and mp3_tag(data) is None:
      return None  # it would stop at a length guessed from the first frame's bit rate
    first = int(start_s * file.samplerate)  # rounded as librosa does
    end = math.inf if end_s is None else first + int((end_s - start_s) * file.samplerate)
    blocks = _Blocks(name, file.samplerate, limits, first, end)
    # libsndfile says 2^63 - 1 where a header leaves the length open; then only the data can tell.
    stated = file.frames if file.frames < 2**62 else 0
    blocks.check(min(stated, end), file.channels)
    whole = file.format != 'OGG' or damaged_ogg(data) is None  # over a lost page the decoder leaps, and repeats the end
    try:
      if first and stated and file.format in _SEEKABLE:
        blocks.samples = file.seek(min(first, stated))
      while whole and blocks.samples < end:
        asked = int(min(2**16 // file.channels, end - blocks.samples))
        if not len(block := file.read(asked, dtype='float32', always_2d=True)):
          break
        blocks.add(block)
        whole = len(block) == asked or stated - blocks.samples < SLACK_S * file.samplerate
    except failed:
      whole = False
    if not whole and stated and limits.missing_s < np.inf:
      raise ValueError(
        f'{name}: damaged or truncated: its header says {stated / file.samplerate:.2f} s, after '
        f'{blocks.samples / file.samplerate:.2f} s it cannot be read on. Get the whole file, or encode what is there anew'
      )
    if not whole or not blocks.samples:
      return None
    return SoundTrack(blocks.joined(), blocks.rate_hz, seconds=blocks.samples / blocks.rate_hz, ended=blocks.samples < end)


def decode_track(data: bytes, name: str, limits: Limits) -> SoundTrack | None:
  """The sound of a container through FFmpeg; None if it has none. See media.timeline for what counts, and when it is heard."""
  import av
  import av.error

  with open_container(data, name, 'audio') as container:
    stream, picture = (chosen_stream(container, kind) for kind in ('audio', 'video'))
    if stream is None:
      return None
    check_decodable(stream, name)
    # Only the sample format is converted: FFmpeg's own way to mono weights channels (two equal ones get 1.41 times louder).
    resampler = av.AudioResampler(format='fltp')
    blocks = _Blocks(name, stream.codec_context.sample_rate or RATE_HZ, limits)
    tracks = {s.index: Track(s, name) for s in container.streams}
    sound, start, lost = tracks[stream.index], None, 0
    try:
      for packet in container.demux():
        see(tracks, packet)
        ours = packet.stream_index == stream.index and (packet.size or packet.dts is None)  # without either: the end
        for frame in packet.decode() if ours else ():
          if start is None:
            blocks.rate_hz = frame.sample_rate
            start = 0.0 if frame.time is None else frame.time
          hole = 0 if frame.time is None else round((frame.time - start) * blocks.rate_hz) - blocks.samples
          if hole > SLACK_S * blocks.rate_hz:
            blocks.add_silence(hole)
            lost += hole
          for part in resampler.resample(frame):
            blocks.add(part.to_ndarray().T)
      for part in resampler.resample(None) if blocks.samples else ():
        blocks.add(part.to_ndarray().T)
    except (av.error.FFmpegError, ValueError, OSError, MemoryError) as e:
      if str(e).startswith(name):
        raise
      raise unreadable(name, f'audio: broken after {blocks.samples / blocks.rate_hz:.2f} s', e) from e
    if not sound.packets and picture is not None:
      return None  # declared and never used
    end = (start or 0.0) + blocks.samples / blocks.rate_hz
    if container.format.name.split(',')[0] not in _TIMED:
      end -= lost / blocks.rate_hz
    check_whole(sound.end_s if sound.timed else None, end, name, limits)
    stated, own = stated_end(container, stream, data)
    check_whole(stated, end if own else max(track.end_s for track in tracks.values()), name, limits)
    shown = None if picture is None else tracks[picture.index].start_s
  late = 0.0 if shown is None or start is None or start - shown < SLACK_S else start - shown
  return SoundTrack(blocks.joined(), blocks.rate_hz, late, blocks.samples / blocks.rate_hz)


def track_samples(track: SoundTrack, name: str, limits: Limits) -> np.ndarray:
  """A track at 16 kHz, silence before it where it begins later than the pictures."""
  silence = round(track.late_s * RATE_HZ)
  if silence + len(track.samples) / track.rate_hz * RATE_HZ > limits.audio_s * RATE_HZ:
    raise ValueError(f'{name}: its sound ends {track.late_s:.0f} s late; the limit is {limits.audio_s:.0f} s of audio')
  samples = _resampled(_mono(track.samples, name), track.rate_hz, name, limits)
  return np.pad(samples, (silence, 0))


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
