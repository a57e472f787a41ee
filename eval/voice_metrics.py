"""What can be said of speech without hearing its words: how long it is, how it ended, and whose voice it is. No model is needed.

A voice is known by long-term averages over the frames in which something is said: twelve mel-cepstra (the shape of the vocal
tract) and the logarithm of the fundamental frequency. A recording is as far from a speaker as its averages are from those of the
speaker's own recordings, each feature measured in its spread between recordings of one speaker. It tells voices apart that say
like things; it is no embedding of a speaker network.

Source: J. Markel, B. Oshika, A. Gray, Long-term feature averaging for speaker recognition, IEEE Trans. ASSP 25 (1977), 330-337;
theirs are reflection coefficients in place of cepstra, and the whole covariance.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from qwen3_omni_jax.media.audio import RATE_HZ, load_audio
from qwen3_omni_jax.shapes import Float

HOP = RATE_HZ // 100
WINDOW, PITCH_WINDOW = 512, 1024  # 32 ms; 64 ms has more than two periods of the lowest pitch
PITCH_HZ = (60.0, 400.0)
CEPSTRA = 12  # without the one that is the level
QUIET_DB, UNVOICED_DB = 20.0, 10.0  # under the loudest frame: there nothing is said; there no vowel is
CUT = ('length', 'runaway', 'loop')  # finish reasons of speech that did not end by itself
# A word more or less in a phrase of three changes its length by a third.
LIKE_THE_RECORDING = (0.75, 4 / 3)


def sound_of(wave: pathlib.Path) -> Float[np.ndarray, ' W']:
  """Samples at 16 kHz; none for a file without any, as of a voice that ended before it began."""
  import soundfile

  return load_audio(wave) if soundfile.info(wave).frames else np.zeros(0, np.float32)


def features(sound: Float[np.ndarray, ' W']) -> Float[np.ndarray, ' D'] | None:
  """Long-term averages of a recording at 16 kHz: CEPSTRA mel-cepstra, log of the pitch in Hz. None if nothing is said in it."""
  import librosa
  from scipy import ndimage

  if len(sound) < PITCH_WINDOW or not np.any(sound):
    return None
  sound = sound / np.abs(sound).max()
  level = librosa.feature.rms(y=sound, frame_length=WINDOW, hop_length=HOP)[0]
  # of the quietest frame around, so that windows half filled are none in which something is said
  below_db = ndimage.minimum_filter1d(20 * np.log10(np.maximum(level, 1e-9) / level.max()), 5, mode='constant', cval=-np.inf)
  if below_db.max() <= -UNVOICED_DB:
    return None
  cepstra = librosa.feature.mfcc(y=sound, sr=RATE_HZ, n_mfcc=CEPSTRA + 1, n_fft=WINDOW, hop_length=HOP, n_mels=40)[1:]
  low, high = PITCH_HZ
  pitch = librosa.yin(sound, fmin=low, fmax=high, sr=RATE_HZ, frame_length=PITCH_WINDOW, hop_length=HOP)
  voiced = np.log(np.median(pitch[below_db > -UNVOICED_DB]))  # the median: some of these frames are no vowels
  return np.append(cepstra[:, below_db > -QUIET_DB].mean(axis=1), voiced)


@dataclasses.dataclass(frozen=True)
class Voices:
  """Two speakers or more. means: of their recordings, 'S D'. spread: of recordings of one speaker, 'D'."""

  names: tuple[str, ...]
  means: Float[np.ndarray, 'S D']
  spread: Float[np.ndarray, ' D']

  @classmethod
  def of(cls, recordings: Mapping[str, Sequence[Float[np.ndarray, ' W']]]) -> 'Voices':
    """From recordings at 16 kHz by speaker: a dozen tell the spread, two are the least.

    Raises ValueError for fewer than two speakers, or recordings of one.
    """
    found = {name: [f for f in map(features, sounds) if f is not None] for name, sounds in recordings.items()}
    few = [f'{len(them)} of {name}' for name, them in found.items() if len(them) < 2]
    if few or len(found) < 2:
      counts = ', '.join(few) or f'{len(found)} speakers'
      raise ValueError(f'voices: found {counts} with speech in them; expected two recordings or more of each of two speakers')
    means = np.stack([np.mean(them, axis=0) for them in found.values()])
    within = np.concatenate([them - mean for them, mean in zip(found.values(), means, strict=True)])
    spread = np.sqrt(np.square(within).sum(axis=0) / (len(within) - len(means)))
    return cls(tuple(found), means, np.maximum(spread, 1e-3 * np.abs(means).mean(axis=0)))  # of copies there is no spread

  def nearest(self, found: Float[np.ndarray, ' D']) -> str:
    """Whose voice it is."""
    return self.names[int(np.argmin(np.square((found - self.means) / self.spread).sum(axis=1)))]

  def similarity(self, found: Float[np.ndarray, ' D'], name: str) -> float:
    """Cosine, -1 to 1, between what sets the recording and what sets the speaker apart from the mean of all speakers."""
    centre = self.means.mean(axis=0)
    a, b = ((x - centre) / self.spread for x in (found, self.means[self.names.index(name)]))
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def ending(finish_reasons: Sequence[str], spoken: Sequence[float], recorded: Sequence[float]) -> dict[str, float]:
  """Percent. runaways: speech that a limit or a guard ended. end right: it ended by itself, and about as long as the recording of
  the text (LIKE_THE_RECORDING). duration: of all together, the recordings being 100. spoken, recorded: lengths in s."""
  cut = np.array([reason in CUT for reason in finish_reasons])
  ratio = np.asarray(spoken) / np.asarray(recorded)
  low, high = LIKE_THE_RECORDING
  right = ~cut & (low <= ratio) & (ratio <= high)
  rates = {'runaways': cut.mean(), 'end right': right.mean(), 'duration': sum(spoken) / sum(recorded)}
  return {name: 100 * float(rate) for name, rate in rates.items()}


def whose(voices: Voices, sounds: Sequence[Float[np.ndarray, ' W']], speakers: Sequence[str]) -> tuple[float, float]:
  """(share of the sounds whose nearest speaker is the wanted one, mean similarity to it), in percent. Silence is nobody's: 0."""
  found = [features(sound) for sound in sounds]
  pairs = list(zip(found, speakers, strict=True))
  right = [f is not None and voices.nearest(f) == name for f, name in pairs]
  alike = [0.0 if f is None else voices.similarity(f, name) for f, name in pairs]
  return 100 * float(np.mean(right)), 100 * float(np.mean(alike))
