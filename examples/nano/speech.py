"""Phrases spoken by espeak-ng: in many voices, as a microphone hears them, and in the two voices that the model learns."""

import concurrent.futures
import pathlib
import random
import subprocess
from collections.abc import Sequence

VOICES = ('m1', 'm2', 'm3', 'm4', 'm7', 'f1', 'f2', 'f3', 'f4')
SPEAKERS = {'ethan': ('-v', 'en-us+m3', '-s', '170', '-p', '45'), 'chelsie': ('-v', 'en-us+f2', '-s', '170', '-p', '55')}
_LEAST_DB, _NOISE_DB, _SILENCE_S = -20.0, 20.0, 0.5  # what a microphone may do: lower the level, add noise, begin early
EFFECTS = ('silence', 'level', 'noise')
_THREADS = 4


def any_voice(rng: random.Random) -> tuple[str, ...]:
  """Options of espeak-ng for a voice, speed and pitch."""
  return ('-v', f'en-us+{rng.choice(VOICES)}', '-s', str(rng.randint(150, 210)), '-p', str(rng.randint(25, 75)))


def say(jobs: Sequence[tuple[pathlib.Path, str, Sequence[str]]]) -> None:
  """Writes a wav file for each (file, words, options), beginning and ending with the sound itself."""
  run = lambda job: subprocess.run(['espeak-ng', *job[2], '-w', str(job[0]), job[1]], check=True, capture_output=True)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    list(pool.map(run, jobs))


def as_heard(clean: pathlib.Path, out: pathlib.Path, effects: Sequence[str], rng: random.Random) -> None:
  """The sound of a file as a microphone gives it: silence of up to half a second before and after, a level of -20 to 0 dB, white
  noise 20 to 40 dB under the sound."""
  import numpy as np
  import soundfile

  samples, rate = soundfile.read(clean, dtype='float32')
  if 'silence' in effects:
    samples = np.pad(samples, [int(rng.uniform(0, _SILENCE_S) * rate) for _ in range(2)])
  if 'noise' in effects:
    power = float(np.mean(np.square(samples))) * 10 ** (-rng.uniform(_NOISE_DB, 2 * _NOISE_DB) / 10)
    samples = samples + np.random.default_rng(rng.randrange(2**32)).normal(0, power**0.5, len(samples))
  if 'level' in effects:
    samples = samples * 10 ** (rng.uniform(_LEAST_DB, 0) / 20)
  soundfile.write(out, np.clip(samples, -1, 1), rate, subtype='PCM_16')


def some_effects(rng: random.Random) -> list[str]:
  """Each of them in two of three recordings."""
  return [effect for effect in EFFECTS if rng.random() < 2 / 3]
