"""Voices are told apart by pitch and timbre, whatever their level and the silence around them."""

import shutil
import subprocess

import numpy as np
import pytest
from qwen3_omni_jax.eval import voice_metrics
from qwen3_omni_jax.eval.voice_metrics import Voices, features, whose

from tests.eval.fixtures import SPEAKERS, vowels


@pytest.fixture(scope='module')
def voices():
  return Voices.of({name: [vowels(name, 1.0, seed) for seed in range(4)] for name in SPEAKERS})


def test_the_pitch_is_that_of_the_voice():
  for name, (pitch_hz, _) in SPEAKERS.items():
    assert np.exp(features(vowels(name, 1.0))[-1]) == pytest.approx(pitch_hz, rel=0.04)  # drawn within 3 %


def test_level_and_silence_change_nothing(voices):
  sound = vowels('chelsie', 1.0, 9)
  changed = np.pad(0.1 * sound, (8000, 4000))
  assert np.abs((features(changed) - features(sound)) / voices.spread).max() < 0.3


@pytest.mark.parametrize('name', SPEAKERS)
def test_a_voice_is_nearest_to_its_own_speaker(voices, name):
  other = next(n for n in SPEAKERS if n != name)
  found = features(vowels(name, 1.3, 11))
  assert voices.nearest(found) == name
  assert voices.similarity(found, name) > 0.8 and voices.similarity(found, other) < -0.8


def test_the_timbre_counts_without_the_pitch(monkeypatch, voices):
  """Chelsie's vowels at Ethan's pitch are less like Ethan than his own."""
  monkeypatch.setitem(SPEAKERS, 'mixed', (SPEAKERS['ethan'][0], SPEAKERS['chelsie'][1]))
  mixed, own = features(vowels('mixed', 1.0, 5)), features(vowels('ethan', 1.0, 5))
  distance = lambda found: np.square((found - voices.means[voices.names.index('ethan')]) / voices.spread)[:-1].sum()
  assert distance(mixed) > 4 * distance(own)
  apart = np.abs(mixed - own) / voices.spread
  assert apart.shape == (13,) and (apart[:-1] > 1).sum() > 3  # more than one of the cepstra


def test_shares_are_of_all_sounds_and_silence_is_nobodys(voices):
  sounds = [vowels('ethan', 1.0, 5), vowels('ethan', 1.0, 6), np.zeros(16_000, np.float32), vowels('chelsie', 1.0, 5)[:1000]]
  right, alike = whose(voices, sounds, ['ethan', 'chelsie', 'ethan', 'chelsie'])
  assert right == 25 and abs(alike) < 10  # one right, one as wrong, two of nobody


def test_one_speaker_or_one_recording_is_refused():
  two = [vowels('ethan', 1.0, seed) for seed in range(2)]
  with pytest.raises(ValueError, match='1 speakers'):
    Voices.of({'ethan': two})
  with pytest.raises(ValueError, match='1 of chelsie'):
    Voices.of({'ethan': two, 'chelsie': [vowels('chelsie', 1.0), np.zeros(16_000, np.float32)]})
  assert np.isfinite(Voices.of({'ethan': two[:1] * 2, 'chelsie': [vowels('chelsie', 1.0)] * 2}).spread).all()


@pytest.mark.skipif(shutil.which('espeak-ng') is None, reason='NOT CHECKED: espeak-ng is not installed')
def test_two_synthetic_speakers_are_told_apart_by_other_words(tmp_path):
  def say(name, voice, words):
    path = tmp_path / f'{name}_{words.replace(" ", "_")}.wav'
    subprocess.run(['espeak-ng', *voice, '-w', path, words], check=True)
    return voice_metrics.sound_of(path)

  speakers = {'ethan': ('-v', 'en-us+m3', '-p', '50'), 'chelsie': ('-v', 'en-us+f2', '-p', '50')}
  known = {
    name: [say(name, voice, words) for words in ('one two', 'stop no', 'go right', 'yes eight')]
    for name, voice in speakers.items()
  }
  names, voices = list(speakers), Voices.of(known)
  right, alike = whose(voices, [say(name, speakers[name], 'five left yes') for name in names], names)
  assert right == 100 and alike > 50
